"""Operators' commands on a running relay: pause, resume, drain, and messages."""

import json
import os
import pty
import select
import subprocess
import threading

import pytest

from kit.callers import curl, look, queued, send
from kit.wait import TIMEOUT, until
from kit.processes import BINARY, command, environment
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
    until(lambda: [line for line in relay.lines() if "still paused" in line.get("message", "")], "its start says so")
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
    until(lambda: [line for line in relay.lines() if line.get("reason") == "all_refused" and line["level"] == "ERROR"], "it is logged")
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
    """`messages list --json`, one document."""
    return json.loads(operate(relay, "messages", "list", "--json", *args, code=code))["Messages"]


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
    died = relay.lines("dead", 4)
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
    relay = relays(DOWN)
    operate(relay, "pause")
    lines = [json.dumps({"ContentType": "text/plain", "Content": "canary", "ClientToken": f"c-{number}",
                         "ConnectionToken": f"canary-{number % 3}", "Conversation": f"C{number % 3}"})
             for number in range(3000)]
    assert curl(relay, "/participant/messages", "\n".join(lines).encode()).status == 200
    assert control(relay, "/messages?all=true", "DELETE").json == {"Deleted": 3000, "InFlight": 0}
    page = control(relay, "/messages?state=DEAD&limit=1000").json
    assert len(page["Messages"]) == 1000
    rest = control(relay, f"/messages?state=DEAD&limit=1000&after={page['Next']}").json["Messages"]
    assert rest[0]["AcceptedTime"] >= page["Messages"][-1]["AcceptedTime"] and rest[0] not in page["Messages"]
    assert operate(relay, "messages", "redrive", "--conversation", "C1", "--reason", "deleted") == "queued again: 1000\n"
    assert len(messages(relay, "--state", "queued", "--limit", "700")) == 700
    document = json.loads(operate(relay, "messages", "list", "--json", "--limit", "1500"))
    assert len(document["Messages"]) == 1500 and set(document) == {"Messages", "Next"}
    rest = messages(relay, "--limit", "9999", "--after", document["Next"])
    assert len({m["Id"] for m in document["Messages"] + rest}) == 3000, "the pages follow on each other"
    assert messages(relay, "--conversation", "none") == []
    operate(relay, "messages", "delete", "--conversation", "C1", "--yes")
    done = [("delete_all", 3000, False), ("redrive_all", 1000, False), ("delete_all", 1000, False)]
    until(lambda: acts(relay) == done, "one line for all pages")
    reply = control(relay, "/redrive?conversation=C2&reason=deleted&limit=10", "POST").json
    assert reply["Redriven"] == 10
    reply = control(relay, f"/redrive?conversation=C2&reason=deleted&limit=5&after={reply['Next']}", "POST").json
    done += [("redrive_all", 10, True), ("redrive_all", 5, True)]
    until(lambda: acts(relay) == done, "and one for each page that is asked for")
    assert [m["ClientToken"] for m in messages(relay, "--state", "queued")] == [f"c-{n}" for n in range(2, 45, 3)]
    assert control(relay, "/messages?conversation=C2", "DELETE").json == {"Deleted": 15, "InFlight": 0}
    until(lambda: acts(relay) == [*done, ("delete_all", 15, False)], "the last one")


def acts(relay):
    """The bulk acts in the log: name, number of messages, and whether some are left."""
    found = [line for line in relay.lines() if line.get("act") in ("delete_all", "redrive_all")]
    assert all(line["uid"] == os.getuid() for line in found)
    return [(line["act"], line.get("deleted", line.get("redriven")), line["more"]) for line in found]


def test_mistyped_bulk_command_changes_nothing(relay):
    operate(relay, "pause")
    send(relay, TOKEN, "canary", "mine")
    for method, path in [("DELETE", "/messages"), ("DELETE", "/messages?conversaton=C"), ("DELETE", "/messages?conversation="),
                         ("DELETE", "/messages?conversation=a&conversation=b"), ("POST", "/redrive?state=DEAD"),
                         ("POST", "/redrive"), ("POST", "/redrive?dry_run=true"), ("DELETE", "/messages?all=false"),
                         ("DELETE", "/messages?all=1"), ("DELETE", "/messages?accepted_before=yesterday"),
                         ("POST", "/redrive?accepted_after="), ("GET", "/messages?accepted_after=1795860000"),
                         ("GET", "/messages?dry_run=true"), ("DELETE", "/messages?all=true&dry_run=maybe"),
                         ("GET", "/messages?state=DELIVERED"), ("GET", "/messages?state=QUEUED&reason=expired"),
                         ("GET", "/messages?limit=0"), ("GET", "/messages?after=x"), ("GET", "/messages?state=QUEUED&after=d0"),
                         ("GET", "/messages?reason=bored"), ("GET", "/messages/x-1?contents=yes")]:
        assert control(relay, path, method).status == 400, (method, path)
    for method, path in [("GET", "/messages/x-1"), ("DELETE", "/messages/0000002a-1"), ("POST", "/messages/x/redrive"), ("GET", "/messages/")]:
        assert control(relay, path, method).status == 404, (method, path)
    assert control(relay, "/redrive").status == 405 and status(relay)["queued"] == 1
    for usage in (["redrive"], ["delete"], ["delete", "--dry-run"], ["redrive", "--newer-than", "soon"], ["redrive", "x-1", "--reason", "expired"], ["list", "--reason", "bored"], ["show"]):
        assert command("messages", *usage, "--dir", relay.folder).returncode == 2, usage


def test_a_bulk_act_is_counted_first_and_selects_by_conversation_reason_and_age(relays):
    relay = relays(DOWN)
    operate(relay, "pause")
    for number in range(6):
        send(relay, f"canary-{number % 2}", f"canary: {number}", f"c-{number}", headers=[f"Relay-Conversation: C{number % 2}"])
    third = messages(relay)[2]["AcceptedTime"]
    until(lambda: status(relay)["oldest_seconds"] > 1.5, "they have an age")
    path = f"/messages?accepted_after={third}"
    after = [m["ClientToken"] for m in control(relay, path).json["Messages"]]
    assert after == [m["ClientToken"] for m in messages(relay) if m["AcceptedTime"] > third]
    before = [m["ClientToken"] for m in control(relay, f"/messages?accepted_before={third}").json["Messages"]]
    assert before == [m["ClientToken"] for m in messages(relay) if m["AcceptedTime"] < third]
    assert control(relay, path + "&dry_run=true", "DELETE").json == {"Deleted": len(after), "InFlight": 0, "DryRun": True}
    assert messages(relay, "--newer-than", "1s") == [] and len(messages(relay, "--older-than", "1s")) == 6
    assert len(messages(relay, "--newer-than", "1h", "--conversation", "C1")) == 3 and messages(relay, "--older-than", "1h") == []
    assert operate(relay, "messages", "delete", "--older-than", "1s", "--conversation", "C0", "--dry-run") == "to be deleted: 3\n"
    assert operate(relay, "messages", "delete", "--all", "--dry-run", "--json") == '{"Deleted":6,"InFlight":0,"DryRun":true}\n'
    assert operate(relay, "messages", "redrive", "--all", "--dry-run") == "to be queued again: 0\n"
    assert not [line for line in relay.lines() if line.get("act") in ("delete_all", "redrive_all")] and status(relay)["queued"] == 6

    done = command("messages", "delete", "--older-than", "1s", "--conversation", "C0", "--dir", relay.folder)
    assert (done.returncode, done.stdout) == (0, "deleted: 3\n") and "messages to delete: 3" in done.stderr
    [act] = until(lambda: [line for line in relay.lines() if line.get("act") == "delete_all"], "the act is logged")
    assert (act["uid"], act["conversation"], act["deleted"]) == (os.getuid(), "C0", 3) and "accepted_before" in act
    assert len({line["message_id"] for line in relay.lines("deleted", 3)}) == 3
    assert operate(relay, "messages", "redrive", "--reason", "deleted", "--newer-than", "1s", "--dry-run") == "to be queued again: 0\n"
    assert operate(relay, "messages", "delete", "--reason", "expired") == "deleted: 0\n"
    assert operate(relay, "messages", "redrive", "--reason", "deleted", "--newer-than", "1h") == "queued again: 3\n"
    until(lambda: len({line["message_id"] for line in relay.lines("redriven")}) == 3, "each message is logged")
    assert operate(relay, "messages", "delete", "--all") == "deleted: 6\n" and status(relay)["queued"] == 0


@pytest.mark.parametrize("answer, left", [("n", 2), ("", 2), ("y", 0)])
def test_a_bulk_act_asks_in_a_terminal(relays, answer, left):
    relay = relays(DOWN)
    operate(relay, "pause")
    for number in range(2):
        send(relay, TOKEN, "canary", f"c-{number}")
    master, terminal = pty.openpty()
    asked = subprocess.Popen([BINARY, "messages", "delete", "--all", "--dir", relay.folder], stdin=terminal, stdout=subprocess.PIPE,
                             stderr=terminal, env=environment({}))
    os.close(terminal)
    shown = b""
    while b"delete 2 messages? [y/N] " not in shown:
        assert select.select([master], [], [], TIMEOUT)[0], shown
        shown += os.read(master, 4096)
    assert status(relay)["queued"] == 2
    os.write(master, answer.encode() + b"\n")
    output = asked.communicate(timeout=TIMEOUT)[0].decode()
    os.close(master)
    assert (asked.returncode, output) == ((0, "deleted: 2\n") if left == 0 else (1, "")) and status(relay)["queued"] == left


def test_summary_shows_whose_messages_fill_the_queue(relays):
    relay = relays(DOWN, sender__lifetime="1h")
    operate(relay, "pause")
    send(relay, "canary-first", "canary: first", headers=["Relay-Conversation: first", "Relay-Lifetime: 60"])
    lines = [json.dumps({"ContentType": "text/plain", "Content": "canary", "ConnectionToken": f"canary-{number % 20}",
                         "Conversation": f"C{min(number % 20, 12)}"}) for number in range(2000)]
    assert curl(relay, "/participant/messages", "\n".join(lines).encode()).status == 200
    send(relay, TOKEN, "canary: unkeyed")
    [label] = {m["Conversation"] for m in messages(relay, "--limit", "9999") if m["Conversation"].startswith("t:")}
    operate(relay, "messages", "delete", "--conversation", "C3")
    until(lambda: status(relay)["expiring"] == 1, "a message will expire")
    reply = control(relay, "/summary")
    found = reply.json
    assert reply.status == 200 and "canary" not in reply.body.decode()
    assert (found["Queued"], found["Conversations"], found["Dead"], found["Reasons"]) == (1902, 14, 100, {"deleted": 100})
    assert found["Expiring"] == 1 and found["FirstExpiry"] > found["LongestWaiting"][0]["OldestAcceptedTime"]
    assert sum(age["Queued"] for age in found["Ages"]) == 1902 and sum(age["Dead"] for age in found["Ages"]) == 100
    assert (found["MostQueued"][0]["Conversation"], found["MostQueued"][0]["Queued"]) == ("C12", 800)
    assert [count["Queued"] for count in found["MostQueued"]] == [800] + [100] * 9
    assert (found["LongestWaiting"][0]["Conversation"], found["LongestWaiting"][0]["Queued"]) == ("first", 1)
    assert json.loads(operate(relay, "messages", "summary", "--json")).keys() == found.keys()
    shown = operate(relay, "messages", "summary")
    assert "queued        1902 in 14 conversations; about 1 will expire" in shown and "100 deleted" in shown and "  C12\n" in shown
    operate(relay, "messages", "delete", "--newer-than", "1h", "--conversation", "C12")
    operate(relay, "messages", "delete", "--conversation", "first")
    found = control(relay, "/summary").json
    assert found["LongestWaiting"][0]["Conversation"] == "C0" and label not in [c["Conversation"] for c in found["MostQueued"]]
