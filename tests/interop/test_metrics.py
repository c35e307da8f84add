"""The metrics that dashboards and alerts use: each exists from the first scrape, with its closed label set."""

import re
import subprocess

from kit.callers import MESSAGE, curl, look, send
from kit.wait import until
from kit.upstream import CUT, Answer, error

NONE = frozenset()


def labels(name, *values):
    return {frozenset({(name, value)}) for value in values}


REJECTED = labels(
    "reason", "invalid", "conflict", "denied", "forbidden", "too_large", "queue_full", "disk_full", "too_late", "draining", "store"
)
REASONS = ("chat_over", "token_refused", "invalid", "refused", "poison", "expired", "deleted")
DEAD = {frozenset({("reason", reason), ("told", told)}) for reason in REASONS for told in ("true", "false")}
ATTEMPTS = labels("outcome", "delivered", "throttled", "unavailable", "answer_lost", "refused", "denied", "misconfigured")

# Name: its type and every possible label set; None if a label is free.
METRICS = {
    "messages_accepted_total": ("counter", {NONE}),
    "messages_rejected_total": ("counter", REJECTED),
    "messages_delivered_total": ("counter", {NONE}),
    "messages_dead_total": ("counter", DEAD),
    "repeats_total": ("counter", {NONE}),
    "waits_total": ("counter", labels("outcome", "delivered", "queued", "dead")),
    "attempts_total": ("counter", ATTEMPTS),
    "events_dropped_total": ("counter", {NONE}),
    "queue_messages": ("gauge", {NONE}),
    "queue_messages_max": ("gauge", {NONE}),
    "expiring_messages": ("gauge", {NONE}),
    "queue_bytes": ("gauge", {NONE}),
    "queue_bytes_max": ("gauge", {NONE}),
    "disk_free_bytes": ("gauge", {NONE}),
    "queue_oldest_seconds": ("gauge", {NONE}),
    "oldest_due_seconds": ("gauge", {NONE}),
    "dead_letters": ("gauge", {NONE}),
    "conversations": ("gauge", {NONE}),
    "log_lines_dropped_total": ("counter", {NONE}),
    "conversations_held": ("gauge", labels("reason", "answer_lost", "token_refused")),
    "in_flight": ("gauge", {NONE}),
    "send_rate": ("gauge", {NONE}),
    "quota_rate": ("gauge", {NONE}),
    "quota_wait_seconds_total": ("counter", {NONE}),
    "gate_open": ("gauge", {NONE}),
    "paused": ("gauge", {NONE}),
    "store_errors_total": ("counter", labels("op", "commit", "read", "open")),
    "records_corrupt_total": ("counter", {NONE}),
    "duplicates_possible_total": ("counter", {NONE}),
    "store_damaged": ("gauge", {NONE}),
    "socket_present": ("gauge", {NONE}),
    "config_reload_ok": ("gauge", {NONE}),
    "last_delivery_timestamp_seconds": ("gauge", {NONE}),
    "accept_seconds": ("histogram", {NONE}),
    "commit_seconds": ("histogram", {NONE}),
    "commit_messages": ("histogram", {NONE}),
    "attempt_seconds": ("histogram", {NONE}),
    "delivery_seconds": ("histogram", {NONE}),
    "info": ("gauge", None),
}
# Of a relay in a fleet.
FLEET = {name: ("gauge", {NONE}) for name in ("fleet_up", "fleet_members", "fleet_quota_rate")}
# Of a relay whose queue has a copy there.
COPY = {
    "messages_rejected_total": ("counter", REJECTED | labels("reason", "fenced", "fleet_down")),
    "fleet_behind_commits": ("gauge", {NONE}),
    "fleet_behind_seconds": ("gauge", {NONE}),
    "fleet_ack_seconds": ("histogram", {NONE}),
    "fleet_fenced_total": ("counter", {NONE}),
    "fleet_restored_messages_total": ("counter", {NONE}),
    "fleet_late_messages_total": ("counter", {NONE}),
    "fleet_stream_bytes": ("gauge", {NONE}),
    "fleet_orphans": ("gauge", {NONE}),
}
DELIVERY_BUCKETS = ["0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "300", "900", "3600", "+Inf"]


def scrape(relay):
    """(types by name, help by name, label sets by name, the page)."""
    page = relay.get("/metrics")[1]
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", page, re.M))
    series = {}
    for name, braces in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$", page, re.M):
        pairs = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', braces))
        series.setdefault(name, set()).add(pairs)
    return types, helps, series, page


def check(relay, metrics=METRICS):
    types, helps, series, _ = scrape(relay)
    for short, (kind, sets) in metrics.items():
        name = "connect_relay_" + short
        assert types.get(name) == kind, f"{name}: {types.get(name)}"
        assert helps.get(name), f"{name} has no help text"
        if kind == "histogram":
            assert series[name + "_count"] == {NONE} and series[name + "_sum"] == {NONE}
        elif sets is not None:
            assert series.get(name) == sets, f"{name}: {series.get(name)}"
    unknown = {name for name in types if name.removeprefix("connect_relay_") not in metrics and not name.startswith("process_")}
    assert not unknown, f"undocumented metrics: {unknown}"
    return series


def test_every_metric_and_label_exists_from_the_first_scrape(relays, upstream):
    relay = relays(upstream.url, sender__region="eu-west-2", sender__connect_instance="my-instance")
    series = check(relay)
    [info] = series["connect_relay_info"]
    assert dict(info)["region"] == "eu-west-2" and dict(info)["connect_instance"] == "my-instance" and dict(info)["version"]
    buckets = series["connect_relay_delivery_seconds_bucket"]
    assert [dict(pairs)["le"] for pairs in sorted(buckets, key=lambda pairs: float(dict(pairs)["le"]))] == DELIVERY_BUCKETS
    assert any(name.startswith("process_") for name in series)


def test_relay_of_a_fleet_has_the_metrics_of_the_fleet_too(relays, upstream, nats_servers):
    relay = relays(upstream.url, sender__connect_instance="shop", fleet__servers=nats_servers().url)
    check(relay, METRICS | FLEET)


def test_relay_with_a_copy_in_the_fleet_has_the_metrics_of_the_copy_too(relays, upstream, nats_servers, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n")
    servers = nats_servers(f'jetstream {{ store_dir: "{tmp_path}/js" }}').url
    copy = {"fleet__replicate": "true", "fleet__identity": "pod-0", "fleet__replicas": 1, "queue__key_file": keys}
    relay = relays(upstream.url, sender__connect_instance="shop", fleet__servers=servers, **copy)
    check(relay, METRICS | FLEET | COPY)


def test_events_are_counted_and_metrics_contain_no_token_or_contents(relays, upstreams):
    def script(request):
        content = request.json["Content"]
        if "denied" in content:
            return error(403, "AccessDeniedException", f"no: {request.token}")
        if "invalid" in content:
            return error(400, "ValidationException", f"bad: {content}")
        return None

    upstream = upstreams(script)
    relay = relays(upstream.url)
    wait = ["Prefer: wait=20"]
    assert send(relay, "canary-1", "canary", "mine", headers=wait).status == 200
    assert send(relay, "canary-1", "canary", "mine").status == 200
    assert send(relay, "canary-1", "canary: other", "mine").status == 409
    assert send(relay, "canary-1", "canary: invalid", headers=wait).status == 400
    assert send(relay, "canary-2", "canary: denied", headers=wait).status == 403
    assert curl(relay, MESSAGE, b'{"Content": "canary"', ["X-Amz-Bearer: canary-1"]).status == 400
    found = relay.metrics()
    for name, value in {
        "messages_accepted_total": 3,
        "messages_delivered_total": 1,
        "repeats_total": 1,
        'messages_rejected_total{reason="conflict"}': 1,
        'messages_rejected_total{reason="invalid"}': 1,
        'messages_dead_total{reason="invalid",told="true"}': 1,
        'messages_dead_total{reason="chat_over",told="true"}': 1,
        'attempts_total{outcome="delivered"}': 1,
        'attempts_total{outcome="refused"}': 1,
        'attempts_total{outcome="denied"}': 1,
        "queue_messages": 0,
        "dead_letters": 2,
        "delivery_seconds_count": 1,
        "gate_open": 1,
        "queue_messages_max": 10000,
        "quota_rate": 10,
    }.items():
        assert found[name] == value, f"{name}: {found[name]}"
    check(relay)
    assert "canary" not in scrape(relay)[3]
    # The removal of the relay checks the log for the same word; here: the log is not empty.
    assert [line["event"] for line in relay.lines("accepted", 3)] == ["accepted"] * 3


def test_metrics_show_an_outage_and_a_stuck_queue(relays, upstreams):
    upstream = upstreams()
    relay = relays(upstream.url, sender__probe_max="200ms")
    upstream.stop()
    send(relay, "canary-1", "canary", "mine")
    until(lambda: relay.metrics()["gate_open"] == 0, "the gate is closed")
    found = relay.metrics()
    assert found["queue_messages"] == 1 and found["conversations"] == 1
    assert found['attempts_total{outcome="unavailable"}'] >= 1
    until(lambda: relay.metrics()["queue_oldest_seconds"] > 0, "the oldest grows older")
    assert relay.get("/livez")[0] == 200 and relay.get("/readyz")[0] == 200, "an outage fails no probe"
    upstream.start()
    relay.until_empty()
    found = relay.metrics()
    assert found["gate_open"] == 1 and found["oldest_due_seconds"] == 0 and found["last_delivery_timestamp_seconds"] > 1.7e9


def test_missing_or_incomplete_reply_counts_as_a_lost_answer(relays, upstreams):
    answers = [CUT, Answer(200, b"[]"), Answer(200, b'{"Id":', {"Content-Length": "20"})]
    upstream = upstreams(lambda request: answers.pop(0) if answers else None)
    relay = relays(upstream.url, sender__backoff__initial="20ms", sender__attempt_timeout="2s", sender__connect_timeout="1s")
    assert send(relay, "canary-1", "canary", "mine", headers=["Prefer: wait=20"]).status == 200
    assert relay.metrics()['attempts_total{outcome="answer_lost"}'] == 3
    assert look(relay, "canary-1", "mine").json["State"] == "DELIVERED"


def test_admin_port_is_read_only_and_has_no_other_page(relay):
    assert relay.get("/livez")[0] == relay.get("/readyz")[0] == 200
    assert relay.get("/")[0] == relay.get("/status.json")[0] == 200
    for path in ("/status", "/messages", "/participant/queue", "/pause", "/reload"):
        assert relay.get(path)[0] == 404
    for path in ("/metrics", "/status.json", "/", "/pause", "/reload"):
        assert curl_tcp(relay, "POST", path) in (404, 405)


def curl_tcp(relay, method, path):
    done = subprocess.run(
        ["curl", "--disable", "--silent", "--noproxy", "*", "--output", "/dev/null", "--write-out", "%{http_code}", "--request", method, relay.admin + path],
        capture_output=True, text=True, timeout=30,
    )
    return int(done.stdout)
