"""Two thirds of the container's memory limit, in a cgroup of that size: a queue is filled to its limits, and delivered faster
than any quota lets it."""

import json

import pytest

from kit.callers import fill
from kit.cgroup import MemoryLimit, peak
from kit.wait import TIMEOUT, until
from kit.processes import Relay, Simulator, free_port
from kit.tools import KUBECTL, ROOT_USER, mib, named, pod, settings

MIB = 1 << 20
WIDE = "😀"  # four bytes of UTF-8
LONGEST = ("application/json", json.dumps({"canary": WIDE * 4080}, ensure_ascii=False))
# The messages that fill the queue, and the setting that stops it.
FILLS = {
    "the longest texts": (("text/plain", WIDE * 1024), "queue.messages_max"),
    "the longest contents": (LONGEST, "queue.bytes_max"),
}


@pytest.fixture
def limit():
    return mib(named(pod("deployment")["initContainers"], "connect-relay")["resources"]["limits"]["memory"]) * MIB * 2 // 3


@pytest.fixture
def memory_limit(limit):
    made = MemoryLimit(limit)
    yield made
    made.close()


@pytest.fixture
def limited_relay(memory_limit):
    """A relay under the memory limit with the pod's queue, before a Connect that does not listen yet."""
    told = {"queue.bytes_max": settings("deployment")["CONNECT_RELAY__QUEUE__BYTES_MAX"]}
    # On a disk, as in the pod: in memory the queue's files would count.
    told |= {"queue.volatile": "false", "sender.quota_rate": 20_000, "sender.quota_burst": 1_000, "sender.probe_max": "100ms"}
    relay = Relay(f"http://127.0.0.1:{free_port()}")
    relay.settings.update(told)
    relay.spawn()
    memory_limit.add(relay.process.pid)
    until(relay.ready, "the relay is ready")
    yield relay
    relay.remove()


@pytest.mark.needs(KUBECTL, ROOT_USER)
@pytest.mark.parametrize("what", FILLS)
def test_full_queue_and_its_delivery_keep_the_relay_within_two_thirds_of_the_containers_memory_limit(limited_relay, memory_limit, limit, record_property, what):
    message, ends = FILLS[what]
    queued, _ = fill(limited_relay, *message, ends)
    full = peak(limited_relay.process.pid)
    connect = Simulator("--rate", 1e6, "--burst", 1_000_000, listen=limited_relay.settings["sender.endpoint"].removeprefix("http://"))
    try:
        limited_relay.until_empty(5 * TIMEOUT)  # Other tests run at the same time.
        assert connect.accepted() == queued
    finally:
        connect.remove()
    most = peak(limited_relay.process.pid)
    record_property(
        "figures",
        f"{queued:,} messages of {what}, as {ends} lets: {full / MIB:.0f} MiB when they are queued, {most / MIB:.0f} MiB at most "
        f"until they are delivered, of {limit / MIB:.0f} MiB{'' if memory_limit.enforced else ' (no cgroup here: the peak is looked at)'}",
    )
    assert limited_relay.process.poll() is None and most <= limit
