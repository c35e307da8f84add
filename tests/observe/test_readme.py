"""What the README shows is what there is: its worked example, its formula, and the lines it takes from the examples."""

import json
import re
import subprocess

import yaml

from kit.callers import send
from kit.monitoring import RULES
from kit.patience import until
from kit.processes import ROOT
from kit.upstream import CUT, error

README = (ROOT / "README.md").read_text()


def section(heading):
    return re.search(rf"^{heading}$(.*?)(?=^##|\Z)", README, re.M | re.S)[1]


def test_from_a_contact_id_to_connects_id(relays, simulators):
    """The customer says the bot never answered."""
    simulator = simulators()
    relay = relays(simulator.url)
    for contact in ("4711", "4712"):
        for line in ("canary: hello", "canary: goodbye"):
            key = f"Relay-Conversation: {contact}/bot"
            assert send(relay, f"canary-{contact}", f"{line}, {contact}", headers=[key, "Prefer: wait=20"]).status == 200
    # The README's own query, with the relay's log where kubectl would fetch it.
    [query] = re.findall(r"```sh\n(.*?)\n```", section("### The customer says the bot never answered"), re.S)
    query = query.replace("kubectl logs POD -c connect-relay", f"cat {relay.log_path}").replace("CONTACT_ID", "4711")
    found = until(lambda: len(lines := found_by(query)) == 4 and lines, "all of its life is logged")
    assert [line["event"] for line in found] == ["accepted", "delivered"] * 2
    told = {entry["Id"]: entry for entry in simulator.ledger()}
    for line, content in zip(found[1::2], ("canary: hello, 4711", "canary: goodbye, 4711")):
        assert told[line["connect_id"]]["Content"] == content, "Connect's transcript has it under this Id"
        assert line["connect_request_id"] and line["waited_ms"] >= 0 and line["timestamp"]


def test_what_the_worked_example_says_of_the_other_ends(relays, upstreams):
    said = iter([error(500, "InternalServerException"), error(403, "AccessDeniedException", "explicit deny"), CUT])
    relay = relays(upstreams(lambda request: next(said, CUT)).url, sender__token_wait="1s", sender__backoff__initial="20ms")
    send(relay, "canary-1", "canary", headers=["Relay-Conversation: 4711/bot"])
    until(lambda: relay.lines("dead"), "it is dead")
    lines = [line for line in relay.lines() if line.get("conversation") == "4711/bot"]
    assert [line["event"] for line in lines] == ["accepted", "deferred", "held", "dead"]
    assert lines[1]["reason"] and lines[1]["why"] and lines[1]["retry_in_ms"] >= 0
    assert lines[3]["reason"] == "token_refused" and lines[3]["maybe_delivered"] is False
    table = section("### The customer says the bot never answered")
    assert all(f"`{line['event']}`" in table for line in lines)


def test_the_wrapped_rules_are_the_rules():
    made = yaml.safe_load((ROOT / "deploy/kubernetes/monitor/prometheusrule.yaml").read_text())
    assert made["kind"] == "PrometheusRule" and made["spec"] == yaml.safe_load(RULES.read_text())


def output(command):
    return subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout


def found_by(query):
    return [json.loads(line) for line in output(query).splitlines()]


def test_seven_tenths_of_the_quota_go_through_without_a_throttle(relays, simulators, loads):
    chats = section("### How many chats")
    assert "0.7 × quota × 60 ÷ messages per chat and minute" in chats and "/ 0.7" in RULES.read_text()
    assert round(0.7 * 10 * 60 / 6) == 70 and round(200 * 6 / 60 / 0.7, 1) == 28.6  # the README's figures
    simulator = simulators("--rate", 10, "--burst", 15)
    relay = relays(simulator.url)
    loads(relay, per_second=7)
    until(lambda: simulator.counts()["accepted"] >= 100, "a hundred are delivered")
    found = relay.metrics()
    assert found['attempts_total{outcome="throttled"}'] == 0
    assert found['delivery_seconds_bucket{le="1"}'] >= 0.95 * found["delivery_seconds_count"]


def test_each_line_of_a_snippet_stands_in_its_example():
    parts = re.split(r"^\*\*", section("### Use it from"), flags=re.M)
    shown = 0
    for part in parts:
        named = re.search(r"`(examples/[\w.-]+)`", part)
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```", part, re.M | re.S):
            if language == "sh":
                continue  # a command to type; its own tests run it
            example = re.sub(r"\s+", "", (ROOT / named[1]).read_text())
            for line in filter(None, code.splitlines()):
                code_alone = re.sub(r"\s+", "", line.split("  #")[0])
                assert code_alone in example, f"{named[1]} has no line {line!r}"
                shown += 1
    assert shown > 20


def test_each_line_of_what_happens_when_names_tests_that_there_are():
    tests = {path.name for path in (ROOT / "tests").rglob("*") if path.suffix in (".py", ".rs") and ".venv" not in str(path)}
    rows = [line for line in section("## What happens when").splitlines() if line.startswith("| **")]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(\w+\.(?:py|rs))`", row.split(" | ")[-1])
        assert named and set(named) <= tests, row
