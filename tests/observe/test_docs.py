"""The documents equal the program: worked examples, formulas, sample output, commands, and lines of the examples."""

import json
import re
import subprocess

import yaml

from kit.callers import send
from kit.wait import until
from kit.processes import BINARY, ROOT, command
from kit.monitoring import RULES
from kit.upstream import CUT, error

TESTS = {path.name for path in (ROOT / "tests").rglob("*") if path.suffix in (".py", ".rs") and ".venv" not in str(path)}


def section(document, heading):
    """The text below a heading, up to the next heading of its level or above."""
    level = len(heading.split(" ")[0])
    text = (ROOT / document).read_text()
    return re.search(rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{level}}} |\Z)", text, re.M | re.S)[1]


def samples(document, heading, language):
    return re.findall(rf"^```{language}\n(.*?)^```", section(document, heading), re.M | re.S)


NEVER_ANSWERED = ("docs/operations.md", "## The customer says the bot never answered")


def test_from_a_contact_id_to_connects_id(relays, simulators):
    """The worked example: a customer says that the bot never answered."""
    simulator = simulators()
    relay = relays(simulator.url)
    for contact in ("4711", "4712"):
        for line in ("canary: hello", "canary: goodbye"):
            key = f"Relay-Conversation: {contact}/bot"
            assert send(relay, f"canary-{contact}", f"{line}, {contact}", headers=[key, "Prefer: wait=20"]).status == 200
    # The document's own query, with the relay's log in place of kubectl's output.
    [query] = samples(*NEVER_ANSWERED, "sh")
    query = query.replace("kubectl logs POD -c connect-relay", f"cat {relay.log_path}").replace("CONTACT_ID", "4711")
    found = until(lambda: len(lines := found_by(query)) == 4 and lines, "all of its events are logged")
    assert [line["event"] for line in found] == ["accepted", "delivered"] * 2
    told = {entry["Id"]: entry for entry in simulator.ledger()}
    for line, content in zip(found[1::2], ("canary: hello, 4711", "canary: goodbye, 4711")):
        assert told[line["connect_id"]]["Content"] == content, "Connect's transcript has it under this Id"
        assert line["connect_request_id"] and line["waited_ms"] >= 0 and line["timestamp"]


def test_worked_example_lists_the_events_of_the_other_outcomes(relays, upstreams):
    said = iter([error(500, "InternalServerException"), error(403, "AccessDeniedException", "explicit deny"), CUT])
    relay = relays(upstreams(lambda request: next(said, CUT)).url, sender__token_wait="1s", sender__backoff__initial="20ms")
    send(relay, "canary-1", "canary", headers=["Relay-Conversation: 4711/bot"])
    until(lambda: relay.lines("dead"), "it is dead")
    lines = [line for line in relay.lines() if line.get("conversation") == "4711/bot"]
    assert [line["event"] for line in lines] == ["accepted", "deferred", "held", "dead"]
    assert lines[1]["reason"] and lines[1]["why"] and lines[1]["retry_in_ms"] >= 0
    assert lines[3]["reason"] == "token_refused" and lines[3]["maybe_delivered"] is False
    table = section(*NEVER_ANSWERED)
    assert all(f"`{line['event']}`" in table for line in lines)


def test_prometheusrule_equals_the_rules():
    made = yaml.safe_load((ROOT / "deploy/kubernetes/monitor/prometheusrule.yaml").read_text())
    assert made["kind"] == "PrometheusRule" and made["spec"] == yaml.safe_load(RULES.read_text())


def output(command):
    return subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout


def found_by(query):
    return [json.loads(line) for line in output(query).splitlines()]


def test_seven_tenths_of_the_quota_cause_no_throttle(relays, simulators, loads):
    chats = section("docs/operations.md", "## How many chats")
    assert "0.7 × quota × 60 ÷ messages per chat and minute" in chats and "/ 0.7" in RULES.read_text()
    assert round(0.7 * 10 * 60 / 6) == 70 and round(200 * 6 / 60 / 0.7, 1) == 28.6  # the document's figures
    assert "= 70 chats" in chats and "= 28.6" in chats
    simulator = simulators("--rate", 10, "--burst", 15)
    relay = relays(simulator.url)
    loads(relay, per_second=7)
    until(lambda: simulator.counts()["accepted"] >= 100, "a hundred are delivered")
    found = relay.metrics()
    assert found['attempts_total{outcome="throttled"}'] == 0
    assert found['delivery_seconds_bucket{le="1"}'] >= 0.95 * found["delivery_seconds_count"]


def test_each_line_of_a_snippet_is_in_its_example():
    parts = re.split(r"^### ", section("docs/clients.md", "## Use it from"), flags=re.M)
    shown = 0
    for part in parts:
        named = re.search(r"`(examples/[\w./-]+)`", part)
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```", part, re.M | re.S):
            if language in ("sh", "json"):
                continue  # a command to type, which its own tests run, or a reply, which is compared below
            example = re.sub(r"\s+", "", (ROOT / named[1]).read_text())
            for line in filter(None, code.splitlines()):
                code_alone = re.sub(r"\s+", "", line.split("  #")[0])
                assert code_alone in example, f"{named[1]} has no line {line!r}"
                shown += 1
    assert shown > 20


def test_each_example_has_its_chapter():
    named = set(re.findall(r"^`examples/([\w./-]+)`", (ROOT / "docs/clients.md").read_text(), re.M))
    examples = ROOT / "examples"
    programs = [path for path in examples.rglob("*") if path.suffix in (".go", ".mjs", ".py", ".rs", ".sh")]
    assert named == {str(path.relative_to(examples)) for path in programs}


def rows(document, heading):
    return [line for line in section(document, heading).splitlines() if line.startswith("| **")]


def test_each_row_of_what_happens_when_names_tests_that_exist():
    found = rows("docs/guarantees.md", "## What happens when")
    assert len(found) > 30
    for row in found + rows("README.md", "## Guarantees"):
        named = re.findall(r"`(\w+\.(?:py|rs))`", row.split(" | ")[-1])
        assert named and set(named) <= TESTS, row


def test_each_test_file_that_a_document_names_exists():
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        named = set(re.findall(r"(?<![\w/])(test_\w+\.py)", path.read_text()))
        assert named <= TESTS, f"{path.name}: {named - TESTS}"


def test_each_command_and_option_that_operations_name_exists():
    found = re.findall(r"^\| `connect-relay ([\w-]+)(.*?)` \|", section("docs/operations.md", "## Commands"), re.M)
    assert {name for name, _ in found} == set(re.findall(r"^  ([a-z-]+) ", helped(), re.M)) - {"help"}
    for name, rest in found:
        for verb in rest.strip().split(" ")[0].split("\\|") if "\\|" in rest else [""]:
            assert options(rest) <= options(helped(name, *filter(None, [verb]))), (name, verb)


def options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))


def helped(*words):
    done = subprocess.run([BINARY, *words, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_command_in_a_code_block_parses():
    """Options of the relay's own commands in all documents, against `--help`."""
    seen = 0
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("  #")[0]
                # -c names a container.
                for found in re.findall(r"(?<!-c )connect-relay ((?:[\w-]+ ?)(?:(?:list|show|redrive|delete|check|export|repair)\b)?)([^>|&]*)", line):
                    words, rest = found[0].split(), found[1]
                    if options(rest) and words[0] in helped():
                        seen += 1
                        assert options(rest) <= options(helped(*words)), (path.name, line)
    assert seen > 10


def test_sample_output_has_the_members_of_real_output(relays, simulators):
    simulator = simulators()
    relay = relays(simulator.url)
    key = "Relay-Conversation: 4711/bot"
    queued = send(relay, "canary-1", "canary", headers=[key])
    assert queued.status == 202
    shown = [json.loads(text) for document, heading in (("docs/clients.md", "### curl"), ("README.md", "## One variable"))
             for text in samples(document, heading, "json")]
    assert len(shown) == 2 and all(list(sample) == list(queued.json) for sample in shown)
    head, body = samples("docs/api.md", "## Request headers", "text")[0].split("\n\n")
    assert list(json.loads(body)) == list(queued.json)
    named = {line.split(":")[0] for line in head.splitlines() if re.match(r"[a-z-]+: ", line)}
    assert {name.lower() for name in queued.headers} == named
    delivered = send(relay, "canary-1", "canary too", headers=[key, "Prefer: wait=20"])
    assert delivered.status == 200
    [sample] = samples("docs/api.md", "## Request headers", "json")
    assert list(json.loads(sample)) == list(delivered.json)

    [log] = samples(*NEVER_ANSWERED, "json")
    bytes_each = len(log)
    cost = section("docs/operations.md", "### Cost of the log")
    assert f"about {bytes_each} bytes together" in cost and f"{round(864_000 * bytes_each / 1e9, 2)} GB a day" in cost
    real = until(lambda: len(lines := [line for line in relay.lines() if "event" in line]) == 4 and lines, "it is logged")
    members = {line["event"]: list(line) for line in real}
    assert {sample["event"]: list(sample) for sample in map(json.loads, log.splitlines())} == members



def test_sample_output_of_commands_has_the_labels_of_real_output(relays, simulators):
    relay = relays(simulators("--deny", "canary-bad").url, sender__token_wait="1s")
    send(relay, "canary-good", "canary", "greeting-0", headers=["Prefer: wait=20"])

    def said(*words):
        done = command(*words, "--dir", relay.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    [status, problem] = samples("docs/operations.md", "## Status and health", "text")
    assert labels(status) == labels(said("status"))
    send(relay, "canary-bad", "canary", "greeting-1", headers=["Relay-Conversation: 4711/bot"])
    until(lambda: relay.lines("dead"), "it is dead")
    said("pause", "--reason", "change of the quota")
    paused = said("status").splitlines()
    assert re.sub(r"\d", "0", problem) == re.sub(r"\d", "0", "\n".join(paused[:2]) + "\n")
    reloaded, level = samples("docs/operations.md", "## Changes while the relay runs", "text")
    assert level.splitlines()[1] == re.sub(r"until [^,]+", "until 2026-11-29T14:13:07.412Z", said("log-level", "debug", "--for", "10m").strip())
    assert reloaded.splitlines()[1].startswith("reloaded: ") and said("reload").startswith("reloaded: ")
    listed, shown = samples("docs/operations.md", "## Dead letters", "text")
    real = said("messages", "list", "--state", "dead")
    assert listed.splitlines()[1] == real.splitlines()[0]
    identity = real.split("\n")[1].split(" ")[0]
    assert labels(shown) == labels(said("messages", "show", identity, "--contents"))
    relay.kill()
    [checked] = samples("docs/operations.md", "## A damaged queue", "text")
    [queue] = [path.parent for path in relay.folder.rglob("journal.0")]
    done = command("doctor", "check", queue)
    assert done.returncode == 0, done.stderr
    assert labels(checked, 2) == labels(done.stdout, 1)


def test_sample_of_a_summary_has_the_form_of_real_output(relays):
    relay = relays("http://127.0.0.1:9", sender__lifetime="2m")

    def said(*words):
        done = command("messages", *words, "--dir", relay.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert command("pause", "--dir", relay.folder).returncode == 0
    key = "Relay-Conversation: 4711/bot"
    send(relay, "canary-short", "canary", "short", headers=["Relay-Lifetime: 1"])
    send(relay, "canary-wrong", "canary", "wrong")
    for number in range(3):
        send(relay, "canary-keyed", "canary", f"c-{number}", headers=[key])
    send(relay, "canary-other", "canary", "other")
    [wrong] = [m for m in json.loads(said("list", "--json"))["Messages"] if m["ClientToken"] == "wrong"]
    said("delete", wrong["Id"])
    until(lambda: relay.metrics()["dead_letters"] == 2 and relay.metrics()["expiring_messages"] == 4, "some are dead, some will expire")
    [sample] = samples("docs/operations.md", "## The messages that fill the queue", "text")
    command_line, *expected = sample.splitlines()
    assert command_line == "$ connect-relay messages summary"
    assert form("\n".join(expected)) == form(said("summary").rstrip("\n"))
    assert f"{sum(figures(sample, 1))} in 2 conversations" in sample, "the sample's own figures agree"
    assert f"dead letters  {sum(figures(sample, 2))}: " in sample


def form(summary):
    """A summary without its times, numbers, names and widths."""
    summary = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", summary)
    summary = re.sub(r"t:[0-9a-f]{12}", "t:HASH", summary)
    summary = re.sub(r"\d+ (expired|invalid|deleted)", "N REASON", summary)
    return re.sub(r" +", " ", re.sub(r"(?<![\w/])\d+(?!\w)", "N", summary))


def figures(summary, column):
    """A column of the table of ages."""
    rows = re.findall(r"^(?:within|over) \w+(?: ago)? +(\d+) +(\d+)$", summary, re.M)
    assert len(rows) == 8
    return [int(row[column - 1]) for row in rows]


def labels(output, skipped=None):
    """The label in front of the figures in each line, without the command."""
    lines = output.splitlines()[(1 if output.startswith("$") else 0) if skipped is None else skipped:]
    return [re.split(r"\s{2,}|(?<=[\w:]) (?=\d)", line)[0] for line in lines]
