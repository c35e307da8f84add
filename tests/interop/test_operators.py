"""Operators' commands on a running relay: pause, resume, drain, and messages."""

import json
import os
import threading

from kit.callers import curl, look, queued, send
from kit.wait import until
from kit.processes import command
from kit.upstream import CUT, error

TOKEN = "canary-token"
DOWN = "http://127.0.0.1:9"


def operate(relay, *args, code=0):
    """Runs a command on the relay's control socket; returns its output."""
    done = command(*args, "--dir", relay.folder)
    assert done.returncode == code, done
    return done.stdout


def status(relay):
    return json.loads(operate(relay, "status", "--json"))


def test_a_paused_relay_accepts_and_does_not_send_also_after_a_restart(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url)
    assert operate(relay, "pause", "--reason", "the instance moves") == "sending is paused: 0 queued, 0 in flight\n"
    reply = send(relay, TOKEN, "canary", "mine")
    assert reply.status == 202 and "ExpectedTime" not in reply.json, "the time cannot be estimated"
    relay.kill()
    relay.start()
    assert status(relay)["paused"]["reason"] == "the instance moves"
    assert "the instance moves" in operate(relay, "status") and relay.metrics()["paused"] == 1
    assert relay.get("/livez")[0] == relay.get("/readyz")[0] == 200
    assert [line for line in relay.lines() if "still paused" in line.get("message", "")]
    assert upstream.messages() == [] and queued(relay) == 1
    assert operate(relay, "resume").startswith("sending resumed: ")
    relay.until_empty()
    assert len(upstream.messages()) == 1 and status(relay)["paused"] is None


def test_three_refused_tokens_slow_down_a_relay_that_has_never_delivered_until_the_first_delivery(relays, upstreams):
    good = "canary-good"
    upstream = upstreams(lambda request: None if request.token == good else error(403, "AccessDeniedException", "Access denied"))
    relay = relays(upstream.url, sender__token_wait="1s", sender__probe_max="1s")
    for number in range(3):
        assert send(relay, f"canary-{number}", f"canary: {number}", f"m-{number}").status == 202
        until(lambda: len(upstream.messages()) == number + 1, "its token is refused")
    until(lambda: status(relay)["all_refused_since"], "it goes on with care")
    shown = status(relay)
    assert shown["paused"] is None and relay.metrics()["paused"] == 0
    assert "sender.region" in shown["problems"][0] or "sender.endpoint" in shown["problems"][0]
    assert [line for line in relay.lines() if line.get("reason") == "all_refused" and line["level"] == "ERROR"]
    # The first of these may be dead before the third was refused; from then on none dies of its token.
    dead = shown["dead_letters"]
    until(lambda: status(relay)["oldest_seconds"] > 3, "token_wait is over")
    assert status(relay)["dead_letters"] == dead
    assert relay.get("/livez")[0] == 200
    for number in range(3, 5):
        assert send(relay, f"canary-{number}", f"canary: {number}", f"m-{number}").status == 202
    for number in range(2):
        assert send(relay, good, f"canary: good {number}", f"good-{number}").status == 202
    until(lambda: relay.metrics()["messages_delivered_total"] == 2, "the first delivery resumes sending by itself")
    assert status(relay)["all_refused_since"] is None
    relay.until_empty()


def test_caller_that_waits_for_the_third_refused_token_gets_its_refusal(relays, upstreams):
    upstream = upstreams(lambda _: error(403, "AccessDeniedException", "Access denied"))
    relay = relays(upstream.url)
    for number in range(3):
        reply = send(relay, f"canary-{number}", f"canary: {number}", f"m-{number}", headers=["Prefer: wait=30"])
        assert (reply.status, reply.headers["x-amzn-errortype"]) == (403, "AccessDeniedException"), number
    assert status(relay)["all_refused_since"]


def test_resume_forgets_the_tokens_that_were_refused(relays, upstreams):
    refuses = [True]
    upstream = upstreams(lambda _: error(403, "AccessDeniedException", "Access denied") if refuses[0] else None)
    relay = relays(upstream.url)
    assert send(relay, TOKEN, "canary: 0").status == 202
    until(lambda: relay.lines("held"), "its conversation is held")
    assert send(relay, TOKEN, "canary: 1").status == 403, "and rejected at submission"
    refuses[0] = False
    operate(relay, "resume")
    assert send(relay, TOKEN, "canary: 2").status == 202
    relay.until_empty()
    assert [request.json["Content"] for request in upstream.messages()][1:] == ["canary: 0", "canary: 2"]


def test_drain_delivers_queued_messages_and_the_relay_exits(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__quota_rate=20, sender__quota_burst=1)
    for number in range(20):
        send(relay, TOKEN, f"canary: {number}")
    assert operate(relay, "drain", "--timeout", "1m") == "drained: nothing is queued\n"
    assert relay.wait() == 0 and len(upstream.messages()) == 20


def test_drain_reports_remaining_messages_and_its_timeout_is_the_grace(relays):
    relay = relays(DOWN, shutdown__grace="1h")
    send(relay, TOKEN, "canary", "mine")
    assert operate(relay, "drain", "--timeout", "3s", code=75) == "stopped with 1 queued; they stay on disk and are sent at the next start\n"
    assert relay.wait() == 75
    relay.start()
    assert look(relay, TOKEN, "mine").json["State"] == "QUEUED"


def test_command_reports_a_missing_relay(tmp_path):
    for name in ("pause", "resume", "drain"):
        done = command(name, "--dir", tmp_path)
        assert done.returncode == 1 and "the relay is not running" in done.stderr, done
    assert not os.listdir(tmp_path)


def messages(relay, *args, code=0):
    """`messages list --json`, every page of it."""
    return [message for line in operate(relay, "messages", "list", "--json", *args, code=code).splitlines()
            for message in json.loads(line)["Messages"]]


def refuse_bad(request):
    """A service that accepts everything except contents that are marked as bad."""
    return error(400, "ValidationException", "canary: it is bad") if "bad" in request.json["Content"] else None


def dies(relay, count=1):
    until(lambda: status(relay)["dead_letters"] == count and status(relay)["queued"] == 0, "it is a dead letter")


def control(relay, path, method="GET", body=None):
    """The operators' API."""
    return curl(relay, path, body, method=method, extra=("--unix-socket", relay.folder / "private/control.sock"))


def test_a_redriven_message_is_delivered_with_its_client_token_in_its_old_place(relays, simulators):
    down = relays(DOWN, sender__lifetime="3s", control__edit="true")
    for number in range(3):
        assert send(down, TOKEN, f"canary: {number}", f"c-{number}").status == 202
    dies(down, 3)
    down.settings["sender.lifetime"] = "15m"
    simulator = simulators()
    down.settings["sender.endpoint"] = simulator.url
    assert down.stop() == 0
    down.start()
    operate(down, "pause")
    assert send(down, TOKEN, "canary: 3", "c-3").status == 202
    listed = messages(down)
    assert [(m["ClientToken"], m["State"], m.get("Reason")) for m in listed] == [
        ("c-3", "QUEUED", None), ("c-0", "DEAD", "expired"), ("c-1", "DEAD", "expired"), ("c-2", "DEAD", "expired")]
    died = [m["Id"] for m in listed[1:]]
    assert send(down, TOKEN, "canary: 1", "c-1").status == 410
    assert operate(down, "messages", "redrive", died[1]).startswith(f"{died[1]} is queued again, until ")
    assert send(down, TOKEN, "canary: 1", "c-1").status == 202, "its repeat finds it queued"
    done = command("messages", "redrive", died[1], "--dir", down.folder)
    assert done.returncode == 1 and "409" in done.stderr and "queued already" in done.stderr
    assert operate(down, "messages", "redrive", "--all", "--reason", "expired", "--conversation", listed[1]["Conversation"]) == "queued again: 2\n"
    operate(down, "resume")
    down.until_empty()
    ledger = [(line["ClientToken"], line["Content"], line["ConnectionToken"]) for line in simulator.ledger()]
    assert ledger == [(f"c-{number}", f"canary: {number}", TOKEN) for number in range(4)], "its conversation's order"
    done = command("messages", "redrive", died[1], "--dir", down.folder)
    assert done.returncode == 1 and "409" in done.stderr, "a second redrive of one that was delivered"
    assert send(down, TOKEN, "canary: 1", "c-1").status == 200


def test_edited_message_has_a_new_client_token_and_repeats_are_compared_with_the_accepted_contents(relays, upstreams):
    upstream = upstreams(refuse_bad)
    relay = relays(upstream.url, control__edit="true")
    assert send(relay, TOKEN, "canary: bad", "mine").status == 202
    dies(relay)
    [dead] = messages(relay, "--state", "dead")
    assert dead["Reason"] == "invalid" and dead["Error"] == {"Code": "ValidationException"}, "no text of upstream's"
    shown = operate(relay, "messages", "show", dead["Id"])
    assert "canary" not in shown.replace(relay.folder.name, "") and "dead invalid" in shown
    shown = json.loads(operate(relay, "messages", "show", dead["Id"], "--contents", "--json"))
    assert shown["Content"] == "canary: bad" and shown["Error"]["Message"] == "canary: it is bad" and TOKEN not in str(shown)
    file = relay.folder / "content"
    file.write_text("canary: good")
    operate(relay, "messages", "redrive", dead["Id"], "--content-file", file)
    relay.until_empty()
    first, second = (request.json for request in upstream.messages())
    assert second["Content"] == "canary: good" and second["ClientToken"] != first["ClientToken"] == "mine"
    assert send(relay, TOKEN, "canary: bad", "mine").status == 200, "what the bot said is delivered"
    assert send(relay, TOKEN, "canary: good", "mine").status == 409, "and this it never said"


def test_contents_are_changed_only_if_control_edit_allows_it(relays, upstreams):
    relay = relays(upstreams(refuse_bad).url)
    send(relay, TOKEN, "canary: bad", "mine")
    dies(relay)
    [dead] = messages(relay)
    reply = control(relay, f"/messages/{dead['Id']}/redrive", "POST", {"Content": "canary: good"})
    assert reply.status == 403 and "control.edit" in reply.json["Error"]
    assert status(relay)["dead_letters"] == 1


def test_redrive_with_a_token_goes_to_the_conversation_of_that_token(relays, upstreams):
    over = {TOKEN}
    upstream = upstreams(lambda request: error(403, "AccessDeniedException", "Access denied") if request.token in over else None)
    relay = relays(upstream.url, sender__token_wait="1s")
    relay.secrets.add("renewed")
    assert send(relay, "renewed-token", "canary: 0").status == 202
    relay.until_empty()
    assert send(relay, TOKEN, "canary: 1", "mine").status == 202
    dies(relay)
    [dead] = messages(relay, "--reason", "chat_over")
    file = relay.folder / "token"
    file.write_text("renewed-token\n")
    operate(relay, "messages", "redrive", dead["Id"], "--connection-token-file", file)
    relay.until_empty()
    went = upstream.messages()[-1]
    assert (went.token, went.json["Content"], went.json["ClientToken"]) == ("renewed-token", "canary: 1", "mine")


def test_deleted_messages_are_dead_letters_and_are_not_sent(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url)
    operate(relay, "pause")
    key = ["Relay-Conversation: C/bot"]
    for number in range(4):
        send(relay, TOKEN, f"canary: {number}", f"c-{number}", headers=key)
    send(relay, "canary-other", "canary: other", "other")
    first, *_ = messages(relay, "--conversation", "C/bot")
    assert operate(relay, "messages", "delete", first["Id"]) == f"{first['Id']} is deleted\n"
    assert operate(relay, "messages", "delete", first["Id"]) == f"{first['Id']} is deleted\n", "again: the same"
    assert send(relay, TOKEN, "canary: 0", "c-0", headers=key).status == 410
    assert operate(relay, "messages", "delete", "--conversation", "C/bot", "--json") == '{"Deleted":3,"InFlight":0}\n'
    died = relay.lines("dead")
    assert [(line["reason"], line["conversation"]) for line in died[:1] + died[-3:]] == [("deleted", "C/bot")] * 4
    assert relay.metrics()['messages_dead_total{reason="deleted",told="false"}'] == 4
    assert operate(relay, "messages", "redrive", "--all") == "queued again: 0\n", "the command did not ask for what was deleted"
    operate(relay, "resume")
    relay.until_empty()
    assert [request.json["Content"] for request in upstream.messages()] == ["canary: other"]


def test_message_in_flight_is_not_deleted_and_one_that_may_have_arrived_is_marked(relays, upstreams):
    answers = threading.Event()
    upstream = upstreams(lambda _: answers.wait(30) and CUT)
    relay = relays(upstream.url, sender__backoff__initial="1m", sender__backoff__max="1m")
    send(relay, TOKEN, "canary", "mine")
    upstream.wait_for(1)
    [message] = messages(relay)
    assert message["InFlight"]
    done = command("messages", "delete", message["Id"], "--dir", relay.folder)
    assert done.returncode == 1 and "in flight" in done.stderr
    answers.set()
    until(lambda: relay.lines("deferred"), "it is unknown if it arrived")
    assert operate(relay, "messages", "delete", message["Id"]) == f"{message['Id']} is deleted; it may have been delivered before\n"
    assert look(relay, TOKEN, "mine").json["MaybeDelivered"] is True


def test_bulk_redrive_and_delete_run_in_pages_while_bots_continue(relays):
    relay = relays(DOWN, sender__lifetime="3s")
    lines = [json.dumps({"ContentType": "text/plain", "Content": "canary", "ClientToken": f"c-{number}",
                         "ConnectionToken": f"canary-{number % 3}", "Conversation": f"C{number % 3}"})
             for number in range(3000)]
    assert curl(relay, "/participant/messages", "\n".join(lines).encode()).status == 200
    dies(relay, 3000)
    page = control(relay, "/messages?state=DEAD&limit=1000").json
    assert len(page["Messages"]) == 1000
    rest = control(relay, f"/messages?state=DEAD&limit=1000&after={page['Next']}").json["Messages"]
    assert rest[0]["AcceptedTime"] >= page["Messages"][-1]["AcceptedTime"] and rest[0] not in page["Messages"]
    operate(relay, "pause")
    assert operate(relay, "messages", "redrive", "--all", "--conversation", "C1") == "queued again: 1000\n"
    assert len(messages(relay, "--state", "queued", "--limit", "700")) == 700
    dies(relay, 3000)
    assert control(relay, "/redrive?conversation=C2&limit=10", "POST").json["Redriven"] == 10
    assert control(relay, "/messages?conversation=C2", "DELETE").json == {"Deleted": 10, "InFlight": 0}
    assert [m["ClientToken"] for m in messages(relay, "--reason", "deleted")] == [f"c-{n}" for n in range(2, 30, 3)]


def test_mistyped_bulk_command_changes_nothing(relay):
    operate(relay, "pause")
    send(relay, TOKEN, "canary", "mine")
    for method, path in [("DELETE", "/messages"), ("DELETE", "/messages?conversaton=C"), ("DELETE", "/messages?conversation="),
                         ("DELETE", "/messages?conversation=a&conversation=b"), ("POST", "/redrive?state=DEAD"),
                         ("GET", "/messages?state=DELIVERED"), ("GET", "/messages?state=QUEUED&reason=expired"),
                         ("GET", "/messages?limit=0"), ("GET", "/messages?after=x"), ("GET", "/messages?state=QUEUED&after=d0"),
                         ("GET", "/messages?reason=bored"), ("GET", "/messages/x-1?contents=yes")]:
        assert control(relay, path, method).status == 400, (method, path)
    for method, path in [("GET", "/messages/x-1"), ("DELETE", "/messages/0000002a-1"), ("POST", "/messages/x/redrive"), ("GET", "/messages/")]:
        assert control(relay, path, method).status == 404, (method, path)
    assert control(relay, "/redrive").status == 405 and status(relay)["queued"] == 1
    for usage in (["redrive"], ["delete"], ["redrive", "x-1", "--reason", "expired"], ["list", "--reason", "bored"], ["show"]):
        assert command("messages", *usage, "--dir", relay.folder).returncode == 2, usage
