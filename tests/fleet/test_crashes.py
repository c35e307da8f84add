"""Crashes at each step of a commit, of a restore and of a snapshot, each followed by a start on the same volume and by one on
an empty volume. A proxy and a library in the relay stop it at named instants; the simulator's ledger is the judge: nothing
that was answered `fleet` is lost, and on the same volume nothing that was answered at all; nothing is doubled, nothing out
of order. The same judge detects mutants: relays whose words the proxy changes."""

import json
import shutil
import threading
import uuid

import pytest

from kit.callers import curl
from kit.clocks import build_shim
from kit.copies import control, settings, state, stream_of
from kit.nats import NatsCluster
from kit.nats_proxy import NatsProxy
from kit.wait import until

VOLUMES = ["same", "empty"]
CHATS = 4


@pytest.fixture(scope="module")
def servers():
    """Three servers that these tests leave alone: each has a fleet of its own there."""
    made = NatsCluster()
    try:
        yield made.start()
    finally:
        made.remove()


@pytest.fixture
def proxy(servers):
    made = NatsProxy(servers.servers[0])
    yield made
    made.close()


FILLING = "canary" + "😀" * 4000


def line(content, client_token, token, **more):
    """A line of a batch."""
    content = json.dumps(content, ensure_ascii=False)
    made = {"ContentType": "application/json", "Content": content, "ClientToken": client_token, "ConnectionToken": token}
    return json.dumps(made | more, ensure_ascii=False)


class Story:
    """A relay whose queue is copied through a proxy, its bot, and the instants at which it is killed."""

    def __init__(self, relay, proxy, simulator, hold):
        self.relay, self.proxy, self.simulator, self.hold = relay, proxy, simulator, hold
        self.posts = []  # [content, the answer's Relay-Durable or None]
        self._thread, self._claimed = None, False
        proxy.answered = self._answered

    def _answered(self, _connection, request, _answer):
        self._claimed |= request.name == "claim"

    def stop_at(self, name, when, nth=1):
        """The proxy stops at this instant of the snapshot that begins with the next claim."""
        self._claimed = False
        return self.proxy.stop_at(name, when, nth, lambda request: request.name == "claim" or self._claimed)

    def arm(self, name):
        """The relay is held at this instant of its own from now on."""
        (self.hold / name).touch()

    def wait_for(self, name):
        until((self.hold / f"{name}.reached").exists, f"the instant {name}")

    def post(self, count=1, size=10):
        """Posts messages as one request; they count as answered when the reply has come."""
        posts = [[f"canary-{len(self.posts) + place} {'😀' * size}", None] for place in range(count)]
        first = len(self.posts)
        self.posts += posts
        self._send(first, posts)

    def _send(self, first, posts):
        lines = [
            line(content, f"t-{first + place}", f"canary-chat-{(first + place) % CHATS}")
            for place, (content, _) in enumerate(posts)
        ]
        reply = curl(self.relay, "/participant/messages", ("\n".join(lines) + "\n").encode())
        assert reply.status == 200 and not any("Error" in line for line in reply.lines), reply.body
        for post in posts:
            post[1] = reply.headers["relay-durable"]

    def post_meanwhile(self, count=1, size=10):
        """Posts in a thread, which ends without an answer if the relay is killed."""

        def run():
            try:
                self.post(count, size)
            except (AssertionError, KeyError):
                pass  # curl failed: no answer

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def lengthen(self):
        """Makes the stream long in a thread: posts messages, and as many that an operator deletes."""

        def run():
            try:
                while True:
                    self.post()
                    lines = [line(FILLING, f"f-{len(self.posts)}-{place}", "canary-filling", Conversation="filling") for place in range(60)]
                    curl(self.relay, "/participant/messages", ("\n".join(lines) + "\n").encode())
                    control(self.relay, "messages", "delete", "--conversation", "filling", "--yes")
            except (AssertionError, KeyError):
                pass  # the relay was killed

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def crash(self, volume):
        """Kills the relay, and starts it again."""
        self.relay.kill()
        self.disarm()
        if volume == "empty":
            shutil.rmtree(self.relay.folder / "private")
        self.relay.start()

    def disarm(self):
        if self._thread:
            self._thread.join()
        for file in self.hold.iterdir():
            file.unlink()
        self.proxy.release()

    def faults(self, volume):
        """Sends everything, and returns the faults."""
        found = []
        for number, post in enumerate(self.posts):
            if post[1] is None:  # a bot repeats what was not answered
                self._send(number, [post])
                post[1] = "repeated"
        control(self.relay, "resume")
        self.relay.until_empty()
        for chat in range(CHATS):
            own = [post for number, post in enumerate(self.posts) if number % CHATS == chat]
            promised = [content for content, durable in own if volume == "same" or durable != "local"]
            sent = [json.loads(line["Content"]) for line in self.simulator.ledger() if line["ConnectionToken"].endswith(f"-{chat}")]
            short = [content.split()[0] for content in sent]
            if set(promised) - set(sent):
                found.append(f"lost: {[content.split()[0] for content in promised if content not in sent]}; sent: {short}")
            if len(sent) != len(set(sent)):
                found.append(f"doubled: {short}")
            if sent != [content for content, _ in own if content in sent]:
                found.append(f"out of order: {short}")
        return found


@pytest.fixture(scope="module")
def hold_library(tmp_path_factory):
    """The library that holds a relay at instants of its own."""
    return build_shim(tmp_path_factory.mktemp("hold"), "hold.c")


@pytest.fixture
def story(relays, proxy, simulator, hold_library, tmp_path):
    hold = tmp_path / "hold"
    hold.mkdir()
    before = ["env", f"LD_PRELOAD={hold_library}", f"HOLD={hold}"]
    chosen = settings(proxy.url, tmp_path, fleet__name=uuid.uuid4().hex, queue__dead_max=1)
    relay = relays(simulator.url, tcp=False, before=before, **chosen)
    control(relay, "pause")
    return Story(relay, proxy, simulator, hold)


# 1. A commit.


def published_not_synced(story, queued):
    story.arm("sync")
    stored = story.proxy.stop_at("rows", "after", where=queued)
    return [lambda: story.wait_for("sync"), stored.wait]


def synced_not_published(story, queued):
    story.arm("synced")
    held = story.proxy.stop_at("rows", "before", where=queued)
    return [lambda: story.wait_for("synced"), held.wait]


def synced_not_acknowledged(story, queued):
    story.arm("synced")
    stored = story.proxy.stop_at("rows", "after", where=queued)
    return [lambda: story.wait_for("synced"), stored.wait]


def acknowledged_not_answered(story, _queued):
    story.arm("reply")
    return [lambda: story.wait_for("reply")]


COMMITS = [published_not_synced, synced_not_published, synced_not_acknowledged, acknowledged_not_answered]


@pytest.mark.parametrize(
    "instant,volume",
    [*((instant, volume) for instant in COMMITS for volume in VOLUMES), (published_not_synced, "unsynced")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_crash_in_a_commit_loses_nothing_that_was_answered(story, instant, volume, tmp_path):
    for _ in range(6):
        story.post()
    if volume == "unsynced":
        # The volume as the disk has it: without the commit under way.
        shutil.copytree(story.relay.folder / "private", tmp_path / "disk", symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    waits = instant(story, lambda request: request.queued == 7)
    story.post_meanwhile()
    for wait in waits:
        wait()
    assert [durable for _, durable in story.posts] == ["fleet"] * 6 + [None]
    if volume == "unsynced":
        story.relay.kill()
        shutil.rmtree(story.relay.folder / "private/queue")
        shutil.copytree(tmp_path / "disk/queue", story.relay.folder / "private/queue")
        story.disarm()
        story.relay.start()
    else:
        story.crash(volume)
    story.post()
    assert story.faults(volume) == []


def test_crash_before_a_commit_is_published_is_detected_if_it_was_answered(story):
    """The mutant that does not wait for the acknowledgement."""
    for _ in range(6):
        story.post()

    def acknowledge(connection, request):
        if request.name == "rows" and request.queued == 7:
            connection.answer(request, {"stream": "any", "seq": request.expected + 1})
            return False
        return True

    story.proxy.change = acknowledge
    story.post()
    assert story.posts[-1][1] == "fleet"
    story.proxy.change = None
    story.crash("empty")
    assert any("lost" in fault for fault in story.faults("empty"))


# 2. A start on an empty volume: the restore, the claim, the snapshot.


def at_the_beginning_of_the_replay(story, _records):
    # The owner is found by two requests. What is read then is written on the way.
    return story.proxy.stop_at("get", "after", 2 + 1).wait


def in_the_middle_of_the_replay(story, records):
    return story.proxy.stop_at("get", "after", 2 + records // 2).wait


def at_the_end_of_the_replay(story, records):
    return story.proxy.stop_at("get", "after", 2 + records).wait


def before_the_instant_of_change(story, _records):
    story.arm("change")
    return lambda: story.wait_for("change")


def after_the_instant_of_change(story, _records):
    story.arm("changed")
    return lambda: story.wait_for("changed")


def at(name, when, nth=1):
    def instant(story, _records):
        return story.stop_at(name, when, nth).wait

    instant.__name__ = f"{when}_{name}_{nth}"
    return instant


SNAPSHOT = [at("rows", "after", 2), at("end", "before"), at("end", "after"), at("purge", "before"), at("purge", "after")]
RESTORES = [
    at_the_beginning_of_the_replay, in_the_middle_of_the_replay, at_the_end_of_the_replay, before_the_instant_of_change, after_the_instant_of_change,
    at("claim", "before"), at("claim", "after"), *SNAPSHOT,
]  # fmt: skip


# A second empty volume waits for a lease: most of these take long.
RESTARTS = [
    pytest.param(instant, volume, marks=[] if volume == VOLUMES[0] or instant in RESTORES[3:5] else pytest.mark.long)
    for instant in RESTORES
    for volume in VOLUMES
]


@pytest.mark.parametrize("instant,volume", RESTARTS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_crash_while_a_queue_is_restored_loses_nothing(story, servers, instant, volume):
    for _ in range(4):
        story.post(12, size=4000)
    for _ in range(4):
        story.post()
    assert {durable for _, durable in story.posts} == {"fleet"}
    assert story.relay.stop() == 75  # no lease to wait for
    shutil.rmtree(story.relay.folder / "private")
    wait = instant(story, state(servers.servers[0], story.relay)["messages"])
    story.relay.spawn()
    wait()
    story.crash(volume)
    story.post()
    # What the first process answered is the queue of the second.
    assert story.faults("same") == []


def test_removal_of_what_comes_before_a_snapshot_is_detected_if_its_end_is_not_stored(story):
    """The mutant that removes the records before its snapshot too early."""
    for _ in range(4):
        story.post(12, size=4000)
    assert {durable for _, durable in story.posts} == {"fleet"}
    story.relay.kill()

    def purge(connection, request, answer):
        story._answered(connection, request, answer)
        if request.name == "claim":
            body = json.dumps({"seq": request.expected + 1}).encode()
            subject = f"$JS.API.STREAM.PURGE.{stream_of(story.relay)}"
            connection.to_server(f"PUB {subject} {len(body)}\r\n".encode() + body + b"\r\n")

    story.proxy.answered = purge
    stopped = story.stop_at("rows", "after", 2)
    story.relay.spawn()
    stopped.wait()
    story.crash("empty")
    assert any("lost" in fault for fault in story.faults("empty"))


# 3. A snapshot while commits go on.


# Those that take long, because a stream of many megabytes comes first; all of them with --long.
SOON = [("after_rows_2", "empty"), ("before_purge_1", "empty")]
RENEWALS = [
    pytest.param(instant, volume, marks=[] if (instant.__name__, volume) in SOON else pytest.mark.long)
    for instant in [at("claim", "after"), *SNAPSHOT]
    for volume in VOLUMES
]


@pytest.mark.parametrize("instant,volume", RENEWALS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_crash_in_a_snapshot_while_commits_go_on_loses_nothing(story, instant, volume):
    for _ in range(4):
        story.post(12, size=4000)
    story.crash("same")
    # More than 8 MiB and twice the queue: the next snapshot begins, and commits say `fleet` meanwhile.
    wait = instant(story, None)
    story.lengthen()
    wait()
    story.crash(volume)
    answered = [durable for _, durable in story.posts]
    assert "local" not in answered[36:], answered
    story.post()
    assert story.faults(volume) == []
