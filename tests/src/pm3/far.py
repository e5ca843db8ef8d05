"""What runs on the far node of a test, and who speaks with it: an echo, a function, a subscriber of the message bus."""
import json, os, socket, struct, sys


class Reader:
    """Lines and bytes of a connection."""

    def __init__(self, stream):
        self.stream, self.buffer = stream, b""

    def more(self):
        chunk = self.stream.recv(65536)
        if not chunk:
            raise EOFError
        self.buffer += chunk

    def until(self, end):
        while end not in self.buffer:
            self.more()
        taken, self.buffer = self.buffer.split(end, 1)
        return taken

    def exactly(self, count):
        while len(self.buffer) < count:
            self.more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def chunk(self):
        """One chunk of a body (RFC 9112, section 7.1)."""
        size = int(self.until(b"\r\n").split(b";")[0], 16)
        data = self.exactly(size)
        self.exactly(2)
        return data


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def echo(port):
    """Answers each chunk of a body as it comes."""
    listener = socket.create_server(("127.0.0.1", int(port)))
    print("listening", flush=True)
    while True:
        stream, _ = listener.accept()
        reader = Reader(stream)
        try:
            reader.until(b"\r\n\r\n")
            stream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
            while data := reader.chunk():
                stream.sendall(chunk(b"echo " + data))
            stream.sendall(chunk(b""))
        except (EOFError, OSError):
            pass
        stream.close()


def stream(address, path):
    """Sends a chunk only when the one before has come back."""
    connection = socket.create_connection((address, 80), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: pm3\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head.encode())
    reader, is_open = Reader(connection), False
    for number in range(5):
        sent = b"part %d" % number
        connection.sendall(chunk(sent))
        if not is_open:
            status = reader.until(b"\r\n\r\n").split(b"\r\n")[0]
            assert b" 200 " in status, (status, reader.buffer)
            is_open = True
        wanted, seen = b"echo " + sent, b""
        while len(seen) < len(wanted):
            seen += reader.chunk()
        assert seen == wanted, seen
    connection.sendall(chunk(b""))
    assert reader.chunk() == b""
    print("5 parts came back, each before the next was sent")


def function(address):
    """Opens a lambda, prints its id, and answers whatever it is called with."""
    connection = socket.create_connection((address, 80))
    connection.sendall(b"GET /lambda/new HTTP/1.1\r\nHost: pm3\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                       b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    reader = Reader(connection)
    assert b" 101 " in reader.until(b"\r\n\r\n")
    while True:
        first, size = reader.exactly(2)
        if size == 126:
            (size,) = struct.unpack(">H", reader.exactly(2))
        message = reader.exactly(size)
        if first & 0x0F not in (1, 2):
            continue
        call = json.loads(message)
        is_opening = call["method"] == "open"
        result = True if is_opening else {"method": call["method"], "told": call["params"][0]}
        answer = json.dumps({"id": call["id"], "result": result, "error": None}).encode()
        head = bytes([0x81, 0x80 | len(answer)]) if len(answer) < 126 else bytes([0x81, 0xFE]) + struct.pack(">H", len(answer))
        connection.sendall(head + b"\0\0\0\0" + answer)
        if is_opening:
            print(call["params"][0], flush=True)


def subscriber(url_file):
    """A client of NATS written from its protocol: answers events with what they said, and raw requests with their header."""
    user, password, host, port = open(url_file).read().strip().replace("nats://", "").replace("@", ":").split(":")
    connection = socket.create_connection((host, int(port)))
    reader = Reader(connection)
    assert reader.until(b"\r\n").startswith(b"INFO ")
    options = {"user": user, "pass": password, "verbose": False, "pedantic": False, "headers": True, "name": "subscriber"}
    connection.sendall(b"CONNECT %s\r\nSUB ev.jobs.> 1\r\nSUB raw.echo 2\r\nPING\r\n" % json.dumps(options).encode())
    while True:
        words = reader.until(b"\r\n").decode().split(" ")
        if words[0] == "PONG":
            print("subscribed", flush=True)
        elif words[0] == "PING":
            connection.sendall(b"PONG\r\n")
        elif words[0] in ("MSG", "HMSG"):
            total = int(words[-1])
            payload = reader.exactly(total)
            reader.exactly(2)
            headers, reply = b"", words[3]
            if words[0] == "HMSG":
                headers, payload = payload[:int(words[-2])], payload[int(words[-2]):]
            if words[1] == "raw.echo":
                kind = [line for line in headers.decode().split("\r\n") if line.lower().startswith("x-kind:")]
                answer = payload + b" " + "".join(kind).encode()
            else:
                answer = json.dumps({"subject": words[1], "did": json.loads(payload)}).encode()
            connection.sendall(b"PUB %s %d\r\n%s\r\n" % (reply.encode(), len(answer), answer))
        else:
            raise AssertionError(words)


{"echo": echo, "stream": stream, "function": function, "subscriber": subscriber}[sys.argv[1]](*sys.argv[2:])
