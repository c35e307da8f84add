"""The Grafana dashboard: well-formed for import, and every one of its queries returns data from a real Prometheus."""

import json

from kit.monitoring import RULES, hastened
from kit.wait import until
from kit.processes import ROOT

DASHBOARD = json.loads((ROOT / "deploy/grafana/connect-relay.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def resolved(expression):
    """A query as Grafana sends it, with all instances selected."""
    expression = expression.replace("$__rate_interval", "5s").replace("$connect_instance", ".*").replace("[1d]", "[24s]")
    assert "$" not in expression, expression
    return expression


def test_dashboard_is_well_formed_for_import():
    assert DASHBOARD["title"] and DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD, "an id belongs to one Grafana"
    names = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource": "datasource", "connect_instance": "query"}
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


def test_every_query_returns_data(relays, simulators, loads, prometheus):
    relay = relays(simulators("--rate", 4, "--burst", 4).url, sender__connect_instance="shop", sender__quota_rate=4)
    loads(relay, per_second=6)
    seen = prometheus([relay], hastened(RULES.read_text()))

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
    chosen = seen.query("label_replace(connect_relay:member, 'x', '$1', 'connect_instance', '(.*)')")
    assert [sample["metric"]["connect_instance"] for sample in chosen] == ["shop"]
