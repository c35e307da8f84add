"""deploy/kubernetes: rendered by kubectl, validated for each supported version, and compared with its documentation."""

import base64
import copy
import json
import re

import kubernetes_validate
import pytest
import yaml

from kit.processes import BINARY, environment
from kit.monitoring import RULES
from kit.tools import (
    EXAMPLES,
    KUBECTL,
    KUBERNETES,
    ROOT,
    SCHEMAS,
    VERSIONS,
    kustomized,
    mib,
    must,
    named,
    pod,
    relative,
    rendered,
    run,
    settings,
    settings_of,
    template,
    workload,
)

pytestmark = pytest.mark.needs(KUBECTL)

MONITORS = "monitoring.coreos.com/v1"
each_example = pytest.mark.parametrize("example", EXAMPLES)


def relay(example):
    return named(pod(example)["initContainers"], "connect-relay")


def seconds(text):
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(version):
    network_policies = list(yaml.safe_load_all((KUBERNETES / "networkpolicy.yaml").read_text()))
    assert [one["kind"] for one in network_policies] == ["NetworkPolicy", "NetworkPolicy"]
    resources = [one for example in EXAMPLES for one in rendered(example)] + network_policies
    checked = [kubernetes_validate.validate(one, version, strict=True) for one in resources if one["apiVersion"] != MONITORS]
    assert set(checked) == {version}, "each against this version's own schema"


def test_a_misspelled_key_is_not_valid():
    wrong = copy.deepcopy(workload("deployment"))
    named(wrong["spec"]["template"]["spec"]["initContainers"], "connect-relay")["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.needs(SCHEMAS)
@pytest.mark.parametrize("folder, reach", [("monitor", None), ("monitor-cluster", {"any": True})])
def test_monitoring_resources_are_valid_and_the_podmonitor_selects_the_relays_port(folder, reach):
    monitors = {one["kind"]: one for one in kustomized(KUBERNETES / folder)}
    assert set(monitors) == {"PodMonitor", "PrometheusRule"}
    deploy = ROOT / "tests/deploy"
    for monitor in monitors.values():
        must("node", "validate.mjs", cwd=deploy, input=json.dumps(monitor))
    monitor = monitors["PodMonitor"]
    wrong = {**monitor, "spec": {**monitor["spec"], "podMetricsEndpoint": []}}
    assert run("node", "validate.mjs", cwd=deploy, input=json.dumps(wrong)).returncode != 0, "the schema is strict"
    assert monitors["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    assert monitor["spec"].get("namespaceSelector") == reach
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    for example in EXAMPLES:
        labels = template(workload(example))["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert endpoint["port"] in [port["name"] for port in relay(example)["ports"]]


def test_the_documents_three_lines_give_the_monitors_the_operators_label(tmp_path):
    """kube-prometheus-stack selects by it."""
    document = (ROOT / "docs/kubernetes.md").read_text()
    [block] = re.findall(r"^```yaml\n(namespace: monitoring\n.*?)^```", document, re.M | re.S)
    assert len(re.search(r"^labels:\n.*", block, re.M | re.S)[0].splitlines()) == 3
    (tmp_path / "kustomization.yaml").write_text(local(block, tmp_path))
    for monitor in kustomized(tmp_path):
        assert monitor["metadata"]["labels"] == {"release": "kube-prometheus-stack"}
        assert monitor["metadata"]["namespace"] == "monitoring"


def test_no_two_examples_have_a_name_in_common():
    names = [(one["kind"], one["metadata"]["name"]) for example in EXAMPLES for one in rendered(example)]
    assert len(names) == len(set(names))
    assert not {kind for kind, _ in names} & {"PodMonitor", "PrometheusRule"}, "monitoring is set up once, apart"


@pytest.mark.needs("checkov")
def test_policy_checker_finds_only_the_listed_exceptions(tmp_path):
    for example in EXAMPLES:
        resources = copy.deepcopy(rendered(example))
        spec = template(next(one for one in resources if one["kind"] == workload(example)["kind"]))["spec"]
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
def test_the_bot_runs_as_another_user_and_mounts_the_socket_read_only(example):
    bot = named(pod(example)["containers"], "bot")
    assert bot["securityContext"]["runAsUser"] != relay(example)["securityContext"]["runAsUser"]
    socket = named(bot["volumeMounts"], "connect-relay-socket")
    assert socket == {"name": "connect-relay-socket", "mountPath": "/run/connect-relay", "readOnly": True}


def local(block, folder):
    """A document's kustomization with the components of this checkout."""
    address = "https://git.example.com/connect-relay//deploy/kubernetes"
    assert address in block and "?ref=v" in block
    return re.sub(r"\?ref=v[\d.]+", "", block.replace(address, relative(folder, KUBERNETES)))


def test_the_documents_kustomization_and_bot_render(tmp_path):
    document = (ROOT / "docs/kubernetes.md").read_text()
    blocks = {name: re.findall(rf"```yaml\n# {name}.*?\n(.*?)```", text, re.S)
              for text in ((ROOT / "README.md").read_text() + document,) for name in ("kustomization.yaml", "bot.yaml")}
    block, same = blocks["kustomization.yaml"]
    assert block == same, "README.md and docs/kubernetes.md show the same"
    [bot] = blocks["bot.yaml"]
    (tmp_path / "kustomization.yaml").write_text(local(block, tmp_path))
    (tmp_path / "bot.yaml").write_text(bot)
    resources = kustomized(tmp_path)
    assert sorted(one["kind"] for one in resources) == ["ConfigMap", "ConfigMap", "Deployment"]
    [found] = [one for one in resources if one["kind"] == "Deployment"]
    spec = template(found)["spec"]
    container = named(spec["initContainers"], "connect-relay")
    assert container["image"] == "registry.example.com/connect-relay:0.1.0"
    assert settings_of(container, resources)["AWS_REGION"] == "eu-west-2"
    assert "connect-relay-socket" in [mount["name"] for mount in spec["containers"][0]["volumeMounts"]]
    for version in VERSIONS:
        assert kubernetes_validate.validate(found, version, strict=True) == version


def test_the_keys_of_the_secret_are_read(tmp_path):
    mine = {"resources": [f"{relative(tmp_path, KUBERNETES)}/examples/deployment"], "components": [f"{relative(tmp_path, KUBERNETES)}/secret"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    resources = kustomized(tmp_path)
    [found] = [one for one in resources if one["kind"] == "Deployment"]
    env = {**environment(), **settings_of(named(template(found)["spec"]["initContainers"], "connect-relay"), resources)}
    missing = run(BINARY, "check", env=env)
    assert missing.returncode == 78 and "/etc/connect-relay/keys/keys: No such file" in missing.stderr
    (tmp_path / "keys").write_bytes(base64.b64encode(bytes(32)))
    assert run(BINARY, "check", env={**env, "CONNECT_RELAY__QUEUE__KEY_FILE": str(tmp_path / "keys")}).returncode == 0
