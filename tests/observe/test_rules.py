"""The Prometheus rules as text: valid, true to their unit tests, about metrics that exist, explained in docs/alerts.md."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from kit.monitoring import RULES, hastened
from kit.processes import ROOT

ALERTS = (ROOT / "docs/alerts.md").read_text()
BASE = re.search(r"base of these links is\s`(https://\S+)`", ALERTS)[1]


EXPECTED = RULES.with_name("expected.yaml")


def promtool(*args, stdin=""):
    done = subprocess.run(["promtool", *map(str, args)], input=stdin, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def alerts(text=None):
    rules = yaml.safe_load(text or RULES.read_text())
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


def test_promtool_finds_no_fault_in_the_rules():
    for file in (RULES, EXPECTED):
        code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", file)
        assert code == 0 and "SUCCESS" in said, said


def test_each_rule_passes_its_unit_test():
    for name, rules in (("rules_test.yaml", RULES), ("expected_test.yaml", EXPECTED)):
        tests = Path(__file__).with_name(name)
        code, said = promtool("test", "rules", tests)
        assert code == 0 and "SUCCESS" in said, said
        tested = re.findall(r"alertname: (\w+)", tests.read_text())
        assert set(tested) == set(alerts(rules.read_text())), "every alert has a unit test"


def test_absence_is_no_alert_unless_a_relay_is_expected():
    assert "absent(" not in RULES.read_text() and "absent(connect_relay_info{" in EXPECTED.read_text()
    [rule] = alerts(EXPECTED.read_text()).values()
    shipped = alerts()["ConnectRelayAbsent"]
    assert (rule["alert"], rule["for"], rule["labels"]) == (shipped["alert"], shipped["for"], shipped["labels"])
    assert rule["annotations"]["runbook_url"] == shipped["annotations"]["runbook_url"]
    assert "job=" not in RULES.read_text(), "no rule depends on the name of a job"


def test_each_alert_about_a_relay_names_its_namespace_and_pod():
    for name, rule in alerts().items():
        summary = rule["annotations"]["summary"]
        by_pod = "{{ with $labels.pod }}{{ $labels.namespace }}/{{ . }}{{ else }}{{ $labels.instance }}{{ end }}" in summary
        assert by_pod != ("$labels.connect_instance" in summary), name


@pytest.fixture
def member(relays, upstream, nats_servers, tmp_path):
    """A relay of a fleet, with a copy of its queue there: it has all metrics."""
    keys = tmp_path / "keys"
    keys.write_text("a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n")
    servers = nats_servers(f'jetstream {{ store_dir: "{tmp_path}/js" }}').url
    copy = {"fleet__replicate": "true", "fleet__identity": "pod-0", "fleet__replicas": 1, "queue__key_file": keys}
    return relays(upstream.url, sender__connect_instance="shop", fleet__servers=servers, **copy)


def test_promtool_finds_no_fault_in_the_exported_metrics(member):
    code, said = promtool("check", "metrics", stdin=member.get("/metrics")[1])
    assert (code, said) == (0, "")


def test_rules_use_only_exported_metrics(member):
    exported = set(re.findall(r"^(\w+)", member.get("/metrics")[1], re.M))
    asked = set(re.findall(r"(?<![\w:])(connect_relay_\w+|process_\w+)", RULES.read_text() + EXPECTED.read_text()))
    assert len(asked) > 10 and asked <= exported, asked - exported


def test_each_alert_has_its_paragraph_and_each_paragraph_its_alert():
    told = re.findall(r"^## (ConnectRelay\w+)$", ALERTS, re.M)
    assert told == list(alerts()), "docs/alerts.md has a heading for each alert, in the order of the rules"
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"{BASE}#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning", "ticket")


def test_the_documented_command_changes_the_base_of_all_links(tmp_path):
    [command] = [code for code in re.findall(r"^```sh\n(.*?)^```", ALERTS, re.M | re.S) if "sed -i" in code]
    named = re.findall(r"(?<=\s)\w+/\S+", command.split("sed -i")[1])
    holding = [path for folder in ("docs", "deploy", "tests/observe", "tests/deploy") for path in (ROOT / folder).rglob("*")
               if path.suffix in (".md", ".yaml") and BASE in path.read_text()]
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in holding), "the base is in these files only"
    for path in named:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=60)
    new = re.search(r"^NEW=(\S+)", command, re.M)[1]
    changed = alerts((tmp_path / "deploy/prometheus/rules.yaml").read_text())
    assert len(changed) > 10
    assert all(rule["annotations"]["runbook_url"] == f"{new}#{name.lower()}" for name, rule in changed.items())
    assert not any(BASE in (tmp_path / path).read_text() for path in named)


def test_shortened_rules_differ_only_in_their_durations():
    text = hastened(RULES.read_text())
    assert promtool("check", "rules", "/dev/stdin", stdin=text)[0] == 0
    assert not re.search(r"\[\d+[mhd]|offset \d+[mhd]|for: \d+[mhd]", text)
    assert {name: rule.get("for", "0m").replace("m", "s") for name, rule in alerts().items()} == {
        name: rule.get("for", "0s") for name, rule in alerts(text).items()
    }
