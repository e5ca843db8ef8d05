"""A WebSocket and jrpc client of the pm3 API, written from RFC 6455 and the document of the API alone."""
import base64, hashlib, json, os, socket, struct, sys, threading, urllib.request

ADDRESS = sys.argv[1]
# Of another node: the path of a hop to it, and its name.
PREFIX, NAME = (sys.argv[2:] + ["", "alpha"])[:2] if len(sys.argv) > 2 else ("", "alpha")


class WebSocket:
    def __init__(self, path, protocol=None, headers=()):
        self.socket = socket.create_connection((ADDRESS, 80), timeout=20)
        self.buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {PREFIX}{path} HTTP/1.1", "Host: pm3", "Upgrade: websocket", "Connection: keep-alive, Upgrade",
                 f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *headers]
        if protocol:
            lines.append(f"Sec-WebSocket-Protocol: {protocol}")
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(4096)
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        self.status = int(head.split(b" ")[1])
        if self.status == 101:
            accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())
            assert accept in head, head

    def exactly(self, count):
        while len(self.buffer) < count:
            chunk = self.socket.recv(65536)
            assert chunk, "closed"
            self.buffer += chunk
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def send(self, payload, opcode=1, final=True):
        mask = os.urandom(4)
        head = bytes([(0x80 if final else 0) | opcode])
        length = len(payload)
        if length < 126:
            head += bytes([0x80 | length])
        elif length < 65536:
            head += bytes([0x80 | 126]) + struct.pack(">H", length)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", length)
        self.socket.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))

    def receive(self):
        while True:
            first, second = self.exactly(2)
            assert not second & 0x80, "a server masks nothing"
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self.exactly(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.exactly(8))
            payload = self.exactly(length)
            if first & 0x0F == 9:
                self.send(payload, 10)
            elif first & 0x0F in (1, 2):
                return payload
            else:
                raise AssertionError(f"opcode {first & 0x0F}")

    def call(self, method, *params, id=1):
        self.send(json.dumps({"id": id, "method": method, "params": list(params)}).encode())
        answer = self.receive()
        assert answer.endswith(b"\n"), answer
        answer = json.loads(answer)
        assert answer["id"] == id, answer
        return answer


session = WebSocket("/connect", "json-rpc")
for number in range(100):
    assert session.call("/ping", id=number) == {"id": number, "result": NAME, "error": None}
for method in ["/version", "/system", "/session", "/peers", "/peers/alive", "/lambda", "GET /ping", "POST /ping"]:
    answer = session.call(method)
    assert answer["error"] is None and answer["result"] is not None, answer
assert session.call("/ipinfo", {"ip": "10.0.0.1"})["result"]["desc"] == "private"
assert len(session.call("/sign", {"url": "http://pm3/ping"})["result"]) > 60

for number in range(64):
    session.send(json.dumps({"id": number, "method": "/peers", "params": []}).encode())
assert {json.loads(session.receive())["id"] for _ in range(64)} == set(range(64))

# One call in three frames, with a ping between two of them.
session.send(b'{"id":"cut","meth', final=False)
session.send(b"are you there", 9)
session.send(b'od":"/ping",', 0, final=False)
session.send(b'"params":[]}', 0)
while True:
    first = session.exactly(2)
    payload = session.exactly(first[1])
    if first[0] & 0x0F == 10:
        assert payload == b"are you there"
    else:
        assert json.loads(payload)["id"] == "cut", payload
        break

error = session.call("/nothing")["error"]
assert error.startswith("error 404: {") and json.loads(error[len("error 404: "):])["code"] == "not_found", error
assert session.call("/ipinfo", {"ip": "x"})["error"].startswith("error 400: ")
assert session.call("GET /shutdown")["error"].startswith("error 405: ")


def refused(method, *params):
    error = session.call(method, *params)["error"]
    return error.split(":", 1)[0], json.loads(error.split(": ", 1)[1])["code"]


assert session.call("/service")["result"].keys() == {"sleeper"}
assert session.call("/service/stop/sleeper")["result"] == {"count": 1}
assert session.call("/service/health/sleeper")["result"]["status"] == "Down"
assert session.call("/service/start/sleeper")["result"] == {"count": 1}
assert session.call("/service/health/sleeper")["result"]["status"] == "OK"
assert refused("/service/start/sleeper") == ("error 409", "conflict")
assert refused("/service/start/nobody") == ("error 404", "not_found")
assert session.call("/service/scale/sleeper", {"to": 3})["result"] == {"count": 3}
assert session.call("/service/scale/sleeper", {"by": -2})["result"] == {"count": 1}
assert refused("/service/scale/nobody", {"to": 1}) == ("error 404", "not_found")
for wrong in [{}, {"to": 1, "by": 1}, {"to": 0}, {"to": -1}, {"to": "many"}, {"instances": 2}]:
    assert refused("/service/scale/sleeper", wrong) == ("error 400", "invalid_argument"), wrong
assert refused("GET /service/scale/sleeper", {"to": 2}) == ("error 405", "method_not_allowed")

session.send(b'{"jsonrpc":"2.0","id":5,"method":"/nothing"}')
assert json.loads(session.receive())["error"]["code"] == -32601
assert WebSocket("/connect", None, ["Origin: http://evil.example"]).status == 403

function = WebSocket("/lambda/new")
opened = json.loads(function.receive())
assert opened["method"] == "open"
function.send(json.dumps({"id": opened["id"], "result": True, "error": None}).encode())


def answer_one():
    call = json.loads(function.receive())
    assert call["method"] == "add", call
    function.send(json.dumps({"id": call["id"], "result": sum(call["params"][0]), "error": None}).encode())


thread = threading.Thread(target=answer_one)
thread.start()
while opened["params"][0] not in session.call("/lambda")["result"]:
    pass
url = f"http://{ADDRESS}{PREFIX}/lambda/{opened['params'][0]}/add"
request = urllib.request.Request(url, b"[1,2,3]", {"Host": "pm3"}, method="POST")
assert json.load(urllib.request.urlopen(request, timeout=20)) == 6
thread.join()

compact = WebSocket("/connect", "jrpc")
compact.send(struct.pack("<I", 7) + b"/ping\0\n", 2)
assert compact.receive() == struct.pack("<I", 7 | 1 << 31) + f'\0"{NAME}"\n'.encode()
compact.send(struct.pack("<I", 8) + b"/nothing\0\n", 2)
answer = compact.receive()
assert answer[:4] == struct.pack("<I", 8 | 1 << 31) and answer[4:].startswith(b"error 404: "), answer

print("calls 100, concurrent 64, errors as documented, lambda called, jrpc spoken")
