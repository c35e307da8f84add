"""Relays of the durability tests: under the recorder, or drained completely into their own simulator."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from kit.processes import Relay, Simulator

HERE = Path(__file__).parent

# The settings of all relays here: only its delivery ends a message, retries come soon, 48 KB are accepted.
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


def scratch():
    """Creates a folder for rebuilt stores: in memory if there is space, because only their bytes matter."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30
    return Path(tempfile.mkdtemp(prefix="cuts-", dir=memory if roomy else None))


def build_recorder(folder):
    """Compiles the recorder; returns its path."""
    recorder = Path(folder) / "recorder"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed"
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", recorder, HERE / "recorder.c"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return recorder


def start_on(folder, endpoint, before=(), **settings):
    """Starts a relay on a folder, perhaps under a command such as the recorder; `end` ends it."""
    settings = {**SETTINGS, **settings}
    return Relay(endpoint, tcp=False, folder=folder, before=before, **settings).spawn()


def drained(folder, before=(), **settings):
    """Starts a relay on a folder and drains it; returns the simulator's ledger and a list of faults."""
    simulator = Simulator("--rate", 1e9, "--burst", 1_000_000_000, "--latency", "0ms", "--jitter", "0ms")
    relay = start_on(folder, simulator.url, before, **settings)
    try:
        if not relay.started():
            return [], [f"the relay did not start, exit code {relay.process.returncode}: {relay.log()[-2000:]}"]
        code = relay.stop()
        found = [] if code == 0 else [f"the relay exited with {code}: {relay.log()[-2000:]}"]
        for word in ("panicked", "checksum", '"level":"ERROR"'):
            if word in relay.log():
                found.append(f"the log says {word}: {[line for line in relay.log().splitlines() if word in line][:3]}")
        return simulator.ledger(), found
    except AssertionError as fault:
        return simulator.ledger(), [str(fault)]
    finally:
        relay.end()
        simulator.remove()
