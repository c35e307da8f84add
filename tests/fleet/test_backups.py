"""A volume that lacks what the stream has: put back from a backup, cut by a crash, or copied. Three real NATS servers, real
relays, the simulator's ledger as the judge."""

import json
import shutil
import threading

import pytest

import kit.copies
from kit.callers import MESSAGE, curl
from kit.processes import command
from kit.wait import until


@pytest.fixture
def replicated(relays, cluster, tmp_path):
    """`replicated(endpoint, …)`: a relay whose queue is copied into the cluster, and that is not started."""

    def make(endpoint, **settings):
        return relays(endpoint, start=False, tcp=False, **kit.copies.settings(cluster.url, tmp_path, **settings))

    return make


def post(relay, token, content, client_token):
    body = {"ContentType": "text/plain", "Content": content, "ClientToken": client_token}
    reply = curl(relay, MESSAGE, body, headers=[f"X-Amz-Bearer: {token}", "Prefer: respond-async"])
    assert reply.status in (200, 202), (reply.status, reply.body)
    return reply.headers.get("relay-durable")


def post_all(relay, numbers, durable, name="m"):
    """Messages for two chats, each answered with this durability."""
    for number in numbers:
        assert post(relay, f"canary-{number % 2}", f"{name}-{number}", f"{name}-{number}") == durable, number


def control(relay, *args):
    done = command(*args, "--socket", relay.folder / "private/control.sock")
    assert done.returncode == 0, done.stderr


def back_up(relay, name="backup"):
    """`cp -a` of the relay's folder, also of one that runs."""
    copy = relay.folder / name
    shutil.copytree(relay.folder / "private", copy, ignore=shutil.ignore_patterns("*.sock", "*.sock.lock"))
    return copy


def put_back(relay, copy):
    """Replaces the relay's folder by a copy."""
    shutil.rmtree(relay.folder / "private", ignore_errors=True)
    shutil.copytree(copy, relay.folder / "private")


def set_aside(relay):
    return sorted((relay.folder / "private/queue").glob("left-*"))


def audit(simulator, expected, repeats=0):
    """The ledger has exactly these contents, those of each chat in order, and Connect got no other request."""
    sent = [(line["ConnectionToken"], line["Content"], line["ClientToken"]) for line in simulator.ledger()]
    assert all(content == client_token for _, content, client_token in sent)
    chats = sorted({token for token, _, _ in sent})
    for chat in chats:
        own = [content for token, content, _ in sent if token == chat]
        assert own == [content for token, content in expected if token == chat], chat
    assert len(sent) == len(expected)
    assert simulator.counts()["duplicates"] == repeats


def messages(numbers, name="m"):
    return [(f"canary-{number % 2}", f"{name}-{number}") for number in numbers]


@pytest.mark.parametrize("copied", ["stopped", "killed", "running"])
def test_backup_is_brought_to_what_the_stream_has(replicated, simulator, copied):
    relay = replicated(simulator.url).start()
    control(relay, "pause")
    post_all(relay, range(10), "fleet")
    if copied == "running":
        copy = back_up(relay)
    else:
        relay.kill() if copied == "killed" else relay.stop()
        copy = back_up(relay)
        relay.start()
    control(relay, "resume")
    relay.until_empty()
    control(relay, "pause")
    post_all(relay, range(10, 20), "fleet")
    relay.kill()
    put_back(relay, copy)
    relay.start()
    assert [line["queued"] for line in relay.lines("queue restored", 1)] == [10]
    assert relay.metrics()["fleet_late_messages_total"] == 0 and not set_aside(relay)
    post_all(relay, range(20, 22), "fleet")
    control(relay, "resume")
    relay.until_empty()
    audit(simulator, messages(range(22)))
    # The same volume, from now on.
    relay.kill()
    relay.start()
    assert len(relay.lines("queue restored")) == 1
    post_all(relay, range(22, 24), "fleet")
    relay.until_empty()
    audit(simulator, messages(range(24)))


def test_backup_of_an_older_claim_is_recognised_each_time_it_is_put_back(replicated, simulator):
    relay = replicated(simulator.url).start()
    control(relay, "pause")
    post_all(relay, range(4), "fleet")
    copy = back_up(relay)
    control(relay, "resume")
    relay.until_empty()
    number = 4
    for again in range(3):
        for _ in range(2):
            relay.kill()
            relay.start()
            control(relay, "pause")
            post_all(relay, range(number, number + 4), "fleet")
            number += 4
        relay.kill()
        put_back(relay, copy)
        relay.start()
        assert len(relay.lines("queue restored", again + 1)) == again + 1
        # The second time another copy has succeeded that of the backup.
        assert relay.queued() == 8 and relay.metrics()["fleet_late_messages_total"] == 0
        control(relay, "resume")
        relay.until_empty()
    audit(simulator, messages(range(number)))


def test_commit_that_was_sent_and_never_synced_is_taken_from_the_stream(replicated, simulator):
    relay = replicated(simulator.url).start()
    control(relay, "pause")
    post_all(relay, range(5), "fleet")
    relay.kill()
    # A power cut before the sync: the last record is not whole.
    journals = [relay.folder / f"private/queue/journal.{number}" for number in (0, 1)]
    newest = max(journals, key=lambda path: int.from_bytes(path.read_bytes()[8:16], "big"))
    content = newest.read_bytes()
    last = len(content.rstrip(b"\0")) - 1
    newest.write_bytes(content[:last] + b"\0" + content[last + 1 :])
    relay.start()
    assert relay.queued() == 5 and not set_aside(relay)
    control(relay, "resume")
    relay.until_empty()
    audit(simulator, messages(range(5)))


def test_both_lack_messages_after_a_backup_ran_without_servers_and_none_is_lost(replicated, cluster, simulator):
    relay = replicated(simulator.url, fleet__ack_timeout="5s").start()
    post_all(relay, range(6), "fleet")
    relay.until_empty()
    control(relay, "pause")
    copy = back_up(relay)
    post_all(relay, range(6, 12), "fleet")
    relay.kill()
    put_back(relay, copy)
    cluster.kill()
    # Three runs on the backup, of which no server hears; the third one has no fleet.
    for first in (20, 24, 28):
        if first == 28:
            relay.settings["fleet.replicate"] = "false"
        relay.start()
        post_all(relay, range(first, first + 4), "local" if first < 28 else None)
        relay.kill()
    # Servers that have just started need a while to elect a leader.
    relay.settings |= {"fleet.replicate": "true", "fleet.ack_timeout": "20s"}
    cluster.start()
    relay.start()
    until(lambda: relay.metrics()["fleet_late_messages_total"] == 12, "the messages of the backup are accepted")
    assert len(set_aside(relay)) == 1 and relay.queued() == 18
    control(relay, "resume")
    relay.until_empty()
    audit(simulator, messages([*range(12), *range(20, 32)]))
    relay.kill()
    relay.start()
    assert relay.metrics()["fleet_late_messages_total"] == 0 and relay.queued() == 0


def test_backup_that_runs_while_the_servers_come_back_accepts_what_the_stream_has(replicated, cluster, simulator):
    relay = replicated(simulator.url, fleet__ack_timeout="5s").start()
    post_all(relay, range(6), "fleet")
    relay.until_empty()
    control(relay, "pause")
    copy = back_up(relay)
    post_all(relay, range(6, 12), "fleet")
    relay.kill()
    put_back(relay, copy)
    cluster.kill()
    relay.start()
    post_all(relay, range(20, 24), "local")
    cluster.start()
    until(lambda: relay.metrics()["fleet_late_messages_total"] == 6, "the messages of the stream are accepted")
    until(lambda: post(relay, "canary-0", "m-30", "m-30") == "fleet", "the relay has caught up")
    assert relay.queued() == 11
    control(relay, "resume")
    relay.until_empty()
    sent = [line["Content"] for line in simulator.ledger()]
    assert sorted(sent) == sorted(content for _, content in messages([*range(12), *range(20, 24), 30]))
    for chat in (0, 1):
        for numbers in (range(12), range(20, 24)):
            own = [f"m-{number}" for number in numbers if number % 2 == chat]
            assert [content for content in sent if content in own] == own
    assert simulator.counts()["duplicates"] == 0
    # The stream has it all now.
    relay.kill()
    shutil.rmtree(relay.folder / "private")
    relay.start()
    assert relay.queued() == 0


def test_backup_waits_with_closed_doors_while_the_relay_it_was_copied_from_lives(replicated, simulator):
    old = replicated(simulator.url).start()
    control(old, "pause")
    post_all(old, range(4), "fleet")
    copy = back_up(old)
    post_all(old, range(4, 8), "fleet")
    new = replicated(simulator.url)
    put_back(new, copy)
    new.spawn()
    until(lambda: [line for line in new.lines() if "another relay lives" in line.get("message", "")], "it waits")
    post_all(old, range(8, 12), "fleet")
    assert new.get("/readyz")[0] == 503 and old.process.poll() is None
    old.kill()
    until(new.ready, "it is ready")
    assert new.queued() == 12
    control(new, "resume")
    new.until_empty()
    audit(simulator, messages(range(12)))


@pytest.mark.parametrize("lost", ["journals", "log and journals"])
def test_damaged_store_is_set_aside_and_the_queue_is_restored(replicated, simulator, lost):
    relay = replicated(simulator.url).start()
    control(relay, "pause")
    post_all(relay, range(20), "fleet")
    # A checkpoint moves everything into the log.
    relay.stop()
    relay.start()
    post_all(relay, range(20, 24), "fleet")
    relay.kill()
    queue = relay.folder / "private/queue"
    for number in (0, 1):
        (queue / f"journal.{number}").unlink()
    if "log" in lost:
        content = (queue / "db").read_bytes()
        (queue / "db").write_bytes(content[:64] + bytes(len(content) - 64))
    relay.start()
    assert len(list(queue.glob("damaged-*"))) == 1
    assert relay.queued() == 24
    control(relay, "resume")
    relay.until_empty()
    audit(simulator, messages(range(24)))
    assert not relay.lines("fenced")


def test_copies_under_load_lose_and_repeat_nothing(replicated, simulator):
    """`cp -a` of a relay that accepts and sends, again and again, of which each is put back."""
    relay = replicated(simulator.url).start()
    number, stop = [0], threading.Event()

    def bot():
        while not stop.is_set():
            post_all(relay, [number[0]], "fleet")
            number[0] += 1

    for round_ in range(3):
        stop.clear()
        bots = threading.Thread(target=bot)
        bots.start()
        begun = number[0]
        until(lambda: number[0] >= begun + 30, "messages were accepted")
        copy = back_up(relay, f"backup-{round_}")
        until(lambda: number[0] >= begun + 60, "more messages were accepted")
        stop.set()
        bots.join()
        relay.kill()
        put_back(relay, copy)
        relay.start()
    relay.until_empty()
    sent = [line["Content"] for line in simulator.ledger()]
    assert len(sent) == len(set(sent)) == number[0]
    for chat in (0, 1):
        own = [int(content[2:]) for content in sent if int(content[2:]) % 2 == chat]
        assert own == sorted(own)
    # A kill leaves each chat's head in doubt.
    assert simulator.counts()["duplicates"] <= 2 * 3
