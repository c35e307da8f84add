"""Servers that a network divides, under relays whose queues are copied to them."""

import shutil

from kit import copies
from kit.callers import send
from kit.nats import NatsCluster
from kit.wait import until


def say(relay, number):
    """Hands a message over; returns `fleet` or `local`."""
    reply = send(relay, "canary-token", f"m-{number}", client_token=f"t-{number}")
    assert reply.status == 202, (reply.status, reply.body)
    return reply.headers["relay-durable"]


def test_owner_on_the_smaller_part_says_local_is_succeeded_on_the_larger_one_and_leaves_when_they_are_united(relays, simulator, tmp_path):
    cluster = NatsCluster(wires=True)
    try:
        cluster.start()
        urls = [server.url for server in cluster.servers]
        chosen = copies.settings(urls[2], tmp_path, fleet__ack_timeout="2s")
        old = relays(simulator.url, tcp=False, **chosen)
        until(lambda: say(old, 0) == "fleet", "the copy is up")
        copies.control(old, "pause")
        assert [say(old, number) for number in range(1, 11)] == ["fleet"] * 10
        cluster.divide(2)
        # Nothing that the smaller part accepts is in a majority of the copies.
        assert [say(old, number) for number in range(11, 16)] == ["local"] * 5
        new = relays(simulator.url, tcp=False, **(chosen | {"fleet__servers": ",".join(urls[:2])}))
        assert new.lines("queue restored", 1)[0]["queued"] == 10
        assert say(new, 16) == "fleet", "two of three are a majority"
        assert say(old, 17) == "local" and not old.lines("fenced"), "it cannot know"
        cluster.unite()
        assert old.wait() == 75
        assert len(old.lines("fenced")) == 1 and not new.lines("fenced")
        copies.control(new, "resume")
        new.until_empty()
        assert [line["Content"] for line in simulator.ledger()] == [f"m-{number}" for number in [*range(11), 16]]
        # What only the old volume has is accepted behind that, once its relay starts again.
        assert new.stop() == 0
        old.start()
        until(lambda: old.metrics()["fleet_late_messages_total"] == 6, "the old volume's messages are accepted")
        copies.control(old, "resume")
        old.until_empty()
        sent = [line["Content"] for line in simulator.ledger()]
        assert sent == [f"m-{number}" for number in [*range(11), 16, *range(11, 16), 17]]
    finally:
        cluster.remove()


def test_relay_that_knows_all_servers_goes_on_with_the_larger_part(relays, simulator, tmp_path):
    cluster = NatsCluster(wires=True)
    try:
        cluster.start()
        relay = relays(simulator.url, tcp=False, **copies.settings(cluster.url, tmp_path, fleet__ack_timeout="2s"))
        copies.control(relay, "pause")
        until(lambda: say(relay, 0) == "fleet", "the copy is up")
        for number, apart in enumerate([0, 1, 2], 1):
            cluster.divide(apart)
            until(lambda number=number: say(relay, number) == "fleet", f"the part without {apart} has it", 90)
            cluster.unite()
            until(lambda: relay.metrics()["fleet_behind_commits"] == 0, "the servers are united")
        assert not relay.lines("fenced")
        relay.kill()
        shutil.rmtree(relay.folder / "private")
        relay.start()
        assert relay.lines("queue restored", 1)[-1]["queued"] == 4
    finally:
        cluster.remove()
