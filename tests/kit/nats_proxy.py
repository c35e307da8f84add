"""A proxy in front of a NATS server: it stops a relay's shipping at a named instant, and changes what is said, so that a
relay without a fault behaves as a mutant would.

An *instant* is before or after one of these requests: a record by its kind (`claim`, `rows`, `part`, `end`, `released`),
or one about the stream (`get`, `info`, `purge`, ...). Before: the server has not got the request. After: the server has
done it, and the relay has not got the answer. From the instant on nothing more passes, until `release`.
"""

import json
import re
import socket
import threading

from kit.processes import free_port
from kit.wait import TIMEOUT

KINDS = {1: "claim", 2: "rows", 3: "part", 4: "end", 5: "released"}


class Request:
    """A message that the relay publishes."""

    def __init__(self, line, body):
        verb, self.subject, *rest = line.decode().split()
        sizes = 2 if verb == "HPUB" else 1
        self.reply = rest[0] if len(rest) > sizes else None
        self.head = body[: int(rest[-2])] if verb == "HPUB" else b""
        self.payload = body[len(self.head) : -2]
        self.name = self._name()

    def _name(self):
        if re.match(r"cr\..*\.j\.", self.subject):
            return KINDS[self.payload[1]]
        found = re.match(r"\$JS\.API\.STREAM\.([A-Z.]+)\.CR_", self.subject)
        return found[1].rsplit(".", 1)[-1].lower() if found else ""

    @property
    def is_record(self):
        return self.name in KINDS.values()

    @property
    def expected(self):
        """The expected last sequence of a record."""
        return int(re.search(rb"Nats-Expected-Last-Sequence: (\d+)", self.head)[1])

    @property
    def queued(self):
        """The queued messages after a record."""
        return int.from_bytes(self.payload[18:26], "big")

    def bytes(self):
        """The message as it is sent to the server."""
        reply = f" {self.reply}" if self.reply else ""
        if not self.head:
            return f"PUB {self.subject}{reply} {len(self.payload)}\r\n".encode() + self.payload + b"\r\n"
        lengths = f"{len(self.head)} {len(self.head) + len(self.payload)}"
        return f"HPUB {self.subject}{reply} {lengths}\r\n".encode() + self.head + self.payload + b"\r\n"


class Instant:
    """An instant at which everything stops."""

    def __init__(self, name, when, nth, where):
        self.name, self.when, self.left, self.where = name, when, nth, where
        self._reached = threading.Event()

    def is_now(self, request, when):
        if (request.name, when) == (self.name, self.when) and self.where(request):
            self.left -= 1
            if self.left == 0:
                self._reached.set()
        return self._reached.is_set()

    def wait(self):
        assert self._reached.wait(TIMEOUT), f"the instant {self.when} {self.name} does not come"


class NatsProxy:
    """Passes on the connections to a server. `change(connection, request)` may return False: the request is not passed on."""

    def __init__(self, server):
        self.server, self.port = server, free_port()
        self.instant, self.change, self.answered = None, None, None
        self.requests = []  # those that were passed on
        self._connections, self._lock, self._open = [], threading.Lock(), True
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def stop_at(self, name, when, nth=1, where=lambda request: True):
        """Stops everything at the nth request of this name from now on; `when` is "before" or "after"."""
        self.instant = Instant(name, when, nth, where)
        return self.instant

    def release(self):
        """Ends the connections that were stopped; new ones pass."""
        self.instant = None
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def is_stopped(self):
        return self.instant is not None and self.instant._reached.is_set()

    def close(self):
        self._open = False
        self._listener.close()
        self.release()

    def _accept(self):
        while self._open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_stopped():
                client.close()
                continue
            try:
                upstream = socket.create_connection(("127.0.0.1", self.server.port), timeout=TIMEOUT)
                upstream.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._connections.append(Connection(self, client, upstream))


class Connection:
    """One connection of a relay."""

    def __init__(self, proxy, client, upstream):
        self.proxy, self.client, self.upstream = proxy, client, upstream
        self.inboxes, self.pending = [], {}
        self._sending = threading.Lock(), threading.Lock()
        for pump in (self._up, self._down):
            threading.Thread(target=self._run, args=(pump,), daemon=True).start()

    def to_server(self, data):
        with self._sending[0]:
            self.upstream.sendall(data)

    def to_client(self, data):
        with self._sending[1]:
            self.client.sendall(data)

    def answer(self, request, payload):
        """Answers a request in the server's place."""
        sid = next(sid for subject, sid in self.inboxes if request.reply.startswith(subject.removesuffix("*")))
        payload = json.dumps(payload).encode()
        self.to_client(f"MSG {request.reply} {sid} {len(payload)}\r\n".encode() + payload + b"\r\n")

    def close(self):
        for stream in (self.client, self.upstream):
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _run(self, pump):
        try:
            pump()
        except OSError:
            pass
        # A stopped connection stays open, until it is released or the relay is gone.
        if not self.proxy.is_stopped():
            self.close()

    def _stops(self, request, when):
        return self.proxy.instant is not None and self.proxy.instant.is_now(request, when)

    def _up(self):
        reader = self.client.makefile("rb")
        while line := reader.readline():
            if line.startswith((b"PUB ", b"HPUB ")):
                request = Request(line, reader.read(int(line.split()[-1]) + 2))
                if self._stops(request, "before"):
                    return
                if self.proxy.change and self.proxy.change(self, request) is False:
                    continue
                if request.reply:
                    self.pending[request.reply] = request
                self.proxy.requests.append(request)
                self.to_server(request.bytes())
            else:
                if line.startswith(b"SUB "):
                    subject, *_, sid = line.decode().split()[1:]
                    self.inboxes.append((subject, sid))
                self.to_server(line)

    def _down(self):
        reader = self.upstream.makefile("rb")
        while line := reader.readline():
            if line.startswith((b"MSG ", b"HMSG ")):
                body = reader.read(int(line.split()[-1]) + 2)
                request = self.pending.pop(line.split()[1].decode(), None)
                if request and self._stops(request, "after"):
                    return
                self.to_client(line + body)
                if request and self.proxy.answered:
                    self.proxy.answered(self, request, body)
            else:
                self.to_client(line)
