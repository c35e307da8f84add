"""A relay that is stopped (SIGSTOP), succeeded by another, and goes on: it starts no attempt. Each has a Connect of its own."""

import signal
import time

import pytest

import kit.copies
from kit.callers import MESSAGE, curl
from kit.processes import command
from kit.wait import until


@pytest.fixture
def replicated(relays, cluster, tmp_path):
    """`replicated(endpoint, …)`: a relay whose queue is copied into the cluster, and that sends one message a second."""

    def make(endpoint, **settings):
        slow = {"sender__quota_rate": 1, "sender__quota_burst": 1, "sender__rate_min": 0.5}
        return relays(endpoint, tcp=False, **kit.copies.settings(cluster.url, tmp_path, **(slow | settings)))

    return make


def post_all(relay, numbers):
    for number in numbers:
        body = {"ContentType": "text/plain", "Content": f"m-{number}", "ClientToken": f"t-{number}"}
        reply = curl(relay, MESSAGE, body, headers=["X-Amz-Bearer: canary-1", "Prefer: respond-async"])
        assert reply.headers["relay-durable"] == "fleet", reply.body


def sent(*simulators):
    return [line["Content"] for simulator in simulators for line in simulator.ledger()]


def stop_between_attempts(relay, simulator, count):
    """Stops the relay right after an attempt: the next one is due a second later."""
    until(lambda: len(simulator.ledger()) >= count and relay.metrics()["in_flight"] == 0, "some are delivered")
    before = len(simulator.ledger())
    until(lambda: len(simulator.ledger()) > before, "another one is delivered")
    until(lambda: relay.metrics()["in_flight"] == 0, "its answer is recorded")
    relay.process.send_signal(signal.SIGSTOP)
    return len(simulator.ledger())


def test_relay_that_goes_on_after_its_successor_began_starts_no_attempt(replicated, simulators):
    here, there = simulators(), simulators()
    old = replicated(here.url)
    post_all(old, range(40))
    delivered = stop_between_attempts(old, here, 3)
    new = replicated(there.url, sender__quota_rate=1000, sender__quota_burst=1000)
    new.until_empty()
    old.process.send_signal(signal.SIGCONT)
    assert old.wait() == 75
    assert len(old.lines("fenced")) == 1
    assert len(here.ledger()) == delivered and here.counts()["duplicates"] == 0
    assert sent(here, there) == [f"m-{number}" for number in range(40)]


def test_relay_that_was_stopped_and_has_no_successor_goes_on(replicated, cluster, simulator):
    relay = replicated(simulator.url)
    post_all(relay, range(8))
    delivered = stop_between_attempts(relay, simulator, 1)
    # A confirmation counts for 5 s.
    stopped = time.monotonic()
    until(lambda: time.monotonic() - stopped > 7, "the relay is stopped for a while")
    relay.process.send_signal(signal.SIGCONT)
    relay.until_empty()
    assert sent(simulator) == [f"m-{number}" for number in range(8)] and delivered < 8
    assert simulator.counts()["duplicates"] == 0 and not relay.lines("fenced")


def test_servers_that_hang_stop_no_attempt(replicated, cluster, simulator):
    relay = replicated(simulator.url, fleet__ack_timeout="1s", sender__quota_rate=10, sender__quota_burst=10)
    post_all(relay, range(2))
    relay.until_empty()
    for server in cluster.servers:
        server.freeze()
    control = ["--socket", relay.folder / "private/control.sock"]
    lines = "".join(
        f'{{"ContentType": "text/plain", "Content": "n-{number}", "ClientToken": "n-{number}", "ConnectionToken": "canary-{number}"}}\n'
        for number in range(60)
    )
    assert command("send", "--socket", relay.socket, "--batch", "-", stdin=lines).returncode == 0
    relay.until_empty()
    assert command("status", *control).returncode in (0, 1)
    for server in cluster.servers:
        server.thaw()
    assert len(sent(simulator)) == 62 and simulator.counts()["duplicates"] == 0
