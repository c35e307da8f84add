"""The Grafana dashboard: well-formed for import, and every one of its queries returns data from a real Prometheus."""

import json

from kit.callers import send
from kit.processes import ROOT
from kit.wait import until

DASHBOARD = json.loads((ROOT / "deploy/grafana/connect-relay.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


# No rules at all: the dashboard needs none.
NO_RULES = "groups: []"


def resolved(expression, connect_instance=".*", namespace=".*", pod=".*"):
    """A query as Grafana sends it, with these selected; by default, all of them."""
    for name, value in {"connect_instance": connect_instance, "namespace": namespace, "pod": pod}.items():
        assert f'{name}=~"${name}"' in expression, f"not filtered by {name}: {expression}"
        expression = expression.replace(f"${name}", value)
    expression = expression.replace("$__rate_interval", "5s").replace("[5m]", "[5s]").replace("[1h]", "[30s]").replace("[1d]", "[24s]")
    assert "$" not in expression, expression
    return expression


def test_dashboard_is_well_formed_for_import():
    assert DASHBOARD["title"] and DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD, "an id belongs to one Grafana"
    names = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource": "datasource", "connect_instance": "query", "namespace": "query", "pod": "query"}
    for variable in DASHBOARD["templating"]["list"][1:]:
        assert variable["definition"] == variable["query"]["query"] and f", {variable['name']})" in variable["definition"]
        # A relay outside Kubernetes has no namespace and no pod: ".*" matches a label that is not there, ".+" would not.
        assert variable["includeAll"] and variable["multi"] and variable["allValue"] == ".*"
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken = set()
    for panel in PANELS:
        assert panel["title"] and panel["description"] and panel["type"] in ("stat", "timeseries")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for part in [panel, *panel["targets"]]:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} lies over another"
        taken |= cells


def test_no_query_needs_a_recorded_series():
    assert not [expression for _, expression in QUERIES if ":" in expression.replace("[", "").replace("]", "")]


def test_every_query_returns_data(relays, simulators, loads, nats_servers, prometheus, tmp_path):
    relay = relays(simulators("--rate", 4, "--burst", 4).url, sender__connect_instance="shop", sender__quota_rate=4)
    loads(relay, per_second=6)
    keys = tmp_path / "keys"
    keys.write_text("a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n")
    servers = nats_servers(f'jetstream {{ store_dir: "{tmp_path}/js" }}').url
    copy = {"fleet__replicate": "true", "fleet__identity": "pod-0", "fleet__replicas": 1, "queue__key_file": keys}
    copied = relays(simulators().url, sender__connect_instance="copied", fleet__servers=servers, **copy)
    loads(copied, per_second=6)
    seen = prometheus([relay, copied], NO_RULES)

    def empty():
        results = [(title, expression, seen.query(resolved(expression))) for title, expression in QUERIES]
        # A quantile without observations is NaN, which Grafana shows as no data.
        return [(title, expression) for title, expression, result in results
                if not any(sample["value"][1] != "NaN" for sample in result)]

    missing = [("none was asked", "")]

    def nothing_missing():
        missing[:] = empty()
        return not missing

    try:
        until(nothing_missing, "every panel has data", timeout=40)
    except AssertionError:
        raise AssertionError(f"no data: {missing}") from None
    for _, expression in QUERIES:
        for other in ({"connect_instance": "help"}, {"namespace": "bots"}, {"pod": "shop-1"}):
            assert not [sample for sample in seen.query(resolved(expression, **other)) if sample["value"][1] not in ("NaN", "0")]


def test_a_relay_that_two_jobs_scrape_is_shown_once(stranded, prometheus):
    for number in range(5):
        assert send(stranded, f"canary-{number}", "canary").status == 202
    labels = {"namespace": "bots", "pod": "shop-1"}
    seen = prometheus([stranded], NO_RULES, jobs=("bots/shop-connect-relay", "bots/help-connect-relay"), labels=labels)
    until(lambda: len(seen.query("up == 1")) == 2, "both jobs scrape it")
    by_title = dict(QUERIES[:2])
    chosen = {"namespace": "bots", "pod": "shop-1"}
    for title, value in (("Relays", "1"), ("Queued", "5")):
        [sample] = until(lambda: seen.query(resolved(by_title[title], **chosen)), f"{title} has data")
        assert sample["value"][1] == value, title
        assert not seen.query(resolved(by_title[title], namespace="other")), "another namespace has none"
