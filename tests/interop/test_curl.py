"""curl on the Unix socket: the API as a bot in any language sees it."""

import json
import os
import subprocess
import urllib.parse

import pytest

from kit.callers import MESSAGE, PLAIN, assert_error, curl, look, queued, send
from kit.wait import until
from kit.upstream import Answer, error

TOKEN = "canary-token"


def assert_throttled(reply, code, *words):
    """A 429 with both of its hints."""
    assert_error(reply, 429, code, *words)
    milliseconds, seconds = int(reply.headers["x-amz-retry-after"]), int(reply.headers["retry-after"])
    assert milliseconds > 0 and seconds * 1000 >= milliseconds - 999


def test_accepted_means_queued_and_carries_the_relays_headers(stranded):
    reply = send(stranded, TOKEN, "canary", "mine")
    assert reply.status == 202
    told = reply.json
    assert told.pop("ExpectedTime").endswith("Z") and told.pop("Expires").endswith("Z")
    assert told == {"ClientToken": "mine", "State": "QUEUED", "Ahead": 0}
    assert reply.headers["relay-state"] == "QUEUED"
    assert reply.headers["relay-client-token"] == "mine"
    assert reply.headers["relay-message"] and reply.headers["x-amzn-requestid"]
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert reply.headers["content-type"].startswith("application/json")


def test_missing_client_token_is_generated_and_returned(stranded):
    one, two = send(stranded, TOKEN, "canary"), send(stranded, TOKEN, "canary", "")
    assert one.status == two.status == 202
    assert one.json["ClientToken"] == one.headers["relay-client-token"] != two.json["ClientToken"]
    assert len(one.json["ClientToken"]) == 36 and queued(stranded) == 2


def test_a_repeat_never_makes_a_second_message_before_or_after_delivery_or_restart(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    first = send(relay, TOKEN, "canary", "mine")
    again = send(relay, TOKEN, "canary", "mine")
    assert first.status == again.status == 202
    assert first.headers["relay-message"] == again.headers["relay-message"]
    assert queued(relay) == 1
    relay.kill()
    relay.start()
    assert send(relay, TOKEN, "canary", "mine").headers["relay-message"] == first.headers["relay-message"]
    upstream.start()
    relay.until_empty()
    delivered = send(relay, TOKEN, "canary", "mine")
    assert delivered.status == 200 and delivered.headers["relay-state"] == "DELIVERED"
    assert delivered.json == {"Id": delivered.json["Id"], "AbsoluteTime": "2026-11-22T10:00:00.000Z"}
    assert relay.stop() == 0
    relay.start()
    assert send(relay, TOKEN, "canary", "mine").json == delivered.json
    assert len(upstream.messages()) == 1
    assert_error(send(relay, TOKEN, "canary: other", "mine"), 409, "ConflictException")
    assert_error(send(relay, TOKEN, "canary", "mine", content_type="text/markdown"), 409, "ConflictException")


def test_wait_returns_the_outcome(relay):
    reply = send(relay, TOKEN, "canary", "mine", headers=["Prefer: wait=20"])
    assert reply.status == 200 and set(reply.json) == {"Id", "AbsoluteTime"}
    assert reply.headers["relay-state"] == "DELIVERED" and reply.headers["relay-client-token"] == "mine"
    assert reply.headers["x-amzn-requestid"].startswith("request-")
    assert reply.headers["preference-applied"] == "wait=20"


def test_wait_without_an_outcome_is_a_202_and_is_cut_to_its_limit(relays):
    relay = relays("http://127.0.0.1:9", ingress__wait_max="1s")
    longer, whole = ["Prefer: wait=3600"], ["Prefer: wait=1"]
    note = "connect-relay: the wait was cut to 1s, the most that ingress.wait_max allows"
    for status, ask in [
        (202, lambda headers: send(relay, TOKEN, "canary", "mine", headers=headers)),
        (200, lambda headers: look(relay, TOKEN, "mine", headers)),
        (200, lambda headers: curl(relay, "/participant/queue", headers=headers)),
    ]:
        cut, uncut = ask(longer), ask(whole)
        assert cut.status == uncut.status == status
        assert cut.headers["preference-applied"] == uncut.headers["preference-applied"] == "wait=1"
        assert cut.json["Note"] == note and set(cut.json) - set(uncut.json) == {"Note"}, "the body says so, and only then"


def test_respond_async_is_honoured_if_waiting_is_the_default(relays):
    relay = relays("http://127.0.0.1:9", ingress__reply="delivered", ingress__wait="50s")
    reply = send(relay, TOKEN, "canary", "mine", headers=["Prefer: respond-async"])
    assert reply.status == 202 and reply.headers["preference-applied"] == "respond-async"


def test_processing_status_is_kept(relays, upstreams):
    body = {"Id": "id", "AbsoluteTime": "2026-11-22T10:00:00.000Z", "MessageMetadata": {"MessageProcessingStatus": "REJECTED"}}
    relay = relays(upstreams(lambda request: Answer(200, body)).url)
    assert send(relay, TOKEN, "canary", "mine", headers=["Prefer: wait=20"]).json == body
    assert send(relay, TOKEN, "canary", "mine").json == body


def test_conversation_keys_decide_the_order(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    for number in range(10):
        for chat in ("chat-1/bot", "chat-2/bot"):
            token = f"canary-{chat}-{number // 5}"  # the key goes on where the token changes
            assert send(relay, token, f"canary: {number}", headers=[f"Relay-Conversation: {chat}"]).status == 202
    assert_error(send(relay, "canary-chat-1/bot-0", "canary"), 409, "ConflictException")
    assert_error(send(relay, "canary-chat-1/bot-0", "canary", headers=["Relay-Conversation: x"]), 409, "ConflictException")
    upstream.start()
    relay.until_empty()
    for chat in ("chat-1/bot", "chat-2/bot"):
        sent = [request for request in upstream.messages() if request.token.startswith(f"canary-{chat}")]
        assert [request.json["Content"] for request in sent] == [f"canary: {number}" for number in range(10)]
        assert [request.token[-1] for request in sent] == ["0"] * 5 + ["1"] * 5, "each goes with the token it came with"


def test_replacing_token_sends_the_queued_messages(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    key = "Relay-Conversation: chat/bot"
    send(relay, "canary-old", "canary: 0", headers=[key])
    send(relay, "canary-new", "canary: 1", headers=[key, "Relay-Replaces-Token: canary-old"])
    upstream.start()
    relay.until_empty()
    by_content = {request.json["Content"]: request.token for request in upstream.messages()}
    # The first message may have been tried with its own token before the upstream listened: then it keeps that token.
    assert by_content["canary: 1"] == "canary-new" and by_content["canary: 0"] in ("canary-new", "canary-old")


def test_state_route_returns_each_state_of_a_message(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    send(relay, TOKEN, "canary: 0", "zero")
    token = "a/b c%é?"
    assert send(relay, TOKEN, "canary: 1", token).status == 202
    path = urllib.parse.quote(token, safe="")
    state = look(relay, TOKEN, path).json
    assert state["ClientToken"] == token and state["State"] == "QUEUED" and state["Ahead"] == 1
    assert state["AcceptedTime"].endswith("Z") and state["Attempts"] == 0 and state["Conversation"].startswith("t:")
    assert look(relay, "canary-another", path).status == 404, "another's token sees nothing"
    assert look(relay, TOKEN, "nobody").status == 404
    upstream.start()
    state = look(relay, TOKEN, path, headers=["Prefer: wait=20"]).json
    assert state["State"] == "DELIVERED" and state["Id"] and state["AbsoluteTime"]


def test_state_of_a_message_with_a_key_needs_the_key(stranded):
    key = "Relay-Conversation: chat/bot"
    send(stranded, TOKEN, "canary", "mine", headers=[key])
    assert look(stranded, TOKEN, "mine", headers=[key]).json["Conversation"] == "chat/bot"
    assert look(stranded, TOKEN, "mine").status in (404, 409)


def test_queue_route_returns_the_backlog_and_waits(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    empty = curl(relay, "/participant/queue").json
    assert empty["Queued"] == 0 and empty["Draining"] is False and empty["Rate"] > 0
    upstream.stop()
    send(relay, TOKEN, "canary")
    assert queued(relay) == 1
    assert curl(relay, "/participant/queue", headers=["Prefer: wait=1"]).json["Queued"] == 1
    upstream.start()
    assert curl(relay, "/participant/queue", headers=["Prefer: wait=30"]).json["Queued"] == 0


def test_batch_is_answered_line_by_line_and_a_bad_line_affects_only_itself(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    good = {"ContentType": PLAIN, "Content": "canary: 0", "ClientToken": "t-0", "ConnectionToken": TOKEN}
    lines = [
        json.dumps(good),
        "{not json",
        json.dumps({**good, "ClientToken": "t-1", "Content": ""}),
        json.dumps({**good, "ClientToken": "t-2", "Content": "canary: 2", "Lifetime": 60}),
        json.dumps({"ContentType": PLAIN, "Content": "canary: no token"}),
        json.dumps({**good, "ClientToken": "t-3", "ConnectionToken": "canary-two", "Conversation": "chat/bot"}),
        json.dumps({**good, "ClientToken": "t-4", "ContentType": "text/html"}),
        json.dumps({**good, "Content": "canary: changed"}),
        json.dumps({**good, "ClientToken": "t-5", "Lifetime": -1}),
        json.dumps(good),
    ]
    reply = curl(relay, "/participant/messages", "\n".join(lines).encode(), headers=["Content-Type: application/x-ndjson"])
    assert reply.status in (200, 202)
    codes = [line.get("State") or line["Error"]["Code"] for line in reply.lines]
    bad = "ValidationException"
    assert codes == ["QUEUED", bad, bad, "QUEUED", bad, "QUEUED", bad, "ConflictException", bad, "QUEUED"]
    assert [line.get("ClientToken") for line in reply.lines if "State" in line] == ["t-0", "t-2", "t-3", "t-0"]
    assert all(line["Error"]["Message"] for line in reply.lines if "Error" in line)
    assert "canary" not in reply.body.decode()
    assert queued(relay) == 3
    upstream.start()
    relay.until_empty()
    assert [r.json["ClientToken"] for r in upstream.messages() if r.token == TOKEN] == ["t-0", "t-2"]


def test_any_number_of_short_bad_lines_affects_no_other_line(stranded):
    good = {"ContentType": PLAIN, "Content": "canary", "ConnectionToken": TOKEN}
    for bad in ("{}", "x", "not JSON at all"):
        body = "\n".join([*[bad] * 1000, json.dumps(good)]).encode()
        reply = curl(stranded, "/participant/messages", body)
        assert reply.status == 200 and len(reply.lines) == 1001, reply.body[:300]
        assert {line["Error"]["Code"] for line in reply.lines[:-1]} == {"ValidationException"}
        assert reply.lines[-1]["State"] == "QUEUED"
    assert queued(stranded) == 3


def test_a_batch_has_a_limit_of_its_own(relays):
    relay = relays("http://127.0.0.1:9", ingress__batch_bytes_max="300KiB")
    line = {"ContentType": "application/json", "Content": "x" * 12000, "ConnectionToken": TOKEN}
    fits = b"\n".join(json.dumps(line).encode() for _ in range(23))
    assert len(curl(relay, "/participant/messages", fits).lines) == 23
    reply = curl(relay, "/participant/messages", fits + b"\n" + fits)
    assert reply.status == 413 or "ValidationException" in reply.body.decode()


def test_full_queue_answers_429_and_stores_nothing(relays):
    relay = relays("http://127.0.0.1:9", queue__messages_max=2)
    assert [send(relay, TOKEN, "canary", f"t-{number}").status for number in range(2)] == [202, 202]
    assert_throttled(send(relay, TOKEN, "canary", "t-2"), "ThrottlingException", "queue.messages_max", "2")
    assert send(relay, TOKEN, "canary", "t-1").status == 202, "a repeat needs no space"
    assert queued(relay) == 2
    assert look(relay, TOKEN, "t-2").status == 404


def test_a_lifetime_that_cannot_be_met_is_refused_at_once(relays):
    relay = relays("http://127.0.0.1:9", sender__quota_rate="1", sender__quota_burst="1", sender__rate_max="1")
    for number in range(20):
        send(relay, TOKEN, f"canary: {number}")
    late = send(relay, TOKEN, "canary", headers=["Relay-Lifetime: 2"])
    assert_error(late, 429, "RelayTooLateException")
    assert not {"retry-after", "x-amz-retry-after"} & set(late.headers), "the same call later asks for something else"
    assert queued(relay) == 20
    assert send(relay, TOKEN, "canary", headers=["Relay-Lifetime: 600"]).status == 202


def test_expired_message_is_dead_lettered_in_time_and_its_repeat_gets_410(stranded):
    send(stranded, TOKEN, "canary", "mine", headers=["Relay-Lifetime: 1"])
    until(lambda: look(stranded, TOKEN, "mine").json["State"] == "DEAD", "it is dead", timeout=15)
    assert_error(send(stranded, TOKEN, "canary", "mine"), 410, "GoneException")
    assert queued(stranded) == 0
    assert stranded.metrics()['messages_dead_total{reason="expired",told="false"}'] == 1


def test_refused_token_is_rejected_at_submission_for_a_while(relays, upstreams):
    upstream = upstreams(lambda request: error(403, "AccessDeniedException", "Access denied"))
    relay = relays(upstream.url, sender__token_wait="1s")
    assert send(relay, TOKEN, "canary", "mine").status == 202
    until(lambda: relay.lines("held"), "its conversation is held")
    reply = send(relay, TOKEN, "canary: another")
    assert_error(reply, 403, "AccessDeniedException", own=False)
    until(lambda: relay.lines("dead"), "it dies after token_wait")
    assert relay.lines("dead")[0]["reason"] == "chat_over"
    assert_error(send(relay, TOKEN, "canary", "mine"), 403, "AccessDeniedException", own=False)
    assert len(upstream.messages()) == 1, "no quota is spent on a refused token"


def test_disconnect_waits_for_its_turn_and_a_403_counts_as_done(relays, upstreams):
    def script(request):
        return error(403, "AccessDeniedException", "Access denied") if request.target.endswith("disconnect") else None

    upstream = upstreams(script)
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    send(relay, TOKEN, "canary: goodbye")
    bearer = f"X-Amz-Bearer: {TOKEN}"
    assert curl(relay, "/participant/disconnect", {"ClientToken": "bye"}, [bearer]).status == 202
    assert_error(send(relay, TOKEN, "canary: late"), 409, "ConflictException")
    upstream.start()
    reply = curl(relay, "/participant/disconnect", {"ClientToken": "bye"}, [bearer, "Prefer: wait=20"])
    assert (reply.status, reply.body) == (200, b"")
    assert [request.target.rsplit("/", 1)[1] for request in upstream.requests] == ["message", "disconnect"]
    until(lambda: len(relay.lines("delivered")) == 2, "both are logged as delivered")
    assert [line["http_status"] for line in relay.lines("delivered")] == [200, 403], "what upstream said"


def test_disconnect_of_a_participant_whose_token_was_refused_is_done(relays, upstreams):
    upstream = upstreams(lambda request: error(403, "AccessDeniedException", "Access denied"))
    relay = relays(upstream.url, sender__token_wait="1s")

    def disconnect(token, *headers):
        return curl(relay, "/participant/disconnect", {"ClientToken": "bye"}, [f"X-Amz-Bearer: {token}", *headers])

    assert_error(send(relay, TOKEN, "canary", headers=["Prefer: wait=20"]), 403, "AccessDeniedException", own=False)
    done = disconnect(TOKEN, "Prefer: wait=20")
    assert (done.status, done.body) == (200, b""), "the relay knows of the refusal, and so is the participant gone"
    # Behind a message that waits for a renewed token in vain.
    assert send(relay, "canary-other", "canary").status == 202
    assert disconnect("canary-other").status == 202
    until(lambda: look(relay, "canary-other", "bye").json["State"] == "DELIVERED", "it is no dead letter")
    assert relay.metrics()["dead_letters"] == 2, "the messages"


def test_only_allowed_users_can_submit(relays):
    relay = relays("http://127.0.0.1:9", tcp=False, ingress__allow_uids=os.getuid() + 1)
    assert_error(send(relay, TOKEN, "canary"), 403, "RelayForbiddenException")
    assert relay.queued() == 0


def test_one_connection_serves_many_requests(stranded):
    body = json.dumps({"ContentType": PLAIN, "Content": "canary"})
    one = f"""
        url = "http://relay{MESSAGE}"
        unix-socket = "{stranded.socket}"
        header = "X-Amz-Bearer: {TOKEN}"
        data = "{body.replace('"', chr(92) + '"')}"
        output = "/dev/null"
        write-out = "%{{http_code}} %{{num_connects}}\\n"
    """
    reply = subprocess.run(
        ["curl", "--disable", "--silent", "--config", "-"], input="next\n".join([one] * 5), capture_output=True, text=True
    )
    assert reply.stdout.splitlines() == ["202 1"] + ["202 0"] * 4


def test_trace_id_is_stored_and_logged(relay):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    reply = send(relay, TOKEN, "canary", "mine", headers=[f"traceparent: 00-{trace}-00f067aa0ba902b7-01", "Prefer: wait=20"])
    assert reply.status == 200
    life = until(lambda: [line for line in relay.lines() if line.get("client_token") == "mine"][1:] and relay.lines(), "its life is logged")
    life = [line for line in life if line.get("client_token") == "mine"]
    assert [line["event"] for line in life] == ["accepted", "delivered"]
    assert all(line["trace_id"] == trace for line in life)
    assert life[1]["connect_id"] == reply.json["Id"] and life[1]["connect_request_id"].startswith("request-")
    assert life[0]["conversation"].startswith("t:") and life[1]["message_id"] == reply.headers["relay-message"]


@pytest.mark.parametrize("content_type,length", [("text/plain", 1024), ("text/markdown", 1024), ("application/json", 12000),
                                                 ("application/vnd.amazonaws.connect.message.interactive.response", 12288)])
def test_longest_message_of_every_type_arrives_complete(relay, upstream, content_type, length):
    content = "canary é" + "é" * 2000
    content = (content * 7)[:length] if length <= 1024 else "canary " + "x" * (length - 7)
    reply = send(relay, TOKEN, content, content_type=content_type, headers=["Prefer: wait=20"])
    assert reply.status == 200
    assert upstream.messages()[0].json["Content"] == content
