"""The examples, each run as its head says: their messages arrive once, in order, in the named conversation."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError

from kit.callers import send
from kit.helpers import NODE, beside_packages
from kit.processes import BINARY, ROOT, environment
from kit.tools import GO, GOPATH
from kit.upstream import CUT, Answer, error
from kit.wait import until

EXAMPLES = ROOT / "examples"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
TOKEN, CONTACT = "canary-token", "0d2c7a2e-contact"


def run(*command, relay, cwd=ROOT, **more):
    settings = dict(
        RELAY_SOCKET=relay.socket, CONNECTION_TOKEN=TOKEN, PARTICIPANT_TOKEN="canary-participant", CONTACT_ID=CONTACT,
        AWS_ENDPOINT_URL_CONNECTPARTICIPANT=relay.url, AWS_EC2_METADATA_DISABLED="true",
        # connect-relay is on the PATH, and the environment has a proxy that no example may use.
        PATH=f"{Path(BINARY).resolve().parent}:{os.environ['PATH']}",
        HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="127.0.0.1",
    )
    env = environment(**{**settings, **more})
    done = subprocess.run([*map(str, command)], env=env, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def scene(relays, simulators):
    """A relay before a simulator, and the arrived messages."""
    simulator = simulators("--rate", 50, "--burst", 50)
    relay = relays(simulator.url)

    def arrived():
        relay.until_empty()
        assert {line["conversation"] for line in relay.lines("accepted", 1)} == {f"{CONTACT}/bot"}
        ledger = [(line["ClientToken"], line["Content"]) for line in simulator.ledger()]
        assert len(set(ledger)) == len(ledger) == relay.metrics()["messages_accepted_total"] - simulator.counts()["disconnects"]
        return ledger

    return relay, arrived


TWO = [("greeting-1", "Hello!"), ("question-1", "How can I help?")]
CHAT = [("greeting-1", "Hello!"), ("farewell-1", "Goodbye!")]


def test_curl(scene):
    relay, arrived = scene
    for _ in range(2):  # the second is a repeat
        answer = json.loads(run(EXAMPLES / "curl.sh", "Hello!", "greeting-1", relay=relay))
        assert (answer.get("ClientToken"), answer.get("State")) == ("greeting-1", "QUEUED") or answer["Id"]
    assert arrived() == TWO[:1]


def test_curl_example_reports_a_failure(scene):
    relay, _ = scene
    with pytest.raises(AssertionError, match="ingress.content_chars_max.plain"):
        run(EXAMPLES / "curl.sh", "x" * 1025, "long-1", relay=relay)


def test_shell(scene):
    relay, arrived = scene
    lines = [json.loads(line) for line in run(EXAMPLES / "send.sh", relay=relay).splitlines()]
    assert [line.get("State") for line in lines[:2]] == ["QUEUED", "QUEUED"] and lines[2]["Id"]
    assert arrived() == [CHAT[0], ("hours-1", 'We are open:\n- "weekdays", 9 to 5'), CHAT[1]]


def test_python_over_the_unix_socket(scene):
    relay, arrived = scene
    first, second = run(sys.executable, "-I", EXAMPLES / "unix_socket.py", relay=relay).splitlines()
    assert first.startswith("202 ") and second.startswith("200 ")
    assert arrived() == TWO


@pytest.mark.parametrize("program", [(sys.executable, "-I", EXAMPLES / "outcomes.py"), ("node", EXAMPLES / "outcomes.mjs")], ids=["python", "node"])
def test_outcomes_are_read_once_and_in_order_over_a_restart(scene, program):
    relay, _ = scene
    settings = environment(RELAY_SOCKET=relay.socket, PATH=os.environ["PATH"])
    reader = subprocess.Popen([*map(str, program)], env=settings, stdout=subprocess.PIPE, text=True)
    lines, sent = [], []
    reading = threading.Thread(target=lambda: lines.extend(reader.stdout))
    reading.start()

    def say():
        sent.append(f"c-{len(sent)}")
        return send(relay, TOKEN, "Hello!", sent[-1], headers=["Prefer: wait=20"])

    try:
        # The stream begins when the reader has connected: until its first event, that is not known.
        until(lambda: say().status == 200 and lines, "the reader has an event")
        say()
        relay.kill()
        relay.start()
        for _ in range(3):
            say()
        until(lambda: json.loads(lines[-1].split(" ", 2)[2])["ClientToken"] == sent[-1], "the last one is read")
    finally:
        reader.kill()
        reader.wait()
        reading.join()
    read = [line.split(" ", 2) for line in lines]
    names = [json.loads(data)["ClientToken"] for _, _, data in read]
    assert names == sent[-len(names):] and {event for _, event, _ in read} == {"delivered"}


@pytest.mark.parametrize("program", [(sys.executable, "-I", EXAMPLES / "outcomes.py"), ("node", EXAMPLES / "outcomes.mjs")], ids=["python", "node"])
def test_a_reader_of_outcomes_keeps_no_connection_that_was_refused(scripted_relays, program):
    """A relay admits a limited number of connections, and one that is fenced answers 503 for as long as it runs."""
    relay = scripted_relays(lambda request: error(503, "ServiceUnavailableException", "connect-relay: no"))
    settings = environment(RELAY_SOCKET=relay.socket, PATH=os.environ["PATH"])
    reader = subprocess.Popen([*map(str, program)], env=settings)
    try:
        relay.wait_for(5)
        until(lambda: relay.connected <= 1, "the refused ones are closed")
    finally:
        reader.kill()
        reader.wait()


def test_python_survives_a_restart_of_the_relay(scene, monkeypatch):
    relay, arrived = scene
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from unix_socket import Relay

    bot = Relay(relay.socket)
    assert bot.say(TOKEN, CONTACT, *reversed(TWO[0]))[0] == 202
    relay.kill()
    relay.start()
    assert bot.say(TOKEN, CONTACT, *reversed(TWO[0]))[0] in (200, 202)
    assert bot.say(TOKEN, CONTACT, *reversed(TWO[1]), Prefer="wait=20")[0] == 200
    bot.close()
    relay.until_empty()
    assert relay.metrics()["repeats_total"] == 1


def test_boto3_over_the_unix_socket(scene):
    relay, arrived = scene
    first, second = run(sys.executable, EXAMPLES / "boto3_socket.py", relay=relay).splitlines()
    assert first.startswith("DELIVERED ") and second.startswith("DELIVERED ")
    assert arrived() == CHAT
    assert relay.metrics()["messages_accepted_total"] == 3, "two messages and the disconnect"


def test_boto3_over_the_unix_socket_raises_botocores_exceptions(scripted_relays, monkeypatch):
    script = iter([CUT, error(429, "ThrottlingException"), error(403, "AccessDeniedException", "no"), CUT, CUT, CUT])
    relay = scripted_relays(lambda request: next(script))
    monkeypatch.setenv("RELAY_SOCKET", relay.socket)
    specification = importlib.util.spec_from_file_location("boto3_socket", EXAMPLES / "boto3_socket.py")
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    message = {"ConnectionToken": TOKEN, "ContentType": "text/plain", "Content": "Hello!", "ClientToken": "greeting-1"}
    with pytest.raises(example.client.exceptions.AccessDeniedException):
        example.client.send_message(**message)
    assert len(relay.requests) == 3, "a lost connection and a throttle are tried again"
    with pytest.raises(ConnectionClosedError):
        example.client.send_message(**message)
    assert len({request.body for request in relay.requests}) == 1
    relay.stop()
    with pytest.raises(EndpointConnectionError, match=f"unix:{relay.socket}"):
        example.client.send_message(**message)


def test_aiobotocore_over_the_unix_socket(scene):
    relay, arrived = scene
    python = ROOT / "tests/.venv-aiobotocore/bin/python"
    assert python.exists(), "tests/setup makes it"
    first, second = run(python, EXAMPLES / "aiobotocore_socket.py", relay=relay).splitlines()
    assert first.startswith("DELIVERED ") and second.startswith("DELIVERED ")
    assert arrived() == CHAT


def test_boto3_over_tcp(scene):
    relay, arrived = scene
    first, second = run(sys.executable, EXAMPLES / "boto3_tcp.py", relay=relay).splitlines()
    assert first.startswith("DELIVERED ") and second.startswith("DELIVERED ")
    assert arrived() == CHAT


def test_node_over_the_unix_socket(scene):
    relay, arrived = scene
    assert shutil.which("node"), "node is needed: tests/setup installs it"
    first, second = run("node", EXAMPLES / "unix-socket.mjs", relay=relay).splitlines()
    assert first.startswith("202 ") and second.startswith("200 ")
    assert arrived() == TWO


@pytest.mark.parametrize("example", [("node", "unix-socket.mjs"), (sys.executable, "unix_socket.py")], ids=["node", "python"])
def test_a_kept_connection_that_is_closed_under_a_request_loses_nothing(scripted_relays, example):
    queued = Answer(202, {"State": "QUEUED"})
    answers = iter([queued, CUT, queued])
    relay = scripted_relays(lambda request: next(answers))
    first, second = run(example[0], EXAMPLES / example[1], relay=relay).splitlines()
    assert first.startswith("202 ") and second.startswith("202 ")
    assert [request.json["ClientToken"] for request in relay.requests] == ["greeting-1", "question-1", "question-1"]


def test_examples_that_follow_one_another_in_a_chat_repeat_its_lines(scene):
    relay, arrived = scene
    for _ in range(2):
        run(EXAMPLES / "send.sh", relay=relay)
        run(sys.executable, "-I", EXAMPLES / "unix_socket.py", relay=relay)
        run("node", EXAMPLES / "unix-socket.mjs", relay=relay)
    assert [token for token, _ in arrived()] == ["greeting-1", "hours-1", "farewell-1", "question-1"]


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_aws_sdk_v3(scene, door):
    relay, arrived = scene
    assert (NODE / "node_modules").is_dir(), "tests/setup installs the packages of examples/package.json into tests/.node"
    beside_packages(EXAMPLES / "aws-sdk.mjs")
    over = {"RELAY_SOCKET": ""} if door == "tcp" else {}
    first, second = run("node", NODE / "aws-sdk.mjs", relay=relay, **over).splitlines()
    assert first.startswith("200 ") and second.startswith("200 ")
    assert arrived() == CHAT


@pytest.mark.needs(GO)
def test_aws_sdk_for_go(scene):
    relay, arrived = scene
    settings = {"GO111MODULE": "off", "GOPATH": str(GOPATH), "GOCACHE": str(ROOT / "tests/.tools/go-cache")}
    first, second = run("go", "run", EXAMPLES / "go/main.go", relay=relay, **settings).splitlines()
    assert first.startswith("greeting-1") and second.startswith("farewell-1")
    assert arrived() == CHAT


def test_aws_sdk_for_rust(scene):
    relay, arrived = scene
    # tests/setup has built it.
    build = ("--manifest-path", EXAMPLES / "rust-sdk/Cargo.toml", "--target-dir", TARGET / "rust-sdk")
    first, second = run("cargo", "run", "--quiet", "--locked", *build, relay=relay).splitlines()
    assert first.startswith("greeting-1 ") and second.startswith("farewell-1 ")
    assert arrived() == CHAT


def test_rust_with_hyper(scene):
    relay, arrived = scene
    first, second = run("cargo", "run", "--quiet", "--locked", "--example", "hyper", relay=relay).splitlines()
    assert first.startswith("202 ") and second.startswith("200 ")
    assert arrived() == TWO
