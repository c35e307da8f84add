"""deploy/prometheus/scrape.yaml, for a Prometheus in Kubernetes without the operator: a real Prometheus takes it (Debian's
knows no Kubernetes: the pods are a static list with the labels that Kubernetes would give)."""

import yaml

from kit.monitoring import RULES
from kit.wait import until

SCRAPE = RULES.with_name("scrape.yaml")
RELAY = {
    "namespace": "bots",
    "pod_name": "shop-1",
    "pod_container_name": "connect-relay",
    "pod_container_port_name": "relay-admin",
    "pod_label_connect_relay_scrape": "true",
    "pod_phase": "Running",
}


def test_it_scrapes_the_relays_port_of_labelled_pods_that_run(relay, prometheus):
    [job] = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    listed = [
        RELAY,
        {**RELAY, "pod_name": "another-port", "pod_container_port_name": "http"},
        {**RELAY, "pod_name": "completed", "pod_phase": "Succeeded"},
        {**RELAY, "pod_name": "failed", "pod_phase": "Failed"},
        {**{key: value for key, value in RELAY.items() if "label" not in key}, "pod_name": "no-relay"},
        {**RELAY, "pod_name": "shop-2", "namespace": "other"},
    ]
    address = relay.admin.removeprefix("http://")
    job["static_configs"] = [
        {"targets": [address], "labels": {f"__meta_kubernetes_{key}": value for key, value in one.items()}} for one in listed
    ]
    job["scrape_interval"] = "1s"
    seen = prometheus([relay], "groups: []", scrape_configs=[job])
    until(lambda: len(seen.query("up == 1")) == 2, "the two relays are scraped")
    names = ("namespace", "pod", "container", "job", "instance")
    found = {tuple(sample["metric"].get(name) for name in names) for sample in seen.query("connect_relay_info")}
    assert found == {("bots", "shop-1", "connect-relay", "connect-relay", address), ("other", "shop-2", "connect-relay", "connect-relay", address)}
    assert len(seen.query("up")) == 2, "no other target"
