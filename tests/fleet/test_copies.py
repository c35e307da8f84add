"""The copy of the queue in the fleet: three real NATS servers, real relays, the simulator's ledger as the judge."""

import base64
import json
import shutil
import signal
import socketserver
import threading

import pytest

import kit.copies
from kit.callers import MESSAGE, curl
from kit.processes import command
from kit.wait import until


@pytest.fixture
def copies(relays, cluster, tmp_path):
    """`copies(endpoint, …)`: a relay whose queue is copied into the cluster."""

    def make(endpoint, start=True, **settings):
        return relays(endpoint, start=start, tcp=False, **kit.copies.settings(cluster.url, tmp_path, **settings))

    return make


def post(relay, token, content, client_token):
    body = {"ContentType": "text/plain", "Content": content, "ClientToken": client_token}
    return curl(relay, MESSAGE, body, headers=[f"X-Amz-Bearer: {token}", "Prefer: respond-async"])


def durable(reply):
    assert reply.status in (200, 202), (reply.status, reply.body)
    return reply.headers["relay-durable"]


def pause(relay):
    done = command("pause", "--socket", relay.folder / "private/control.sock")
    assert done.returncode == 0, done.stderr


def resume(relay):
    done = command("resume", "--socket", relay.folder / "private/control.sock")
    assert done.returncode == 0, done.stderr


def lose_volume(relay):
    """Kills the relay and removes its folder, as a node that vanishes does."""
    relay.kill()
    shutil.rmtree(relay.folder / "private")


def test_queue_is_restored_on_an_empty_volume_in_order_with_its_client_tokens(copies, simulator):
    relay = copies(simulator.url)
    pause(relay)
    for number in range(40):
        reply = post(relay, f"canary-{number % 4}", f"m-{number}", f"t-{number}")
        assert durable(reply) == "fleet", number
    lose_volume(relay)
    relay.start()
    assert [line["queued"] for line in relay.lines("queue restored", 1)] == [40]
    assert relay.metrics()["fleet_restored_messages_total"] == 40
    repeat = post(relay, "canary-3", "m-3", "t-3")
    assert (durable(repeat), repeat.json["ClientToken"]) == ("fleet", "t-3")
    assert relay.queued() == 40, "a repeat makes nothing new"
    resume(relay)
    relay.until_empty()
    for chat in range(4):
        sent = [line["Content"] for line in simulator.ledger() if line["ConnectionToken"] == f"canary-{chat}"]
        assert sent == [f"m-{number}" for number in range(40) if number % 4 == chat]


def test_clean_stop_needs_no_lease_and_the_same_volume_is_never_waited_for(copies, simulator):
    relay = copies(simulator.url, fleet__lease="1h")
    pause(relay)
    assert durable(post(relay, "canary-1", "one", "t-1")) == "fleet"
    relay.kill()
    relay.start()
    assert durable(post(relay, "canary-1", "two", "t-2")) == "fleet"
    assert relay.stop() == 75
    shutil.rmtree(relay.folder / "private")
    relay.start()
    resume(relay)
    relay.until_empty()
    assert [line["Content"] for line in simulator.ledger()] == ["one", "two"]


def test_messages_are_accepted_and_sent_while_the_servers_are_down(copies, cluster, simulator):
    relay = copies(simulator.url)
    assert durable(post(relay, "canary-1", "one", "t-1")) == "fleet"
    cluster.kill()
    until(lambda: durable(post(relay, "canary-1", "again", "t-again")) == "local", "a commit is local")
    until(lambda: relay.lines("fleet behind"), "the relay says that it is behind")
    until(lambda: relay.lines("the fleet is not reached: this relay tries again until it is"), "it shares no quota")
    pause(relay)
    for number in range(200):
        assert durable(post(relay, f"canary-{number % 3}", f"m-{number}", f"m-{number}")) == "local"
    behind = relay.metrics()
    assert behind["fleet_behind_commits"] >= 200 and behind["fleet_behind_seconds"] > 0
    cluster.start()
    until(lambda: relay.lines("fleet caught up"), "the relay has caught up")
    assert relay.metrics()["fleet_behind_commits"] == 0
    assert len(relay.lines("fleet behind")) == 1 and not relay.lines("fenced")
    assert durable(post(relay, "canary-1", "last", "t-last")) == "fleet"
    lose_volume(relay)
    relay.start()
    assert relay.queued() == 201
    resume(relay)
    relay.until_empty()
    for chat in range(3):
        sent = [line["Content"] for line in simulator.ledger() if line["ConnectionToken"] == f"canary-{chat}"]
        expected = [f"m-{number}" for number in range(200) if number % 3 == chat]
        assert [content for content in sent if content.startswith("m-")] == expected


def test_long_outage_is_caught_up_by_a_snapshot(copies, cluster, simulator):
    relay = copies(simulator.url, queue__messages_max=100000)
    pause(relay)
    assert durable(post(relay, "canary-1", "one", "t-1")) == "fleet"
    cluster.kill()
    until(lambda: durable(post(relay, "canary-1", "again", "t-again")) == "local", "a commit is local")
    # Far more than the backlog that the relay keeps.
    lines = [
        json.dumps({"ContentType": "text/plain", "Content": "x" * 1000, "ClientToken": f"b-{number}", "ConnectionToken": f"canary-{number % 50}"})
        for number in range(4000)
    ]
    done = command("send", "--socket", relay.socket, "--batch", "-", stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    cluster.start()
    until(lambda: durable(post(relay, "canary-1", "last", "t-last")) == "fleet", "the relay has caught up")
    lose_volume(relay)
    relay.start()
    assert relay.queued() == 4003


def test_refusing_relay_keeps_nothing_while_the_servers_are_down(copies, cluster, simulator):
    relay = copies(simulator.url, fleet__when_down="refuse")
    pause(relay)
    assert durable(post(relay, "canary-1", "one", "t-1")) == "fleet"
    cluster.kill()

    def refused():
        reply = post(relay, "canary-1", "late", "t-late")
        return reply if reply.status == 503 else None

    reply = until(refused, "a message is refused")
    assert reply.headers["x-amzn-errortype"] == "ServiceUnavailableException"
    assert int(reply.headers["retry-after"]) >= 1 and int(reply.headers["x-amz-retry-after"]) >= 1
    kept = relay.queued()
    assert post(relay, "canary-1", "never", "t-never").status == 503
    assert relay.queued() == kept
    assert relay.metrics()['messages_rejected_total{reason="fleet_down"}'] >= 2
    cluster.start()
    until(lambda: post(relay, "canary-1", "later", "t-later").status == 202, "messages are accepted again")
    assert durable(post(relay, "canary-1", "later", "t-later")) == "fleet"


def test_stopped_owner_is_succeeded_and_leaves_without_a_further_attempt(copies, simulator):
    old = copies(simulator.url)
    pause(old)
    for number in range(10):
        assert durable(post(old, "canary-1", f"m-{number}", f"t-{number}")) == "fleet"
    old.process.send_signal(signal.SIGSTOP)
    new = copies(simulator.url)
    assert new.queued() == 10
    old.process.send_signal(signal.SIGCONT)
    reply = until(lambda: post(old, "canary-1", "lost?", "t-late"), "the old owner answers")
    assert reply.status in (202, 503)
    if reply.status == 202:
        assert reply.headers["relay-durable"] == "local"
    assert old.wait() == 75
    assert len(old.lines("fenced")) == 1
    assert old.lines()[-1]["message"] == "stopped; the relay that continues this queue sends its messages"
    assert (old.folder / "private/queue/format").exists()
    resume(new)
    new.until_empty()
    assert [line["Content"] for line in simulator.ledger()] == [f"m-{number}" for number in range(10)]


def test_stream_that_is_removed_under_its_owner_is_made_anew(copies, cluster, nats_listeners, simulator):
    relay = copies(simulator.url)
    pause(relay)
    assert durable(post(relay, "canary-1", "one", "t-1")) == "fleet"
    nats_listeners(cluster.servers[0]).publish("$JS.API.STREAM.DELETE.CR_connect-relay=_pod-0", b"")
    until(lambda: durable(post(relay, "canary-1", "two", "t-2")) == "local", "the stream is gone")
    until(lambda: durable(post(relay, "canary-1", "three", "t-3")) == "fleet", "the stream is there again")
    assert not relay.lines("fenced")
    lose_volume(relay)
    relay.start()
    assert relay.queued() == 3


class OldServer:
    """Greets as a server of an old version, and answers pings."""

    def __init__(self, version):
        info = {"server_id": "x", "version": version, "max_payload": 1048576, "headers": True, "jetstream": True, "proto": 1}
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
                for line in self.rfile:
                    if line.startswith(b"PING"):
                        self.wfile.write(b"PONG\r\n")

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"nats://127.0.0.1:{outer.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def test_server_without_jetstream_is_refused_at_the_start(copies, nats_servers, simulator):
    relay = copies(simulator.url, start=False, fleet__servers=nats_servers().url)
    online = command("check", "--online", "--dir", relay.folder, settings=relay.settings)
    assert online.returncode == 78, online.stderr
    [line] = [line for line in online.stderr.splitlines() if line.startswith("fleet.servers nats")]
    assert "JetStream" in line and line.endswith("use such servers, or set fleet.replicate = false")
    alone = command("check", "--online", "--dir", relay.folder, settings=relay.settings | {"fleet.replicate": "false"})
    assert alone.returncode == 0, alone.stderr
    relay.spawn()
    assert relay.wait() == 78
    assert "JetStream" in relay.log()


@pytest.mark.parametrize("version", ["2.9.10", "2.13.99"])
def test_server_of_an_old_version_is_refused_at_the_start(copies, simulator, version):
    old = OldServer(version)
    try:
        relay = copies(simulator.url, start=False, fleet__servers=old.url)
        relay.spawn()
        assert relay.wait() == 78
        assert version in relay.log() and "2.14" in relay.log()
        online = command("check", "--online", "--dir", relay.folder, settings=relay.settings)
        assert online.returncode == 78 and f"the NATS server has version {version}" in online.stderr, online.stderr
    finally:
        old.close()


def test_servers_that_lose_jetstream_later_are_reported_once_and_stop_nothing(copies, cluster, simulator):
    relay = copies(simulator.url, fleet__ack_timeout="2s")
    pause(relay)
    assert durable(post(relay, "canary-1", "one", "t-1")) == "fleet"
    cluster.kill()
    with_jetstream = [server.config.read_text() for server in cluster.servers]
    for server in cluster.servers:
        server.config.write_text(f'listen: "127.0.0.1:{server.port}"\n')
    cluster.start()
    text = "the fleet's servers cannot hold the copy; the relay tries again until they can"
    [line] = until(lambda: relay.lines(text), "the reason is in the log", 60)
    assert "JetStream" in line["why"] and line["level"] == "WARN"
    assert durable(post(relay, "canary-1", "two", "t-2")) == "local"
    cluster.kill()
    for server, config in zip(cluster.servers, with_jetstream):
        server.config.write_text(config)
    cluster.start()
    until(lambda: relay.lines("fleet caught up"), "the relay has caught up", 60)
    assert (len(relay.lines(text)), len(relay.lines("fleet behind"))) == (1, 1)
    assert durable(post(relay, "canary-1", "three", "t-3")) == "fleet"


def test_returning_owner_waits_for_a_living_successor_and_brings_what_it_lacks(copies, cluster, simulator):
    old = copies(simulator.url)
    pause(old)
    for number in range(5):
        assert durable(post(old, "canary-1", f"m-{number}", f"t-{number}")) == "fleet"
    cluster.kill()
    until(lambda: durable(post(old, "canary-1", "m-5", "t-5")) == "local", "a commit is local")
    for number in range(6, 10):
        assert durable(post(old, "canary-1", f"m-{number}", f"t-{number}")) == "local"
    old.kill()
    cluster.start()
    new = copies(simulator.url)
    assert new.queued() == 5
    old.spawn()
    until(lambda: [line for line in old.lines() if "another relay lives" in line.get("message", "")], "the old owner waits")
    assert old.get("/readyz")[0] == 503
    assert len(old.lines("started")) == 1, "its doors are closed"
    new.kill()
    until(old.ready, "the old owner is ready")
    until(lambda: old.metrics()["fleet_late_messages_total"] == 5, "what the successor lacks is accepted")
    assert old.metrics()["fleet_fenced_total"] == 1
    assert old.queued() == 10
    assert len(list((old.folder / "private/queue").glob("left-*"))) == 1
    resume(old)
    old.until_empty()
    assert [line["Content"] for line in simulator.ledger()] == [f"m-{number}" for number in range(10)]
    old.kill()
    old.start()
    assert old.metrics()["fleet_late_messages_total"] == 0
    assert old.queued() == 0


def test_start_without_servers_opens_empty_and_accepts_what_the_stream_has_later(copies, cluster, simulator):
    relay = copies(simulator.url)
    pause(relay)
    for number in range(5):
        assert durable(post(relay, "canary-1", f"m-{number}", f"t-{number}")) == "fleet"
    cluster.kill()
    lose_volume(relay)
    relay.start()
    assert len(relay.lines("queue not restored", 1)) == 1
    pause(relay)
    assert durable(post(relay, "canary-2", "new", "t-new")) == "local"
    cluster.start()
    until(lambda: relay.metrics()["fleet_late_messages_total"] == 5, "the stream's messages are accepted")
    until(lambda: durable(post(relay, "canary-2", "newer", "t-newer")) == "fleet", "the relay has caught up")
    resume(relay)
    relay.until_empty()
    sent = [line["Content"] for line in simulator.ledger()]
    assert sorted(sent) == sorted([f"m-{number}" for number in range(5)] + ["new", "newer"])
    assert [content for content in sent if content.startswith("m-")] == [f"m-{number}" for number in range(5)]


@pytest.mark.parametrize("killed", [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 3])
def test_what_was_answered_fleet_is_restored_after_servers_are_killed_under_load(copies, cluster, simulator, killed):
    relay = copies(simulator.url)
    pause(relay)
    kept, answers = [], set()
    for number in range(300):
        if number == 100:
            cluster.kill(range(killed))
        if number == 200:
            cluster.start(range(killed))
        said = durable(post(relay, f"canary-{number % 3}", f"m-{number}", f"t-{number}"))
        answers.add(said)
        if said == "fleet":
            kept.append(f"m-{number}")
    lose_volume(relay)
    relay.start()
    resume(relay)
    relay.until_empty()
    sent = [line["Content"] for line in simulator.ledger()]
    assert not set(kept) - set(sent), "a message that the fleet has is missing"
    assert len(sent) == len(set(sent)), "a message was sent twice"
    for chat in range(3):
        own = [int(content[2:]) for content in sent if int(content[2:]) % 3 == chat]
        assert own == sorted(own)
    assert len(kept) >= 100


def fleet(relay, *args, settings=(), stdin=""):
    """`connect-relay fleet …` with the configuration of a relay, changed by `settings`."""
    own = {key: value for key, value in relay.settings.items() if key.startswith(("fleet.servers", "queue.key"))}
    return command("fleet", *args, settings=own | dict(settings), stdin=stdin)


def listed(relay):
    done = fleet(relay, "list", "--json")
    assert done.returncode == 0, done.stderr
    return {line["Identity"]: line for line in json.loads(done.stdout)}


def test_operator_lists_exports_and_removes_the_copy_of_a_relay_that_is_gone(copies, tmp_path, simulator):
    gone = copies(simulator.url)
    pause(gone)
    for number in range(6):
        assert durable(post(gone, f"canary-{number % 2}", f"m-{number}", f"t-{number}")) == "fleet"
    other = copies(simulator.url, fleet__identity="pod-1")
    assert durable(post(other, "canary-9", "own", "t-own")) == "fleet"
    found = listed(other)
    assert [found[name]["LivesOn"] is not None for name in ("pod-0", "pod-1")] == [True, True]
    assert (found["pod-0"]["Queued"], found["pod-0"]["Orphan"]) == (6, False)
    refused = fleet(other, "export", "pod-0")
    assert refused.returncode == 1 and "lives on" in refused.stderr and not refused.stdout
    assert fleet(other, "remove", "pod-0", "--yes").returncode == 1
    gone.kill()
    found = listed(other)
    assert (found["pod-0"]["LivesOn"], found["pod-0"]["Queued"], found["pod-0"]["Orphan"]) == (None, 6, True)
    table = fleet(other, "list").stdout.splitlines()
    assert any(line.startswith("pod-0") and "ORPHAN" in line for line in table)
    until(lambda: other.metrics()["fleet_orphans"] == 1, "the metric shows the orphan", 120)
    wrong_keys = tmp_path / "wrong"
    wrong_keys.write_text(base64.b64encode(b"w" * 32).decode() + "\n")
    unreadable = fleet(other, "export", "pod-0", settings={"queue.key_file": wrong_keys})
    assert unreadable.returncode == 78 and "queue.key_file" in unreadable.stderr and not unreadable.stdout
    exported = fleet(other, "export", "pod-0")
    assert exported.returncode == 0, exported.stderr
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [line["ClientToken"] for line in lines] == [f"t-{number}" for number in range(6)]
    sent = command("send", "--socket", other.socket, "--batch", "-", stdin=exported.stdout)
    assert sent.returncode == 0, sent.stderr
    assert fleet(other, "remove", "pod-0").returncode == 1, "without --yes and a terminal nothing is removed"
    assert fleet(other, "remove", "pod-0", "--yes").returncode == 0
    assert set(listed(other)) == {"pod-1"}
    assert fleet(other, "export", "pod-0").returncode == 1
    other.until_empty()
    assert sorted(line["Content"] for line in simulator.ledger()) == sorted(["own"] + [f"m-{number}" for number in range(6)])


def test_stream_stays_short_and_shows_no_secret(copies, cluster, simulator):
    relay = copies(simulator.url)
    pause(relay)
    # More than 8 MiB of commits, and few live rows at any time.
    for round_ in range(24):
        lines = [
            json.dumps({"ContentType": "text/plain", "Content": "canary" * 160, "ClientToken": f"{round_}-{number}", "ConnectionToken": f"canary-{number}"})
            for number in range(500)
        ]
        done = command("send", "--socket", relay.socket, "--batch", "-", stdin="\n".join(lines) + "\n")
        assert done.returncode == 0, done.stderr
        control = ["--socket", relay.folder / "private/control.sock"]
        assert command("messages", "delete", "--all", "--yes", *control).returncode == 0
    until(lambda: 0 < relay.metrics()["fleet_stream_bytes"] < 32 << 20, "the stream is measured", 60)
    assert not relay.lines("fleet behind")
    for server in cluster.servers:
        for path in server.folder.rglob("*"):
            assert not path.is_file() or b"canary" not in path.read_bytes(), path
    assert durable(post(relay, "canary-1", "last", "t-last")) == "fleet"
    lose_volume(relay)
    relay.start()
    assert relay.queued() == 1
