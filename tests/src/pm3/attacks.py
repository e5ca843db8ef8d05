"""Attacks on the pm3 API by a client that says one thing and is another; a JSON line of counts for each row of the matrix.

The caller is root on the host of the agent, whom the agent trusts: whatever is refused, is refused for the attack alone.
Before and after each row an honest request must be answered, so that a gateway that answers nobody fails.
"""
import encodings.idna  # What a user without rights may not be able to load later.
import json, os, select, signal, socket, struct, subprocess, sys, time

ADDRESS, NAME = sys.argv[1], '"alpha"'
PATIENCE = 90
UPGRADE = ("GET /connect HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n")


def connect(source=None):
    return socket.create_connection((ADDRESS, 80), timeout=PATIENCE, source_address=source)


def is_whole(answer):
    """Whether this is one answer to its last byte, and no upgrade."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end and length) and status(answer) != 101 and len(body) >= int(length[0])


def drain(stream, is_enough=is_whole):
    """Everything up to the end of the connection or what is enough; a reset is an end."""
    seen = b""
    try:
        while not is_enough(seen) and (chunk := stream.recv(65536)):
            seen += chunk
    except ConnectionError:
        pass
    return seen


def exchange(*pieces, source=None, ends=False):
    """What is answered to these bytes until the connection ends, which this side asks for with `ends`."""
    with connect(source) as stream:
        try:
            for piece in pieces:
                stream.sendall(piece if isinstance(piece, bytes) else piece.encode("utf-8"))
            if ends:
                # A server that sees the end while it reads the first request need not answer what came behind it.
                select.select([stream], [], [], 1)
                stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It was closed before all was sent, which is an answer.
        return drain(stream, (lambda _: False) if ends else is_whole)


def get(path="/ping", host="pm3", more="", method="GET", body="", source=None):
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{length}{more}\r\n"
    return exchange(head + body, source=source)


def status(answer):
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.") else 0


def honest():
    answer = get()
    assert status(answer) == 200 and NAME.encode() in answer, answer


def become_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def as_nobody(path, *more, host="pm3"):
    """The status for a user that the agent does not trust."""
    words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Host: {host}", *more, f"http://{ADDRESS}{path}"]
    return int(subprocess.run(words, stdout=subprocess.PIPE, preexec_fn=become_nobody, timeout=PATIENCE, check=False).stdout)


class Row:
    """Counts what is refused: an answer of 400 and above, or a connection that ends without one."""

    def __init__(self, name):
        self.name, self.attempts, self.through = name, 0, []
        honest()

    def try_(self, what, refused):
        self.attempts += 1
        if not refused:
            self.through.append(str(what)[:200])

    def http(self, what, answer):
        self.try_(f"{what}: {answer[:120]}", (status(answer) >= 400 or answer == b"") and NAME.encode() not in answer)

    def end(self):
        honest()
        print(json.dumps({"row": self.name, "attempts": self.attempts, "through": self.through}), flush=True)


def forged_forwarding():
    row = Row("forged X-Forwarded-For")
    addresses = ["127.0.0.1", "::1", "[::1]:80", "127.0.3.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00::1", "0.0.0.0",
                 "8.8.8.8, 127.0.0.1", "127.0.0.1, 8.8.8.8", "10.0.0.1,127.0.0.1,::1", ",", "", "localhost", "pm3", "unknown"]
    for address in addresses:
        for name in ["X-Forwarded-For", "x-forwarded-for", "X-Real-IP", "X-Client-IP", "CF-Connecting-IP", "True-Client-IP"]:
            row.http(f"{name}: {address}", get(more=f"{name}: {address}\r\n"))
        row.http(f"two lines, {address}", get(more=f"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: {address}\r\n"))
        row.http(f"Forwarded {address}", get(more=f'Forwarded: for="{address}";proto=https;by=127.0.0.1\r\n'))
    for header in ["X-Forwarded-Host: pm3", "X-Forwarded-Proto: https", "X-Forwarded-Port: 80", "Via: 1.1 pm3", "Via:"]:
        row.http(header, get(more=f"{header}\r\n"))
    # What a member of the mesh may say about whom it asks for, and what servers behind us are told, is nobody else's to say.
    for header in ["P-Internal: 1", "P-Portal: 1", 'P-Caller: {"node":"alpha","standing":"internal"}', "P-Ip: 127.0.0.1"]:
        outcome = as_nobody("/ping", "-H", header)
        row.try_(f"{header} of nobody: {outcome}", outcome == 403)
    row.end()


def host_tricks():
    row = Row("Host tricks")
    hosts = ["PM3", "Pm3", "pm3.", "pm3.:80", "pm3:", "pm3:080", "pm3:81", "pm3:443", "pm3:+80", "pm3: 80", "pm3:80:80", "x@pm3",
             "pm3@x", "pm3,pm3", "pm3;", "pm3/", "pm3\\x", "pm3%00", "%70m3", "[pm3]", "xn--pm3", "a.pm3", "beta.pm3", ".pm3",
             "a.alpha.pm3", "ALPHA.pm3", "alpha.PM3", "pm3.local", "localhost", "127.0.3.3", "127.0.0.1:80", "[::1]", "",
             "p\u043c3", "\u0440m3", "pm\u0437", "\uff50\uff4d\uff13", "pm3\u200b", "pm\u00b3", "pm3\u3002"]
    for host in hosts:
        row.http(host, get(host=host))
        row.http(f"target {host}", exchange(f"GET http://{host}/ping HTTP/1.1\r\nHost: pm3\r\nConnection: close\r\n\r\n"))
    for two in ["pm3\r\nHost: pm3", "pm3\r\nHost: evil.example", "evil.example\r\nHost: pm3", "pm3\r\n Host: x", "pm3\tx"]:
        row.http(two, get(host=two))
    row.http("no host", exchange("GET /ping HTTP/1.0\r\n\r\n"))
    row.end()


def browser():
    row = Row("browser with Origin or Sec-Fetch-Site")
    headers = ["Origin: http://evil.example", "Origin: null", "Origin:", "Origin: http://pm3.evil.example", "Origin: pm3",
               "Origin: http://pm3:8080", "Origin: http://PM3", "Origin: http://pm3@evil.example", "Origin: file://",
               "Origin: http://pm3\r\nOrigin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site",
               "Sec-Fetch-Site: CROSS-SITE", "Sec-Fetch-Site:", "Referer: http://evil.example/http://pm3/",
               "Referer: http://pm3.evil.example/"]
    for header in headers:
        row.http(header, get(more=f"{header}\r\n"))
        row.http(f"POST, {header}", get("/reload", more=f"Content-Type: text/plain\r\n{header}\r\n", method="POST"))
        row.http(f"WebSocket, {header}", exchange(UPGRADE.format(host="pm3", more=f"{header}\r\n")))
    preflight = "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n"
    answer = get(method="OPTIONS", more=preflight)
    row.try_(f"preflight: {answer}", b"access-control-allow" not in answer.lower() and status(answer) >= 400)
    row.end()


def rebound():
    row = Row("DNS-rebound Host")
    for host in ["evil.example", "evil.example:80", "rebind.evil.example", "127.0.3.3.nip.example", "pm3.evil.example",
                 "evil.example.pm3", "evil-pm3", "1u.ms"]:
        for more in ["", f"Origin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n"]:
            row.http(host, get(host=host, more=more))
            row.http(f"POST {host}", get("/shutdown", host=host, more=more, method="POST"))
            row.http(f"WebSocket {host}", exchange(UPGRADE.format(host=host, more=more)))
    row.end()


def smuggling():
    row = Row("HTTP request smuggling")
    hidden = "GET /debug/headers HTTP/1.1\r\nHost: pm3\r\nConnection: close\r\n\r\n"
    open_ = exchange(f"POST /ping HTTP/1.1\r\nHost: pm3\r\nContent-Length: 0\r\n\r\n{hidden}", ends=True)
    assert b"GET /debug/headers" in open_, f"a second request that is not hidden is answered: {open_}"
    refused = ["Content-Length: 5\r\nContent-Length: 6", "Content-Length: +5", "Content-Length: 5, 6", "Content-Length: -1",
               "Content-Length: 0x5", "Content-Length: 5 5", "Content-Length:", "Content-Length: 99999999999999999999",
               "Transfer-Encoding: chunked, identity", "Transfer-Encoding: xchunked", "Transfer-Encoding : chunked",
               "Transfer-Encoding: identity", "Transfer-Encoding:\x0bchunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
               "X: y\rTransfer-Encoding: chunked", "X\x00: y", " Transfer-Encoding: chunked"]
    for head in refused:
        answer = exchange(f"POST /ping HTTP/1.1\r\nHost: pm3\r\n{head}\r\n\r\n{hidden}", ends=True)
        row.try_(f"{head!r}: {answer}", b"GET /debug/headers" not in answer)
    # Two lengths: chunked counts, and what follows the last chunk is no request of this connection.
    for head in ["Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 60"]:
        answer = exchange(f"POST /ping HTTP/1.1\r\nHost: pm3\r\n{head}\r\n\r\n0\r\n\r\n{hidden}", ends=True)
        row.try_(f"{head!r}: {answer}", b"GET /debug/headers" not in answer)
    for chunk in ["-1\r\n", "+1\r\nx\r\n", "0x1\r\nx\r\n", "1;\nx\r\n", "FFFFFFFFFFFFFFFFF\r\n", "1\nx\n", "1\r\nxx\r\n", " 1\r\nx\r\n"]:
        answer = exchange(f"POST /sign HTTP/1.1\r\nHost: pm3\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n{hidden}", ends=True)
        row.try_(f"chunk {chunk!r}: {answer}", b"GET /debug/headers" not in answer)
    for line in ["GET /ping\r\n", "GET  /ping HTTP/1.1\r\n", "GET /ping HTTP/1.2\r\n", "GET /pi ng HTTP/1.1\r\n", "GE\x00T / HTTP/1.1\r\n",
                 "GET /ping HTTP/1.1\n\r", "CONNECT pm3:80 HTTP/1.1\r\n", "GET ping HTTP/1.1\r\n"]:
        row.http(repr(line), exchange(f"{line}Host: pm3\r\nConnection: close\r\n\r\n"))
    row.end()


def oversized():
    row = Row("oversized headers and bodies")
    row.http("a header of 64 KiB", get(more=f"X: {'x' * 65536}\r\n"))
    row.http("2000 headers", get(more="".join(f"X-{n}: {n}\r\n" for n in range(2000))))
    row.http("a target of 64 KiB", get("/" + "x" * 65536))
    row.http("a header without an end", exchange("GET /ping HTTP/1.1\r\nHost: pm3\r\nX: ", b"x" * (1 << 20)))
    for path in ["/sign", "/kv/a", "/tail", "/lambda/x/y", "/publish/x"]:
        row.http(f"2 MiB for {path}", get(path, method="POST", body="x" * (2 << 20)))
    chunks = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    head = b"POST /kv/a HTTP/1.1\r\nHost: pm3\r\nTransfer-Encoding: chunked\r\n\r\n"
    row.http("2 MiB in chunks", exchange(head, *[chunks] * 32, b"0\r\n\r\n"))
    row.http("a length of 1 TiB", exchange("POST /kv/a HTTP/1.1\r\nHost: pm3\r\nContent-Length: 1099511627776\r\n\r\n", b"x" * (2 << 20)))
    row.end()


def slowloris():
    row = Row("slowloris")
    beginnings = [b"", b"G", b"GET /ping HTTP/1.1\r\nHost:", b"GET /ping HTTP/1.1\r\nHost: pm3\r\nX: y\r\n", b"PRI * HTTP/2.0\r\n",
                  b"POST /sign HTTP/1.1\r\nHost: pm3\r\nContent-Length: 9\r\n\r\n{"]
    held = {}
    for beginning in beginnings * 50:
        stream = connect()
        stream.sendall(beginning)
        held[stream] = beginning
    honest()
    ends = time.monotonic() + PATIENCE
    fed = [stream for stream, beginning in held.items() if beginning.endswith(b"X: y\r\n")]
    while held and time.monotonic() < ends:
        for stream in select.select(list(held), [], [], 1)[0]:
            try:
                seen = stream.recv(65536)
            except ConnectionError:
                seen = b""
            if seen:
                row.try_(f"{held[stream]}: {seen}", b"HTTP/1.1 4" in seen or b"HTTP/1.1 5" in seen) if status(seen) else None
                continue
            if not held[stream].startswith(b"POST"):
                row.try_("closed", True)
            del held[stream]
            stream.close()
        # One of the kinds says a little more again and again.
        for stream in fed:
            if stream in held:
                try:
                    stream.send(b"x")
                except OSError:
                    pass
    for beginning in held.values():
        row.try_(f"{beginning} is still open", False)
    row.end()


def frame(first, payload=b"", mask=True, length=None):
    size = len(payload) if length is None else length
    marked = 0x80 if mask else 0
    if size < 126:
        head = bytes([first, marked | size])
    elif size < 65536:
        head = bytes([first, marked | 126]) + struct.pack(">H", size)
    else:
        head = bytes([first, marked | 127]) + struct.pack(">Q", size)
    return head + (b"\0\0\0\0" if mask else b"") + payload


PING, CLOSE = b'{"id":1,"method":"/ping","params":[]}', frame(0x88, b"\x03\xe8")


def frames():
    row = Row("WebSocket frame abuse")
    upgrade = UPGRADE.format(host="pm3", more="").encode()
    control = exchange(upgrade, frame(0x81, PING), CLOSE)
    assert NAME.encode() in control, control
    # After each of them, an honest call on the same connection must not be answered any more.
    abuses = {
        "not masked": frame(0x81, PING, mask=False), "reserved bits": frame(0xF1, b"x"), "an opcode that is none": frame(0x83),
        "an unknown control opcode": frame(0x8B), "a fragmented ping": frame(0x09), "a ping of 200 bytes": frame(0x89, b"x" * 200),
        "a close of one byte": frame(0x88, b"\x03"), "a close of a code that is none": frame(0x88, b"\x00\x05"),
        "a continuation of nothing": frame(0x80, b"x"), "a text within a text": frame(0x01, b"{") + frame(0x81, b"{"),
        "no UTF-8": frame(0x81, b"\xff\xfe\xfd"), "2^63 bytes": b"\x82\xff" + b"\x80" + b"\0" * 11,
        "2^62 bytes": b"\x82\xff" + b"\x40" + b"\0" * 11, "more than a message may have": frame(0x81, b'"' + b"x" * (2 << 20)),
        "the same in fragments": frame(0x01, b'"' + b"x" * 65536) + frame(0x00, b"x" * 65536) * 40,
        "no JSON": frame(0x81, b"]"), "an array": frame(0x81, b"[1]"), "a number": frame(0x81, b"1 "), "closed, then asked": CLOSE,
    }
    for what, abuse in abuses.items():
        answer = exchange(upgrade, abuse, frame(0x81, PING), CLOSE)
        # A server may answer what came before the abuse in the stream, and nothing after it.
        row.try_(f"{what}: {answer[-200:]}", status(answer) == 101 and b"alpha" not in answer)
    for more in ["Sec-WebSocket-Version: 99\r\n", "Sec-WebSocket-Key: short\r\n"]:
        name = more.split(":")[0]
        lines = [line for line in UPGRADE.format(host="pm3", more="").split("\r\n") if line and not line.startswith(name)]
        row.http(more, exchange("\r\n".join(lines) + "\r\n" + more + "\r\n"))
    row.end()


def bombs():
    row = Row("JSON depth bombs")
    upgrade = UPGRADE.format(host="pm3", more="").encode()
    for depth in [1000, 100_000, 500_000]:
        for opening in ["[", '{"a":', '{"value":[']:
            bomb = opening * (depth // len(opening))
            for path in ["/sign", "/tail", "/kv/a/cas", "/ipinfo"]:
                row.http(f"{path} {depth} {opening}", get(path, method="POST", body=bomb))
            row.http(f"PUT {depth} {opening}", get("/kv/a", method="PUT", body='{"value":' + bomb))
            answer = exchange(upgrade, frame(0x81, b'{"id":1,"method":"/sign","params":[' + bomb.encode()), frame(0x81, PING), CLOSE)
            row.try_(f"WebSocket {depth} {opening}: {answer[-100:]}", status(answer) == 101 and b"alpha" not in answer)
    row.end()


def signatures():
    row = Row("replayed or edited signed URL")
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 15))
    sign = lambda body: json.loads(get("/sign", method="POST", body=json.dumps(body)).split(b"\r\n\r\n", 1)[1])
    token, ending = sign({"url": "http://pm3/version?a=1"}), sign({"url": "http://pm3/ping", "expires": soon})
    assert as_nobody(f"/version?a=1&psn={token}") == 200
    assert as_nobody(f"/ping?psn={ending}") == 200, "it was too late at once"
    edits = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1:] for at in range(0, len(token) - 1, 3)]
    edits += [token[:-1], token[1:], token + "A", token.swapcase(), "", "A", token[::-1], token + token, ending]
    for edit in edits:
        outcome = as_nobody(f"/version?a=1&psn={edit}")
        row.try_(f"{edit}: {outcome}", outcome == 403)
    others = ["/version?a=2", "/version?", "/version?a=1&b=1", "/version?a=1&a=1", "/ping?a=1", "/version/?a=1", "//version?a=1", "/Version?a=1",
              "/version/../ping?a=1", "/shutdown?a=1", "/%76ersion/x?a=1"]
    for other in others:
        outcome = as_nobody(f"{other}&psn={token}", "--path-as-is")
        row.try_(f"{other}: {outcome}", outcome >= 400)
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"]:
        outcome = as_nobody(f"/version?a=1&psn={token}", "-X", method)
        row.try_(f"{method}: {outcome}", outcome >= 400)
    for host in ["alpha.pm3", "example.org", "PM3"]:
        outcome = as_nobody(f"/version?a=1&psn={token}", host=host)
        row.try_(f"{host}: {outcome}", outcome >= 400 or outcome == 0)
    ends = time.monotonic() + PATIENCE
    while as_nobody(f"/ping?psn={ending}") == 200 and time.monotonic() < ends:
        select.select([], [], [], 0.2)
    for _ in range(3):
        outcome = as_nobody(f"/ping?psn={ending}")
        row.try_(f"after its end: {outcome}", outcome == 403)
    row.end()


class Function:
    """A lambda that is open: its id, its proof, and its end of the connection."""

    def __init__(self, path="/lambda/new", more=""):
        self.stream, self.buffer = connect(), b""
        request = UPGRADE.format(host="pm3", more=more).replace("/connect", path)
        self.stream.sendall(request.encode())
        while b"\r\n\r\n" not in self.buffer:
            chunk = self.stream.recv(65536)
            if not chunk:
                break
            self.buffer += chunk
        self.status = status(self.buffer)
        self.buffer = self.buffer.split(b"\r\n\r\n", 1)[-1]
        if self.status == 101:
            opened = self.next()
            self.id, self.proof = opened["params"][0], opened["params"][1]
            self.stream.sendall(frame(0x81, json.dumps({"id": opened["id"], "result": True, "error": None}).encode()))

    def next(self):
        while True:
            if len(self.buffer) >= 2:
                size, at = self.buffer[1], 2
                if size == 126 and len(self.buffer) >= 4:
                    size, at = struct.unpack(">H", self.buffer[2:4])[0], 4
                if len(self.buffer) >= at + size and size != 126:
                    payload, self.buffer = self.buffer[at:at + size], self.buffer[at + size:]
                    return json.loads(payload)
            chunk = self.stream.recv(65536)
            assert chunk, "closed"
            self.buffer += chunk


def takeover():
    row = Row("lambda takeover")
    own, other = Function(), Function()
    while not all(id in json.loads(get("/lambda").split(b"\r\n\r\n", 1)[1]) for id in (own.id, other.id)):
        pass
    edited = own.id[:-2] + ("AA" if own.id[-2:] != "AA" else "BA")
    for what, path, proof in [
        ("without a proof", own.id, None), ("with an empty one", own.id, ""), ("with its id", own.id, own.id),
        ("with another's proof", own.id, other.proof), ("with half of it", own.id, own.proof[:-1]), ("with more", own.id, own.proof + "A"),
        ("with its end changed", own.id, own.proof[:-2] + "AA"), ("another id by this proof", edited, own.proof),
        ("an id of its own choosing", "A" * len(own.id), own.proof), ("no id", "/", own.proof), ("a path", "../connect", own.proof),
    ]:
        answer = exchange(UPGRADE.format(host="pm3", more="" if proof is None else f"X-Lambda-Proof: {proof}\r\n").replace("/connect", f"/lambda/new/{path}"))
        row.try_(f"{what}: {answer}", status(answer) >= 400)
    for path in [f"/lambda/{own.id}/x", f"/lambda/new/{own.id}", "/lambda/new", "/lambda"]:
        outcome = as_nobody(path, "-H", f"X-Lambda-Proof: {own.proof}")
        row.try_(f"{path} of nobody: {outcome}", outcome == 403)
    # It is still with whom it was: a call gets there.
    caller = connect()
    caller.sendall(f"POST /lambda/{own.id}/still HTTP/1.1\r\nHost: pm3\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    call = own.next()
    own.stream.sendall(frame(0x81, json.dumps({"id": call["id"], "result": "mine", "error": None}).encode()))
    assert call["method"] == "still" and drain(caller).endswith(b'"mine"')
    row.end()


def same_ports():
    """From the source ports that somebody else uses elsewhere; nobody here is trusted."""
    row = {"row": "another network namespace with the same 4-tuple", "attempts": 0, "through": []}
    become_nobody()
    for port in range(30_000, 30_050):
        answer = get(source=("127.0.0.1", port))
        row["attempts"] += 1
        if status(answer) != 403:
            row["through"].append(f"{port}: {answer[:100]}")
    print(json.dumps(row))


def hold_ports():
    """The same ports, in another namespace, by root, to a listener of its own, until this process is killed."""
    listener = socket.create_server((ADDRESS, 80), backlog=100)
    held = [socket.create_connection((ADDRESS, 80), source_address=("127.0.0.1", port)) for port in range(30_000, 30_050)]
    print("holding", len(held), flush=True)
    signal.pause()


ROWS = [forged_forwarding, host_tricks, browser, rebound, smuggling, oversized, slowloris, frames, bombs, signatures, takeover]
if __name__ == "__main__":
    if len(sys.argv) > 2:
        {"same_ports": same_ports, "hold_ports": hold_ports}[sys.argv[2]]()
    else:
        for attack in ROWS:
            attack()
