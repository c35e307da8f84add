"""A user that floods the socket with connections and bodies, before a relay with 64 MiB: the relay stays within
that limit, and another user's bot gets its replies meanwhile."""

import contextlib
import multiprocessing
import resource
import socket
import threading
import time

import pytest

from kit.cgroup import MemoryLimit, peak
from kit.callers import MESSAGE, parse
from kit.other_users import request as request_bytes
from kit.other_users import OTHER, VICTIM, OtherUser
from kit.wait import until
from kit.raw_http import dial
from kit.upstream import CUT, Answer

pytestmark = pytest.mark.usefixtures("users")

MIB = 1 << 20
MEMORY = 64 * MIB
PROCESSES = 10
POST = b"POST /participant/message HTTP/1.1\r\nHost: localhost\r\nX-Amz-Bearer: canary-flood\r\n"
BATCH = b"POST /participant/messages HTTP/1.1\r\nHost: localhost\r\n"
# A batch of the shortest possible lines; the error for each is longer than the line.
LINES = BATCH + b"Content-Length: %d\r\n\r\n" % (65 * 15_000) + (b"{}" + b" " * 62 + b"\n") * 15_000
TRANSCRIPT = b'{"Transcript":"' + b"x" * (2 * MIB - 20) + b'"}'


@pytest.fixture
def memory_limit():
    made = MemoryLimit(MEMORY)
    yield made
    made.close()


@pytest.fixture
def limited_relay(memory_limit, shared, upstreams):
    """A relay under the memory limit, before a service with long transcripts. It ends before the limit is removed."""
    upstream = upstreams(lambda request: Answer(200, TRANSCRIPT) if request.target.endswith("/transcript") else CUT)
    relay = shared(
        upstream.url, start=False, tcp=False, ingress__request_timeout="2s", ingress__idle_timeout="5s", sender__attempt_timeout="2s"
    )
    relay.spawn()
    memory_limit.add(relay.process.pid)
    until(relay.ready, "the relay is ready")
    yield relay
    relay.kill()


@pytest.mark.parametrize("what,wanted", [
    ("connections", 10_000),
    ("bytes of bodies", 1 << 30),
    ("batches whose replies are not read", 200),
    ("transcripts that are not read", 100),
])  # fmt: skip
def test_flood_keeps_the_relay_within_64_mib_and_others_are_answered(limited_relay, memory_limit, record_property, what, wanted):
    work = {"connections": connections, "bytes": bodies, "batches": unread_batches, "transcripts": unread_transcripts}[what.split()[0]]
    done = multiprocessing.Value("q", 0)
    bot = OtherUser(VICTIM, answered, limited_relay)
    flooders = []
    try:
        assert bot.receive() == 0, "the bot has begun"
        flooders = [OtherUser(OTHER, work, limited_relay, done, wanted, number) for number in range(PROCESSES)]
        assert [flooder.receive(600) for flooder in flooders] == ["done"] * PROCESSES
        # The flood's connections are still open: the bot continues for a while.
        before = bot.count()
        until(lambda: bot.count() >= before + 20, "the bot is answered")
        took = sorted(bot.all())
    finally:
        for other in (bot, *flooders):
            other.end()
    most = peak(limited_relay.process.pid)
    limit = "in a cgroup of 64 MiB" if memory_limit.enforced else "(no cgroup here: the peak is looked at)"
    record_property(
        "figures",
        f"a flood of {done.value:,} {what} {limit}: {most / MIB:.1f} MiB at "
        f"most; {len(took)} accepts of another bot, all answered, p50 {took[len(took) // 2] * 1000:.0f} ms, "
        f"p99 {took[len(took) * 99 // 100] * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms",
    )
    assert done.value >= wanted
    assert limited_relay.process.poll() is None and limited_relay.get("/livez")[0] == 200, "it lives"
    assert most <= MEMORY, f"{most} bytes"


def answered(say, relay):
    """A bot that sends messages, each over its own connection, and reports the duration of each."""
    say(0)
    number = 0
    while True:
        body = {"ContentType": "text/plain", "Content": "canary", "ClientToken": f"c-{number}"}
        began = time.monotonic()
        stream = dial_with_retries(relay)
        with stream:
            stream.sendall(request_bytes("POST", MESSAGE, ["X-Amz-Bearer: canary-bot", "Connection: close"], body))
            reply = b""
            while part := stream.recv(65536):
                reply += part
        assert parse(reply).status == 202, reply
        say(time.monotonic() - began)
        number += 1
        time.sleep(0.005)


def dial_with_retries(relay):
    """Connects; retries while the socket's backlog is full."""
    while True:
        with contextlib.suppress(BlockingIOError):
            return dial(relay)
        time.sleep(0.005)


def connections(say, relay, done, wanted, number):
    """Opens its part of the connections, and leaves them in different incomplete states."""
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
    """Sends until all have sent `wanted` bytes, one kind of body per process: too long, endless, garbage, lines; never reads
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
            stream.settimeout(0.5)  # the relay does not read it any more: use another connection
            stream.sendall(head)
            while done.value < wanted:
                count(done, stream.send(body))
    say("done")
    time.sleep(600)


def unread_batches(say, relay, done, wanted, number):
    send_unread(say, relay, done, wanted, LINES)


def unread_transcripts(say, relay, done, wanted, number):
    send_unread(say, relay, done, wanted, request_bytes("POST", "/participant/transcript", ["X-Amz-Bearer: canary-flood"], {}))


def send_unread(say, relay, done, wanted, whole):
    """Sends its part of the requests at once, on connections that stay open as long as the relay allows."""

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
