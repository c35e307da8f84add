"""boto3 as a complete bot: one client that reaches the relay by one variable."""

import json

import pytest

from kit.callers import PLAIN, READ, TYPING, bot, connect, curl
from kit.wait import until
from kit.upstream import CUT, Answer, error

CONTENTS = ["canary: hello", "canary: naïve café, 日本語", "canary: 👩‍👩‍👧 and \"quotes\"\n", "canary: goodbye"]

SIGNING = {"authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256", "amz-sdk-invocation-id", "amz-sdk-request"}
RELAYS_OWN = {"prefer", "relay-conversation", "relay-lifetime", "relay-replaces-token", "traceparent"}


@pytest.mark.parametrize("reply", ["delivered", "accepted"])
def test_complete_chat_delivers_its_last_message_before_the_disconnect(relays, simulators, reply):
    simulator = simulators()
    relay = relays(simulator.url, ingress__tcp_reply=reply)
    client = bot(relay.url)
    token = connect(client, "canary-participant")
    relay.secrets.add(token)
    client.send_event(ContentType=TYPING, ConnectionToken=token)
    for content in CONTENTS:
        answer = client.send_message(ContentType=PLAIN, Content=content, ConnectionToken=token)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == (200 if reply == "delivered" else 202)
        assert ("Id" in answer) == (reply == "delivered"), "an Id is never invented"
    answer = client.disconnect_participant(ConnectionToken=token)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] in (200, 202)
    relay.until_empty()

    assert [line["Content"] for line in simulator.ledger()] == CONTENTS
    assert {line["ConnectionToken"] for line in simulator.ledger()} == {token}
    assert simulator.counts()["connections"] == simulator.counts()["disconnects"] == 1
    # The chat is over now, for the relay and for the service itself.
    with pytest.raises(client.exceptions.ConflictException):
        client.send_message(ContentType=PLAIN, Content="canary: too late", ConnectionToken=token)
    direct = bot(simulator.url)
    with pytest.raises(direct.exceptions.AccessDeniedException):
        direct.send_message(ContentType=PLAIN, Content="canary: too late", ConnectionToken=token)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_requests_to_connect_equal_those_of_an_aws_sdk(relay, upstream, signed):
    client = bot(relay.url, signed=signed)
    sent = []
    client.meta.events.register("before-send.connectparticipant.*", lambda request, **_: sent.append(request))
    token = connect(client, "canary-participant")
    client.send_event(ContentType=TYPING, ConnectionToken=token)
    for content in CONTENTS:
        answer = client.send_message(ContentType=PLAIN, Content=content, ConnectionToken=token)
        assert answer["Id"].startswith("id-") and answer["AbsoluteTime"] == "2026-11-22T10:00:00.000Z"
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        assert headers["relay-state"] == "DELIVERED" and headers["x-amzn-requestid"].startswith("request-")
    client.disconnect_participant(ConnectionToken=token)

    came = upstream.wait_for(7)
    assert [request.target.rsplit("/", 1)[1] for request in came] == ["connection", "event", *["message"] * 4, "disconnect"]
    assert len(sent) == 7
    if signed:
        assert "Authorization" in sent[2].headers, "the client signs, or this test shows nothing"
    for request, original in zip(came, sent):
        assert request.head.startswith(f"POST {request.target} HTTP/1.1\r\n".encode())
        assert request.header("host") == upstream.url.removeprefix("http://")
        assert request.token == ("canary-participant" if request.target.endswith("connection") else token)
        assert request.header("content-type") == "application/json"
        assert not request.names & (SIGNING | RELAYS_OWN), request.names
        assert request.json == json.loads(original.body), "each member arrives as the bot gave it, and no other"
    messages = upstream.messages()
    assert [request.json["Content"] for request in messages] == CONTENTS
    assert all(set(request.json) == {"ContentType", "Content", "ClientToken"} for request in messages)
    assert len({request.json["ClientToken"] for request in messages}) == 4


def test_every_attempt_has_the_same_client_token_and_order_is_kept(relays, upstreams):
    faults = {"canary: 1": [error(500, "InternalServerException"), CUT], "canary: 2": [Answer(200, b"<html>"), CUT]}

    def script(request):
        waiting = faults.get(request.json.get("Content"))
        return waiting.pop(0) if waiting else None

    upstream = upstreams(script)
    relay = relays(upstream.url, ingress__tcp_reply="accepted", sender__backoff__initial="20ms")
    client = bot(relay.url)
    for number in range(4):
        client.send_message(
            ContentType=PLAIN, Content=f"canary: {number}", ConnectionToken="canary-token", ClientToken=f"token-{number}"
        )
    relay.until_empty()
    tokens = [request.json["ClientToken"] for request in upstream.messages()]
    assert tokens == ["token-0", *["token-1"] * 3, *["token-2"] * 3, "token-3"]
    assert len({request.body for request in upstream.messages()}) == 4, "a repeat is the same to the byte"


def test_throttle_delays_messages_and_loses_none(relays, upstreams):
    throttled = [
        error(429, "ThrottlingException", **{"x-amz-retry-after": "30"}),
        error(429, "TooManyRequestsException"),
        Answer(429, b"<html>Too many</html>", {"Content-Type": "text/html"}),
        error(400, "ThrottlingException"),
    ]
    upstream = upstreams(lambda request: throttled.pop(0) if throttled else None)
    # A throttled first message looks like a quota that many clients share: its repeats are delayed.
    relay = relays(upstream.url, sender__backoff__initial="20ms", ingress__wait="45s")
    answer = bot(relay.url).send_message(ContentType=PLAIN, Content="canary", ConnectionToken="canary-token")
    assert answer["Id"] == "id-5"
    metrics = relay.metrics()
    assert metrics['attempts_total{outcome="throttled"}'] == 4
    assert metrics["send_rate"] < 10.0


def test_typing_is_dropped_while_messages_are_queued_and_receipts_keep_their_order(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, ingress__tcp_reply="accepted", sender__probe_max="200ms")
    upstream.stop()
    client = bot(relay.url)
    token = "canary-token"
    client.send_message(ContentType=PLAIN, Content="canary: first", ConnectionToken=token)
    typing = client.send_event(ContentType=TYPING, ConnectionToken=token)
    assert typing["ResponseMetadata"]["HTTPStatusCode"] == 202
    receipt = client.send_event(ContentType=READ, Content='{"messageId": "m-1"}', ConnectionToken=token)
    assert receipt["ResponseMetadata"]["HTTPStatusCode"] == 202
    client.send_message(ContentType=PLAIN, Content="canary: last", ConnectionToken=token)
    assert relay.metrics()["events_dropped_total"] == 1
    upstream.start()
    came = upstream.wait_for(3)
    assert [request.json["Content"] for request in came] == ["canary: first", '{"messageId": "m-1"}', "canary: last"]
    assert [request.json["ContentType"] for request in came] == [PLAIN, READ, PLAIN]


def test_a_renewed_token_continues_the_conversation_without_any_header(relays, upstreams):
    upstream = upstreams(
        lambda request: error(403, "AccessDeniedException", "with an explicit deny")
        if request.token == "canary-connection-1" and request.target.endswith("message")
        else None
    )
    relay = relays(upstream.url, ingress__tcp_reply="accepted", sender__probe_max="200ms")
    client = bot(relay.url)
    old = connect(client, "canary-participant")
    assert old == "canary-connection-1"
    upstream.stop()  # so that both are accepted before the first one's refusal closes the door to the token
    for number in range(2):
        client.send_message(ContentType=PLAIN, Content=f"canary: {number}", ConnectionToken=old, ClientToken=f"token-{number}")
    upstream.start()
    until(lambda: relay.lines("held"), "the refused token's conversation is held")
    new = connect(client, "canary-participant")
    client.send_message(ContentType=PLAIN, Content="canary: 2", ConnectionToken=new, ClientToken="token-2")
    relay.until_empty()
    delivered = [request for request in upstream.messages() if request.token == new]
    assert [request.json["ClientToken"] for request in delivered] == ["token-0", "token-1", "token-2"]


def test_other_operations_are_forwarded_unchanged(relays, upstreams):
    def script(request):
        if request.target == "/participant/transcript":
            return Answer(200, {"InitialContactId": "c-1", "Transcript": [{"Content": "canary"}]})
        if request.target.startswith("/participant/views/"):
            return error(404, "ResourceNotFoundException", "no such view")
        return None

    upstream = upstreams(script)
    client = bot(relays(upstream.url).url)
    answer = client.get_transcript(ConnectionToken="canary-token", MaxResults=5)
    assert answer["Transcript"][0]["Content"] == "canary"
    with pytest.raises(client.exceptions.ResourceNotFoundException, match="no such view"):
        client.describe_view(ViewToken="view token/1", ConnectionToken="canary-token")
    transcript, view = upstream.wait_for(2)
    assert transcript.json == {"MaxResults": 5} and transcript.token == "canary-token"
    assert (view.method, view.target) == ("GET", "/participant/views/view%20token%2F1")


def test_throttled_forwarded_request_gets_retry_headers(relays, upstreams):
    """A gateway's 429 has neither of the two headers, and SDKs read different ones."""
    hints = iter([{}, {"Retry-After": "7"}])
    relay = relays(upstreams(lambda request: error(429, "", "Too Many Requests", **next(hints))).url)
    for expected in (("1000", "1"), ("7000", "7")):
        reply = curl(relay, "/participant/connection", {}, ["X-Amz-Bearer: canary-participant"])
        assert reply.status == 429 and reply.json["Message"] == "Too Many Requests"
        assert (reply.headers["x-amz-retry-after"], reply.headers["retry-after"]) == expected


def test_slow_message_gets_202_and_a_repeat_gets_its_outcome(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, ingress__wait="100ms", sender__probe_max="200ms")
    upstream.stop()
    client = bot(relay.url)
    call = {"ContentType": PLAIN, "Content": "canary", "ConnectionToken": "canary-token", "ClientToken": "mine"}
    answer = client.send_message(**call)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202 and answer.get("Id") is None
    assert answer["ResponseMetadata"]["HTTPHeaders"]["relay-client-token"] == "mine"
    upstream.start()
    relay.until_empty()
    assert client.send_message(**call)["Id"].startswith("id-")
    assert len(upstream.messages()) == 1
