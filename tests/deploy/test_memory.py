"""The container's memory limit, in a cgroup of that size: a queue is filled to its limits, and delivered faster than any
quota lets it."""

import http.client
import json

import pytest

from kit.cage import Cage, peak
from kit.patience import PATIENCE, until
from kit.processes import Relay, Simulator, free_port
from kit.tools import KUBECTL, ROOT_USER, mib, named, pod, settings

MIB = 1 << 20
WIDE = "😀"  # four bytes of UTF-8
LONGEST = ("application/json", json.dumps({"canary": WIDE * 4080}, ensure_ascii=False))
# What is handed over, and the setting that ends it.
FILLS = {
    "the longest texts": (("text/plain", WIDE * 1024), "queue.messages_max"),
    "the longest contents": (LONGEST, "queue.bytes_max"),
}


@pytest.fixture
def limit():
    return mib(named(pod("deployment")["initContainers"], "connect-relay")["resources"]["limits"]["memory"]) * MIB


@pytest.fixture
def cage(limit):
    made = Cage(limit)
    yield made
    made.close()


@pytest.fixture
def caged(cage):
    """A relay in the cage with the pod's queue, before a Connect that is not there yet."""
    told = {"queue.bytes_max": settings("deployment")["CONNECT_RELAY__QUEUE__BYTES_MAX"]}
    # On a disk, as in the pod: in memory the queue's files would count.
    told |= {"queue.volatile": "false", "sender.quota_rate": 20_000, "sender.quota_burst": 1_000, "sender.probe_max": "100ms"}
    relay = Relay(f"http://127.0.0.1:{free_port()}")
    relay.settings.update(told)
    relay.spawn()
    cage.add(relay.process.pid)
    until(relay.ready, "the relay is ready")
    yield relay
    relay.remove()


@pytest.mark.needs(KUBECTL, ROOT_USER)
@pytest.mark.parametrize("what", FILLS)
def test_full_queue_and_its_delivery_keep_the_relay_within_the_containers_memory_limit(caged, cage, limit, capsys, what):
    message, ends = FILLS[what]
    queued = fill(caged, *message, ends)
    full = peak(caged.process.pid)
    connect = Simulator("--rate", 1e6, "--burst", 1_000_000, listen=caged.settings["sender.endpoint"].removeprefix("http://"))
    try:
        caged.until_empty()
        assert connect.accepted() == queued
    finally:
        connect.remove()
    most = peak(caged.process.pid)
    with capsys.disabled():
        print(
            f"\n{queued:,} messages of {what}, as {ends} lets: {full / MIB:.0f} MiB when they are queued, {most / MIB:.0f} MiB at most "
            f"until they are delivered, of {limit / MIB:.0f} MiB{'' if cage.enforced else ' (no cgroup here: the peak is looked at)'}"
        )
    assert caged.process.poll() is None and most <= limit


def fill(relay, content_type, content, ends):
    """Hands over batch after batch until one line is refused, by this setting; gives how many were taken."""
    door = http.client.HTTPConnection(relay.url.removeprefix("http://"), timeout=PATIENCE)
    taken = 0
    while True:
        lines = [
            {"ContentType": content_type, "Content": content, "ConnectionToken": f"canary-{taken % 2000 + n}", "ClientToken": f"c-{taken + n}"}
            for n in range(50)
        ]
        body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        door.request("POST", "/participant/messages", body.encode())
        replies = [json.loads(line) for line in door.getresponse().read().splitlines()]
        taken += sum("State" in reply for reply in replies)
        if refused := [reply["Error"]["Message"] for reply in replies if "Error" in reply]:
            assert all(ends in text for text in refused), refused[0]
            return taken
