"""The helper files of `examples/`, Python and JavaScript, against real relays, scripted ones, and the simulator's ledger."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.callers import curl, send
from kit.helpers import PYTHON
from kit.wait import TIMEOUT, until
from kit.processes import command, environment
from kit.upstream import CUT, Answer, error

CHAT = "0d2c7a2e-contact/bot"


def result(future):
    return future.result(timeout=TIMEOUT)


def contents(simulator):
    return [line["Content"] for line in simulator.ledger()]


def test_a_delivered_message_has_its_id_and_a_repeat_has_the_same(relays, simulators, helpers):
    simulator = simulators()
    relay = relays(simulator.url)
    helper = helpers(relay.socket, simulator.url)
    first = result(helper.send("canary: hello", "canary-token", "greeting-1", CHAT))
    [line] = simulator.ledger()
    known = {"Id": line["Id"], "AbsoluteTime": line["AbsoluteTime"], "ClientToken": "greeting-1"}
    assert first == {"State": "DELIVERED", "Direct": False, **known}
    assert result(helper.send("canary: hello", "canary-token", "greeting-1", CHAT)) == first
    minted = [result(helper.send("canary: hello", "canary-token", conversation=CHAT))["ClientToken"] for _ in range(2)]
    assert len({uuid.UUID(token) for token in minted}) == 2
    assert contents(simulator) == ["canary: hello"] * 3
    assert {line["conversation"] for line in relay.lines("accepted", 3)} == {CHAT}


def test_a_queued_message_has_no_id(relays, helpers):
    relay = relays("http://127.0.0.1:9")
    helper = helpers(relay.socket, "http://127.0.0.1:9")
    reply = result(helper.send("canary: hello", "canary-token", "greeting 1/é"))
    assert reply == {"State": "QUEUED", "ClientToken": "greeting 1/é", "Direct": False}


def test_errors_are_those_of_the_sdk(relays, simulators, helpers):
    simulator = simulators("--deny", "canary-bad")
    relay = relays(simulator.url)
    helper = helpers(relay.socket, simulator.url)
    assert result(helper.send("canary: hello", "canary-token", "greeting-1"))["State"] == "DELIVERED"
    for content, token, client_token, code, text in [
        ("x" * 1025, "canary-token", "long-1", "ValidationException", "ingress.content_chars_max.plain"),
        ("canary: other", "canary-token", "greeting-1", "ConflictException", "other contents"),
        ("canary: hello", "canary-bad", "bad-1", "AccessDeniedException", ""),
    ]:
        reply = result(helper.send(content, token, client_token))
        assert (reply["Error"], reply["Class"]) == (code, code) and text in reply["Message"]
    # The outcome of each is known, so Connect can be called directly.
    relay.kill()
    assert result(helper.send("canary: goodbye", "canary-token", "farewell-1"))["Direct"]
    assert result(helper.send("canary: goodbye", "canary-bad", "farewell-1"))["Error"] == "AccessDeniedException"
    assert contents(simulator) == ["canary: hello", "canary: goodbye"]


def test_a_message_goes_directly_while_all_earlier_outcomes_are_known(relays, simulators, helpers, caplog, capfd):
    simulator = simulators()
    relay = relays(simulator.url)
    helper = helpers(relay.socket, simulator.url)
    assert not result(helper.send("canary: 1", "canary-token", "1", CHAT))["Direct"]
    relay.kill()
    reply = result(helper.send("canary: 2", "canary-token", "2", CHAT))
    assert reply["State"] == "DELIVERED" and reply["Direct"] and reply["Id"] == simulator.ledger()[1]["Id"]
    warned = f"{caplog.text}{capfd.readouterr().err}"
    assert "calling Connect directly" in warned and relay.socket in warned and "canary" not in warned
    assert result(helper.send("canary: first of a new chat", "canary-other"))["Direct"]
    relay.start()
    assert not result(helper.send("canary: 3", "canary-token", "3", CHAT))["Direct"]
    # A repeat of what went directly is recognised by Connect.
    assert result(helper.send("canary: 2", "canary-token", "2", CHAT))["Id"] == reply["Id"]
    assert contents(simulator) == ["canary: 1", "canary: 2", "canary: first of a new chat", "canary: 3"]


def test_a_helper_says_which_socket_does_not_answer(relays, helpers):
    relay = relays("http://127.0.0.1:9")
    other = relay.folder / "other.sock"
    reply = result(helpers(other, relay.url).send("canary: 1", "canary-token", "1", CHAT))
    assert reply["Error"] == "RelayUnavailable" and str(other) in reply["Message"], reply


def test_a_disconnect_over_the_socket_waits_for_the_helpers_messages(relays, simulators, helpers):
    """As docs/clients.md says: the other calls of a chat go over the same socket, with the same conversation."""
    simulator = simulators()
    relay = relays(simulator.url)
    helper = helpers(relay.socket, simulator.url)
    assert command("pause", "--dir", relay.folder).returncode == 0
    assert result(helper.send("canary: goodbye", "canary-token", "1", CHAT))["State"] == "QUEUED"
    key = [f"Relay-Conversation: {CHAT}", "X-Amz-Bearer: canary-token"]
    assert curl(relay, "/participant/disconnect", {}, key).status == 202
    assert command("resume", "--dir", relay.folder).returncode == 0
    relay.until_empty()
    assert contents(simulator) == ["canary: goodbye"] and simulator.counts()["disconnects"] == 1


def killed_with_a_message_queued(relays, simulators, helpers):
    """A simulator, a relay that was paused and killed, and a helper whose message "canary: 1" is queued there."""
    simulator = simulators()
    relay = relays(simulator.url)
    helper = helpers(relay.socket, simulator.url)
    assert command("pause", "--dir", relay.folder).returncode == 0
    assert result(helper.send("canary: 1", "canary-token", "1", CHAT))["State"] == "QUEUED"
    relay.kill()
    return simulator, relay, helper


def test_a_queued_message_is_not_overtaken(relays, simulators, helpers):
    simulator, relay, helper = killed_with_a_message_queued(relays, simulators, helpers)
    refused = result(helper.send("canary: 2", "canary-token", None, CHAT))
    assert refused["Error"] == "RelayUnavailable" and "earlier message" in refused["Message"]
    assert result(helper.send("canary: 3", "canary-token-2", "3"))["Direct"], "another chat goes on"
    relay.start()
    assert command("resume", "--dir", relay.folder).returncode == 0
    assert result(helper.send("canary: 2", "canary-token", refused["ClientToken"], CHAT))["State"] == "DELIVERED"
    assert contents(simulator) == ["canary: 3", "canary: 1", "canary: 2"]
    # The reply to the second message is an outcome for the first one, too.
    relay.kill()
    assert result(helper.send("canary: 4", "canary-token", "4", CHAT))["Direct"]


def test_a_message_that_was_lost_with_the_relays_folder_holds_the_chat_back_until_a_relay_says_so(relays, simulators, helpers):
    simulator, relay, helper = killed_with_a_message_queued(relays, simulators, helpers)
    queue = relay.folder / "private"
    assert queue.is_dir()
    shutil.rmtree(queue)
    (relay.folder / "relay.sock").unlink()
    for number in (2, 3):
        refused = result(helper.send(f"canary: {number}", "canary-token", str(number), CHAT))
        assert refused["Error"] == "RelayUnavailable" and "earlier message" in refused["Message"]
    relay.start()
    for number in (2, 3):
        reply = result(helper.send(f"canary: {number}", "canary-token", str(number), CHAT))
        assert reply["State"] == "DELIVERED" and not reply["Direct"]
    relay.kill()
    assert result(helper.send("canary: 4", "canary-token", "4", CHAT))["Direct"]
    assert contents(simulator) == ["canary: 2", "canary: 3", "canary: 4"]


def test_a_helper_without_time_to_retry_tries_once(scripted_relays, upstream, helpers):
    relay = scripted_relays(lambda request: error(503, "ServiceUnavailableException", "connect-relay: no"))
    helper = helpers(relay.path, upstream.url, retry_for=0)
    assert result(helper.send("canary: 1", "canary-token", "1", CHAT))["Direct"]
    assert len(relay.requests) == 1
    relay.script = lambda request: QUEUED if is_message(request) else Answer(200, {"State": "QUEUED"})
    assert result(helper.send("canary: 2", "canary-token", "2", CHAT))["State"] == "QUEUED"
    relay.stop()
    assert result(helper.send("canary: 3", "canary-token", "3", CHAT))["Error"] == "RelayUnavailable"
    assert [request.json["ClientToken"] for request in upstream.messages()] == ["1"]


TEXTS = [
    ("Grüße, 世界, 👋🏽: \u2028 \u0000 \"quoted\" \\ </script>\r\n\t", "text/plain"),
    ("# Ünïcode\n- *one*\n", "text/markdown"),
    (json.dumps({"canary": "日本語 👩‍👩‍👧", "n": 1.0}, ensure_ascii=False), "application/json"),
    (json.dumps({"templateType": "QuickReply", "data": {"content": {"title": "Größe?"}}}), "application/vnd.amazonaws.connect.message.interactive.response"),
]


def test_contents_of_every_type_arrive_as_they_were_by_both_ways(relays, simulators, helpers):
    simulator = simulators()
    relay = relays(simulator.url)
    helper = helpers(relay.socket, simulator.url)
    for is_direct in (False, True):
        for content, content_type in TEXTS:
            reply = result(helper.send(content, "canary-token", None, CHAT, content_type))
            assert (reply["State"], reply["Direct"]) == ("DELIVERED", is_direct), reply
        relay.kill()
    assert [(line["Content"], line["ContentType"]) for line in simulator.ledger()] == 2 * TEXTS


def test_a_call_that_http_cannot_carry_leaves_nothing_behind(scripted_relays, upstream, helpers):
    asked = threading.Event()

    def script(request):
        if is_message(request):
            return QUEUED
        if request.token == "canary-token":
            asked.set()
        return Answer(200, {"State": "DELIVERED"})

    relay = scripted_relays(script)
    helper = helpers(relay.path, upstream.url)
    for token, conversation in [(None, None), ("canary\ntoken", None), ("canary-token", "日本"), ("canary-token", "a\r\nb")]:
        result(helper.send("canary: 1", token, "1", conversation))
    assert not [request for request in relay.requests if request.token == "canary-token"], "nothing of them was sent"
    # The thread that asks for outcomes goes on.
    assert result(helper.send("canary: 2", "canary-token", "2", CHAT))["State"] == "QUEUED"
    assert asked.wait(TIMEOUT)
    until(lambda: not relay.connected, "the helper has read the answer and closed its connection")
    relay.stop()
    assert result(helper.send("canary: 3", "canary-token", "3", CHAT))["Direct"]


def test_an_outcome_that_the_relay_may_not_tell_is_not_known(scripted_relays, upstream, helpers):
    """As after a reload that takes the bot's user out of ingress.allow_uids."""
    asked = threading.Semaphore(0)

    def script(request):
        if is_message(request):
            return QUEUED
        asked.release()
        return error(403, "RelayForbiddenException", "connect-relay: no")

    relay = scripted_relays(script)
    helper = helpers(relay.path, upstream.url)
    assert result(helper.send("canary: 1", "canary-token", "1", CHAT))["State"] == "QUEUED"
    for _ in range(2):
        assert asked.acquire(timeout=TIMEOUT), "it asks again"
    relay.stop()
    reply = result(helper.send("canary: 2", "canary-token", "2", CHAT))
    assert reply["Error"] == "RelayUnavailable" and "earlier message" in reply["Message"]
    assert not upstream.requests


FORKING = """
import os, pathlib, sys, threading
from connect_relay import Relay

relay = Relay(pathlib.Path(sys.argv[1]), "eu-west-2", retry_for=60)
call = threading.Thread(target=relay.send_message, args=("canary: 1", "canary-token", "parent"))
call.start()
sys.stdin.readline()
relay._lock.acquire()
child = os.fork()
if child:
    relay._lock.release()
    call.join()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
replies = [relay.send_message("canary: 2", token, "child") for token in ("canary-token", "canary-other")]
relay.socket_path, relay.retry_for = "/dev/null/no.sock", 0
replies.append(relay.send_message("canary: 3", "canary-another", "direct"))
os._exit([reply["State"] for reply in replies] != ["QUEUED", "QUEUED", "DELIVERED"])
"""


def test_a_forked_process_may_use_the_helper_of_its_parent(scripted_relays, upstream):
    """A call of another thread of the parent is under way, and the lock is held, at the time of the fork."""
    under_way, child = threading.Event(), threading.Event()

    def script(request):
        if not is_message(request):
            return Answer(200, {"State": "QUEUED"})
        if request.json["ClientToken"] == "parent":
            under_way.set()
            child.wait(TIMEOUT)
        child.set()
        return QUEUED

    relay = scripted_relays(script)
    env = environment(PYTHONPATH=str(PYTHON.parent), AWS_ENDPOINT_URL_CONNECTPARTICIPANT=upstream.url)
    process = subprocess.Popen([sys.executable, "-B", "-c", FORKING, relay.path], env=env, stdin=subprocess.PIPE, text=True)
    try:
        assert under_way.wait(TIMEOUT)
        process.communicate("\n", timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0
    assert [request.json["ClientToken"] for request in upstream.messages()] == ["direct"]


def test_a_restart_within_the_time_is_bridged(relays, simulators, helpers):
    simulator = simulators()
    relay = relays(simulator.url)
    helper = helpers(relay.socket, simulator.url, retry_for=TIMEOUT)
    relay.kill()
    reply = helper.send("canary: 1", "canary-token", "1", CHAT)
    relay.start()
    assert result(reply)["Direct"] is False and contents(simulator) == ["canary: 1"]


def test_a_direct_call_does_not_enter_a_relay_by_its_tcp_port(relays, simulators, helpers):
    simulator = simulators()
    relay = relays(simulator.url)
    helper = helpers(relay.folder / "no.sock", relay.url)
    reply = result(helper.send("canary: 1", "canary-token", "1", CHAT))
    assert reply["Error"] == "RelayUnavailable"
    assert "AWS_ENDPOINT_URL_CONNECTPARTICIPANT leads to a relay" in reply["Message"]
    assert relay.metrics()["messages_accepted_total"] == 0
    assert send(relay, "canary-token", "canary: 1", "1", headers=[f"Relay-Conversation: {CHAT}"]).status in (200, 202)


# Answers of a scripted relay, one case after the other.


QUEUED = Answer(202, {"ClientToken": "1", "State": "QUEUED"})


def is_message(request):
    return request.target == "/participant/message"


def test_an_outcome_is_asked_for_until_it_is_known(scripted_relays, upstream, helpers):
    asked = threading.Event()
    states = iter(["QUEUED", "DELIVERED"])

    def script(request):
        if is_message(request):
            assert request.header("prefer").startswith("wait=")
            return QUEUED
        assert request.target == "/participant/message/a%2Fb%20%C3%A9" and request.token == "canary-token"
        assert request.header("relay-conversation") == CHAT
        state = next(states)
        if state == "DELIVERED":
            asked.set()
        return Answer(200, {"ClientToken": "a/b é", "State": state})

    relay = scripted_relays(script)
    helper = helpers(relay.path, upstream.url)
    assert result(helper.send("canary: 1", "canary-token", "a/b é", CHAT))["State"] == "QUEUED"
    assert asked.wait(TIMEOUT)
    until(lambda: not relay.connected, "the helper has read the answer and closed its connection")
    relay.stop()
    assert result(helper.send("canary: 2", "canary-token", "2", CHAT))["Direct"]
    assert [request.json["ClientToken"] for request in upstream.messages()] == ["2"]


@pytest.mark.parametrize("status, code", [(500, "InternalServerException"), (503, "ServiceUnavailableException")])
def test_a_failing_relay_is_tried_again_then_bypassed(scripted_relays, upstream, helpers, status, code):
    relay = scripted_relays(lambda request: error(status, code, "connect-relay: no", **{"x-amz-retry-after": "50"}))
    reply = result(helpers(relay.path, upstream.url).send("canary: 1", "canary-token", "1", CHAT))
    assert reply["Direct"] and reply["Id"] == "id-1"
    assert len(relay.requests) > 2
    assert {request.json["ClientToken"] for request in relay.requests + upstream.messages()} == {"1"}


def test_a_full_queue_is_not_bypassed(scripted_relays, upstream, helpers):
    full = error(429, "ThrottlingException", "connect-relay: the queue is full", **{"x-amz-retry-after": "50"})
    relay = scripted_relays(lambda request: full)
    helper = helpers(relay.path, upstream.url)
    reply = result(helper.send("canary: 1", "canary-token", "1", CHAT))
    assert reply["Error"] == "RelayUnavailable" and "queue is full" in reply["Message"]
    assert len(relay.requests) > 2 and not upstream.requests
    relay.stop()  # Nothing was kept: there is no message that could be overtaken.
    assert result(helper.send("canary: 2", "canary-token", "2", CHAT))["Direct"]


@pytest.mark.parametrize(
    "status, code",
    [(403, "RelayForbiddenException"), (409, "ConflictException"), (410, "GoneException"), (429, "RelayTooLateException")],
)
def test_a_final_refusal_is_raised_at_once(scripted_relays, upstream, helpers, status, code):
    relay = scripted_relays(lambda request: error(status, code, "connect-relay: no"))
    reply = result(helpers(relay.path, upstream.url).send("canary: 1", "canary-token", "1", CHAT))
    assert reply["Error"] == code and reply["Message"] == "connect-relay: no"
    if code != "ConflictException":
        assert reply["Class"] in ("ClientError", "ConnectParticipantServiceException"), "only the relay has it"
    assert len(relay.requests) == 1 and not upstream.requests


def test_the_error_of_a_dead_message_is_final(scripted_relays, upstream, helpers):
    dead = error(500, "InternalServerException", "no", **{"Relay-State": "DEAD"})
    relay = scripted_relays(lambda request: dead)
    reply = result(helpers(relay.path, upstream.url).send("canary: 1", "canary-token", "1", CHAT))
    assert reply["Error"] == "InternalServerException" and len(relay.requests) == 1 and not upstream.requests


@pytest.mark.parametrize("answer", [CUT, Answer(202, b"<html>"), Answer(200, b"[]")], ids=["cut", "html", "array"])
def test_a_lost_reply_is_asked_for_with_the_same_client_token(scripted_relays, upstream, helpers, answer):
    answers = iter([answer, answer])
    relay = scripted_relays(lambda request: next(answers, QUEUED))
    helper = helpers(relay.path, upstream.url, retry_for=TIMEOUT)
    assert result(helper.send("canary: 1", "canary-token", None, CHAT))["State"] == "QUEUED"
    assert len({request.body for request in relay.requests[:3]}) == 1 and not upstream.requests


def test_a_lost_reply_and_a_lost_direct_answer_hold_the_chat_back(scripted_relays, upstreams, helpers):
    relay = scripted_relays(lambda request: CUT)
    upstream = upstreams(lambda request: CUT if request.json["ClientToken"] == "1" else None)
    helper = helpers(relay.path, upstream.url)
    reply = result(helper.send("canary: 1", "canary-token", "1", CHAT))
    assert (reply["Error"], reply["ClientToken"]) == ("RelayUnavailable", "1") and upstream.messages()
    reply = result(helper.send("canary: 2", "canary-token", "2", CHAT))
    assert reply["Error"] == "RelayUnavailable" and "earlier message" in reply["Message"]
    assert {request.json["ClientToken"] for request in upstream.messages()} == {"1"}


def test_a_message_whose_answer_was_lost_is_repeated_directly_with_its_own_connection_token_only(
    scripted_relays, upstreams, helpers
):
    """Connect may not recognise its ClientToken together with a renewed connection token."""
    relay = scripted_relays(lambda request: CUT)
    upstream = upstreams(lambda request: CUT)
    helper = helpers(relay.path, upstream.url)
    assert result(helper.send("canary: 1", "canary-token", "1", CHAT))["Error"] == "RelayUnavailable"
    relay.stop()
    upstream.script = lambda request: None
    assert result(helper.send("canary: 1", "canary-renewed", "1", CHAT))["Error"] == "RelayUnavailable"
    assert result(helper.send("canary: 1", "canary-token", "1", CHAT))["Direct"]
    assert result(helper.send("canary: 2", "canary-renewed", "2", CHAT))["Direct"]
    assert {request.token for request in upstream.messages() if request.json["ClientToken"] == "1"} == {"canary-token"}


def test_one_message_of_a_conversation_at_a_time(scripted_relays, upstream, helpers):
    """Concurrent calls of one conversation are serialised, those of others are not."""
    lock, under_way, most = threading.Lock(), {}, {}
    together = threading.Barrier(2)

    def script(request):
        chat = request.header("relay-conversation")
        with lock:
            under_way[chat] = under_way.get(chat, 0) + 1
            most[chat] = max(most.get(chat, 0), under_way[chat])
        together.wait(TIMEOUT)  # A request of each conversation is under way.
        with lock:
            under_way[chat] -= 1
        return Answer(200, {"Id": request.json["ClientToken"], "AbsoluteTime": "2026-11-22T10:00:00.000Z"})

    relay = scripted_relays(script)
    helper = helpers(relay.path, upstream.url)
    replies = [helper.send(f"canary: {number}", f"canary-{chat}", f"{chat}-{number}", chat)
               for number in range(5) for chat in ("a", "b")]
    assert {result(reply)["State"] for reply in replies} == {"DELIVERED"}
    assert most == {"a": 1, "b": 1} and len(relay.requests) == 10


def test_at_most_64_calls_wait_at_once(scripted_relays, upstream, helpers):
    waiting, over = threading.Semaphore(0), threading.Event()

    def script(request):
        if not is_message(request):
            return Answer(200, {"State": "QUEUED"})
        if request.header("prefer") == "wait=4":
            waiting.release()
            over.wait(TIMEOUT)
        else:
            assert request.header("prefer") == "respond-async"
        return QUEUED

    relay = scripted_relays(script)
    helper = helpers(relay.path, upstream.url, retry_for=TIMEOUT)
    replies = [helper.send("canary", f"canary-{number}") for number in range(64)]
    for _ in replies:
        assert waiting.acquire(timeout=TIMEOUT)
    assert result(helper.send("canary", "canary-64"))["State"] == "QUEUED"
    over.set()
    assert {result(reply)["State"] for reply in replies} == {"QUEUED"}
    assert result(helper.send("canary", "canary-65"))["State"] == "QUEUED"
    assert waiting.acquire(timeout=TIMEOUT), "it waits again"


# The campaign.


CHATS = 6
ENDS = ("kill", "drain", "kill and take the folder away", "freeze")


def test_a_relay_that_is_killed_restarted_drained_and_frozen_loses_doubles_and_swaps_nothing(relays, simulators, helpers, seed):
    faults = ("--error-rate", 0.03, "--lost-reply-rate", 0.03, "--latency", "50ms", "--jitter", "50ms", "--seed", seed)
    simulator = simulators("--rate", 40, "--burst", 20, *faults)
    relay = relays(simulator.url, shutdown__grace="2s", sender__quota_rate="40", sender__quota_burst="20")
    helper = helpers(relay.socket, simulator.url, retry_for=0.4)
    heard, lock, enough = [], threading.Lock(), threading.Event()

    def speak(chat):
        """Sends messages in order, some by two equal calls at once; repeats one that is not acknowledged with its ClientToken.
        Returns their number."""
        conversation = f"{chat}/bot" if chat % 2 else None
        number = 0
        while not enough.is_set():
            number += 1
            token = f"{chat}-{number}" if number % 2 else None
            reply = {}
            while "State" not in reply:
                call = (f"canary: {chat}-{number}", f"canary-{seed}-{chat}", token, conversation)
                for future in [helper.send(*call) for _ in range(2 if token and number % 3 == 0 else 1)]:
                    reply = result(future)
                    assert reply.get("State") or reply["Error"] == "RelayUnavailable", reply
                    with lock:
                        heard.append(reply)
                token = reply["ClientToken"]
        return number

    def more(kind):
        """Waits until the bots have heard more of a kind."""
        before = sum(map(kind, heard))
        until(lambda: sum(map(kind, heard)) > before + 3 or any(bot.done() for bot in bots), "the bots go on")

    with ThreadPoolExecutor(CHATS) as threads:
        bots = [threads.submit(speak, chat) for chat in range(CHATS)]
        for is_long, end in [(is_long, end) for is_long in (True, False) for end in ENDS]:
            more(lambda reply: "Error" not in reply)
            away = relay.folder.with_suffix(".away")
            if end == "drain":
                assert relay.stop() in (0, 75)
            elif end == "freeze":
                relay.process.send_signal(signal.SIGSTOP)
            else:
                relay.kill()
            if "folder" in end:
                relay.folder.rename(away)
            if is_long:  # Messages go directly, or are refused.
                more(lambda reply: reply.get("Direct") or "Error" in reply)
            if "folder" in end:
                away.rename(relay.folder)
            if end == "freeze":
                relay.process.send_signal(signal.SIGCONT)
            else:
                relay.start()
        enough.set()
        spoken = [bot.result() for bot in bots]
    relay.until_empty()

    found = {
        "delivered by the relay": sum(reply.get("State") == "DELIVERED" and not reply["Direct"] for reply in heard),
        "queued": sum(reply.get("State") == "QUEUED" for reply in heard),
        "direct": sum(reply.get("Direct", False) for reply in heard),
        "refused": sum("Error" in reply for reply in heard),
    }
    print(found)
    assert found["delivered by the relay"] and found["direct"]
    arrived = contents(simulator)
    for chat, last in enumerate(spoken):
        of_chat = [content for content in arrived if content.startswith(f"canary: {chat}-")]
        assert of_chat == [f"canary: {chat}-{number}" for number in range(1, last + 1)]
    assert len(arrived) == sum(spoken)
    ids = {line["ClientToken"]: line["Id"] for line in simulator.ledger()}
    assert all(ids[reply["ClientToken"]] == reply["Id"] for reply in heard if "Id" in reply)
