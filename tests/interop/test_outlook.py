"""The outlook of queued messages in replies, status and waits: when each is sent, if it will expire, if a wait helps."""

import json
import re
import threading
import time
import urllib.request
from datetime import datetime

import pytest

from kit.callers import curl, send
from kit.wait import until
from kit.processes import CANARY, Relay, command
from kit.upstream import Upstream, error

DOWN = "http://127.0.0.1:9"


@pytest.fixture
def relays():
    made = []

    def make(endpoint, **settings):
        made.append(Relay(endpoint, shutdown__grace="2100ms", **settings))
        return made[-1].start()

    yield make
    for relay in made:
        relay.remove()


@pytest.fixture
def upstream():
    upstream = Upstream()
    yield upstream
    upstream.stop()


def seconds(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def batch(relay, count, token=lambda number: f"{CANARY}-one", lifetime=None):
    more = {"Lifetime": lifetime} if lifetime else {}
    for first in range(0, count, 1000):
        lines = "".join(
            json.dumps({"ContentType": "text/plain", "Content": "x", "ClientToken": f"{lifetime}-{number}", "ConnectionToken": token(number), **more}) + "\n"
            for number in range(first, min(first + 1000, count))
        )
        reply = curl(relay, "/participant/messages", lines.encode(), ["Content-Type: application/x-ndjson"])
        assert reply.status == 200 and b"Error" not in reply.body


def status(relay, *args):
    return command("status", *args, settings={"control.socket": relay.folder / "private/control.sock"})


def expiring(relay):
    return int(relay.metrics()["expiring_messages"])


@pytest.mark.parametrize("token", [lambda n: f"{CANARY}-one", lambda n: f"{CANARY}-{n % 7}", lambda n: f"{CANARY}-{n}"], ids=["one conversation", "seven", "each its own"])
def test_messages_that_will_expire_are_reported_before_the_first_expires(relays, upstream, token):
    relay = relays(upstream.url, sender__rate_max=1, sender__rate_min=1, sender__quota_rate=1, sender__quota_burst=1)
    batch(relay, 3000, token)
    until(lambda: 2000 <= expiring(relay) <= 2200, "about 2,100 of 3,000 messages do not go out within 15 minutes")
    text = status(relay).stdout
    assert text.startswith("not healthy:")
    said = re.search(r"about (2,[0-2]00) of them will expire first, the first at (\d\d:\d\d:\d\d) UTC", text)
    assert said, text
    shown = json.loads(status(relay, "--json").stdout)
    assert 2000 <= shown["expiring"] <= 2200 and shown["first_expiry"][11:19] == said[2]
    assert 600 < seconds(shown["first_expiry"]) - time.time() < 1000
    last = send(relay, token(2999), "x", "last", headers=["Prefer: respond-async"]).json
    assert last["WillExpire"] is True and seconds(last["ExpectedTime"]) > seconds(last["Expires"])
    assert relay.metrics()['messages_dead_total{reason="expired",told="false"}'] == 0


def test_messages_that_can_be_sent_in_time_are_not_reported(relays):
    relay = relays(DOWN, sender__lifetime="1h")
    first = send(relay, f"{CANARY}-a", "x", "a").json
    assert "WillExpire" not in first and 3500 < seconds(first["Expires"]) - time.time() < 3700
    batch(relay, 100)
    until(lambda: relay.metrics()["gate_open"] == 0, "nothing listens there")
    assert expiring(relay) == 0
    later = send(relay, f"{CANARY}-b", "x", "b").json
    assert "ExpectedTime" not in later and "WillExpire" not in later and "Expires" in later, "Connect is down"
    state = curl(relay, "/participant/message/b", headers=[f"X-Amz-Bearer: {CANARY}-b"]).json
    assert "ExpectedTime" not in state
    batch(relay, 50, lifetime=240)
    until(lambda: expiring(relay) == 50, "they end within five minutes")


def test_only_messages_whose_lifetime_ends_too_early_are_counted(relays, upstream):
    relay = relays(upstream.url, sender__rate_max=1, sender__rate_min=1, sender__quota_rate=1, sender__quota_burst=1)
    assert curl(control(relay), "/pause", method="POST").status == 200  # else the door refuses what comes too late
    batch(relay, 400, lifetime=7 * 86400)
    batch(relay, 100, lifetime=350)
    assert curl(control(relay), "/resume", method="POST").status == 200
    until(lambda: 90 <= expiring(relay) <= 100, "they are behind 400 others of their conversation")


def post(relay, client_token, *headers, token=None):
    """A call over TCP as an SDK makes it: status, reply, and the seconds that it took."""
    head = {"X-Amz-Bearer": token or f"{CANARY}-{client_token}", **dict(headers)}
    body = json.dumps({"ContentType": "text/plain", "Content": "x", "ClientToken": client_token}).encode()
    began = time.monotonic()
    request = urllib.request.Request(relay.url + "/participant/message", body, head, method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
        return reply.status, json.loads(reply.read()), time.monotonic() - began


# An implied wait is so long that a completed one is detected by the clock, however busy the machine is.
LONG = {"ingress__wait": "40s", "ingress__wait_max": "50s"}


def test_an_implied_wait_is_not_begun_while_sending_is_paused(relays, upstream):
    relay = relays(upstream.url, **LONG)
    assert curl(control(relay), "/pause", method="POST").status == 200
    code, reply, took = post(relay, "paused")
    assert code == 202 and "ExpectedTime" not in reply and took < 20
    began = time.monotonic()
    code, _, took = post(relay, "asked", ("Prefer", "wait=2"))
    assert code == 202 and time.monotonic() - began >= 2, "a wait that is asked for is waited for"


def control(relay):
    return type("Listener", (), {"socket": str(relay.folder / "private/control.sock")})


def test_an_implied_wait_ends_while_connect_is_down(relays):
    relay = relays(DOWN, **LONG)
    code, _, took = post(relay, "first")
    assert code == 202 and took < 20, "the first one finds out"
    until(lambda: relay.metrics()["gate_open"] == 0, "Connect is down")
    code, _, took = post(relay, "second")
    assert code == 202 and took < 20


def test_an_implied_wait_is_not_begun_behind_a_backlog_that_takes_longer(relays, upstream):
    relay = relays(upstream.url, sender__rate_max=1, sender__rate_min=1, sender__quota_rate=1, sender__quota_burst=1, **LONG)
    batch(relay, 200)
    code, reply, took = post(relay, "behind", token=f"{CANARY}-one")
    assert code == 202 and took < 20 and reply["Ahead"] > 100


def test_an_implied_wait_is_not_begun_in_a_held_conversation(relays, upstream):
    upstream.script = lambda request: error(403, "AccessDeniedException", "with an explicit deny") if request.token.endswith("-held") else None
    relay = relays(upstream.url, sender__refused_for="1s", **LONG)
    assert post(relay, "fine")[0] == 200, "an outcome that comes is waited for"
    assert post(relay, "one", ("Prefer", "respond-async"), token=f"{CANARY}-held")[0] == 202
    until(lambda: relay.metrics()['conversations_held{reason="token_refused"}'] == 1, "it is held")
    code, _, took = post(relay, "one", token=f"{CANARY}-held")
    assert code == 202 and took < 20, "a repeat does not wait for what is held"


def test_implied_wait_ends_when_sending_is_paused_unless_an_attempt_is_in_flight(relays, upstream):
    answer = threading.Event()
    upstream.script = lambda request: answer.wait(60) and None
    relay = relays(upstream.url, sender__attempt_timeout="50s", **LONG)
    replies = {}

    def call(client_token):
        replies[client_token] = post(relay, client_token, token=f"{CANARY}-one")

    calls = [threading.Thread(target=call, args=(name,)) for name in ("first", "second")]
    try:
        calls[0].start()
        upstream.wait_for(1)
        calls[1].start()
        until(lambda: relay.queued() == 2, "the second waits behind the first")
        assert curl(control(relay), "/pause", method="POST").status == 200
        calls[1].join(30)
        assert replies["second"][0] == 202 and "first" not in replies
    finally:
        answer.set()
        for thread in calls:
            thread.join(60)
    assert replies["first"][0] == 200
