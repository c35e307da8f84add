"""The binary under test: a relay in a folder of its own, the simulator, and single commands."""

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

from kit.wait import TIMEOUT, until

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("CONNECT_RELAY_BINARY", str(ROOT / "target/debug/connect-relay"))

# Every token and every content in these tests contains this word: it must never appear in a log, a metric or an error.
CANARY = "canary"

# Nothing of the machine's own settings reaches the processes under test.
_FOREIGN = re.compile(r"^(CONNECT_RELAY|AWS_|CONNECTION_TOKEN|RUST_LOG|(HTTPS?|ALL|NO)_PROXY$)", re.I)


def environment(settings=None, **more):
    """The environment of a process: `{"sender.region": "x"}` becomes `CONNECT_RELAY__SENDER__REGION=x`."""
    env = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    for key, value in (settings or {}).items():
        env["CONNECT_RELAY__" + key.upper().replace(".", "__")] = str(value)
    env.update(more)
    return env


# Each worker of a run takes ports from a part of its own, below the range in which the kernel chooses for outgoing
# connections: no other process gets one before its server starts, or between two starts.
PORTS_OF_A_WORKER = 1000
_ports = itertools.count(random.randrange(PORTS_OF_A_WORKER))


def free_port():
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 22
    for number in itertools.islice(_ports, PORTS_OF_A_WORKER):
        port = 10_000 + worker * PORTS_OF_A_WORKER + number % PORTS_OF_A_WORKER
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def command(*args, settings=None, stdin="", timeout=TIMEOUT, env=None):
    """Runs one command to its end."""
    return subprocess.run(
        [BINARY, *map(str, args)],
        input=stdin,
        env=environment(settings, **(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class Relay:
    """`connect-relay run --dir FOLDER`, to be started, stopped, killed and started again on the same folder.

    Without a `folder` it has one of its own, which `remove` deletes. `before` is the command that runs it, such as a
    recorder with its arguments.
    """

    def __init__(self, endpoint, tcp=True, folder=None, before=(), **settings):
        self._owned = folder is None
        # Short, because a socket's path may have 107 bytes.
        self.folder = Path(folder or tempfile.mkdtemp(prefix="relay-"))
        self.socket = str(self.folder / "relay.sock")
        if self._owned:
            self.log_path = self.folder / "log"
        else:  # a given folder is compared or recorded, so the log is elsewhere and is removed with this object
            self._log = tempfile.NamedTemporaryFile(prefix="relay-log-")
            self.log_path = Path(self._log.name)
        self._begins = 0  # where the log of the latest start begins
        self.before, self.program = list(before), BINARY
        self.admin = f"http://127.0.0.1:{free_port()}"
        self.url = f"http://127.0.0.1:{free_port()}" if tcp else ""
        self.secrets = {CANARY}
        self.process = None
        self.arguments = ["--dir", str(self.folder)]
        self.environment = None  # all of it, instead of the settings in that of the tests
        self.settings = {
            "sender.endpoint": endpoint,
            "admin.listen": self.admin.removeprefix("http://"),
            "ingress.tcp": self.url.removeprefix("http://"),
            "queue.volatile": "true",  # the temporary folder may be in memory; the power-cut test has a disk model of its own
        }
        self.settings.update((key.replace("__", "."), value) for key, value in settings.items())

    def start(self):
        self.spawn()
        until(self.ready, "the relay is ready")
        return self

    def spawn(self, **options):
        """Starts it without waiting; `options` are those of `Popen`."""
        with open(self.log_path, "ab") as log:
            self._begins = os.fstat(log.fileno()).st_size
            self.process = subprocess.Popen(
                [*map(str, self.before), self.program, "run", *self.arguments],
                env=self.environment or environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                restore_signals=False,  # SIGXFSZ stays ignored: a test that bounds its files makes writes fail
                **options,
            )
        return self

    def started(self):
        """Waits for the line `started`; False if it has exited without it."""

        def decided():
            left = self.process.poll() is not None  # before the log is read, which is complete then
            said = b'"message":"started"' in self.log_path.read_bytes()[self._begins :]
            return (said,) if said or left else None

        return until(decided, "the relay logs that it has started, or exits")[0]

    def ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the relay exited with {self.process.returncode}:\n{self.log()[-4000:]}")
        return self.get("/readyz")[0] == 200

    def get(self, path):
        """Returns status and text of a page of the admin port; status 0 if there is no reply."""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.admin + path, timeout=10) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return 0, ""

    def metrics(self):
        """`{'queue_messages': 0.0, 'attempts_total{outcome="delivered"}': 3.0}`, without the prefix."""
        found = {}
        for line in self.get("/metrics")[1].splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                found[name.removeprefix("connect_relay_")] = float(value)
        return found

    def queued(self):
        return int(self.metrics()["queue_messages"])

    def until_empty(self, timeout=TIMEOUT):
        until(lambda: self.queued() == 0, "the queue is empty", timeout)

    def kill(self):
        """Kills it, as the kernel's OOM killer does."""
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        """Sends SIGTERM; returns the exit code."""
        self.terminate()
        return self.wait()

    def wait(self):
        """Waits until it has exited; returns the exit code."""
        try:
            return self.process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"the relay had not exited after {TIMEOUT:.0f} s:\n{self.log()[-4000:]}") from None

    def end(self):
        """Kills it if it still runs. The log stays."""
        if self.process and self.process.poll() is None:
            self.kill()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def lines(self, event=None, at_least=0):
        """Returns the log's lines as objects; only those of `event` if it is given. The relay may write a line after it has
        replied and counted: with `at_least`, this waits until there are so many."""
        if at_least:
            return until(lambda: len(found := self.lines(event)) >= at_least and found, f"the log has {at_least} lines {event}")
        found = []
        for line in self.log().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            fields = {**entry, **entry.get("fields", {})}
            if event is None or fields.get("message") == event:
                found.append(fields)
        return found

    def remove(self):
        """Ends it, checks that its log has no secrets, and removes its folder."""
        self.end()
        log = self.log() if self.log_path.exists() else ""
        if self._owned:
            shutil.rmtree(self.folder, ignore_errors=True)
        print(log[-4000:])  # pytest shows it where the test failed
        leaks = [line for line in log.splitlines() if any(secret in line for secret in self.secrets)]
        assert not leaks, f"a token or contents are in the log: {leaks[0]}"
        assert "panicked" not in log, log[-4000:]
        check_members(log)


# The type of each member of all log lines of this run of the tests, and a line that has it.
MEMBERS = {"message": (str, "the contract"), "message_id": (str, "the contract")}


def check_members(log):
    """Every line is an object with a text, and a member has one type in the lines of all tests."""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        assert entry.get("message"), f"a line without a text: {line}"
        assert "id" not in entry, f"an id is message_id: {line}"
        for name, value in entry.items():
            kind = float if type(value) is int else type(value)
            assert kind in (str, float, bool), f"{name} is no plain value: {line}"
            known, where = MEMBERS.setdefault(name, (kind, line))
            assert kind is known, f"{name} is {kind.__name__} here and {known.__name__} there:\n{line}\n{where}"


class StderrReader:
    """A process whose stderr is read continuously: a relay drops lines that are not read."""

    def __init__(self, args, settings=None):
        self.output = []
        self.process = subprocess.Popen(
            list(map(str, args)),
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.output.append(line)


class Simulator(StderrReader):
    """`connect-relay simulate`, with its ledger."""

    def __init__(self, *args, listen="127.0.0.1:0"):
        self.folder = Path(tempfile.mkdtemp(prefix="simulator-"))
        self.ledger_path = self.folder / "ledger"
        super().__init__([BINARY, "simulate", "--listen", listen, "--ledger", self.ledger_path, *args])
        self.url = until(self._address, "the simulator prints its address")

    def _address(self):
        match = re.search(r"listening on (http://[0-9.]+:\d+)", "".join(self.output))
        assert match or self.process.poll() is None, f"the simulator exited: {''.join(self.output)}"
        return match and match.group(1)

    def ledger(self):
        """The accepted messages, in the order of acceptance, without an incomplete line."""
        if not self.ledger_path.exists():
            return []
        text = self.ledger_path.read_text()
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def counts(self):
        """The counts of its ledger route."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url + "/ledger", timeout=20) as page:
            return json.loads(page.read())

    def switch(self, **faults):
        """Changes its faults while it runs: `switch(Outage=True)`."""
        request = urllib.request.Request(self.url + "/faults", json.dumps(faults).encode(), method="POST")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as page:
            return json.loads(page.read())

    def accepted(self):
        """The number of lines in the ledger."""
        return self.ledger_path.read_bytes().count(b"\n") if self.ledger_path.exists() else 0

    def remove(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)
