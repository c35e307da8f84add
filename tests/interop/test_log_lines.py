"""Log lines for operators: rejected, redriven and deleted messages, and the uid of each act."""

import json
import os

from kit.callers import curl, send
from kit.wait import until
from kit.processes import command
from kit.upstream import error

TOKEN = "canary-token"
LINE = {"ContentType": "text/plain", "Content": "canary", "ConnectionToken": TOKEN}
KEY = "Relay-Conversation: 4711/bot"


def operate(relay, *args):
    done = command(*args, "--dir", relay.folder)
    assert done.returncode == 0, done
    return done.stdout


def rejected(relay, number):
    """Waits for this many `rejected` lines and returns them."""
    return until(lambda: len(found := relay.lines("rejected")) >= number and found, f"{number} refusals are logged")


def names(line, *members):
    return [line.get(member) for member in members]


def test_each_rejected_message_has_a_log_line_with_its_reason(relays):
    relay = relays("http://127.0.0.1:9", ingress__body_bytes_max="2KiB", queue__messages_max=2)
    assert send(relay, TOKEN, "canary", "taken", headers=[KEY]).status == 202
    bearer = f"X-Amz-Bearer: {TOKEN}"
    body = {"ContentType": "text/plain", "Content": "canary", "ClientToken": "mine"}
    for path, sent, headers, status, reason, client_token, conversation in [
        ("message", {**body, "Content": ""}, [bearer, KEY], 400, "invalid", "mine", "4711/bot"),
        ("message", body, [], 400, "invalid", "mine", None),
        ("message", {**body, "Content": "canary " * 999}, [bearer, KEY], 413, "too_large", None, "4711/bot"),
        ("message", {**body, "ClientToken": "taken"}, [bearer, KEY, "Relay-Replaces-Token: canary-x"], 403, "forbidden", "taken", "4711/bot"),
        ("message", {**body, "ClientToken": "taken", "Content": "canary!"}, [bearer, KEY], 409, "conflict", "taken", "4711/bot"),
        ("message", body, [bearer, KEY, "Relay-Lifetime: 1.5"], 400, "invalid", "mine", "4711/bot"),
        ("event", {**body, "ContentType": ""}, [bearer, KEY], 400, "invalid", "mine", "4711/bot"),
        ("disconnect", b"[]", [bearer, KEY], 400, "invalid", None, "4711/bot"),
    ]:
        before = len(relay.lines("rejected"))
        reply = curl(relay, f"/participant/{path}", sent, headers=headers)
        assert reply.status == status, reply
        line = rejected(relay, before + 1)[before]
        expected = [status, reply.headers["x-amzn-errortype"], reason, client_token, conversation, 0]
        assert names(line, "status", "code", "reason", "client_token", "conversation", "left_out") == expected
        assert line["level"] == "INFO" and relay.metrics()[f'messages_rejected_total{{reason="{reason}"}}'] >= 1


def test_rejected_lines_of_a_batch_are_logged(relay):
    lines = [
        {**LINE, "Content": "", "ClientToken": "b-1"},
        {**LINE, "ClientToken": "b-2"},
        {**LINE, "ClientToken": "b-2", "Content": "canary: another", "Conversation": "4711/bot"},
    ]
    assert curl(relay, "/participant/messages", "\n".join(map(json.dumps, lines)).encode()).status == 200
    found = rejected(relay, 2)
    assert [names(line, "reason", "client_token", "conversation")[:2] for line in found] == [["invalid", "b-1"], ["conflict", "b-2"]]
    assert found[0]["conversation"].startswith("t:") and found[1]["conversation"] == "4711/bot"


def test_log_lines_about_a_flood_of_429_are_limited_and_one_warning_is_logged(relays):
    relay = relays("http://127.0.0.1:9", queue__messages_max=1, shutdown__grace="0s")
    assert send(relay, TOKEN, "canary", "first").status == 202
    lines = [json.dumps({**LINE, "ClientToken": f"f-{number}"}) for number in range(200)]
    replies = curl(relay, "/participant/messages", "\n".join(lines).encode()).lines
    assert {reply["Error"]["Code"] for reply in replies} == {"ThrottlingException"}
    relay.stop()
    found = relay.lines("rejected")
    assert len(found) + sum(line["left_out"] for line in found) == 200, "each of them is in a line or in a count"
    assert len(found) <= 40 and {line["reason"] for line in found} == {"queue_full"}
    warnings = [line for line in relay.lines() if line["level"] == "WARN" and line.get("status") == 429]
    assert len(warnings) == 1 and "queue.messages_max" in warnings[0]["why"], warnings


def test_operators_acts_are_logged_with_their_uid_and_a_line_for_each_message(relays, upstreams):
    upstream = upstreams(lambda request: error(400, "ValidationException", "Invalid") if b"spoilt" in request.body else None)
    relay = relays(upstream.url)
    for name in ("spoilt-1", "spoilt-2", "spoilt-3"):
        assert send(relay, TOKEN, f"canary: {name}", name, headers=[KEY]).status == 202
    dead = until(lambda: len(found := relay.lines("dead")) == 3 and found, "they are dead")
    operate(relay, "pause", "--reason", "it moves")
    operate(relay, "messages", "redrive", dead[0]["message_id"])
    operate(relay, "messages", "redrive", "--all", "--reason", "invalid")
    operate(relay, "messages", "delete", dead[0]["message_id"])
    operate(relay, "messages", "delete", "--conversation", "4711/bot")
    operate(relay, "resume")
    operate(relay, "drain")
    assert relay.wait() == 0
    acts = [line for line in relay.lines() if "act" in line]
    assert {line["uid"] for line in acts} == {os.getuid()}
    assert [line["act"] for line in acts] == ["pause", "redrive", "redrive_all", "delete", "delete_all", "resume", "drain"]
    assert acts[0]["reason"] == "it moves" and acts[1]["message_id"] == dead[0]["message_id"]
    assert acts[2]["redriven"] == 2 and acts[4]["deleted"] == 2
    for event in ("redriven", "deleted"):
        lines = relay.lines(event)
        assert sorted(line["message_id"] for line in lines) == sorted(line["message_id"] for line in dead)
        assert all(line["conversation"] == "4711/bot" and line["client_token"].startswith("spoilt-") for line in lines)
    assert {line["reason"] for line in relay.lines("redriven")} == {"invalid"}


def warnings(relay):
    return [line for line in relay.lines() if line["level"] == "WARN"]


def test_dead_message_that_its_bot_sends_again_with_a_renewed_token_is_logged_as_redriven(relays, upstreams):
    def script(request):
        return error(403, "AccessDeniedException", "Access denied") if request.token == TOKEN else None

    relay = relays(upstreams(script).url, sender__token_wait="1s")
    message_id = send(relay, TOKEN, "canary", "mine", headers=[KEY]).headers["relay-message"]
    until(lambda: relay.lines("dead"), "its token is not renewed in time")
    renewal = [KEY, f"Relay-Replaces-Token: {TOKEN}", "Prefer: wait=20"]
    assert send(relay, "canary-renewed", "canary", "mine", headers=renewal).status == 200
    until(lambda: relay.lines("delivered"), "its delivery is logged")
    life = [line for line in relay.lines() if line.get("message_id") == message_id]
    assert [line["message"] for line in life] == ["accepted", "held", "dead", "redriven", "delivered"]
    redriven = names(life[3], "conversation", "client_token", "reason", "edited")
    assert redriven == ["4711/bot", "mine", "chat_over", False]
    assert not any("act" in line for line in relay.lines()), "no operator did it"


def test_one_503_causes_no_warning_and_several_are_not_reported_as_unreachable(relays, upstreams):
    said = iter([error(503, "ServiceUnavailableException")])
    relay = relays(upstreams(lambda _: next(said, None)).url, sender__probe_max="100ms")
    assert send(relay, TOKEN, "canary", "once").status == 202
    relay.until_empty()
    assert [line["http_status"] for line in relay.lines("deferred", 1)] == [503] and warnings(relay) == []
    relay = relays(upstreams(lambda _: error(503, "ServiceUnavailableException")).url, sender__probe_max="100ms")
    for number in range(3):
        assert send(relay, f"canary-{number}", "canary", f"m-{number}").status == 202
    [line] = until(lambda: warnings(relay), "it is warned of")
    assert "answered 503" in line["message"] and "cannot be reached" not in line["message"]
    [problem] = json.loads(operate(relay, "status", "--json"))["problems"]
    assert problem.startswith("Sending is stuck since 2") and "answered 503" in problem, problem
