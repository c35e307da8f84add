"""The example bots of deploy/kubernetes, run unchanged against a relay and a simulated Connect."""

import json
import subprocess
import sys
import urllib.request

import pytest

from kit.processes import ROOT, environment, free_port
from kit.tools import KUBERNETES

EXAMPLES = KUBERNETES / "examples"


@pytest.fixture
def relay(simulator, relays):
    """A relay in front of the simulator; bots can use only its socket."""
    return relays(simulator.url, tcp=False)


@pytest.fixture
def started():
    """Starts programs; ends the remaining ones."""
    processes = []

    def start(*command, **env):
        command = [str(word) for word in command]
        process = subprocess.Popen(command, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        print(process.communicate()[0])


def post(port, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(body).encode(), method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
        return reply.status


@pytest.mark.parametrize(
    "program",
    [
        ["python3", EXAMPLES / "deployment/bot.py"],
        [sys.executable, "-B", EXAMPLES / "boto3/bot.py"],
        pytest.param(["node", EXAMPLES / "statefulset/bot.mjs"], marks=pytest.mark.needs("node")),
    ],
    ids=["python", "boto3", "node"],
)
def test_bot_connects_types_answers_and_disconnects(program, relay, simulator, started):
    port = free_port()
    bot = started(*program, RELAY_SOCKET=relay.socket, PORT=str(port))
    assert bot.stdout.readline() == f"listening on {port}\n"
    for contact in ("contact-1", "contact-2"):
        assert post(port, {"ContactId": contact, "ParticipantToken": f"canary-{contact}"}) == 200
    bot.terminate()
    assert bot.wait(timeout=30) == 0, "it ends on request"
    relay.until_empty()
    by_chat = {}
    for line in simulator.ledger():
        by_chat.setdefault(line["ConnectionToken"], []).append((line["ClientToken"].split("-", 2)[2], line["Content"]))
    assert list(by_chat.values()) == [[("greeting", "Hello, what can I do for you?"), ("farewell", "Goodbye, and thank you.")]] * 2
    counts = simulator.counts()
    assert (counts["disconnects"], counts["connections"]) == (2, 2), counts
    assert relay.stop() == 0


def test_job_completes_when_all_is_delivered_and_sends_nothing_twice(relay, simulator, started, tmp_path):
    chats = [{"ContactId": f"contact-{n}", "ConnectionToken": f"canary-{n}", "Text": f"notice {n}"} for n in range(25)]
    (tmp_path / "chats.ndjson").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    env = {"RELAY_SOCKET": relay.socket, "CHATS": str(tmp_path / "chats.ndjson")}
    for _ in range(2):
        job = started("python3", EXAMPLES / "job/job.py", **env)
        assert job.wait(timeout=120) == 0
        # No wait here: a complete job means that all is delivered.
        assert sorted(line["ClientToken"] for line in simulator.ledger()) == sorted(f"contact-{n}-notice" for n in range(25))


def test_job_with_a_rejected_line_fails(relay, started, tmp_path):
    (tmp_path / "chats.ndjson").write_text(json.dumps({"ContactId": "c", "ConnectionToken": "canary", "Text": "x" * 1025}) + "\n")
    job = started("python3", EXAMPLES / "job/job.py", RELAY_SOCKET=relay.socket, CHATS=str(tmp_path / "chats.ndjson"))
    assert job.wait(timeout=60) == 1


def test_boto3_example_of_the_pod_is_the_example():
    assert (EXAMPLES / "boto3/boto3_socket.py").read_text() == (ROOT / "examples/boto3_socket.py").read_text()
