"""Every error of SendMessage becomes its own exception class in boto3."""

import json
import subprocess
import threading
import time

import pytest
from botocore.exceptions import ClientError

from kit.callers import MESSAGE, PLAIN, assert_error, bot, parse, send
from kit.wait import until
from kit.upstream import CUT, Answer, error

TOKEN = "canary-token"


def message(client, content="canary", **members):
    return client.send_message(**{"ContentType": PLAIN, "Content": content, "ConnectionToken": TOKEN, **members})


def silent(request):
    """No answer for longer than the tests' attempt_timeout."""
    time.sleep(4)
    return CUT


def of(caught):
    """The status, code and text of a boto3 exception."""
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"], response["Error"]["Message"]


def test_validation_by_the_relay(relay, upstream):
    client = bot(relay.url)
    with pytest.raises(client.exceptions.ValidationException) as caught:
        message(client, "x" * 1025)
    status, _, text = of(caught)
    assert status == 400 and text.startswith("connect-relay: ")
    assert all(word in text for word in ("Content", "1025", "1024", "ingress.content_chars_max.plain"))
    assert upstream.requests == []


def test_validation_by_the_service(relays, upstreams):
    upstream = upstreams(lambda request: error(400, "ValidationException", "too long for this channel"))
    client = bot(relays(upstream.url).url)
    with pytest.raises(client.exceptions.ValidationException) as caught:
        message(client)
    assert of(caught) == (400, "ValidationException", "too long for this channel")
    assert len(upstream.requests) == 1, "what the service calls invalid is not tried again"


@pytest.mark.parametrize("text", ["Access denied", "User is not authorized to access this resource with an explicit deny"])
def test_access_denied(relays, upstreams, text):
    upstream = upstreams(lambda request: error(403, "AccessDeniedException", text))
    relay = relays(upstream.url)
    client = bot(relay.url)
    with pytest.raises(client.exceptions.AccessDeniedException) as caught:
        message(client)
    assert of(caught)[0] == 403 and of(caught)[2] == text
    # For a while the relay rejects the same token without an attempt.
    with pytest.raises(client.exceptions.AccessDeniedException):
        message(client, "canary: another")
    assert len(upstream.requests) == 1
    reason = "token_refused" if "explicit deny" in text else "chat_over"
    assert relay.metrics()[f'messages_dead_total{{reason="{reason}",told="true"}}'] == 1


def test_throttling_when_the_queue_is_full(relays):
    relay = relays("http://127.0.0.1:9", ingress__tcp_reply="accepted", queue__messages_max=2)
    client = bot(relay.url)
    message(client)
    message(client)
    with pytest.raises(client.exceptions.ThrottlingException) as caught:
        message(client)
    assert of(caught)[0] == 429 and "queue.messages_max" in of(caught)[2]
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert int(headers["x-amz-retry-after"]) > 0 and int(headers["retry-after"]) > 0


def test_internal_server_error_of_a_message_that_is_poison(relays, upstreams):
    def script(request):
        return error(500, "InternalServerException", "fault") if "poison" in request.json["Content"] else None

    upstream = upstreams(script)
    relay = relays(upstream.url, sender__attempts_max=2, sender__backoff__initial="200ms", ingress__wait="30s")
    client = bot(relay.url)
    done = threading.Event()

    def others():  # poison is only what fails while others are delivered
        number = 0
        while not done.wait(0.02):
            number += 1
            bot_of_another.send_message(ContentType=PLAIN, Content=f"canary: {number}", ConnectionToken="canary-other")

    bot_of_another = bot(relay.url)
    feeder = threading.Thread(target=others)
    feeder.start()
    try:
        with pytest.raises(client.exceptions.InternalServerException) as caught:
            message(client, "canary: poison")
    finally:
        done.set()
        feeder.join()
    assert of(caught)[0] == 500
    assert relay.metrics()['messages_dead_total{reason="poison",told="true"}'] == 1


def test_conflict_of_one_client_token_with_two_contents(relay, upstream):
    client = bot(relay.url)
    message(client, "canary: one", ClientToken="mine")
    with pytest.raises(client.exceptions.ConflictException) as caught:
        message(client, "canary: two", ClientToken="mine")
    assert of(caught)[0] == 409 and "canary" not in of(caught)[2]
    assert len(upstream.messages()) == 1


def test_conflict_by_the_service(relays, upstreams):
    upstream = upstreams(lambda request: error(409, "ConflictException", "conflict"))
    relay = relays(upstream.url)
    client = bot(relay.url)
    with pytest.raises(client.exceptions.ConflictException):
        message(client)
    assert relay.metrics()['messages_dead_total{reason="refused",told="true"}'] == 1


def test_gone_after_the_message_expired(relays, upstreams):
    # A wait continues during an attempt in flight, and ends while Connect is down.
    relay = relays(upstreams(silent).url, sender__lifetime="1s", ingress__wait="20s", sender__attempt_timeout="2s")
    client = bot(relay.url)
    with pytest.raises(ClientError) as caught:
        message(client, ClientToken="mine")
    assert of(caught)[:2] == (410, "GoneException")
    with pytest.raises(ClientError) as caught:
        message(client, ClientToken="mine")
    assert of(caught)[:2] == (410, "GoneException")


def test_failed_attempt_is_logged_as_deferred_and_a_throttle_counts_as_no_attempt(relays, upstreams):
    answers = [error(429, "ThrottlingException", "Rate exceeded"), error(503, "", ""), error(404, "", "no route")]
    relay = relays(upstreams(lambda request: answers.pop(0) if answers else None).url, ingress__wait="40s")
    assert message(bot(relay.url))["Id"]
    lines = relay.lines("deferred", 3)
    found = [(line["reason"], line["http_status"], line["attempt"]) for line in lines]
    assert found == [("throttled", 429, 1), ("unavailable", 503, 1), ("misconfigured", 404, 2)]
    assert ["retry_in_ms" in line for line in lines] == [False, True, True]


def test_dead_log_line_has_connects_request_id_and_no_status_without_an_answer(relays, upstreams):
    def script(request):
        return error(400, "ValidationException", "no", **{"x-amzn-RequestId": "request-of-the-refusal"})

    relay = relays(upstreams(script).url)
    client = bot(relay.url)
    with pytest.raises(client.exceptions.ValidationException):
        message(client)
    dead = until(lambda: relay.lines("dead"), "the refusal is logged")[0]
    assert (dead["http_status"], dead["connect_request_id"]) == (400, "request-of-the-refusal")
    relay = relays(upstreams(silent).url, sender__lifetime="1s", ingress__wait="20s", sender__attempt_timeout="2s")
    with pytest.raises(ClientError):
        message(bot(relay.url))
    dead = until(lambda: relay.lines("dead"), "the end of the lifetime is logged")[0]
    assert dead["reason"] == "expired" and "http_status" not in dead and "connect_request_id" not in dead


def test_page_of_a_proxy_is_no_answer_of_the_service(relays, upstreams):
    pages = [error(404, "", "no route"), error(403, "MissingAuthenticationTokenException", "Missing Authentication Token")]
    upstream = upstreams(lambda request: pages.pop(0) if pages else None)
    relay = relays(upstream.url, sender__probe_max="200ms")
    assert message(bot(relay.url))["Id"] == "id-3"
    assert relay.metrics()['attempts_total{outcome="misconfigured"}'] == 2


def test_a_redirect_is_not_followed(relays, upstreams):
    elsewhere = upstreams()
    moves = [error(307, "", "", Location=elsewhere.url + "/participant/message")]
    upstream = upstreams(lambda request: moves.pop(0) if moves else None)
    relay = relays(upstream.url, sender__probe_max="200ms")
    assert message(bot(relay.url))["Id"] == "id-2"
    assert elsewhere.requests == []


def test_secrets_that_upstream_echoes_are_redacted(relays, upstreams):
    upstream = upstreams(lambda request: error(400, "ValidationException", f"bad token {request.token}"))
    relay = relays(upstream.url)
    client = bot(relay.url)
    with pytest.raises(client.exceptions.ValidationException) as caught:
        message(client)
    assert TOKEN not in of(caught)[2]
    until(lambda: relay.lines("dead"), "the death is logged")


def test_letters_of_a_short_token_within_words_are_not_redacted(relays, upstreams):
    def script(request):
        if request.json["Content"] == "canary: refuse":
            return error(403, "AccessDeniedException", "Access denied: an explicit deny")
        return Answer(200, {"Id": "id-a", "AbsoluteTime": "2026-11-22T10:00:00.000Z"}, {"x-amzn-RequestId": "request-a-1"})

    relay = relays(upstreams(script).url)
    client = bot(relay.url)
    reply = message(client, ConnectionToken="a")
    assert reply["Id"] == "id-a" and reply["ResponseMetadata"]["RequestId"] == "request-a-1"
    assert message(client, ConnectionToken="0")["AbsoluteTime"] == "2026-11-22T10:00:00.000Z"
    with pytest.raises(client.exceptions.AccessDeniedException) as caught:
        message(client, "canary: refuse", ConnectionToken="d")
    assert of(caught)[2] == "Access denied: an explicit deny"
    assert relay.metrics()['messages_dead_total{reason="token_refused",told="true"}'] == 1


def test_limits_by_size_are_those_that_aws_documents(relays):
    """16,384 bytes for every type; the text names the value, the limit and its key."""
    relay = relays("http://127.0.0.1:9", ingress__content_limits="by_size")
    for content_type in (PLAIN, "text/markdown", "application/json"):
        assert send(relay, TOKEN, "é" * 8192, content_type=content_type).status == 202
        reply = send(relay, TOKEN, "é" * 8192 + "x", content_type=content_type)
        assert_error(reply, 400, "ValidationException", "Content", "16385", "16384", "ingress.content_bytes_max")


def test_key_on_the_other_listener_is_another_conversation_and_the_error_says_so(relays):
    relay = relays("http://127.0.0.1:9")
    key = "Relay-Conversation: chat/bot"
    assert send(relay, TOKEN, "canary", headers=[key]).status == 202
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--include", "--noproxy", "*", "--header", f"X-Amz-Bearer: {TOKEN}", "--header", key,
         "--header", "Content-Type: application/json", "--data", json.dumps({"ContentType": PLAIN, "Content": "canary"}), relay.url + MESSAGE],
        capture_output=True, timeout=120, check=True,
    )
    assert_error(parse(done.stdout), 409, "ConflictException", "another conversation", "or from another user or door")
