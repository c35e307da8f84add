"""The rehearsal of docs/clients.md: each of its commands, with the relay in front of the simulator."""

import json
import re
import subprocess

from kit.callers import bot, send
from kit.wait import until
from kit.processes import ROOT, command

TOKEN = "my-first-chat"


def status(relay):
    return json.loads(command("status", "--json", "--dir", relay.folder).stdout)


def test_each_step_of_the_rehearsal_has_its_documented_effect(relays, simulators):
    text = (ROOT / "docs/clients.md").read_text().split("### Rehearse an incident")[1].split("\n## ")[0]
    [block] = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    simulator = simulators("--latency", "0ms", "--jitter", "0ms")
    relay = relays(simulator.url, sender__probe_max="100ms", sender__backoff__initial="50ms", sender__backoff__max="100ms", sender__token_wait="1s")
    variable, *steps = block.replace("http://127.0.0.1:9580", simulator.url).splitlines()
    at_the_start = faults(simulator)

    def take(number):
        done = subprocess.run(["sh", "-ec", f"{variable}\n{steps[number]}"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert take(0)["Outage"] is True
    for number in range(4):
        assert send(relay, f"canary-{number}", "canary", f"c-{number}").status == 202
    until(lambda: status(relay)["gate"] == "down", "the relay notices the outage")
    assert status(relay)["queued"] == 4
    assert take(1)["Latency"] == "3s"
    assert send(relay, TOKEN, "canary", "slow", headers=["Prefer: wait=1"]).status == 202
    changed = take(2)
    assert (changed["Rate"], changed["Burst"], changed["Latency"]) == (1.0, 1, "30ms")
    relay.until_empty()
    take(3)
    assert send(relay, "canary-5", "canary", "c-5").status == 202
    until(lambda: status(relay)["gate"] == "throttled", "the relay notices the throttle")
    assert take(4)["Deny"] == [TOKEN]
    relay.until_empty()
    assert send(relay, TOKEN, "canary", "denied").status == 202
    until(lambda: relay.lines("dead"), "the message of the denied token is dead-lettered")
    assert take(5) == at_the_start
    assert len(steps) == 6
    accepted = [entry["ClientToken"] for entry in simulator.ledger()]
    assert sorted(accepted) == ["c-0", "c-1", "c-2", "c-3", "c-5", "slow"]


def faults(simulator, **change):
    data = json.dumps(change) if change else None
    done = subprocess.run(["curl", "-s", simulator.url + "/faults", *(["-d", data] if data else [])], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


def test_members_of_the_document_are_those_of_the_simulator(simulators):
    text = (ROOT / "docs/clients.md").read_text().split("### Rehearse an incident")[1].split("\n## ")[0]
    documented = {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert documented == set(faults(simulators()))
    options = set(re.findall(r"--[a-z-]+", text.split("its options")[1]))
    assert options <= set(re.findall(r"--[a-z-]+", command("simulate", "--help").stdout))


def test_options_set_the_faults_of_the_start(simulators):
    simulator = simulators("--outage", "--throttle", "--retry-after", 7, "--deny", "canary")
    found = faults(simulator)
    assert found["Outage"] and found["Throttle"] and found["RetryAfter"] == 7 and found["Deny"] == ["canary"]
    assert command("simulate", "--retry-after", "1d").returncode == 2


def test_bot_reads_its_transcript_through_the_relay(relays, simulators):
    relay = relays(simulators().url)
    client = bot(relay.url)
    for number in range(3):
        client.send_message(ConnectionToken="canary-token", ContentType="text/plain", Content=f"canary {number}")
    page = client.get_transcript(ConnectionToken="canary-token", MaxResults=2)
    assert [item["Content"] for item in page["Transcript"]] == ["canary 1", "canary 2"]
    rest = client.get_transcript(ConnectionToken="canary-token", MaxResults=2, NextToken=page["NextToken"])
    assert [item["Content"] for item in rest["Transcript"]] == ["canary 0"] and "NextToken" not in rest
