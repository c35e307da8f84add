"""A scripted Participant Service that records every byte of its requests."""

import json
import socket
import socketserver
import threading
from dataclasses import dataclass, field
from pathlib import Path

from kit.wait import TIMEOUT

CUT = "close the connection without an answer"


@dataclass
class Request:
    """A request as it was received."""

    head: bytes
    body: bytes
    method: str = ""
    target: str = ""
    headers: list = field(default_factory=list)  # (name in lower case, value), both bytes

    @classmethod
    def read(cls, stream):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline(65537)
            if not line:
                return None
            head += line
        first, *rest = head.decode("latin-1").splitlines()
        method, target, _version = first.split(" ")
        headers = []
        for line in filter(None, rest):
            name, value = line.split(":", 1)
            headers.append((name.strip().lower().encode(), value.strip().encode("latin-1")))
        request = cls(head, b"", method, target, headers)
        assert request.header("transfer-encoding") is None, "the relay knows the length of what it sends"
        request.body = stream.read(int(request.header("content-length") or 0))
        return request

    def header(self, name):
        """The value of a header as text, or None."""
        values = [value for known, value in self.headers if known == name.lower().encode()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0].decode("latin-1") if values else None

    @property
    def names(self):
        return {name.decode() for name, _ in self.headers}

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def token(self):
        return self.header("x-amz-bearer")


@dataclass
class Answer:
    """An answer: a JSON object, or raw bytes."""

    status: int = 200
    body: object = None
    headers: dict = field(default_factory=dict)

    def bytes(self):
        body = b"" if self.body is None else self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1") + body


def error(status, code, text="", **headers):
    """An error in AWS's shape."""
    return Answer(status, {"Message": text}, {**({"x-amzn-ErrorType": code} if code else {}), **headers})


class Upstream:
    """Listens on a loopback port; `script(request)` returns an Answer, CUT, or None for a healthy service's answer."""

    def __init__(self, script=None):
        self.script = script or (lambda request: None)
        self.requests = []
        self.faults = []
        self._changed = threading.Condition()
        self._connections = set()
        self.port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        outer = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self):
                outer._serve(self.connection, self.rfile)

        self._server = self._listen(Connection)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def _listen(self, handler):
        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128

        server = Server(("127.0.0.1", self.port), handler)
        self.port = server.server_address[1]
        return server

    def stop(self):
        """Closes the port; `start` opens it again."""
        self._server.shutdown()
        self._server.server_close()
        with self._changed:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def _serve(self, connection, stream):
        with self._changed:
            self._connections.add(connection)
        try:
            while request := Request.read(stream):
                with self._changed:
                    self.requests.append(request)
                    number = len(self.requests)
                    self._changed.notify_all()
                answer = self.script(request)
                if answer is None:
                    answer = good(request, number)
                if answer is CUT:
                    return
                connection.sendall(answer.bytes())
        except OSError:
            pass  # the relay closed the connection, or the test is over
        except Exception as fault:  # noqa: BLE001 - shown by the fixture, whatever it is
            self.faults.append(fault)
        finally:
            with self._changed:
                self._connections.discard(connection)

    def wait_for(self, count, timeout=TIMEOUT):
        """Waits for `count` requests and returns them."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.requests) >= count, timeout)
            assert came, f"{len(self.requests)} requests came, {count} were expected"
            return self.requests[:count]

    @property
    def connected(self):
        """The number of open connections."""
        return len(self._connections)

    def messages(self):
        """The SendMessage requests so far."""
        return [request for request in list(self.requests) if request.target == "/participant/message"]


class ScriptedRelay(Upstream):
    """The same on a Unix socket: a relay that does what a test tells it."""

    def __init__(self, path, script):
        self.path, self.socket = path, str(path)
        super().__init__(script)

    def _listen(self, handler):
        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 128

        Path(self.path).unlink(missing_ok=True)
        return Server(str(self.path), handler)

    def stop(self):
        super().stop()
        Path(self.path).unlink()


def good(request, number):
    """The answer of a healthy service."""
    operation = request.target.removeprefix("/participant/")
    id_headers = {"x-amzn-RequestId": f"request-{number}"}
    if operation in ("message", "event"):
        return Answer(200, {"Id": f"id-{number}", "AbsoluteTime": "2026-11-22T10:00:00.000Z"}, id_headers)
    if operation == "connection":
        credentials = {"ConnectionToken": f"canary-connection-{number}", "Expiry": "2026-11-23T10:00:00.000Z"}
        return Answer(200, {"ConnectionCredentials": credentials}, id_headers)
    if operation == "disconnect":
        return Answer(200, None, id_headers)
    return Answer(200, {}, id_headers)
