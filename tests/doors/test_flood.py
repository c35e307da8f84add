"""A neighbour that floods the socket, with connections and with bodies, before a relay that has 64 MiB: it stays within
them, and another user's bot is answered all the while."""

import contextlib
import multiprocessing
import resource
import socket
import threading
import time

import pytest

from kit.cage import Cage, peak
from kit.callers import MESSAGE, parse
from kit.neighbours import request as asked
from kit.neighbours import NEIGHBOUR, VICTIM, Neighbour
from kit.patience import until
from kit.raw import dial
from kit.upstream import CUT, Answer

pytestmark = pytest.mark.usefixtures("users")

MIB = 1 << 20
MEMORY = 64 * MIB
PROCESSES = 10
POST = b"POST /participant/message HTTP/1.1\r\nHost: localhost\r\nX-Amz-Bearer: canary-flood\r\n"
BATCH = b"POST /participant/messages HTTP/1.1\r\nHost: localhost\r\n"
# A batch of lines as short as they may be, each of which is answered with an error longer than itself.
LINES = BATCH + b"Content-Length: %d\r\n\r\n" % (65 * 15_000) + (b"{}" + b" " * 62 + b"\n") * 15_000
TRANSCRIPT = b'{"Transcript":"' + b"x" * (2 * MIB - 20) + b'"}'


@pytest.fixture
def cage():
    made = Cage(MEMORY)
    yield made
    made.close()


@pytest.fixture
def caged(cage, shared, upstreams):
    """A relay in the cage, before a service with long transcripts. It is gone before the cage is."""
    upstream = upstreams(lambda request: Answer(200, TRANSCRIPT) if request.target.endswith("/transcript") else CUT)
    relay = shared(
        upstream.url, start=False, tcp=False, ingress__request_timeout="2s", ingress__idle_timeout="5s", sender__attempt_timeout="2s"
    )
    relay.spawn()
    cage.add(relay.process.pid)
    until(relay.ready, "the relay is ready")
    yield relay
    relay.kill()


@pytest.mark.parametrize("what,wanted", [
    ("connections", 10_000),
    ("bytes of bodies", 1 << 30),
    ("batches whose replies nobody reads", 200),
    ("transcripts that nobody reads", 100),
])  # fmt: skip
def test_flood_keeps_the_relay_within_64_mib_and_others_are_answered(caged, cage, capsys, what, wanted):
    work = {"connections": connections, "bytes": bodies, "batches": deaf_batches, "transcripts": deaf_transcripts}[what.split()[0]]
    done = multiprocessing.Value("q", 0)
    bot = Neighbour(VICTIM, answered, caged)
    flooders = []
    try:
        assert bot.heard() == 0, "the bot has begun"
        flooders = [Neighbour(NEIGHBOUR, work, caged, done, wanted, number) for number in range(PROCESSES)]
        assert [flooder.heard(600) for flooder in flooders] == ["done"] * PROCESSES
        # What was begun is still there: the bot goes on for a while.
        before = bot.count()
        until(lambda: bot.count() >= before + 20, "the bot is answered")
        took = sorted(bot.all())
    finally:
        for neighbour in (bot, *flooders):
            neighbour.end()
    most = peak(caged.process.pid)
    limit = "in a cgroup of 64 MiB" if cage.enforced else "(no cgroup here: the peak is looked at)"
    with capsys.disabled():
        print(
            f"\na flood of {done.value:,} {what} {limit}: {most / MIB:.1f} MiB at "
            f"most; {len(took)} accepts of another bot, all answered, p50 {took[len(took) // 2] * 1000:.0f} ms, "
            f"p99 {took[len(took) * 99 // 100] * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms"
        )
    assert done.value >= wanted
    assert caged.process.poll() is None and caged.get("/livez")[0] == 200, "it lives"
    assert most <= MEMORY, f"{most} bytes"


def answered(say, relay):
    """A bot that hands message after message over, each by a connection of its own, and says how long each took."""
    say(0)
    number = 0
    while True:
        body = {"ContentType": "text/plain", "Content": "canary", "ClientToken": f"c-{number}"}
        began = time.monotonic()
        stream = patiently(relay)
        with stream:
            stream.sendall(asked("POST", MESSAGE, ["X-Amz-Bearer: canary-bot", "Connection: close"], body))
            reply = b""
            while part := stream.recv(65536):
                reply += part
        assert parse(reply).status == 202, reply
        say(time.monotonic() - began)
        number += 1
        time.sleep(0.005)


def patiently(relay):
    """A connection: where the socket's backlog is full the kernel says so to who would not wait."""
    while True:
        with contextlib.suppress(BlockingIOError):
            return dial(relay)
        time.sleep(0.005)


def connections(say, relay, done, wanted, number):
    """Makes its part of so many, and leaves each in another state of being useless."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted), hard))
    ways = [b"", b"POST /par", POST, POST + b"Content-Length: 262144\r\n\r\n" + b"{" * 8192, BATCH + b"Transfer-Encoding: chunked\r\n\r\n9"]
    kept = []
    for at in range(wanted // PROCESSES):
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(relay.socket)
        with contextlib.suppress(OSError):
            stream.send(ways[at % len(ways)])
        kept.append(stream)
        count(done, 1)
    say("done")
    time.sleep(600)


def bodies(say, relay, done, wanted, number):
    """Sends until all have sent so many bytes, one kind of body a process: too long, endless, garbage, lines; and never reads
    a reply."""
    garbage = b"x" * (256 << 10)
    endless = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    head, body = [
        (POST + b"Content-Length: 1000000000\r\n\r\n", garbage),
        (POST + b"Content-Length: 16000000\r\n\r\n", garbage),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", endless),
        (b"", POST + b"Content-Length: 262144\r\n\r\n" + garbage),
        (b"", LINES),
    ][number % 5]
    while done.value < wanted:
        with socket.socket(socket.AF_UNIX) as stream, contextlib.suppress(OSError):
            stream.connect(relay.socket)
            stream.settimeout(0.5)  # nobody takes it any more: another connection
            stream.sendall(head)
            while done.value < wanted:
                count(done, stream.send(body))
    say("done")
    time.sleep(600)


def deaf_batches(say, relay, done, wanted, number):
    deaf(say, relay, done, wanted, LINES)


def deaf_transcripts(say, relay, done, wanted, number):
    deaf(say, relay, done, wanted, asked("POST", "/participant/transcript", ["X-Amz-Bearer: canary-flood"], {}))


def deaf(say, relay, done, wanted, whole):
    """Its part of so many requests at once, on connections that stay as long as the relay lets them."""

    def ask():
        with socket.socket(socket.AF_UNIX) as stream, contextlib.suppress(OSError):
            stream.connect(relay.socket)
            stream.sendall(whole)
            stream.recv(1, socket.MSG_PEEK)  # it has begun to answer
            while True:  # until it is cut
                stream.send(b" ")
                time.sleep(0.01)

    threads = [threading.Thread(target=ask) for _ in range(wanted // PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        count(done, 1)
    say("done")


def count(done, more):
    with done.get_lock():
        done.value += more
