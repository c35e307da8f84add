"""A queue that is filled to `queue.bytes_max`: the relay refuses messages before its folder takes much more than that."""

import re

import pytest

from kit.callers import fill
from kit.processes import Relay, free_port

MIB = 1 << 20


@pytest.mark.parametrize("contents", [600, 9_000])
@pytest.mark.parametrize("most", [16, 32, 64])
def test_full_queue_takes_little_more_than_bytes_max(most, contents, record_property):
    settings = {"queue.bytes_max": f"{most}MiB", "queue.messages_max": 1_000_000, "queue.free_disk_min": "1MiB"}
    relay = Relay(f"http://127.0.0.1:{free_port()}")
    relay.settings.update(settings)
    try:
        relay.start()
        queued, error = fill(relay, "application/json", '"' + "x" * contents + '"', "queue.bytes_max")
        # "… the queue is full: 33.2 MiB of 32.0 MiB on disk (queue.bytes_max); …"
        refused_at = float(re.search(r": ([0-9.]+) MiB of ", error)[1])
        taken = max(refused_at, relay.metrics()["queue_bytes"] / MIB)
        record_property("figures", f"{queued:,} messages of {contents} bytes: {taken:.1f} MiB of {most}")
        # A quarter: the last epochs of the journal move into the log while they still take space of their own. The log grows in
        # steps: 4 MiB.
        assert queued > 100 and taken <= 1.25 * most + 4
    finally:
        relay.remove()
