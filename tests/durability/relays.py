"""The real binary: under the recorder, or drained to the last message in front of a simulator of its own."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

from processes import BINARY, Heard, Simulator

PATIENCE = 60.0
HERE = Path(__file__).parent

# What every relay here has: nothing ends a message but its delivery, a retry comes soon, 48 KB are welcome.
SETTINGS = {
    "admin.listen": "127.0.0.1:0",
    "queue.volatile": "true",
    "ingress.content_bytes_max": 65536,
    "sender.quota_rate": 20000,
    "sender.quota_burst": 1000,
    "sender.headroom": 0,
    "sender.lifetime": "6h",
    "sender.attempts_max": 1000,
    "sender.probe_max": "100ms",
    "sender.backoff.initial": "10ms",
    "sender.backoff.max": "100ms",
    "shutdown.grace": "10m",
}


def workshop():
    """Where folders are rebuilt: in memory if there is room, because it is their bytes that count, not where they lie."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30
    return Path(tempfile.mkdtemp(prefix="cuts-", dir=memory if roomy else None))


def build_recorder(folder):
    """Compiles the recorder; gives its path."""
    recorder = Path(folder) / "recorder"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed"
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", recorder, HERE / "recorder.c"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return recorder


class Run(Heard):
    """`connect-relay run --dir FOLDER`, perhaps with a recorder before it."""

    def __init__(self, folder, endpoint, before=(), **settings):
        self.folder, self._heard = Path(folder), threading.Event()
        super().__init__([*before, BINARY, "run", "--dir", folder], {**SETTINGS, "sender.endpoint": endpoint, **settings})

    def _read(self):
        for line in self.process.stderr:
            self.output.append(line)
            if '"message":"started"' in line:
                self._heard.set()
        self._heard.set()

    @property
    def socket(self):
        return str(self.folder / "relay.sock")

    @property
    def log(self):
        return "".join(self.output)

    def started(self):
        """Waits until it says so; False where it has left instead."""
        self._heard.wait(PATIENCE)
        return '"message":"started"' in self.log

    def drain(self):
        """Lets it send all that it has; gives its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        """Its exit code, when all that it said is in the log."""
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.output.append(f"(it had not left after {PATIENCE:.0f} s)")
        self._reader.join(PATIENCE)
        return self.process.wait()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        self.process.stderr.close()


def drained(folder, before=(), **settings):
    """Starts a relay on a folder and has it send all it has: what the simulator was sent, and what is wrong."""
    simulator = Simulator("--rate", 1e9, "--burst", 1_000_000_000, "--latency", "0ms", "--jitter", "0ms")
    run = Run(folder, simulator.url, before, **settings)
    try:
        if not run.started():
            return [], [f"the relay did not start, exit code {run.process.returncode}: {run.log[-2000:]}"]
        code = run.drain()
        found = [] if code == 0 else [f"the relay left with {code}: {run.log[-2000:]}"]
        for word in ("panicked", "checksum", '"level":"ERROR"'):
            if word in run.log:
                found.append(f"the log says {word}: {[line for line in run.log.splitlines() if word in line][:3]}")
        return simulator.ledger(), found
    finally:
        run.end()
        simulator.remove()
