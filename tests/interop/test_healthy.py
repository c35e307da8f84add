"""Conversations that fail for ever, beside healthy ones: the relay process, a scripted upstream, the relay's own log."""

import threading

import pytest

from kit.callers import send
from kit.wait import until
from kit.upstream import CUT, Answer, error

PROBE_MAX = 1.0
# The delay that a busy machine may add. Before the fix these messages never got an attempt while failing ones were due.
SLACK = 8.0


@pytest.fixture
def sick():
    """Answers by the name in the token; unanswered requests are released at the end."""
    over = threading.Event()

    def script(request):
        if "sick" not in request.token:
            return None
        if "500" in request.token:
            return error(500, "InternalServerException")
        if "503" in request.token:
            return Answer(503, {"Message": "busy"}, {"Retry-After": "30"} if "hint" in request.token else {})
        if "429" in request.token:
            return error(429, "ThrottlingException")
        over.wait(60)
        return CUT

    yield script
    over.set()


@pytest.mark.parametrize(
    "kinds",
    [("500", "500"), ("503", "503", "503"), ("429",), ("429", "429"), ("never", "never", "never"), ("500", "429", "never")],
)
def test_healthy_conversations_do_not_wait_for_failing_ones(relays, upstreams, sick, kinds):
    upstream = upstreams(sick)
    relay = relays(upstream.url, sender__probe_max=f"{PROBE_MAX:g}s", sender__rate_min="1", sender__attempt_timeout="2s")
    for number, kind in enumerate(kinds):
        assert send(relay, f"canary-sick-{kind}-{number}", "canary", f"sick-{number}").status == 202
    until(lambda: len({request.token for request in upstream.messages()}) == len(kinds), "each is tried once")
    for number in range(12):
        assert send(relay, f"canary-healthy-{number}", "canary", f"healthy-{number}").status == 202
        # The next message is sent after the failing ones had a turn, or when this one is delivered.
        tried = len(upstream.messages())
        until(lambda: len(upstream.messages()) > tried, "something is tried")
    until(lambda: relay.metrics()["messages_delivered_total"] == 12, "each is delivered")
    waited = [line["waited_ms"] / 1000 for line in relay.lines("delivered", 12)]
    assert len(waited) == 12 and max(waited) <= 2 * PROBE_MAX + SLACK, waited
    assert relay.get("/livez")[0] == 200


def test_retry_hint_of_a_failing_conversation_delays_no_other(relays, upstreams, sick):
    upstream = upstreams(sick)
    relay = relays(upstream.url, sender__probe_max=f"{PROBE_MAX:g}s", sender__retry_hint_max="60s")
    assert send(relay, "canary-sick-503-hint", "canary", "sick").status == 202
    until(lambda: relay.lines("deferred"), "it answers 503 and asks for 30 s")
    assert send(relay, "canary-healthy", "canary", "healthy").status == 202
    line = until(lambda: relay.lines("delivered"), "it goes meanwhile")[0]
    assert line["waited_ms"] / 1000 <= 2 * PROBE_MAX + SLACK
    assert relay.metrics()["gate_open"] == 1, "one 503 is no outage"


def test_message_that_keeps_failing_is_poison_although_others_are_few(relays, upstreams, sick):
    upstream = upstreams(sick)
    relay = relays(upstream.url, sender__attempts_max="4", sender__backoff__max="200ms", sender__probe_max="200ms")
    for number in range(2):
        assert send(relay, f"canary-sick-500-{number}", "canary", f"sick-{number}").status == 202
    for number in range(60):
        if len(relay.lines("dead")) == 2:
            break
        assert send(relay, f"canary-healthy-{number}", "canary", f"healthy-{number}", headers=["Prefer: wait=20"]).status == 200
        tried = len(upstream.messages())
        until(lambda: len(upstream.messages()) > tried or len(relay.lines("dead")) == 2, "a sick one is tried again")
    dead = until(lambda: len(relay.lines("dead")) == 2 and relay.lines("dead"), "both are given up")
    assert {line["reason"] for line in dead} == {"poison"}


def test_outage_makes_no_message_poison(relays, upstreams):
    upstream = upstreams(lambda _: error(500, "InternalServerException"))
    relay = relays(upstream.url, sender__attempts_max="1", sender__backoff__initial="20ms", sender__backoff__max="20ms", sender__probe_max="20ms")
    for number in range(4):
        assert send(relay, f"canary-{number}", "canary", f"m-{number}").status == 202
    until(lambda: len(upstream.messages()) >= 40, "they fail again and again")
    assert relay.metrics()["gate_open"] == 0 and not relay.lines("dead")
    upstream.script = lambda _: None
    relay.until_empty()
    assert relay.metrics()["messages_delivered_total"] == 4 and not relay.lines("dead")


def test_throttled_first_request_of_a_new_relay_is_retried_soon(relays, upstreams):
    answers = [error(429, "ThrottlingException")]
    upstream = upstreams(lambda _: answers.pop() if answers else None)
    relay = relays(upstream.url)
    assert send(relay, "canary", "canary", headers=["Prefer: wait=20"]).status == 200
    assert relay.metrics()["send_rate"] > 8, "nothing is guessed of the rate"
