"""What operators do to a relay at work: pause, resume and drain, on the command line."""

import json
import os

from callers import look, queued, send
from patience import until
from processes import command
from upstream import error

TOKEN = "canary-token"
DOWN = "http://127.0.0.1:9"


def operate(relay, *args, code=0):
    """Runs a command at the relay's control socket; gives back what it says."""
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
    assert reply.status == 202 and "ExpectedTime" not in reply.json, "nobody can tell when"
    relay.kill()
    relay.start()
    assert status(relay)["paused"]["reason"] == "the instance moves"
    assert "the instance moves" in operate(relay, "status") and relay.metrics()["paused"] == 1
    assert relay.get("/livez")[0] == relay.get("/readyz")[0] == 200
    assert [line for line in relay.lines() if "still paused" in line.get("message", "")]
    assert upstream.messages() == [] and queued(relay) == 1
    assert operate(relay, "resume").startswith("sending goes on: ")
    relay.until_empty()
    assert len(upstream.messages()) == 1 and status(relay)["paused"] is None


def test_three_refused_tokens_pause_a_relay_that_has_never_delivered_and_nothing_dies(relays, upstreams):
    region_is_right = []
    upstream = upstreams(lambda _: None if region_is_right else error(403, "AccessDeniedException", "Access denied"))
    relay = relays(upstream.url, sender__token_wait="1s")
    for number in range(5):
        assert send(relay, f"canary-{number}", f"canary: {number}", f"m-{number}").status == 202
        if number < 2:
            until(lambda: len(upstream.messages()) == number + 1, "its token is refused")
    until(lambda: status(relay)["paused"], "it pauses")
    told = status(relay)
    assert told["paused"]["reason"] == "all_refused" and "sender.region" in told["problems"][0]
    assert [line for line in relay.lines() if line.get("reason") == "all_refused" and line["level"] == "ERROR"]
    tried = len(upstream.messages())
    # Whether or not the first two were given up before the third was refused, from the pause on nothing is.
    dead = told["dead_letters"]
    until(lambda: status(relay)["oldest_seconds"] > 3, "token_wait is over")
    assert status(relay)["dead_letters"] == dead and len(upstream.messages()) == tried
    assert relay.get("/livez")[0] == 200
    region_is_right.append(True)
    operate(relay, "resume")
    relay.until_empty()
    assert relay.metrics()["messages_delivered_total"] == 5 - dead


def test_resume_forgets_the_tokens_that_were_refused(relays, upstreams):
    refuses = [True]
    upstream = upstreams(lambda _: error(403, "AccessDeniedException", "Access denied") if refuses[0] else None)
    relay = relays(upstream.url)
    assert send(relay, TOKEN, "canary: 0").status == 202
    until(lambda: relay.lines("held"), "its conversation is held")
    assert send(relay, TOKEN, "canary: 1").status == 403, "and refused at the door"
    refuses[0] = False
    operate(relay, "resume")
    assert send(relay, TOKEN, "canary: 2").status == 202
    relay.until_empty()
    assert [request.json["Content"] for request in upstream.messages()][1:] == ["canary: 0", "canary: 2"]


def test_drain_delivers_what_is_queued_and_the_relay_leaves(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__quota_rate=20, sender__quota_burst=1)
    for number in range(20):
        send(relay, TOKEN, f"canary: {number}")
    assert operate(relay, "drain", "--timeout", "1m") == "drained: nothing is queued\n"
    assert relay.wait() == 0 and len(upstream.messages()) == 20


def test_drain_says_what_is_left_and_its_timeout_is_the_grace(relays):
    relay = relays(DOWN, shutdown__grace="1h")
    send(relay, TOKEN, "canary", "mine")
    assert operate(relay, "drain", "--timeout", "3s", code=75) == "left: 1 queued, on disk, for the next start\n"
    assert relay.wait() == 75
    relay.start()
    assert look(relay, TOKEN, "mine").json["State"] == "QUEUED"


def test_a_command_without_a_relay_fails_and_says_so(tmp_path):
    for name in ("pause", "resume", "drain"):
        done = command(name, "--dir", tmp_path)
        assert done.returncode == 1 and "the relay is not running" in done.stderr, done
    assert not os.listdir(tmp_path)
