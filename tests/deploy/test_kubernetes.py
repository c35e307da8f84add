"""deploy/kubernetes: rendered by kubectl, validated for each supported version, and compared with its documentation."""

import base64
import copy
import json
import os
import re

import kubernetes_validate
import pytest
import yaml

from kit.processes import BINARY, environment
from kit.tools import EXAMPLES, KUBECTL, KUBERNETES, ROOT, SCHEMAS, mib, must, named, pod, rendered, run, settings, workload

pytestmark = pytest.mark.needs(KUBECTL)

# Native sidecars exist since 1.29.
VERSIONS = [
    version
    for version in sorted(set(map(kubernetes_validate.utils.major_minor, kubernetes_validate.utils.all_versions())))
    if tuple(map(int, version.split("."))) >= (1, 29)
]
MONITORS = "monitoring.coreos.com/v1"
each_example = pytest.mark.parametrize("example", EXAMPLES)


def relay(example):
    return named(pod(example)["initContainers"], "connect-relay")


def relative(here, there):
    """kustomize takes no absolute paths."""
    return os.path.relpath(there.resolve(), here.resolve())


def seconds(text):
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(version):
    network_policy = yaml.safe_load((KUBERNETES / "networkpolicy.yaml").read_text())
    resources = [one for example in EXAMPLES for one in rendered(example)] + [network_policy]
    checked = [kubernetes_validate.validate(one, version, strict=True) for one in resources if one["apiVersion"] != MONITORS]
    assert set(checked) == {version}, "each against this version's own schema"


def test_a_misspelled_key_is_not_valid():
    wrong = copy.deepcopy(workload("deployment"))
    named(wrong["spec"]["template"]["spec"]["initContainers"], "connect-relay")["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.needs(SCHEMAS)
def test_monitoring_resources_are_valid_and_the_podmonitor_selects_the_relays_port():
    monitors = {one["kind"]: one for one in rendered("deployment") if one["apiVersion"] == MONITORS}
    assert set(monitors) == {"PodMonitor", "PrometheusRule"}
    folder = ROOT / "tests/deploy"
    for monitor in monitors.values():
        must("node", "validate.mjs", cwd=folder, input=json.dumps(monitor))
        wrong = {**monitor, "spec": {**monitor["spec"], "podMetricsEndpoint": []}}
        assert run("node", "validate.mjs", cwd=folder, input=json.dumps(wrong)).returncode != 0, "the schema is strict"
    labels = workload("deployment")["spec"]["template"]["metadata"]["labels"]
    monitor = monitors["PodMonitor"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in [port["name"] for port in relay("deployment")["ports"]]


@pytest.mark.needs("checkov")
def test_policy_checker_finds_only_the_listed_exceptions(tmp_path):
    for example in EXAMPLES:
        resources = copy.deepcopy(rendered(example))
        spec = next(one for one in resources if one["kind"] == workload(example)["kind"])["spec"]["template"]["spec"]
        # The checker ignores init containers, so here the relay is an ordinary container.
        spec["containers"].append({key: value for key, value in spec.pop("initContainers")[0].items() if key != "restartPolicy"})
        (tmp_path / f"{example}.yaml").write_text(yaml.safe_dump_all(resources))
    done = run("checkov", "-d", tmp_path, "--framework", "kubernetes", "--skip-download", "-o", "json")
    results = json.loads(done.stdout)["results"]
    assert len(results["passed_checks"]) > 100 and not results["parsing_errors"]
    found = {check["check_id"] for check in results["failed_checks"]}
    excuses = (KUBERNETES / "checkov.yaml").read_text()
    excused = set(re.findall(r"^  - (CKV\w+) +# \w.{20,}", excuses, re.M))
    assert excused == set(yaml.safe_load(excuses)["skip-check"]), "each exception has its reason"
    assert found == excused


@each_example
def test_relay_accepts_its_settings(example, tmp_path):
    env = {**environment(), **settings(example)}
    done = run(BINARY, "check", env=env)
    assert done.returncode == 0, done.stderr
    assert "messages go to https://participant.connect.eu-west-2.amazonaws.com" in done.stderr
    assert 'listen = "[::]:9581"' in done.stdout


@each_example
def test_limits_in_the_manifests_are_consistent(example):
    spec, told = pod(example), settings(example)
    # The time that the bot may need before the relay is asked to stop.
    assert seconds(told["CONNECT_RELAY__SHUTDOWN__GRACE"]) + 30 <= spec["terminationGracePeriodSeconds"]
    queue = mib(told["CONNECT_RELAY__QUEUE__BYTES_MAX"])
    if example == "statefulset":
        [claim] = workload(example)["spec"]["volumeClaimTemplates"]
        assert "connect-relay-queue" not in [volume["name"] for volume in spec["volumes"]]
        assert 2 * queue <= mib(claim["spec"]["resources"]["requests"]["storage"])
    else:
        volume = named(spec["volumes"], "connect-relay-queue")["emptyDir"]
        assert volume == {"sizeLimit": volume["sizeLimit"]} and 2 * queue <= mib(volume["sizeLimit"])
        assert mib(volume["sizeLimit"]) <= mib(relay(example)["resources"]["requests"]["ephemeral-storage"])
    ports = {port["name"]: port["containerPort"] for port in relay(example)["ports"]}
    assert told["CONNECT_RELAY__ADMIN__LISTEN"] == f"[::]:{ports['relay-admin']}"


@each_example
def test_relay_is_a_native_sidecar_and_sets_nothing_of_the_pod(example):
    container = relay(example)
    assert pod(example)["initContainers"][0] is container, "before any other"
    assert container["restartPolicy"] == "Always" and "readinessProbe" not in container
    for probe, path in (("startupProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": "relay-admin"}
    assert container["securityContext"] == {
        "runAsUser": 29581,
        "runAsGroup": 29581,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert "ephemeral-storage" not in container["resources"]["limits"], "it would count the bot's files too"
    assert "NetworkPolicy" not in [one["kind"] for one in rendered(example)]


@each_example
def test_only_the_sockets_mount_is_added_to_the_bot(example):
    file = "job.yaml" if example == "job" else "bot.yaml"
    [before, *_] = yaml.safe_load_all((KUBERNETES / "examples" / example / file).read_text())
    before, after = before["spec"]["template"]["spec"], pod(example)
    mine, theirs = dict(named(after["containers"], "bot")), dict(named(before["containers"], "bot"))
    mounts, known = mine.pop("volumeMounts"), theirs.pop("volumeMounts")
    added = [mount for mount in mounts if mount not in known]
    assert added == [{"name": "connect-relay-socket", "mountPath": "/run/connect-relay", "readOnly": True}]
    assert mine == theirs
    assert mine["securityContext"]["runAsUser"] != relay(example)["securityContext"]["runAsUser"]
    added = {key for key in after if after[key] != before.get(key)} - {"containers", "volumes"}
    expected = {"initContainers", "terminationGracePeriodSeconds"}
    # A new claim belongs to root; the file says so.
    assert added == (expected | {"securityContext"} if example == "statefulset" else expected)


def test_documented_kustomization_adds_the_relay_to_another_deployment(tmp_path):
    bot = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "shop"}},
            "template": {
                "metadata": {"labels": {"app": "shop"}},
                "spec": {
                    "initContainers": [{"name": "migrate", "image": "example/migrate:1"}],
                    "containers": [{"name": "bot", "image": "example/bot:1"}, {"name": "proxy", "image": "example/proxy:1"}],
                },
            },
        },
    }
    (tmp_path / "bot.yaml").write_text(yaml.safe_dump(bot))
    documents = "".join((ROOT / name).read_text() for name in ("README.md", "docs/kubernetes.md"))
    block, same = re.findall(r"```yaml\n# kustomization.yaml.*?\n(.*?)```", documents, re.S)
    assert block == same
    address = "https://git.example.com/connect-relay//deploy/kubernetes"
    assert address in block and "?ref=v" in block
    here = block.replace(address, relative(tmp_path, KUBERNETES))
    (tmp_path / "kustomization.yaml").write_text(re.sub(r"\?ref=v[\d.]+", "", here))
    resources = list(yaml.safe_load_all(must("kubectl", "kustomize", tmp_path)))
    spec = next(one for one in resources if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert [one["name"] for one in spec["initContainers"]] == ["connect-relay", "migrate"]
    assert [one["name"] for one in spec["containers"]] == ["bot", "proxy"]
    assert named(spec["initContainers"], "connect-relay")["image"] == "registry.example.com/connect-relay:0.1.0"
    assert "volumeMounts" not in named(spec["containers"], "proxy"), "only the bot reaches the socket"
    assert sorted(one["kind"] for one in resources) == ["ConfigMap", "ConfigMap", "Deployment", "PodMonitor", "PrometheusRule"]


def test_the_secret_is_mounted_for_the_relay_alone_and_read(tmp_path):
    there = relative(tmp_path, KUBERNETES)
    mine = {"resources": [f"{there}/examples/deployment"], "components": [f"{there}/secret"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    resources = list(yaml.safe_load_all(must("kubectl", "kustomize", tmp_path)))
    spec = next(one for one in resources if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    container = named(spec["initContainers"], "connect-relay")
    mounted = [mount["name"] for mount in container["volumeMounts"]]
    assert sorted(mounted) == ["connect-relay-keys", "connect-relay-queue", "connect-relay-socket"]
    assert "connect-relay-keys" not in [mount["name"] for mount in named(spec["containers"], "bot")["volumeMounts"]]
    env = {**environment(), **settings("deployment"), **{one["name"]: one["value"] for one in container["env"]}}
    missing = run(BINARY, "check", env=env)
    assert missing.returncode == 78 and "/etc/connect-relay/keys/keys: No such file" in missing.stderr
    (tmp_path / "keys").write_bytes(base64.b64encode(bytes(32)))
    assert run(BINARY, "check", env={**env, "CONNECT_RELAY__QUEUE__KEY_FILE": str(tmp_path / "keys")}).returncode == 0
