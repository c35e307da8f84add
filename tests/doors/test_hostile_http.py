"""Slow, endless, ambiguous and too many requests: each ends in bounded time, and others are served."""

import contextlib
import socket

import pytest

from kit.callers import MESSAGE, curl, queued, send
from kit.other_users import request, request_once
from kit.wait import TIMEOUT, until
from kit.processes import Relay
from kit.raw_http import dial, received

DOWN = "http://127.0.0.1:9"
SHORT = {"ingress.request_timeout": "1s", "ingress.idle_timeout": "1s"}
POST = b"POST /participant/message HTTP/1.1\r\nHost: localhost\r\nX-Amz-Bearer: canary-token\r\n"
GOOD = b'{"ContentType":"text/plain","Content":"canary","ClientToken":"outer"}'
# A hidden request that an attacker wants to be processed.
HIDDEN = request("POST", MESSAGE, ["X-Amz-Bearer: canary-hidden"], {"ContentType": "text/plain", "Content": "canary", "ClientToken": "hidden"})
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
HUGE = b"f" * 17

# Heads that two parsers could read differently, with a hidden request where one of them expects the next request.
AMBIGUOUS = {
    "two lengths": POST + b"Content-Length: %d\r\nContent-Length: 0\r\n\r\n" % len(GOOD) + GOOD,
    "two lengths in one": POST + b"Content-Length: 0, %d\r\n\r\n" % len(GOOD) + GOOD,
    "a length with a sign": POST + b"Content-Length: +%d\r\n\r\n" % len(GOOD) + GOOD,
    "a length in hexadecimal": POST + b"Content-Length: 0x45\r\n\r\n" + GOOD,
    "a length beyond any integer": POST + b"Content-Length: 18446744073709551685\r\n\r\n" + GOOD,
    "a length with a space in it": POST + b"Content-Length: 6 9\r\n\r\n" + GOOD,
    "a space before the colon": POST + b"Content-Length : %d\r\n\r\n" % len(GOOD) + GOOD,
    "a folded header": POST + b"Content-Length:\r\n %d\r\n\r\n" % len(GOOD) + GOOD,
    "a header folded into an encoding": POST + b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
    "a bare CR in a head": POST + b"X: a\rContent-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
    "a NUL in a head": POST + b"X: a\0b\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
    "an encoding that is not the last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "an unknown encoding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "an encoding with a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED,
    "an encoding in HTTP/1.0": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "a name without a colon": POST + b"Transfer-Encoding\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
    "an empty name": POST + b": x\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
}

# Chunked bodies whose end two parsers could read differently.
CHUNKS = {
    "a size beyond any integer": HUGE + b"\r\n" + GOOD,
    "a size that wraps around": b"1" + b"0" * 16 + b"%x\r\n" % len(GOOD) + GOOD + b"\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n" + GOOD,
    "a size with a prefix": b"0x%x\r\n" % len(GOOD) + GOOD + b"\r\n0\r\n\r\n",
    "no size": b"\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "a chunk longer than it says": b"%x\r\n" % (len(GOOD) - 2) + GOOD + b"\r\n0\r\n\r\n",
    "a chunk that a bare LF ends": b"%x\r\n%s\n0\r\n\r\n" % (len(GOOD), GOOD),
    "an extension without end": b"1;" + b"x" * 100_000 + b"\r\n",
    "a bare LF in an extension": b"%x;\n\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD),
    "a trailer without end": CHUNKED[:-2] + b"X: " + b"x" * 100_000,
    "trailers without number": CHUNKED[:-2] + b"X: y\r\n" * 5000 + b"\r\n",
}


@pytest.fixture(scope="module")
def untouched():
    """One relay for all refused requests, because it stores nothing of them."""
    relay = Relay(DOWN).start()
    yield relay
    relay.remove()


@pytest.mark.parametrize("listener", ["unix", "tcp"])
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_head_is_refused_and_closes_the_connection(untouched, name, listener):
    answer = answer_to(untouched, AMBIGUOUS[name] + HIDDEN, listener)
    assert answer.startswith(b"HTTP/1.") and b" 400 " in answer.splitlines()[0], answer[:200]
    assert answer.count(b"HTTP/1.") == 1 and queued(untouched) == 0, "neither reading was taken"


@pytest.mark.parametrize("name", CHUNKS)
def test_ambiguous_chunks_are_refused_and_close_the_connection(untouched, name):
    answer = answer_to(untouched, POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS[name] + HIDDEN)
    assert answer.count(b"HTTP/1.") <= 1 and (not answer or b" 400 " in answer.splitlines()[0]), answer[:200]
    assert queued(untouched) == 0, "neither reading was taken"


@pytest.mark.parametrize("lengths", [b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 3"])
def test_content_length_beside_a_transfer_encoding_is_ignored_and_closes_the_connection(stranded, lengths):
    """RFC 9112, 6.1 and 6.3."""
    answer = answer_to(stranded, POST + lengths + b"\r\n\r\n" + CHUNKED + HIDDEN)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")] == [b"", b"202"]
    assert queued(stranded) == 1, "what is hidden behind it is not taken"


def answer_to(relay, sent, listener="unix"):
    with dial(relay, listener) as stream:
        with contextlib.suppress(OSError):  # the relay may close the connection while the client writes
            stream.sendall(sent)
            stream.shutdown(socket.SHUT_WR)
        try:
            return received(stream)
        except ConnectionResetError:
            return b""


# Incomplete actions of a client.
STALLS = {
    "says nothing": b"",
    "stops in its first line": b"POST /parti",
    "stops in its head": POST,
    "stops in its body": POST + b"Content-Length: 1000\r\n\r\n{",
    "stops in a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n400\r\n{",
    "stops in the size of a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n4",
    "expects 100-continue and sends nothing": POST + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n",
    "stops in a body that is not needed": b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
}


@pytest.mark.parametrize("name", STALLS)
def test_stalled_client_is_closed_and_delays_no_other(relays, name):
    """One user takes all places of the Unix socket: the next client is served, and all stalled ones are closed in the end."""
    relay = relays(DOWN, ingress__connections_max=16, **{key.replace(".", "__"): value for key, value in SHORT.items()})
    with contextlib.ExitStack() as streams:
        stalled = [streams.enter_context(dial(relay)) for _ in range(16)]
        for stream in stalled:
            stream.sendall(STALLS[name])
        for listener in ("tcp", "unix"):
            reply = until(lambda: attempt(relay, listener), f"others are served by {listener}")
            assert reply.status == 200
        for stream in stalled:
            with contextlib.suppress(ConnectionResetError):
                answer = received(stream).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
                assert answer == b"" or answer[9:12] in (b"404", b"408"), answer
    assert send(relay, "canary-token", "canary").status == 202


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\n"], ids=["idle", "half-way through a head"])
def test_probes_are_answered_while_others_stall_at_the_admin_port(relays, sent):
    """Otherwise a client of the port could make Kubernetes restart the relay. One try each."""
    relay = relays(DOWN)
    host, port = relay.admin.removeprefix("http://").split(":")
    with contextlib.ExitStack() as streams:
        for _ in range(64):
            stream = streams.enter_context(socket.create_connection((host, int(port)), TIMEOUT))
            stream.sendall(sent)
        assert [relay.get(page)[0] for page in ("/livez", "/readyz", "/metrics")] == [200] * 3


def attempt(relay, listener):
    with contextlib.suppress(OSError, ValueError):  # closed without a reply: full, come again
        return request_once(relay, "GET", "/participant/queue", listener=listener)


def test_client_that_sends_byte_by_byte_is_closed(relays):
    """Single bytes are progress, but do not extend the time-out."""
    relay = relays(DOWN, ingress__request_timeout="500ms")
    for head, drop in ((b"GET /participant/queue HTTP/1.1\r\n", b"A: b\r\n"), (POST + b"Content-Length: 100000\r\n\r\n", b" ")):
        with dial(relay) as stream:
            stream.sendall(head)
            until(lambda: not dripped(stream, drop), "the relay has enough of it")


def dripped(stream, drop):
    """Sends a byte, unless the other side has closed or answered."""
    stream.settimeout(0.02)
    try:
        stream.sendall(drop)
        return stream.recv(1) == b"never"
    except TimeoutError:
        return True
    except OSError:
        return False


def test_client_that_never_reads_is_closed(relays):
    """Batches whose replies are not read: each holds its permits until it is aborted, and only of its own user's share."""
    relay = relays(DOWN, ingress__idle_timeout="1s", ingress__bodies_bytes_max="4MiB")
    body = b"{}" + b" " * 62 + b"\n"
    batch = request("POST", "/participant/messages", [], body * (1 << 14))
    with contextlib.ExitStack() as streams:
        deaf = [streams.enter_context(dial(relay)) for _ in range(4)]
        for stream in deaf:
            stream.sendall(batch)
        assert request_once(relay, "POST", MESSAGE, ["X-Amz-Bearer: canary-token"], GOOD, "tcp").status == 202, "TCP is another caller"
        until(lambda: all(closed(stream) for stream in deaf), "they are cut")
    assert send(relay, "canary-token-2", "canary").status == 202


def closed(stream):
    """True if no more bytes can be sent."""
    try:
        stream.send(b"x")
    except OSError:
        return True
    return False


def test_invalid_lines_do_not_make_a_reply_many_times_the_body(stranded):
    reply = curl(stranded, "/participant/messages", b"x\n" * (1 << 18))
    assert reply.status == 400 and "262144 lines in 524288 bytes, at most 12288" in reply.json["Message"]
    reply = curl(stranded, "/participant/messages", b"x\n" * 64)
    assert reply.status == 200 and len(reply.lines) == 64


def test_long_pipeline_is_answered_in_order(stranded):
    one = request("GET", "/participant/queue")
    last = request("GET", "/participant/queue", ["Connection: close"])
    with dial(stranded) as stream:
        stream.sendall(one * 200 + last)
        assert received(stream).count(b"HTTP/1.1 200 OK") == 201


def test_pipeline_without_a_reader_is_not_read_any_further(relays):
    """Its requests stay in the client's buffers; the relay reads one at a time."""
    relay = relays(DOWN, ingress__idle_timeout="1s")
    with dial(relay) as stream:
        stream.settimeout(0.2)
        one, sent = request("GET", "/participant/queue"), 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 1 << 26:
                sent += stream.send(one * 100)
        assert sent < 1 << 24, f"{sent} bytes of requests were taken without a reply being read"
        until(lambda: closed(stream), "it is cut")
    assert queued(relay) == 0
