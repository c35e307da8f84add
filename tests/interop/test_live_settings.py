"""Configuration and log level of a running relay, changed through the control socket: no signal and no shell."""

import json
import os
import signal

import pytest

from kit.callers import curl, send
from kit.wait import until
from kit.processes import command

DOWN = "http://127.0.0.1:9"
TOKEN = "canary-token"


@pytest.fixture
def configured(relays):
    """A relay with a file: `configured(text)` makes it, `relay.write(text)` changes the file."""

    def make(text="", **settings):
        relay = relays(DOWN, start=False, **settings)
        path = relay.folder / "relay.toml"
        relay.write = path.write_text
        relay.write(text)
        relay.arguments += ["--config", str(path)]
        return relay.start()

    return make


def run_command(relay, *args, code=0):
    done = command(*args, "--dir", relay.folder)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def control(relay, path, body=None):
    arguments = [] if body is None else [body]
    return curl(relay, path, *arguments, method="POST", extra=["--unix-socket", relay.folder / "private/control.sock"])


def acts(relay, act):
    return [line for line in relay.lines() if line.get("act") == act]


def test_reload_prints_the_changed_keys_and_those_that_need_a_restart(configured):
    relay = configured()
    assert run_command(relay, "reload") == "reloaded: no key changed that a reload applies\n"
    relay.write("[ingress.content_chars_max]\nplain = 3\n[sender]\nlifetime = '1h'")
    output = run_command(relay, "reload")
    assert output.splitlines()[0] == "reloaded: ingress.content_chars_max.plain changed"
    assert output.splitlines()[1].startswith("restart the relay for: sender.lifetime ")
    assert send(relay, TOKEN, "canary", "c-1").status == 400, "it is in force"
    # Changed is since the last reload, NeedsRestart since the start.
    assert control(relay, "/reload").json == {"Changed": [], "NeedsRestart": ["sender.lifetime"]}
    relay.write("")
    assert control(relay, "/reload").json == {"Changed": ["ingress.content_chars_max.plain"], "NeedsRestart": []}
    assert send(relay, TOKEN, "canary", "c-1").status == 202
    lines = until(lambda: len(found := acts(relay, "reload")) == 4 and found, "each is logged once")
    assert {line["uid"] for line in lines} == {os.getuid()}
    assert [line.get("keys") for line in lines] == [None, "sender.lifetime", "sender.lifetime", None]


def test_reload_of_a_bad_file_changes_nothing_and_exits_with_78(configured):
    relay = configured()
    relay.write("[ingress]\nwait = '1s'\nallow_uids = [4294967294]\n[log]\nlevel = 'loud'\n[nonsense]\nkey = 1")
    output = run_command(relay, "reload", code=78)
    assert 'log.level = "loud"' in output and "nonsense" in output and "the old one stays in force" in output
    assert relay.metrics()["config_reload_ok"] == 0
    reply = control(relay, "/reload")
    assert reply.status == 400 and reply.json["Error"].startswith("connect-relay: ") and "loud" in reply.json["Error"]
    assert send(relay, TOKEN, "canary").status == 202, "every caller is still allowed"
    lines = until(lambda: len(found := acts(relay, "reload")) == 2 and found, "each is logged once")
    assert all(line["level"] == "ERROR" and "loud" in line["faults"] for line in lines)
    relay.write("[ingress]\nwait = '1s'")
    assert control(relay, "/reload").json["Changed"] == ["ingress.wait"]
    assert relay.metrics()["config_reload_ok"] == 1


def test_reload_and_signal_do_the_same(configured):
    relay = configured(tcp=False)
    relay.write("[ingress]\nallow_uids = [4294967294]")
    relay.process.send_signal(signal.SIGHUP)
    until(lambda: send(relay, TOKEN, "canary").status == 403, "the signal applies it")
    relay.write("")
    assert control(relay, "/reload").json == {"Changed": ["ingress.allow_uids"], "NeedsRestart": []}
    assert send(relay, TOKEN, "canary").status == 202


def accepted(relay):
    return len(relay.lines("accepted"))


def test_level_with_a_time_is_restored_after_it(configured):
    relay = configured()
    reply = control(relay, "/log-level", {"Level": "error", "For": 1})
    assert (reply.json["Level"], reply.json["Configured"]) == ("error", "info") and reply.json["Until"].endswith("Z")
    assert send(relay, TOKEN, "canary").status == 202
    until(lambda: [line for line in relay.lines() if "configured one again" in line["message"]], "it is restored")
    assert accepted(relay) == 0, "nothing below an error was logged meanwhile"
    send(relay, TOKEN, "canary")
    until(lambda: accepted(relay) == 1, "info is logged again")
    [line] = acts(relay, "log_level")
    assert (line["uid"], line["log_level"], line["for_seconds"]) == (os.getuid(), "error", 1.0)


def test_reload_ends_a_level_without_a_time_and_no_other(configured):
    relay = configured()
    output = run_command(relay, "log-level", "warn", "--for", "1h")
    assert output.startswith("the log's level is warn until 20") and output.endswith("Z, then info (log.level)\n")
    relay.write("[ingress]\nwait = '1s'")
    run_command(relay, "reload")
    send(relay, TOKEN, "canary")
    assert run_command(relay, "log-level", "error") == "the log's level is error; log.level is info\n"
    relay.write("[log]\nlevel = 'info'")
    run_command(relay, "reload")
    send(relay, TOKEN, "canary")
    until(lambda: accepted(relay) == 1, "the second is logged, and not the first")
    levels = [line["log_level"] for line in acts(relay, "log_level")]
    assert levels == ["warn", "error"], "each is logged once, whatever the level"


def test_level_after_the_time_is_the_current_configured_one(configured):
    relay = configured()
    control(relay, "/log-level", {"Level": "trace", "For": "2s"})
    relay.write("[log]\nlevel = 'error'")
    assert control(relay, "/reload").json["Changed"] == ["log.level"]
    until(lambda: [line for line in relay.lines() if line.get("log_level") == "error"], "the time is over")
    send(relay, TOKEN, "canary")
    assert accepted(relay) == 0


@pytest.mark.parametrize("body", [{}, {"Level": "loud"}, {"Level": "DEBUG"}, {"Level": 7}, {"Level": None}])
def test_bad_level_is_refused_with_the_allowed_levels(configured, body):
    reply = control(configured(), "/log-level", body)
    assert reply.status == 400 and "error, warn, info, debug, trace" in reply.json["Error"]


def test_bad_duration_or_member_is_refused_with_what_is_allowed(configured):
    relay = configured()
    for lasts in ("soon", "10", "0s", 0, -1, "8d", True, [], ""):
        reply = control(relay, "/log-level", {"Level": "debug", "For": lasts})
        assert reply.status == 400 and 'such as "10m"' in reply.json["Error"], lasts
    assert control(relay, "/log-level", {"Level": "debug", "Until": "1m"}).status == 400
    assert not acts(relay, "log_level"), "nothing was done"
    for usage in (["log-level"], ["log-level", "loud"], ["log-level", "debug", "--for", "0s"], ["log-level", "debug", "--for", "soon"]):
        assert command(*usage, "--dir", relay.folder).returncode == 2, usage


def test_command_on_the_wrong_socket_names_the_right_one(configured):
    relay = configured()
    for words in (["status"], ["pause"], ["reload"], ["log-level", "info"], ["messages", "list"], ["drain"]):
        done = command(*words, "--socket", relay.socket)
        assert done.returncode == 1 and "is the bots' socket" in done.stderr and "control.socket" in done.stderr, done
    done = command("send", "--socket", relay.folder / "private/control.sock", "canary", env={"CONNECTION_TOKEN": TOKEN})
    assert done.returncode == 1 and "operators' socket" in done.stderr and "ingress.socket" in done.stderr, done
    assert json.loads(command("status", "--json", "--dir", relay.folder).stdout)["paused"] is None
