"""The stream of outcomes: the memory of its readers."""

import json
import re
import socket
from pathlib import Path

from kit.callers import curl

MESSAGES = 1000
READERS = 100
# 2 MiB for readers without events, 10 MiB with a debug binary for these: a connection, what hyper buffers for it (32 KiB), and a
# page of 32 outcomes with long names.
BYTES_MAX = 20 << 20


def deliver(relay, chat):
    """Has messages delivered, more than a socket's buffers take."""
    lines = [json.dumps({"ContentType": "text/plain", "Content": "canary", "ConnectionToken": f"canary-{chat}-{number % 50}",
                         "Conversation": f"{chat}-{number % 50}-{'x' * 200}"}) for number in range(MESSAGES)]
    assert curl(relay, "/participant/messages", "\n".join(lines).encode()).status == 200
    relay.until_empty()


def resident(relay):
    status = Path(f"/proc/{relay.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10


def test_a_hundred_readers_that_do_not_read_take_bounded_memory(relays, simulators):
    simulator = simulators("--rate", 1e6, "--burst", 1_000_000, "--latency", "0ms", "--jitter", "0ms")
    relay = relays(simulator.url, sender__quota_rate=1e5, sender__quota_burst=100_000, log__level="warn")
    deliver(relay, "first")
    before = resident(relay)
    readers = []
    try:
        for _ in range(READERS):
            reader = socket.socket(socket.AF_UNIX)
            readers.append(reader)
            reader.settimeout(60)
            reader.connect(relay.socket)
            reader.sendall(b"GET /participant/outcomes HTTP/1.1\r\nHost: relay\r\n\r\n")
            assert b" 200 OK" in reader.recv(1024)
        deliver(relay, "second")
        grown = resident(relay) - before
    finally:
        for reader in readers:
            reader.close()
    print(f"{grown >> 10} KiB for {READERS} readers")
    assert grown <= BYTES_MAX, grown
    assert relay.process.poll() is None
