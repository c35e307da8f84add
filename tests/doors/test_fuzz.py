"""Thousands of randomly mutated requests, by seed, against a real relay: it never exits, answers no 5xx, and
every answer is valid HTTP. TEST_SEED repeats a run; a failure shows the bytes."""

import contextlib
import json
import random
import re
import socket

import pytest

from kit.cgroup import peak
from kit.callers import MESSAGE, READ, TYPING
from kit.other_users import request
from kit.raw_http import dial, received

CASES = 4000
MEMORY = 64 << 20
BEARER = "X-Amz-Bearer: canary-token"
SAID = {"ContentType": "text/plain", "Content": "canary é😀 \" \\ \n", "ClientToken": "c-1"}
LINE = {**SAID, "ConnectionToken": "canary-token", "Conversation": "chat/bot", "Lifetime": 60}
BATCH = b"\n".join(json.dumps({**LINE, "ClientToken": f"b-{number}"}, ensure_ascii=bool(number % 2)).encode() for number in range(5))
CHUNKED = b"POST /participant/message HTTP/1.1\r\nHost: localhost\r\nX-Amz-Bearer: canary\r\nTransfer-Encoding: chunked\r\n\r\n"

# Valid requests: the input of the mutations.
CORPUS = [
    request("POST", MESSAGE, [BEARER, "Content-Type: application/json", "User-Agent: aws-sdk"], SAID),
    request("POST", MESSAGE, [BEARER, "Prefer: wait=1; x=\"y, z\", respond-async", "Relay-Conversation: chat/bot", "Relay-Lifetime: 600"], SAID),
    request("POST", MESSAGE, ["X-Amz-Bearer: canary-2", "Relay-Replaces-Token: canary-token", "Relay-Conversation: chat/bot"], SAID),
    request("POST", MESSAGE, [BEARER, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Expect: 100-continue"], SAID),
    request("POST", "/participant/messages", [], BATCH),
    request("POST", "/participant/event", [BEARER], {"ContentType": TYPING}),
    request("POST", "/participant/event", [BEARER], {"ContentType": READ, "Content": "{\"messageId\":\"1\"}"}),
    request("POST", "/participant/disconnect", ["X-Amz-Bearer: canary-3"], {"ClientToken": "bye"}),
    request("POST", "/participant/connection", ["X-Amz-Bearer: participant"], {"Type": ["CONNECTION_CREDENTIALS"]}),
    request("POST", "/participant/transcript", [BEARER], {"MaxResults": 10}),
    request("GET", f"{MESSAGE}/c%2D1", [BEARER, "Prefer: wait=0"]),
    request("GET", "/participant/queue", ["Prefer: wait=1", "Connection: keep-alive"]),
    request("GET", "/participant/views/v%20w?x=y", [BEARER]),
    CHUNKED + b"5;x=y\r\n{\"Con\r\n1b\r\ntentType\":\"text/plain\",\"Con\r\n10\r\ntent\":\"canary 1\"}\r\n0\r\nX: y\r\n\r\n",
]  # fmt: skip

# Fragments that often break parsers.
WORDS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"=", b"\"", b"\\", b"\\ud800", b"\\u0000", b"\xff\xfe", b"\xf0\x9f\x98", b"%00", b"%",
    b"{", b"}", b"[" * 200, b"{\"a\":" * 200, b"null", b"true", b"-1", b"0", b"1e999", b"99999999999999999999", b"18446744073709551616", b"604801",
    b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1", b"GET ", b"PUT ", b"HEAD ", b"OPTIONS ", b"CONNECT ", b"*", b"/../", b"//", b"?", b"#", b"http://x/participant/message",
    b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n", b"Host: x\r\n",
    b"Relay-Lifetime: 0\r\n", b"Relay-Conversation: \xe9\r\n", b"Prefer: wait=99999999999999999999\r\n", b"X-Amz-Bearer: \xc3\xa9\r\n", b"x" * 5000,
]  # fmt: skip

HEAD = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d) [ -~]*\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*\r\n)*)\r\n")


def mutated(rng, whole):
    """A request with some of its bytes changed: anywhere, in its body only, or in its head only."""
    head, _, body = whole.partition(b"\r\n\r\n")
    where = rng.random()
    if where < 0.4:
        body = changed(rng, body)
        if rng.random() < 0.9:  # so that a client reads the reply
            head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
        return head + b"\r\n\r\n" + body
    return changed(rng, head) + b"\r\n\r\n" + body if where < 0.7 else changed(rng, whole)


def changed(rng, text):
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        end = min(end, at + rng.choice([1, 4, 64, 1000]))
        part = text[at:end]
        text = text[:at] + rng.choice([
            lambda: b"",
            lambda: part * rng.choice([2, 3, 50]),
            lambda: rng.choice(WORDS),
            lambda: part + rng.choice(WORDS),
            lambda: bytes(byte ^ 1 << rng.randrange(8) for byte in part),
            lambda: rng.randbytes(rng.randint(1, 20)),
            lambda: part[::-1],
            lambda: part.swapcase(),
            lambda: rng.choice(CORPUS)[:rng.randint(1, 400)],
        ])() + text[end:]  # fmt: skip
    return text[: 1 << 18]


def answers(said, asked):
    """Returns the status of every reply; fails on bytes that are no reply."""
    statuses = []
    while said:
        match = HEAD.match(said)
        assert match, f"{said[:300]!r} was answered to {asked!r}"
        status, said = int(match[1]), said[match.end() :]
        headers = dict(line.lower().split(b": ", 1) for line in match[2].splitlines())
        length = int(headers.get(b"content-length", 0))
        assert status < 500, f"{status} {said[:300]!r} was answered to {asked!r}"
        if len(said) >= length and not bodiless(asked, said, length):
            body, said = said[:length], said[length:]
            if headers.get(b"content-type") == b"application/json":
                assert isinstance(json.loads(body), dict), body
        else:
            assert bodiless(asked, said, length), f"a body was cut short: {said[:300]!r}, to {asked!r}"
        if status >= 200:
            statuses.append(status)
    return statuses


def bodiless(asked, said, length):
    """A HEAD request is answered without a body, whatever its length would be."""
    return length > 0 and b"HEAD " in asked and (not said or said.startswith(b"HTTP/1."))


@pytest.mark.parametrize("listener", ["unix", "tcp"])
def test_malformed_requests_get_a_reply_or_a_closed_connection(relays, simulators, seed, listener, pytestconfig):
    cases = CASES * (20 if pytestconfig.getoption("--long") else 1)
    simulator = simulators("--rate", 1e9, "--burst", 1_000_000_000, "--latency", "0ms", "--jitter", "0ms")
    relay = relays(
        simulator.url, ingress__wait_max="20ms", ingress__wait="20ms", ingress__request_timeout="1s", sender__probe_max="50ms", sender__quota_rate=10000,
        queue__messages_max=1_000_000, queue__bytes_max="1GiB",
    )  # fmt: skip
    rng = random.Random(f"{seed} {listener}")
    seen = {}
    for case in range(cases):
        asked = mutated(rng, rng.choice(CORPUS))
        with dial(relay, listener) as stream:
            with contextlib.suppress(OSError):
                for part in pieces(rng, asked):
                    stream.sendall(part)
                stream.shutdown(socket.SHUT_WR)
            said = b""
            with contextlib.suppress(ConnectionResetError):  # closed while it wrote
                said = received(stream)
        for status in answers(said, asked) or [0]:
            seen[status] = seen.get(status, 0) + 1
        if case % 500 == 499:
            good = request("POST", MESSAGE, [f"X-Amz-Bearer: good-{case}", "Connection: close"], {**SAID, "ClientToken": f"good-{case}"})
            with dial(relay, listener) as stream:
                stream.sendall(good)
                assert answers(received(stream), good)[0] in (200, 202), f"after case {case}, TEST_SEED={seed}"
    print(f"{cases} mutated requests by {listener}: {dict(sorted(seen.items()))}")
    assert len(seen) > 4 and seen[400] > cases // 10 and seen.get(202, 0) + seen.get(200, 0) > cases // 50, seen
    assert relay.process.poll() is None and peak(relay.process.pid) < MEMORY


def pieces(rng, whole):
    """As one packet, or cut in two."""
    cut = rng.randint(0, len(whole)) if rng.random() < 0.2 else 0
    return filter(None, (whole[:cut], whole[cut:]))
