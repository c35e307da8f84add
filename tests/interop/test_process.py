"""The process: exit codes, listeners at start and stop, and each command."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import urllib.error
import urllib.request

import pytest

from kit.callers import PLAIN, assert_error, bot, curl, look, queued, send
from kit.wait import TIMEOUT, until
from kit.processes import ROOT, command, free_port


TOKEN = "canary-token"
DOWN = "http://127.0.0.1:9"


# Stop and restart


def test_sigterm_with_nothing_queued_is_0(relay):
    send(relay, TOKEN, "canary", headers=["Prefer: wait=20"])
    assert relay.stop() == 0


def test_sigterm_delivers_queued_messages_first(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__quota_rate=20, sender__quota_burst=1)
    for number in range(30):
        send(relay, TOKEN, f"canary: {number}")
    assert relay.stop() == 0
    assert len(upstream.messages()) == 30


def test_sigterm_with_undeliverable_messages_is_75_and_they_are_sent_after_the_next_start(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, shutdown__grace="3s", sender__probe_max="200ms")
    upstream.stop()
    for number in range(3):
        assert send(relay, TOKEN, f"canary: {number}").status == 202
    relay.terminate()
    until(lambda: relay.get("/readyz")[0] == 503, "it says that it is draining")
    assert relay.wait() == 75
    upstream.start()
    relay.start()
    relay.until_empty()
    assert [request.json["Content"] for request in upstream.messages()] == [f"canary: {number}" for number in range(3)]


def test_listeners_stay_open_while_draining(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, shutdown__grace="20s", sender__probe_max="200ms")
    upstream.stop()
    send(relay, TOKEN, "canary: before")
    relay.terminate()
    until(lambda: relay.get("/readyz")[0] == 503, "it says that it is draining")
    assert relay.get("/livez")[0] == 200
    assert send(relay, TOKEN, "canary: farewell").status == 202
    assert curl(relay, "/participant/queue").json["Draining"] is True
    upstream.start()
    assert relay.wait() == 0
    assert [request.json["Content"] for request in upstream.messages()] == ["canary: before", "canary: farewell"]


def test_no_message_is_accepted_in_the_last_tenth_of_the_grace(relays, upstreams):
    answers = threading.Event()
    upstream = upstreams(lambda request: answers.wait(TIMEOUT) and None)
    relay = relays(upstream.url, shutdown__grace="4s")
    try:
        # An attempt in flight keeps the listeners open until the end.
        send(relay, TOKEN, "canary: in flight", "first")
        upstream.wait_for(1)
        relay.terminate()

        def refused():
            reply = send(relay, TOKEN, "canary: farewell")
            assert reply.status in (202, 503)
            return reply.status == 503 and reply

        reply = until(refused, "the doors are closing")
        assert_error(reply, 503, "ServiceUnavailableException", "stopping")
        assert int(reply.headers["x-amz-retry-after"]) > 0 and int(reply.headers["retry-after"]) > 0
        assert relay.metrics()['messages_rejected_total{reason="draining"}'] == 1
        assert look(relay, TOKEN, "first").json["State"] == "QUEUED", "looking is still possible"
    finally:
        answers.set()
    assert relay.wait() == 75
    assert "stopped with messages queued; they stay on disk" in relay.log()


@pytest.mark.parametrize("grace", ["0s", "1s"])
def test_short_grace_is_kept_and_remaining_messages_are_logged(relays, grace):
    relay = relays(DOWN, shutdown__grace=grace)
    assert send(relay, TOKEN, "canary").status == 202
    relay.terminate()
    assert relay.wait() == 75
    assert "stopped with messages queued; they stay on disk" in relay.log()


def test_idle_connections_do_not_hold_up_a_drain_of_an_empty_queue(relays, upstream):
    relay = relays(upstream.url, shutdown__grace="1h")
    with socket.socket(socket.AF_UNIX) as silent, socket.create_connection(relay.url.removeprefix("http://").split(":")) as used:
        silent.connect(relay.socket)
        used.settimeout(TIMEOUT)
        used.sendall(b"GET /participant/queue HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        head = used.recv(65536)
        assert b"\r\nkeep-alive: timeout=74\r\n" in head.lower(), head
        assert relay.stop() == 0
        assert used.recv(1) == b""


def test_each_reply_during_a_drain_closes_its_connection(relays):
    relay = relays(DOWN, shutdown__grace="1h")
    send(relay, TOKEN, "canary")
    relay.terminate()
    until(lambda: relay.get("/readyz")[0] == 503, "it says that it is draining")
    for reply in (curl(relay, "/participant/queue"), send(relay, TOKEN, "canary: farewell")):
        assert reply.headers["connection"] == "close" and "keep-alive" not in reply.headers, reply.headers
    relay.terminate()
    assert relay.wait() == 75


def test_a_drain_of_two_seconds_still_sends(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, shutdown__grace="1h")
    control = relay.folder / "private/control.sock"
    assert command("pause", "--socket", control).returncode == 0
    for number in range(5):
        assert send(relay, TOKEN, f"canary: {number}").status == 202
    assert command("resume", "--socket", control).returncode == 0
    drained = command("drain", "--socket", control, "--timeout", "2s")
    assert drained.returncode == 0, drained
    assert relay.wait() == 0 and len(upstream.messages()) == 5


def test_the_probes_answer_while_the_queue_opens(relays, upstream):
    relay = relays(upstream.url, start=False)
    folder = relay.folder / "private/queue"
    folder.mkdir(parents=True, mode=0o700)
    os.mkfifo(folder / "format")  # who opens it to read waits for a writer
    relay.spawn()
    until(lambda: relay.get("/readyz") == (503, "starting\n"), "the relay says that it starts")
    assert relay.get("/livez")[0] == relay.get("/metrics")[0] == 200
    assert not os.path.exists(relay.socket)
    relay.terminate()
    assert relay.wait() == 75


def test_longest_idle_connection_is_closed_at_the_limit(relays):
    relay = relays(DOWN, ingress__connections_max=4)
    request = b"GET /participant/queue HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as all_of_them:

        def connect():
            stream = all_of_them.enter_context(socket.socket(socket.AF_UNIX))
            stream.settimeout(TIMEOUT)
            stream.connect(relay.socket)
            return stream

        def served(stream):
            stream.sendall(request)
            return stream.recv(65536).startswith(b"HTTP/1.1 200 ")

        first, *others = [connect() for _ in range(4)]
        assert all(served(stream) for stream in (first, *others))
        assert served(connect())
        assert first.recv(1) == b"", "it was idle for longest"
        assert all(served(stream) for stream in others)
        # The other listener has its own limit.
        assert urllib.request.build_opener(urllib.request.ProxyHandler({})).open(relay.url + "/participant/queue", timeout=20).status == 200


def test_second_signal_exits_at_once(relays):
    relay = relays(DOWN, shutdown__grace="10m")
    send(relay, TOKEN, "canary")
    relay.terminate()
    until(lambda: relay.get("/readyz")[0] == 503, "it says that it is draining")
    relay.terminate()
    assert relay.wait() == 75


def test_second_relay_on_the_same_folder_is_refused_and_the_first_continues(relay):
    second = command("run", "--dir", relay.folder, settings={**relay.settings, "admin.listen": f"127.0.0.1:{free_port()}", "ingress.tcp": ""})
    assert second.returncode == 1, second.stderr
    assert str(relay.folder) in second.stderr and "panicked" not in second.stderr
    assert send(relay, TOKEN, "canary", headers=["Prefer: wait=20"]).status == 200


def test_a_live_socket_is_refused(relay, tmp_path):
    # A relay of another folder that is configured with the first one's addresses.
    text = f"""
        [ingress]
        socket = "{relay.socket}"
        [queue]
        path = "{tmp_path}/queue"
        volatile = true
        [sender]
        endpoint = "{DOWN}"
        [control]
        socket = "{tmp_path}/control.sock"
        [admin]
        listen = "127.0.0.1:{free_port()}"
    """
    (tmp_path / "relay.toml").write_text(text)
    second = command("run", "--config", tmp_path / "relay.toml")
    assert second.returncode == 1 and relay.socket in second.stderr, second.stderr
    assert send(relay, TOKEN, "canary", headers=["Prefer: wait=20"]).status == 200


def test_a_stale_socket_is_replaced(relay):
    relay.kill()
    assert socket_exists(relay)
    relay.start()
    assert send(relay, TOKEN, "canary", headers=["Prefer: wait=20"]).status == 200


def socket_exists(relay):
    return relay.folder.joinpath("relay.sock").is_socket()


def test_port_in_use_is_reported(relays):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        relay = relays(DOWN, start=False)
        relay.settings["ingress.tcp"] = address
        relay.spawn()
        assert relay.wait() == 1
        assert address in relay.log()


def test_acknowledged_messages_survive_kill_9(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    for number in range(20):
        assert send(relay, TOKEN, f"canary: {number}", f"t-{number}").status == 202
    relay.kill()
    relay.start()
    assert queued(relay) == 20 and look(relay, TOKEN, "t-19").json["Ahead"] == 19
    upstream.start()
    relay.until_empty()
    assert [request.json["Content"] for request in upstream.messages()] == [f"canary: {number}" for number in range(20)]


def test_files_and_sockets_are_for_their_owner(relay):
    [queue] = [path for path in relay.folder.rglob("queue") if path.is_dir()]
    assert relay.folder.joinpath("relay.sock").stat().st_mode & 0o777 == 0o660
    assert queue.stat().st_mode & 0o777 == 0o700
    inside = [path for path in queue.rglob("*") if path.is_file()]
    assert inside and all(path.stat().st_mode & 0o077 == 0 for path in inside)


def test_queue_in_memory_is_refused_with_78_unless_queue_volatile_is_true(relays):
    relay = relays(DOWN, start=False)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        shutil.rmtree(relay.folder)
        os.symlink(memory, relay.folder)
        relay.settings["queue.volatile"] = "false"
        relay.spawn()
        assert relay.wait() == 78
        assert "queue.volatile" in relay.log() and not list(relay.folder.rglob("db"))
        relay.settings["queue.volatile"] = "true"
        relay.start()
        assert relay.stop() == 0
        relay.folder.unlink()


def test_a_store_of_a_newer_format_is_78_and_left_as_it_is(relay):
    assert relay.stop() == 0
    [stamp] = relay.folder.rglob("queue/format")
    written = stamp.read_text()
    text = re.sub(r"format \d+", "format 99", written)
    stamp.write_text(text)
    before = sorted(path.name for path in stamp.parent.iterdir())
    relay.spawn()
    assert relay.wait() == 78
    known = re.search(r"its format is 99, this relay reads (\d+)", relay.log())
    assert known and f"format {known[1]}\n" in written and stamp.read_text() == text
    assert sorted(path.name for path in stamp.parent.iterdir()) == before


# Configuration


@pytest.mark.parametrize("key,value", [
    ("sender.no_such_key", "1"),
    ("no_such_section.key", "1"),
    ("ingress.wait", "soon"),
    ("ingress.wait", "-1s"),
    ("ingress.reply", "perhaps"),
    ("ingress.tcp", "0.0.0.0:8480"),
    ("ingress.tcp", "no address"),
    ("ingress.socket_mode", "99"),
    ("ingress.body_bytes_max", "many"),
    ("queue.messages_max", "-1"),
    ("queue.messages_max", "1.5"),
    ("queue.damaged", "ignore"),
    ("queue.key_file", "/nowhere/key"),
    ("sender.quota_rate", "0"),
    ("sender.quota_rate", "nan"),
    ("sender.endpoint", "http://example.com"),
    ("sender.endpoint", "ftp://127.0.0.1"),
    ("sender.endpoint", "https://participant.connect.eu-west-2.amazonaws.com?query"),
    ("sender.backoff.multiplier", "0.5"),
    ("sender.backoff.randomization", "2"),
    ("sender.headroom", "1.5"),
    ("sender.ca_file", "/nonexistent/ca.pem"),
    ("admin.listen", "nowhere"),
    ("log.level", "loud"),
    ("log.format", "xml"),
])
def test_a_bad_setting_is_78_and_names_its_key(tmp_path, key, value):
    settings = {"sender.endpoint": DOWN, key: value}
    for subcommand in (("check",), ("run", "--dir", tmp_path / "relay")):
        done = command(*subcommand, settings=settings)
        assert done.returncode == 78, done.stderr
        named = key if "no_such" not in key else key.split(".")[0]
        assert named in done.stderr.lower().replace("__", "."), done.stderr
    assert not (tmp_path / "relay").exists(), "neither store nor socket was touched"


@pytest.mark.parametrize("text,words", [
    ("[sender]\nregoin = 'eu-west-2'", ["regoin", "relay.toml"]),
    ("[sender]\nregion = 'eu-west-2'\n[senders]\n", ["senders", "relay.toml"]),
    ("[sender]\nregion = ", ["relay.toml"]),
    ("[sender]\nregion = 'eu-west-2'\n[queue]\nmessages_max = 'many'", ["messages_max", "relay.toml"]),
    ("[sender]\nregion = 'eu-west-2'\n[ingress]\nsocket = '/tmp/a/x.sock'\n[control]\nsocket = '/tmp/a/y.sock'", ["control.socket"]),
    ("[sender]\nregion = 'eu-west-2'\n[ingress]\ntcp = '127.0.0.1:8480'\nallow_uids = [1000]", ["ingress.tcp"]),
    ("", ["sender.region"]),
])
def test_bad_file_is_78_and_the_error_names_the_source_and_the_key(tmp_path, text, words):
    (tmp_path / "relay.toml").write_text(text)
    done = command("check", "--config", tmp_path / "relay.toml")
    assert done.returncode == 78, done.stdout
    assert all(word in done.stderr for word in words), done.stderr


def test_a_missing_file_is_78(tmp_path):
    done = command("check", "--config", tmp_path / "none.toml")
    assert done.returncode == 78 and "none.toml" in done.stderr


def test_check_prints_the_effective_configuration(tmp_path):
    (tmp_path / "relay.toml").write_text("[sender]\nregion = 'eu-west-2'\nquota_rate = 25.0\n[queue]\nmessages_max = 77\n")
    done = command("check", "--config", tmp_path / "relay.toml", settings={"queue.messages_max": 99, "ingress.allow_uids": "1000,1001"})
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^\s*(\w+) = (.+?)\s*(?:#.*)?$", done.stdout, re.M))
    assert found["region"].strip("\"'") == "eu-west-2"
    assert float(found["quota_rate"]) == 25 and int(found["messages_max"]) == 99
    assert "1000" in found["allow_uids"] and "1001" in found["allow_uids"]


def test_check_prints_the_defaults_as_they_are_documented():
    def settings(text):
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    documented = settings((ROOT / "config/relay.toml").read_text())
    printed = settings(command("check", settings={"sender.region": "eu-west-2"}).stdout)
    assert [line for line in printed if line not in documented] == ['region = "eu-west-2"']
    assert len(printed) == len(documented)


def test_check_accepts_its_own_output(tmp_path):
    first = command("check", settings={"sender.region": "eu-west-2"})
    (tmp_path / "relay.toml").write_text(first.stdout)
    again = command("check", "--config", tmp_path / "relay.toml")
    assert again.returncode == 0 and again.stdout == first.stdout, again.stderr


def test_one_underscore_too_few_is_a_warning():
    done = command("check", settings={"sender.region": "eu-west-2"}, env={"CONNECT_RELAY_SENDER_REGION": "us-east-1"})
    assert done.returncode == 0 and "CONNECT_RELAY_SENDER_REGION" in done.stderr
    assert "us-east-1" not in done.stdout


def test_the_region_comes_from_aws_own_variables_as_well():
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        done = command("check", env={name: "ap-southeast-2"})
        assert done.returncode == 0 and "ap-southeast-2" in done.stdout, done.stderr


def test_secrets_in_settings_are_not_printed():
    done = command("check", settings={"sender.region": "eu-west-2", "sender.proxy": "http://user:canary@127.0.0.1:3128"})
    assert "canary" not in done.stdout + done.stderr


# The other commands


@pytest.mark.parametrize("args,words", [
    ([], ["Usage"]),
    (["--nope"], ["--nope"]),
    (["nonsense"], ["nonsense"]),
    (["run", "--nope"], ["--nope"]),
    (["run", "extra"], ["extra"]),
    (["run", "--config"], ["--config"]),
    (["check", "--directory", "x"], ["--directory"]),
    (["send"], ["TEXT"]),
    (["send", "--wait", "soon", "x"], ["--wait"]),
    (["send", "--batch", "file", "x"], ["--batch"]),
    (["send", "--conversation", "a b", "x"], ["--conversation contains a space"]),
    (["send", "--conversation", "x" * 257, "x"], ["--conversation has 257 characters", "256"]),
    (["send", "--connection-token-file", "/nonexistent", "x"], ["/nonexistent"]),
    (["status", "--watch", "--exit-code"], ["--watch"]),
    (["status", "--socket", "a", "--dir", "b"], ["--socket"]),
    (["simulate", "--rate", "fast"], ["--rate"]),
    (["simulate", "--rate=-1"], ["--rate"]),
    (["simulate", "--error-rate", "2"], ["--error-rate", "0 to 1"]),
    (["simulate", "--latency", "5"], ["--latency", "unit"]),
    (["simulate", "--listen", "nowhere"], ["--listen", "127.0.0.1:9580"]),
    (["simulate", "--listen", "0.0.0.0:9580"], ["--listen", "loopback"]),
    (["demo", "--messages", "0"], ["--messages"]),
    (["demo", "--conversations", "1001"], ["--conversations", "1000"]),
])
def test_bad_usage_is_2_and_names_the_mistake(args, words):
    done = command(*args, env={"CONNECTION_TOKEN": TOKEN})
    assert done.returncode == 2 and not done.stdout, done.stdout
    assert all(word in done.stderr for word in words) and "canary" not in done.stderr, done.stderr


@pytest.mark.parametrize("token,words", [(None, "set CONNECTION_TOKEN"), ("", "0 bytes"), ("canary token", "a space"), ("canary" * 200, "1200 bytes")])
def test_send_needs_a_well_formed_token(token, words):
    done = command("send", "x", env={} if token is None else {"CONNECTION_TOKEN": token})
    assert done.returncode == 2 and words in done.stderr and "canary" not in done.stderr, done.stderr


def test_path_that_is_not_a_socket_is_reported(tmp_path):
    for args in (["send", "--socket", tmp_path, "x"], ["status", "--socket", tmp_path]):
        done = command(*args, env={"CONNECTION_TOKEN": TOKEN})
        assert done.returncode == 1 and f"{tmp_path}: it is not a socket" in done.stderr, done.stderr


def test_help_and_version():
    done = command("--help")
    assert done.returncode == 0
    for name in ("run", "check", "send", "status", "simulate", "demo"):
        assert re.search(rf"^\s+{name}\b", done.stdout, re.M), name
    assert re.match(r"connect-relay \d+\.\d+\.\d+", command("--version").stdout)


def test_send_submits_messages(relay, upstream, tmp_path):
    env = {"CONNECTION_TOKEN": TOKEN}
    one = command("send", "--socket", relay.socket, "--client-token", "t-1", "--wait", "20s", "canary: one", env=env)
    assert one.returncode == 0, one.stderr
    two = command("send", "--socket", relay.socket, "--content-type", "text/markdown", "--wait", "20s", "-", stdin="canary: *two*", env=env)
    assert two.returncode == 0, two.stderr
    (tmp_path / "token").write_text(TOKEN + "\n")
    three = command("send", "--socket", relay.socket, "--connection-token-file", tmp_path / "token", "--wait", "20s", "canary: three")
    assert three.returncode == 0, three.stderr
    came = upstream.messages()
    assert [request.json["Content"] for request in came] == ["canary: one", "canary: *two*", "canary: three"]
    assert came[0].json["ClientToken"] == "t-1" and came[1].json["ContentType"] == "text/markdown"
    assert {request.token for request in came} == {TOKEN}


def test_send_finds_the_relay_by_its_folder_as_the_other_commands_do(relay):
    done = command("send", "--dir", relay.folder, "--wait", "20s", "canary", env={"CONNECTION_TOKEN": TOKEN})
    assert done.returncode == 0 and json.loads(done.stdout)["Id"], done.stderr
    assert command("send", "--dir", relay.folder, "--socket", relay.socket, "canary").returncode == 2


def test_send_submits_a_batch(relay, upstream, tmp_path):
    lines = [{"ContentType": PLAIN, "Content": f"canary: {n}", "ClientToken": f"t-{n}", "ConnectionToken": TOKEN} for n in range(5)]
    (tmp_path / "batch").write_text("\n".join(map(json.dumps, lines)))
    done = command("send", "--socket", relay.socket, "--batch", tmp_path / "batch")
    assert done.returncode == 0, done.stderr
    relay.until_empty()
    assert [request.json["ClientToken"] for request in upstream.messages()] == [f"t-{n}" for n in range(5)]


def test_send_reports_why_it_failed(relay, tmp_path):
    env = {"CONNECTION_TOKEN": TOKEN}
    assert command("send", "--socket", relay.socket, "canary").returncode != 0, "there is no token"
    long = command("send", "--socket", relay.socket, "x" * 1025, env=env)
    assert long.returncode == 1 and "1025" in long.stderr
    nobody = command("send", "--socket", tmp_path / "nobody.sock", "canary", env=env)
    assert nobody.returncode == 1 and "nobody.sock" in nobody.stderr


def test_status_shows_health_and_queued_messages(stranded):
    # The control socket is found as the relay finds it: by the same folder.
    at = ("--dir", stranded.folder)
    assert command("status", *at, settings=stranded.settings).returncode == 0
    assert command("status", "--exit-code", *at, settings=stranded.settings).returncode == 0
    send(stranded, TOKEN, "canary")
    done = command("status", "--json", *at, settings=stranded.settings)
    assert done.returncode == 0 and isinstance(json.loads(done.stdout), dict), done.stderr
    assert "canary" not in done.stdout
    assert command("status", "--exit-code", *at, settings=stranded.settings).returncode == 75


def test_status_reports_a_missing_relay(tmp_path):
    done = command("status", "--dir", tmp_path, settings={"sender.endpoint": DOWN})
    assert done.returncode == 1 and done.stderr


def test_control_socket_refuses_other_users(relay):
    control = [path for path in relay.folder.rglob("*.sock") if path.name != "relay.sock"]
    assert len(control) == 1 and control[0].stat().st_mode & 0o777 == 0o600
    assert control[0].parent != relay.folder, "not in the folder that bots can reach"


def test_demo_loses_nothing():
    done = command("demo", timeout=180)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    audit = {name: int(count) for name, count in re.findall(r"^\s*([a-z ]+?)\s+(\d+)\b", text, re.M)}
    assert audit["lost"] == audit["duplicated"] == audit["out of order"] == 0, text
    assert audit["accepted"] == audit["delivered"] > 0, text
    assert audit["throttled"] > 0, "backoff is seen at work"
    assert "\x1b[" not in text, "plain lines where there is no terminal"


# The simulator, as a tool of its own


def call(simulator, path, body, token):
    request = urllib.request.Request(simulator.url + path, json.dumps(body).encode(), {"X-Amz-Bearer": token})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as fault:
        return fault.code, fault.read(), fault.headers


def test_the_simulator_is_idempotent_and_keeps_a_ledger(simulators):
    simulator = simulators("--latency", "0ms", "--jitter", "0ms")
    client = bot(simulator.url)
    token = client.create_participant_connection(ParticipantToken="p", Type=["CONNECTION_CREDENTIALS"])["ConnectionCredentials"]["ConnectionToken"]
    one = client.send_message(ContentType=PLAIN, Content="canary é", ConnectionToken=token, ClientToken="t-1")
    again = client.send_message(ContentType=PLAIN, Content="canary é", ConnectionToken=token, ClientToken="t-1")
    assert one["Id"] == again["Id"] and one["AbsoluteTime"] == again["AbsoluteTime"]
    line = simulator.ledger()
    assert line == [{
        "Id": one["Id"], "AbsoluteTime": one["AbsoluteTime"], "ClientToken": "t-1", "ConnectionToken": token,
        "ContentType": PLAIN, "Content": "canary é",
    }]
    assert simulator.counts()["accepted"] == 1 and simulator.counts()["duplicates"] == 1


def test_the_simulator_throttles_by_its_bucket(simulators):
    simulator = simulators("--rate", "0.01", "--burst", "3", "--latency", "0ms", "--jitter", "0ms")
    token = json.loads(call(simulator, "/participant/connection", {"Type": ["CONNECTION_CREDENTIALS"]}, "p")[1])["ConnectionCredentials"]["ConnectionToken"]
    body = {"ContentType": PLAIN, "Content": "canary"}
    answers = [call(simulator, "/participant/message", {**body, "ClientToken": str(n)}, token) for n in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    assert answers[3][2]["x-amzn-ErrorType"].startswith("ThrottlingException")


def test_the_simulator_denies_and_disconnects(simulators):
    simulator = simulators("--deny", "bad-token", "--latency", "0ms", "--jitter", "0ms")
    body = {"ContentType": PLAIN, "Content": "canary"}
    assert call(simulator, "/participant/message", body, "bad-token")[0] == 403
    token = json.loads(call(simulator, "/participant/connection", {"Type": ["CONNECTION_CREDENTIALS"]}, "p")[1])["ConnectionCredentials"]["ConnectionToken"]
    assert call(simulator, "/participant/disconnect", {}, token)[0] == 200
    status, text, headers = call(simulator, "/participant/message", body, token)
    assert status == 403 and b"Access denied" in text and headers["x-amzn-ErrorType"].startswith("AccessDeniedException")


def test_user_signals_are_ignored(relay):
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(relay.process.pid, number)
        assert send(relay, "canary", "canary: still there").status == 202
    assert relay.process.poll() is None
