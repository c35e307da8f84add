"""Streams that are full, and servers that take short records only: the relay is behind, says so once, and goes on. It is never
fenced by that, and loses nothing."""

import json
import shutil
import signal
import uuid

import pytest

from kit.callers import MESSAGE, curl
from kit.copies import ask, control, records, settings, state, stream_of
from kit.nats_proxy import NatsProxy
from kit.wait import until

FILLING = "canary" + "😀" * 3900


@pytest.fixture
def copies(relays, tmp_path):
    """`copies(endpoint, url, …)`: a relay whose queue is copied; it is soon behind."""

    def make(endpoint, url, **more):
        chosen = settings(url, tmp_path, **({"fleet__ack_timeout": "1s", "fleet__name": uuid.uuid4().hex} | more))
        return relays(endpoint, tcp=False, **chosen)

    return make


def post(relay, number, content="short"):
    body = {"ContentType": "application/json", "Content": json.dumps(content, ensure_ascii=False), "ClientToken": f"t-{number}"}
    headers = ["X-Amz-Bearer: canary-1", "Prefer: respond-async"]
    reply = curl(relay, MESSAGE, json.dumps(body, ensure_ascii=False).encode(), headers=headers)
    assert reply.status in (200, 202), (reply.status, reply.body)
    return reply.headers["relay-durable"]


def until_fleet(relay, number):
    until(lambda: post(relay, number) == "fleet", "the stream has everything")


def numbers(simulator):
    """The numbers of the messages that were sent, in order."""
    return [int(line["ClientToken"][2:]) for line in simulator.ledger()]


def is_restored(relay, queued):
    relay.kill()
    shutil.rmtree(relay.folder / "private")
    relay.start()
    return relay.queued() == queued


def full(relay, server):
    """Leaves the stream no room; returns its settings before."""
    config = ask(server, "INFO", stream_of(relay))["config"]
    changed = ask(server, "UPDATE", stream_of(relay), config | {"max_bytes": state(server, relay)["bytes"] + 100})
    assert "error" not in changed, changed
    return config


def test_full_stream_is_behind_and_caught_up_when_there_is_room(copies, cluster, simulator):
    server = cluster.servers[0]
    relay = copies(simulator.url, cluster.url)
    until_fleet(relay, 0)
    config = full(relay, server)
    assert post(relay, 1, FILLING) == "local"
    for number in range(2, 6):
        assert post(relay, number) == "local"
    until(lambda: numbers(simulator) == list(range(6)), "sending goes on")
    until(lambda: relay.lines("fleet behind"), "the relay is behind")
    until(lambda: any("raise fleet.stream_bytes_max" in line.get("why", "") for line in relay.lines()), "the reason is logged")
    assert "error" not in ask(server, "UPDATE", stream_of(relay), config)
    control(relay, "pause")
    until_fleet(relay, 6)
    until(lambda: relay.lines("fleet caught up"), "the relay has caught up")
    assert len(relay.lines("fleet behind")) == len(relay.lines("fleet caught up")) == 1
    assert not relay.lines("fenced")
    # More than the backlog: a snapshot takes its place.
    full(relay, server)
    for batch in range(3):
        lines = [
            json.dumps({"ContentType": "application/json", "Content": json.dumps("x" * 11_000), "ClientToken": f"{batch}-{number}", "ConnectionToken": "canary-1"})
            for number in range(50)
        ]  # fmt: skip
        assert curl(relay, "/participant/messages", "\n".join(lines).encode()).status == 200
    config = ask(server, "INFO", stream_of(relay))["config"] | {"max_bytes": config["max_bytes"]}
    assert "error" not in ask(server, "UPDATE", stream_of(relay), config)
    until_fleet(relay, 1000)
    assert not relay.lines("fenced")
    assert is_restored(relay, 152)


def test_restart_with_a_higher_limit_makes_room(copies, cluster, simulator):
    relay = copies(simulator.url, cluster.url)
    control(relay, "pause")
    until_fleet(relay, 0)
    full(relay, cluster.servers[0])
    assert post(relay, 1, FILLING) == "local"
    relay.kill()
    relay.settings["fleet.stream_bytes_max"] = "1GiB"
    relay.start()
    until_fleet(relay, 2)
    assert ask(cluster.servers[0], "INFO", stream_of(relay))["config"]["max_bytes"] == 1 << 30
    assert is_restored(relay, 3)


def batch(count, first):
    """Lines of a batch: messages of about 11 KB."""
    lines = [
        json.dumps({"ContentType": "application/json", "Content": json.dumps("x" * 11_000), "ClientToken": f"t-{number}", "ConnectionToken": "canary-1"})
        for number in range(first, first + count)
    ]  # fmt: skip
    return "\n".join(lines).encode()


def test_relay_that_crashes_in_each_snapshot_does_not_fill_its_stream(copies, cluster, simulator):
    server = cluster.servers[0]
    proxy = NatsProxy(server)
    try:
        relay = copies(simulator.url, proxy.url)
        control(relay, "pause")
        until_fleet(relay, 0)
        for first in (1, 51, 101):
            assert curl(relay, "/participant/messages", batch(50, first)).headers["relay-durable"] == "fleet"
        whole = state(server, relay)["bytes"]
        for crash in range(9):
            relay.kill()
            if crash == 5:
                shutil.rmtree(relay.folder / "private")
            # In its snapshot, of which about 1 MiB is stored.
            proxy.release()
            instant = proxy.stop_at("rows", "after", 4)
            relay.spawn()
            instant.wait()
            assert state(server, relay)["bytes"] < whole + (3 << 20), f"after {crash + 1} crashes"
        relay.kill()
        proxy.release()
        # What the stream has is enough, with the beginnings of snapshots that are left.
        shutil.rmtree(relay.folder / "private")
        relay.start()
        assert relay.queued() == 151
        until_fleet(relay, 151)
        assert not relay.lines("fenced") and not [line for line in relay.lines() if "raise fleet" in line.get("why", "")]
        until(lambda: state(server, relay)["bytes"] < whole + (1 << 20), "only the last snapshot is left")
        control(relay, "resume")
        relay.until_empty()
        assert numbers(simulator) == list(range(152))
    finally:
        proxy.close()


def limited(nats_servers, bytes_max):
    """A server with JetStream that takes payloads of this length at most."""
    server = nats_servers(start=False)
    server.config.write_text(
        f'listen: "127.0.0.1:{server.port}"\nmax_payload: {bytes_max}\njetstream {{ store_dir: "{server.folder}/js" }}\n'
    )
    return server


def test_long_commits_go_in_records_that_the_server_takes(copies, nats_servers, simulator):
    server = limited(nats_servers, 8192).start()
    relay = copies(simulator.url, server.url, fleet__replicas=1)
    control(relay, "pause")
    until_fleet(relay, 0)
    for number in range(1, 6):
        assert post(relay, number, FILLING) == "fleet"
    lengths = [len(record) for record in records(server, relay)]
    assert max(lengths) < 8192 < sum(lengths)
    assert not relay.lines("fleet behind")
    assert is_restored(relay, 6)


def test_server_that_takes_shorter_records_after_a_reload_gets_shorter_ones(copies, nats_servers, simulator):
    server = limited(nats_servers, 1 << 20).start()
    relay = copies(simulator.url, server.url, fleet__replicas=1)
    control(relay, "pause")
    until_fleet(relay, 0)
    server.config.write_text(server.config.read_text().replace(str(1 << 20), "4096"))
    server.process.send_signal(signal.SIGHUP)
    until(lambda: b"Reloaded: max_payload" in server.log_path.read_bytes(), "the server has reloaded")
    for number in range(1, 6):
        post(relay, number, FILLING)
    until_fleet(relay, 6)
    assert not relay.lines("fenced")
    assert is_restored(relay, 7)


def test_server_that_takes_no_record_at_all_leaves_the_relay_behind_with_one_warning(copies, nats_servers, simulator):
    server = limited(nats_servers, 1024).start()
    relay = copies(simulator.url, server.url, fleet__replicas=1)
    for number in range(5):
        assert post(relay, number, FILLING) == "local"
    until(lambda: numbers(simulator) == list(range(5)), "sending goes on")
    until(lambda: any("does not take records" in line["message"] for line in relay.lines()), "the reason is logged")
    until(lambda: relay.lines("fleet behind"), "the relay is behind")
    asked = relay.metrics()["fleet_behind_seconds"]
    until(lambda: relay.metrics()["fleet_behind_seconds"] > asked + 3, "it stays behind")
    assert len([line for line in relay.lines() if line["level"] == "WARN" and "fleet" in line["message"]]) == 2
    relay.terminate()
    assert relay.wait() == 0
