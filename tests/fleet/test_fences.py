"""Owners that were stopped, servers that are killed, and streams that were put back: of two owners only one stores, and what
was answered `fleet` is there. A proxy makes mutants of relays; the same checks detect them."""

import re
import shutil
import signal
import threading

import pytest

from kit.callers import MESSAGE, curl
from kit.copies import ask, claims, control, settings, stream_of
from kit.nats_proxy import NatsProxy
from kit.wait import until


@pytest.fixture
def copies(relays, tmp_path):
    """`copies(endpoint, url, …)`: a relay whose queue is copied."""

    def make(endpoint, url, start=True, **more):
        return relays(endpoint, start=start, tcp=False, **settings(url, tmp_path, **more))

    return make


@pytest.fixture
def proxies():
    made = []

    def make(server):
        made.append(NatsProxy(server))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


def post(relay, number, chats=1):
    """Posts message `number`; returns its Relay-Durable, or None if it is refused or the relay leaves."""
    body = {"ContentType": "text/plain", "Content": f"canary-{number}", "ClientToken": f"t-{number}"}
    headers = [f"X-Amz-Bearer: canary-chat-{number % chats}", "Prefer: respond-async"]
    try:
        reply = curl(relay, MESSAGE, body, headers=headers)
    except AssertionError:
        return None
    return reply.headers["relay-durable"] if reply.status in (200, 202) else None


def sent(simulator, chat=0):
    lines = [line for line in simulator.ledger() if line["ConnectionToken"] == f"canary-chat-{chat}"]
    return [int(line["ClientToken"][2:]) for line in lines]


def lose_volume(relay):
    relay.kill()
    shutil.rmtree(relay.folder / "private")


# Two owners.


def succession(copies, cluster, simulator, old_proxy, new_proxy):
    """An owner is stopped with a record in flight, succeeded and continued. Returns it, its successor, and the faults."""
    old = copies(simulator.url, old_proxy.url)
    control(old, "pause")
    for number in range(5):
        assert post(old, number) == "fleet"
    held = old_proxy.stop_at("rows", "before")
    in_flight = threading.Thread(target=post, args=(old, 100))
    in_flight.start()
    held.wait()
    old.process.send_signal(signal.SIGSTOP)
    new = copies(simulator.url, new_proxy.url)
    assert post(new, 5) == "fleet"
    own = claims(cluster.servers[1], new)[-1]
    old_proxy.release()
    old.process.send_signal(signal.SIGCONT)
    faults = []

    def decided():
        if post(old, 101) == "fleet":
            faults.append("the old owner answers `fleet`")
        return faults or old.process.poll() is not None

    until(decided, "the old owner leaves")
    in_flight.join()
    if post(new, 6) != "fleet":
        faults.append("the successor is disturbed")
    found = claims(cluster.servers[1], new)
    # A successor that was disturbed may have claimed the stream anew, and removed its first claim.
    if own not in found or any(claim != own for claim in found[found.index(own) :]):
        faults.append("the stream has a record of the old owner behind the claim of the new one")
    return old, new, faults


def test_stopped_owner_stores_nothing_after_its_successor_began_and_leaves(copies, cluster, proxies, simulator):
    old, new, faults = succession(copies, cluster, simulator, *[proxies(cluster.servers[0]) for _ in range(2)])
    assert faults == []
    assert old.wait() == 75
    control(new, "resume")
    new.until_empty()
    assert sent(simulator) == list(range(7))


def without_expectation(_connection, request):
    """A mutant: records without the expected sequence."""
    if request.is_record:
        request.head = re.sub(rb"Nats-Expected-Last-Sequence: \d+\r\n", b"", request.head)


def with_message_id(_connection, request):
    """A mutant: records with their place as their id. The server looks at it before the expected sequence."""
    if request.is_record:
        request.head = request.head[:-2] + b"Nats-Msg-Id: %d\r\n\r\n" % (request.expected + 1)


@pytest.mark.parametrize("mutant", [without_expectation, with_message_id])
def test_mutant_that_is_not_fenced_by_the_expected_sequence_is_detected(copies, cluster, proxies, simulator, mutant):
    through = [proxies(cluster.servers[0]) for _ in range(2)]
    for proxy in through:
        proxy.change = mutant
    _, _, faults = succession(copies, cluster, simulator, *through)
    assert faults


def test_record_names_its_stream_and_its_expected_sequence_and_nothing_else(copies, cluster, proxies, simulator):
    proxy = proxies(cluster.servers[0])
    relay = copies(simulator.url, proxy.url)
    assert post(relay, 0) == "fleet"
    relay.until_empty()
    heads = [re.findall(rb"\r\n([A-Za-z-]+):", request.head) for request in proxy.requests if request.is_record]
    assert len(heads) >= 4 and all(sorted(head) == [b"Nats-Expected-Last-Sequence", b"Nats-Expected-Stream"] for head in heads)


def test_owner_with_a_record_in_flight_leaves_when_its_successor_has_removed_that_place(copies, cluster, proxies, simulator):
    proxy = proxies(cluster.servers[0])
    old = copies(simulator.url, proxy.url)
    control(old, "pause")
    assert post(old, 0) == "fleet"
    held = proxy.stop_at("rows", "before")
    waiting = threading.Thread(target=post, args=(old, 1))
    waiting.start()
    held.wait()
    old.process.send_signal(signal.SIGSTOP)
    new = copies(simulator.url, cluster.url)
    # A second snapshot: its claim is behind the place of the record in flight, and what comes before is removed.
    new.kill()
    new.start()
    until(lambda: post(new, 2) == "fleet", "the successor's stream has everything")
    proxy.release()
    old.process.send_signal(signal.SIGCONT)
    assert old.wait() == 75
    waiting.join()
    assert len(old.lines("fenced")) == 1


@pytest.mark.long
def test_owner_and_leader_that_were_stopped_store_nothing_after_the_takeover(copies, cluster, simulator):
    others = copies(simulator.url, cluster.url, start=False)
    old = copies(simulator.url, cluster.servers[0].url)
    control(old, "pause")
    for number in range(5):
        assert post(old, number) == "fleet"
    leader = cluster.servers[leader_of(cluster, old)]
    old.settings["fleet.servers"] = leader.url
    old.kill()
    old.start()
    until(lambda: post(old, 5) == "fleet", "the stream has everything")
    leader = cluster.servers[leader_of(cluster, old)]
    leader.freeze()
    old.process.send_signal(signal.SIGSTOP)
    others.settings["fleet.servers"] = ",".join(server.url for server in cluster.servers if server is not leader)
    others.start()
    awake = next(server for server in cluster.servers if server is not leader)
    assert post(others, 6) == "fleet"
    own = claims(awake, others)[-1]
    leader.thaw()
    old.process.send_signal(signal.SIGCONT)
    late = post(old, 100)
    assert late in (None, "local")
    assert old.wait() == 75
    assert post(others, 7) == "fleet"
    found = claims(awake, others)
    assert set(found[found.index(own) :]) == {own}
    control(others, "resume")
    others.until_empty()
    assert sent(simulator) == list(range(8))


# Servers that are killed, and servers that are put back.


def leader_of(cluster, relay):
    """The number of the server that leads a relay's stream."""

    def found():
        for server in cluster.servers:
            if server.process.poll() is None and (answer := ask(server, "INFO", stream_of(relay))):
                if leader := answer.get("cluster", {}).get("leader"):
                    return (int(leader[1:]),)
        return None

    return until(found, "the stream has a leader")[0]


class Load:
    """A bot that posts one message after the other, for some chats, until it is stopped."""

    CHATS = 16

    def __init__(self, relay):
        self.relay, self.answers = relay, []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._over.wait(0.01):
            self.answers.append(post(self.relay, len(self.answers), self.CHATS))

    def until_posted(self, durable, count):
        """Waits until this many more messages got this answer."""
        begun = self.answers.count(durable)
        until(lambda: self.answers.count(durable) >= begun + count, f"{count} messages are answered {durable}", 180)

    def stop(self):
        self._over.set()
        self._thread.join()


@pytest.mark.long
@pytest.mark.parametrize("killed", ["leader", 2, 3])
def test_ten_kills_of_servers_under_load_lose_nothing_that_was_answered_fleet(copies, cluster, simulators, record_property, killed):
    simulator = simulators("--rate", 1e9, "--burst", 1_000_000_000)
    rates = {"sender__quota_rate": 10_000, "sender__quota_burst": 10_000}
    relay = copies(simulator.url, cluster.url, fleet__ack_timeout="2s", **rates)
    control(relay, "pause")
    load = Load(relay)
    try:
        for round_ in range(10):
            load.until_posted("fleet", 20)
            which = [leader_of(cluster, relay)] if killed == "leader" else [(round_ + place) % 3 for place in range(killed)]
            cluster.kill(which)
            if killed == "leader":
                load.until_posted("fleet", 20)  # the two others elect a leader
            else:
                load.until_posted("local", 20)
            cluster.start(which)
        load.until_posted("fleet", 20)
    finally:
        load.stop()
    lose_volume(relay)
    relay.start()
    assert not relay.lines("fenced")
    control(relay, "resume")
    relay.until_empty(300)
    kept = [number for number, durable in enumerate(load.answers) if durable == "fleet"]
    delivered = []
    for chat in range(Load.CHATS):
        own = sent(simulator, chat)
        assert own == sorted(set(own)), "doubled, or out of order"
        delivered += own
    assert not set(kept) - set(delivered), "a message that the fleet has is missing"
    record_property("figures", f"killed {killed}, ten times: {len(load.answers)} messages, {len(kept)} of them answered `fleet`, 0 lost")


@pytest.mark.parametrize("start", [pytest.param("on the same volume", marks=pytest.mark.long), "on an empty volume"])
def test_servers_that_were_put_back_from_a_backup_do_not_fence_the_owner(copies, cluster, simulator, tmp_path, start):
    relay = copies(simulator.url, cluster.url)
    control(relay, "pause")
    for number in range(3):
        assert post(relay, number) == "fleet"
    cluster.kill()
    for number, server in enumerate(cluster.servers):
        shutil.copytree(server.folder / "js", tmp_path / f"js-{number}")
    cluster.start()
    # The stream in the backup has the claim of an earlier process, or of an earlier volume.
    if start == "on an empty volume":
        lose_volume(relay)
    else:
        relay.kill()
    relay.start()
    for number in range(3, 6):
        until(lambda number=number: post(relay, number) == "fleet", "the stream has everything")
    cluster.kill()
    for number, server in enumerate(cluster.servers):
        shutil.rmtree(server.folder / "js")
        shutil.copytree(tmp_path / f"js-{number}", server.folder / "js")
    cluster.start()
    until(lambda: post(relay, 6) == "fleet", "the stream has everything again", 120)
    assert not relay.lines("fenced")
    lose_volume(relay)
    relay.start()
    control(relay, "resume")
    relay.until_empty()
    assert sent(simulator) == list(range(7))
