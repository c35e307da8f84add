"""The relay beside workloads of other people, by each of the three ways: the kustomize component, the Helm chart and the plain
YAML. Each renders, is valid for every Kubernetes, and differs from the bare workload in what docs/kubernetes.md lists, and
in nothing else."""

import copy
import re
import shutil

import kubernetes_validate
import pytest
import yaml

from kit.processes import BINARY, ROOT, environment
from kit.tools import (
    HELM,
    HELM_ENGINE,
    KINDS,
    KUBECTL,
    KUBERNETES,
    VERSIONS,
    helm,
    kustomized,
    named,
    relative,
    run,
    settings_of,
    template,
)

HERE = ROOT / "tests/deploy"
DOCUMENT = (ROOT / "docs/kubernetes.md").read_text()
BARE = {one["kind"]: one for one in yaml.safe_load_all((HERE / "workloads.yaml").read_text())}
REDIS = yaml.safe_load((HERE / "redis.yaml").read_text())
# The workload that keeps its own grace period, of 600 s.
OWN = "CronJob"

RELAY = yaml.safe_load((KUBERNETES / "sidecar/pod.yaml").read_text())["spec"]["template"]
PLAIN = yaml.safe_load((KUBERNETES / "plain.yaml").read_text())
IMAGE = "registry.example.com/connect-relay:0.1.0"


def snippet(member):
    """The lines of an author, as the document shows them: the YAML block that begins with this member."""
    blocks = re.findall(rf"^```yaml\n({member}:\n.*?)^```", DOCUMENT, re.M | re.S)
    assert len(set(blocks)) == 1, f"{member}: {blocks}"
    assert len(blocks[0].splitlines()) <= 4, "three lines, beside the name of the member"
    return yaml.safe_load(blocks[0])[member]


def asked(bare):
    """The workload with the lines of its author: the socket's mount, and the label or labels for kustomize."""
    mine = copy.deepcopy(bare)
    named(template(mine)["spec"]["containers"], "shop").setdefault("volumeMounts", []).extend(snippet("volumeMounts"))
    return mine


def labelled(bare):
    mine = asked(bare)
    own = {"connect-relay/grace": "own"} if bare["kind"] == OWN else {}
    mine["metadata"].setdefault("labels", {}).update({"connect-relay/sidecar": "true", **own})
    return mine


def expected(mine):
    """The workload with the relay; the relay's container is a stand-in."""
    mine = copy.deepcopy(mine)
    part = template(mine)
    part.setdefault("metadata", {}).setdefault("labels", {})["connect-relay/scrape"] = "true"
    spec = part["spec"]
    if mine["kind"] != OWN:
        spec["terminationGracePeriodSeconds"] = 300
    spec["initContainers"] = ["the relay", *spec.get("initContainers", [])]
    spec["volumes"] = [*RELAY["spec"]["volumes"], *spec.get("volumes", [])]
    return mine


# The three ways. Each returns the rendered resources.


def kustomize(bares, folder, components=("relay",), literals=("AWS_REGION=eu-west-2",), **more):
    """A kustomization of these workloads."""
    (folder / "workloads.yaml").write_text(yaml.safe_dump_all(bares))
    kustomization = {
        "resources": ["workloads.yaml"],
        "components": [f"{relative(folder, KUBERNETES)}/{name}" for name in components],
        "configMapGenerator": [{"name": "connect-relay", "literals": list(literals)}],
        "images": [{"name": "connect-relay", "newName": IMAGE.split(":")[0], "newTag": IMAGE.split(":")[1]}],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return kustomized(folder)


def templated(bare):
    """The text of a chart's template: the workload's YAML with the lines that its author adds for the relay."""
    mine = copy.deepcopy(bare)
    part = template(mine)
    part.setdefault("metadata", {}).setdefault("labels", {})["@labels"] = ""
    spec = part["spec"]
    if mine["kind"] != OWN:
        spec.pop("terminationGracePeriodSeconds", None)
        spec["@grace"] = ""
    for name in ("sidecar", "volumes"):
        member = "initContainers" if name == "sidecar" else name
        spec[member] = [f"@{name}", *spec.get(member, [])]
    container = named(spec["containers"], "shop")
    container["volumeMounts"] = [*container.get("volumeMounts", []), "@volumeMounts"]
    context = '(dict "Values" .Values "terminationGracePeriodSeconds" 600)' if mine["kind"] == OWN else "."

    def included(match):
        return f'{match[1]}{{{{- include "connect-relay.{match[2]}" {context} | nindent {len(match[1])} }}}}'

    text, count = re.subn(r"^( *)(?:- )?'@(\w+)'(?:: '')?$", included, yaml.safe_dump(mine, sort_keys=False), flags=re.M)
    assert count == (4 if mine["kind"] == OWN else 5)
    return text


def chart(bares, folder, **values):
    """A chart of these workloads, with the library among its charts, as `helm dependency update` leaves it."""
    (folder / "templates").mkdir(parents=True)
    shutil.copytree(HELM / "connect-relay", folder / "charts/connect-relay")
    dependency = {"name": "connect-relay", "version": "0.1.0", "repository": "file://../connect-relay"}
    described = {"apiVersion": "v2", "name": "shop", "version": "1.0.0", "dependencies": [dependency]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(described))
    (folder / "values.yaml").write_text(yaml.safe_dump({"connect-relay": {"region": "eu-west-2", **values}}))
    for bare in bares:
        (folder / f"templates/{bare['kind'].lower()}.yaml").write_text(templated(bare))
    return folder


def pasted(bare):
    """The workload with plain.yaml pasted into its pod's template."""
    mine = asked(bare)
    part = template(mine)
    part.setdefault("metadata", {}).setdefault("labels", {}).update(PLAIN["metadata"]["labels"])
    for member, value in PLAIN["spec"].items():
        if isinstance(value, list):
            part["spec"][member] = [*copy.deepcopy(value), *part["spec"].get(member, [])]
        elif mine["kind"] != OWN:
            part["spec"][member] = value
    return mine


def by_kustomize(folder):
    return kustomize([*map(labelled, BARE.values()), REDIS], folder), labelled


def by_helm(folder):
    return helm("template", chart([*BARE.values()], folder / "chart")), asked


def by_plain_yaml(folder):
    return [pasted(bare) for bare in BARE.values()], asked


WAYS = {"kustomize": by_kustomize, "helm": by_helm, "plain YAML": by_plain_yaml}
NEEDS = {"kustomize": [KUBECTL], "helm": [HELM_ENGINE], "plain YAML": []}


@pytest.fixture(scope="module", params=[pytest.param(way, marks=pytest.mark.needs(*NEEDS[way])) for way in WAYS])
def way(request, tmp_path_factory):
    """The way's name, what it renders, and the author's own part of it."""
    resources, mine = WAYS[request.param](tmp_path_factory.mktemp("way"))
    return request.param, resources, mine


def of_kind(resources, kind):
    [found] = [one for one in resources if one["kind"] == kind and one["metadata"]["name"] != "redis"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_workload_differs_in_what_the_document_lists_and_in_nothing_else(way, kind):
    _, resources, mine = way
    found = copy.deepcopy(of_kind(resources, kind))
    relay = template(found)["spec"]["initContainers"][0]
    template(found)["spec"]["initContainers"][0] = "the relay"
    assert found == expected(mine(BARE[kind]))
    # Its container is the same by every way, but for where its settings come from.
    [pattern] = RELAY["spec"]["initContainers"]
    assert relay["image"] == IMAGE
    found, wanted = ({key: value for key, value in one.items() if key not in ("image", "env", "envFrom")} for one in (relay, pattern))
    assert found == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_lists_what_differs(way, kind):
    _, resources, mine = way
    before, after = template(mine(BARE[kind])), template(of_kind(resources, kind))
    changed = {f"{part}.{member}" for part in ("metadata", "spec") for member in {**before.get(part, {}), **after[part]}
               if before.get(part, {}).get(member) != after[part].get(member)}
    table = DOCUMENT.split("| In the pod's template |")[1].split("\n\n")[0]
    listed = set(re.findall(r"^\| `((?:metadata|spec)\.\w+)` \|", table, re.M))
    assert changed == listed - ({"spec.terminationGracePeriodSeconds"} if kind == OWN else set())


@pytest.mark.parametrize("kind", KINDS)
def test_the_relay_gets_the_same_settings(way, kind):
    name, resources, _ = way
    relay = template(of_kind(resources, kind))["spec"]["initContainers"][0]
    given = settings_of(relay, resources)
    assert given.pop("AWS_REGION") == "eu-west-2"
    given.pop("CONNECT_RELAY__SENDER__CONNECT_INSTANCE", None)
    lines = (KUBERNETES / "sidecar/relay.env").read_text().splitlines()
    pod = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    if kind == OWN and name == "helm":
        pod["CONNECT_RELAY__SHUTDOWN__GRACE"] = "570s"  # what is left of 600 s
    assert given == pod
    assert run(BINARY, "check", env={**environment(), **given, "AWS_REGION": "eu-west-2"}).returncode == 0


def test_every_resource_is_valid_for_every_kubernetes(way):
    _, resources, _ = way
    for version in VERSIONS:
        assert {kubernetes_validate.validate(one, version, strict=True) for one in resources} == {version}


@pytest.mark.needs(KUBECTL)
def test_a_workload_that_does_not_ask_is_left_alone(tmp_path):
    bystanders = [*BARE.values(), REDIS]
    resources = kustomize([*bystanders, labelled({**BARE["Job"], "metadata": {"name": "asks"}})], tmp_path, ("relay", "volume", "secret", "tcp", "fleet", "replicate"))
    found = {one["metadata"]["name"]: one for one in resources}
    assert "connect-relay" in [one["name"] for one in template(found["asks"])["spec"]["initContainers"]]
    for bystander in bystanders:
        assert found[bystander["metadata"]["name"]] == bystander


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("value", ["false", "yes", ""])
def test_another_value_of_the_label_does_not_ask(tmp_path, value):
    mine = asked(BARE["Deployment"])
    mine["metadata"]["labels"]["connect-relay/sidecar"] = value
    assert of_kind(kustomize([mine], tmp_path), "Deployment") == mine


@pytest.mark.needs(KUBECTL)
def test_a_label_that_the_same_kustomization_adds_comes_too_late(tmp_path):
    """As the document says."""
    labels = [{"pairs": {"connect-relay/sidecar": "true"}}]
    found = of_kind(kustomize([BARE["Deployment"]], tmp_path, labels=labels), "Deployment")
    assert found["metadata"]["labels"]["connect-relay/sidecar"] == "true"
    assert template(found) == template(BARE["Deployment"])
    assert "comes too late" in DOCUMENT


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_of_one_workload_is_in_its_own_file(tmp_path, kind):
    mine = labelled(BARE[kind])
    spec = template(mine)["spec"]
    spec["initContainers"] = [*spec.get("initContainers", []), *snippet("initContainers")]
    found = of_kind(kustomize([mine], tmp_path), kind)
    [relay] = [one for one in template(found)["spec"]["initContainers"] if one["name"] == "connect-relay"]
    [variable] = relay.pop("env")
    assert variable["name"] == "CONNECT_RELAY__SHUTDOWN__GRACE"
    other = tmp_path / "other"
    other.mkdir()
    plain = of_kind(kustomize([labelled(BARE[kind])], other), kind)
    assert found == plain, "the rest is as without it"


# The transformers of a kustomization, each as its users write it.
TRANSFORMED = {
    "names": {"namePrefix": "eu-", "nameSuffix": "-v2"},
    "namespace": {"namespace": "shop"},
    "labels": {"labels": [{"pairs": {"env": "prod"}, "includeSelectors": True}]},
    "template labels": {"labels": [{"pairs": {"env": "prod"}, "includeTemplates": True}], "commonAnnotations": {"owner": "sales"}},
    "common labels": {"commonLabels": {"env": "prod"}, "namePrefix": "eu-", "namespace": "shop"},
}


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("how", TRANSFORMED)
def test_the_transformers_of_a_kustomization_find_the_same_workload(tmp_path, how):
    """What they make of the workload with the relay is what they make of the workload that the document describes."""
    plain, changed = (tmp_path / name for name in ("plain", "changed"))
    plain.mkdir()
    changed.mkdir()
    resources = kustomize([*map(labelled, BARE.values())], changed, **TRANSFORMED[how])
    assert {one["metadata"].get("namespace") for one in resources} == {TRANSFORMED[how].get("namespace")}
    pattern = {key: value for key, value in RELAY["spec"]["initContainers"][0].items() if key not in ("envFrom", "image")}
    found, described = {}, []
    for kind in KINDS:
        found[kind] = of_kind(resources, kind)
        relay = template(found[kind])["spec"]["initContainers"][0]
        assert settings_of(relay, resources)["AWS_REGION"] == "eu-west-2", "its ConfigMaps are found by their new names"
        del relay["envFrom"]
        assert {key: value for key, value in relay.items() if key != "image"} == pattern
        described.append(expected(labelled(BARE[kind])))
        template(described[-1])["spec"]["initContainers"][0] = relay
    transformed = kustomize(described, plain, (), **TRANSFORMED[how])
    assert found == {kind: of_kind(transformed, kind) for kind in KINDS}


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("own", [None, "shop"])
def test_a_workload_in_a_namespace_of_its_own_finds_its_configmaps_by_the_kustomizations_namespace(tmp_path, own):
    mine = labelled(BARE["Deployment"])
    mine["metadata"]["namespace"] = "shop"
    resources = kustomize([mine], tmp_path, **({"namespace": own} if own else {}))
    maps = {one["metadata"]["name"] for one in resources if one["kind"] == "ConfigMap" and one["metadata"].get("namespace") == "shop"}
    named = {source["configMapRef"]["name"] for source in template(of_kind(resources, "Deployment"))["spec"]["initContainers"][0]["envFrom"]}
    assert named == maps if own else not named & maps, "without it kustomize links nothing, as the document says"
    assert "only in the workload's file" in DOCUMENT


@pytest.mark.needs(KUBECTL)
def test_the_documents_patch_changes_the_members_of_the_relay_that_it_names(tmp_path):
    [block] = re.findall(r"^```yaml\n(patches:\n.*?)^```", DOCUMENT, re.M | re.S)
    plain, changed = (tmp_path / name for name in ("plain", "changed"))
    plain.mkdir()
    changed.mkdir()
    bare = [labelled(BARE["Deployment"]), labelled(BARE["Job"]), REDIS]
    before, after = kustomize(bare, plain), kustomize(bare, changed, **yaml.safe_load(block))
    relay, volume = relay_and_queue(of_kind(after, "Deployment"))
    assert relay["resources"] == {"requests": {"cpu": "20m", "memory": "64Mi", "ephemeral-storage": "600Mi"}, "limits": {"memory": "256Mi"}}
    assert volume["emptyDir"] == {"sizeLimit": "512Mi"}
    assert "`CONNECT_RELAY__QUEUE__BYTES_MAX=256MiB`" in DOCUMENT, "half of the volume"
    was, volume_was = relay_and_queue(of_kind(before, "Deployment"))
    relay["resources"], volume["emptyDir"] = was["resources"], volume_was["emptyDir"]
    for one in (of_kind(before, "Deployment"), of_kind(after, "Deployment")):
        # kustomize puts what a patch names before the rest.
        template(one)["spec"]["volumes"].sort(key=lambda volume: volume["name"])
    assert after == before, "nothing else has changed, and no other workload"


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("listed, order", [(["migrate"], ["migrate", "connect-relay"]), (["connect-relay", "migrate"], ["connect-relay", "migrate"])])
def test_a_patch_of_another_init_container_names_the_relay_first(tmp_path, listed, order):
    """As the document says."""
    spec = {"initContainers": [{"name": name} for name in listed]}
    named(spec["initContainers"], "migrate")["image"] = "example/migrate:2"
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"}, "spec": {"template": {"spec": spec}}}
    patches = [{"target": {"kind": "Deployment"}, "patch": yaml.safe_dump(patch)}]
    found = of_kind(kustomize([labelled(BARE["Deployment"])], tmp_path, patches=patches), "Deployment")
    assert [one["name"] for one in template(found)["spec"]["initContainers"]] == order
    assert "first (`- name: connect-relay`)" in DOCUMENT


def relay_and_queue(workload):
    spec = template(workload)["spec"]
    return named(spec["initContainers"], "connect-relay"), named(spec["volumes"], "connect-relay-queue")


@pytest.mark.needs(KUBECTL)
def test_two_bots_in_one_namespace_have_no_name_in_common(tmp_path):
    names = []
    for prefix in ("shop-", "help-"):
        (tmp_path / prefix).mkdir()
        resources = kustomize([labelled(BARE["Deployment"])], tmp_path / prefix, ("relay", "tcp"), namePrefix=prefix)
        names.append({(one["kind"], one["metadata"]["name"]) for one in resources})
        assert {kind for kind, _ in names[-1]} == {"ConfigMap", "Deployment"}, "monitoring is apart"
        assert settings_of(template(of_kind(resources, "Deployment"))["spec"]["initContainers"][0], resources), "its own ConfigMaps"
    assert len(names[0]) == 4 and not names[0] & names[1]


@pytest.mark.needs(KUBECTL)
def test_workloads_that_keep_their_names_can_have_names_of_their_own_for_the_configmaps(tmp_path):
    [block] = re.findall(r"^```yaml\n(transformers:\n.*?)^```", DOCUMENT, re.M | re.S)
    resources = kustomize([labelled(BARE["Deployment"])], tmp_path, **yaml.safe_load(block))
    assert of_kind(resources, "Deployment")["metadata"]["name"] == "shop"
    maps = [one["metadata"]["name"] for one in resources if one["kind"] == "ConfigMap"]
    assert len(maps) == 2 and all(name.startswith("shop-connect-relay") for name in maps)
    assert settings_of(template(of_kind(resources, "Deployment"))["spec"]["initContainers"][0], resources)["AWS_REGION"] == "eu-west-2"


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_component_tcp_sets_both_sides(tmp_path, kind):
    mine = labelled(BARE[kind])
    named(template(mine)["spec"]["containers"], "shop")["envFrom"] = snippet("envFrom")
    resources = kustomize([mine], tmp_path, ("relay", "tcp"))
    spec = template(of_kind(resources, kind))["spec"]
    relay = settings_of(spec["initContainers"][0], resources)
    bot = settings_of(named(spec["containers"], "shop"), resources)
    assert bot["AWS_ENDPOINT_URL_CONNECTPARTICIPANT"] == f"http://{relay['CONNECT_RELAY__INGRESS__TCP']}"
    assert relay["CONNECT_RELAY__INGRESS__TCP"] == "127.0.0.1:8480"
    for other in spec["containers"]:
        assert other["name"] == "shop" or "envFrom" not in other
    assert run(BINARY, "check", env={**environment(), **relay}).returncode == 0


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_component_secret_gives_the_keys_to_the_relay_alone(tmp_path, kind):
    env, folder = given_to_the_relay_alone(tmp_path, kind, "secret", "connect-relay-keys")
    assert env == [{"name": "CONNECT_RELAY__QUEUE__KEY_FILE", "value": f"{folder}/keys"}]


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_component_fleet_gives_the_servers_to_the_relay_alone(tmp_path, kind):
    env, _ = given_to_the_relay_alone(tmp_path, kind, "fleet", "connect-relay-fleet")
    source = {"secretKeyRef": {"name": "connect-relay-fleet", "key": "servers"}}
    assert env == [{"name": "CONNECT_RELAY__FLEET__SERVERS", "valueFrom": source}]
    documented = {"CONNECT_RELAY__FLEET__SERVERS": "nats://relay:PASSWORD@nats.nats.svc:4222", "CONNECT_RELAY__SENDER__CONNECT_INSTANCE": "shop"}
    done = run(BINARY, "check", env={**environment(), "AWS_REGION": "eu-west-2", **documented})
    assert done.returncode == 0 and "PASSWORD" not in done.stdout + done.stderr


def resolved(env, namespace, pod, servers):
    """The variables as a container gets them: a `$(NAME)` stands for one before it."""
    found = {}
    for one in env:
        if "value" in one:
            value = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), one["value"])
        elif "fieldRef" in one["valueFrom"]:
            value = {"metadata.namespace": namespace, "metadata.name": pod}[one["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            assert one["valueFrom"]["secretKeyRef"]["key"] == "servers"
            value = servers
        found[one["name"]] = value
    return found


def copies_as(env, folder):
    """Checks that the relay takes these variables; gives the identity of its copy."""
    given = resolved(env, "shop", "bot-0", "nats://relay:PASSWORD@nats.nats.svc:4222")
    (folder / "keys").write_text("a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n")
    assert given["CONNECT_RELAY__QUEUE__KEY_FILE"] == "/etc/connect-relay/keys/keys"
    more = {"AWS_REGION": "eu-west-2", "CONNECT_RELAY__SENDER__CONNECT_INSTANCE": "shop", "CONNECT_RELAY__QUEUE__KEY_FILE": str(folder / "keys")}
    done = run(BINARY, "check", env={**environment(), **given, **more})
    assert done.returncode == 0 and "replicate = true" in done.stdout, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    return given["CONNECT_RELAY__FLEET__IDENTITY"]


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_component_replicate_copies_the_queue_of_a_statefulset_alone_under_its_pods_name(tmp_path, kind):
    plain, changed = (tmp_path / name for name in ("plain", "changed"))
    plain.mkdir()
    changed.mkdir()
    others = ("relay", "secret", "fleet")
    before = of_kind(kustomize([labelled(BARE[kind])], plain, others), kind)
    after = of_kind(kustomize([labelled(BARE[kind])], changed, (*others, "replicate")), kind)
    if kind != "StatefulSet":
        assert after == before, "its pods have new names"
        return
    for version in VERSIONS:
        assert kubernetes_validate.validate(after, version, strict=True) == version
    relay = template(after)["spec"]["initContainers"][0]
    assert copies_as(relay["env"], tmp_path) == "shop.bot-0"
    had = template(before)["spec"]["initContainers"][0]["env"]
    added = [one["name"] for one in relay["env"] if one not in had]
    assert sorted(added) == ["CONNECT_RELAY__FLEET__IDENTITY", "CONNECT_RELAY__FLEET__REPLICATE", "POD_NAME", "POD_NAMESPACE"]
    relay["env"] = had
    assert after == before


@pytest.mark.needs(KUBECTL)
def test_the_documents_components_are_those_that_replicate_needs(tmp_path):
    blocks = re.findall(r"^```yaml\n(components:\n.*?)^```", (ROOT / "docs/fleet.md").read_text(), re.M | re.S)
    named = [[re.search(r"kubernetes/(\w+)\?", url)[1] for url in yaml.safe_load(block)["components"]] for block in blocks]
    assert named == [["relay", "fleet"], ["relay", "secret", "fleet", "replicate"]]


def given_to_the_relay_alone(tmp_path, kind, component, secret):
    """The variables of the relay's container, and the folder of the secret: nothing else differs with the component."""
    plain, changed = (tmp_path / name for name in ("plain", "changed"))
    plain.mkdir()
    changed.mkdir()
    before = of_kind(kustomize([labelled(BARE[kind])], plain), kind)
    after = of_kind(kustomize([labelled(BARE[kind])], changed, ("relay", component)), kind)
    spec = template(after)["spec"]
    relay = spec["initContainers"][0]
    volume, mount = named(spec["volumes"], secret), named(relay["volumeMounts"], secret)
    assert volume["secret"] == {"secretName": secret} and mount["readOnly"]
    spec["volumes"].remove(volume)
    relay["volumeMounts"].remove(mount)
    env = relay.pop("env")
    assert after == before
    return env, mount["mountPath"]


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("group", [None, 2000])
def test_the_component_volume_puts_the_queue_on_a_claim_and_keeps_those_that_are_there(tmp_path, group):
    mine = labelled(BARE["StatefulSet"])
    claim = {"metadata": {"name": "connect-relay-queue"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    mine["spec"]["volumeClaimTemplates"].append(claim)
    own = {"runAsUser": 10001}
    if group:
        own["fsGroup"] = group
        mine["metadata"]["labels"]["connect-relay/fs-group"] = "own"
    template(mine)["spec"]["securityContext"] = own
    found = of_kind(kustomize([mine], tmp_path, ("relay", "volume")), "StatefulSet")
    template(found)["spec"]["initContainers"][0] = "the relay"
    want = expected(mine)
    spec = template(want)["spec"]
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "connect-relay-queue"]
    if not group:
        spec["securityContext"] |= {"fsGroup": 29581, "fsGroupChangePolicy": "OnRootMismatch"}
    assert found == want


@pytest.mark.needs(KUBECTL, HELM_ENGINE)
def test_a_statefulset_with_a_claim_is_the_same_by_every_way(tmp_path):
    claim = {"metadata": {"name": "connect-relay-queue"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    group = yaml.safe_load((KUBERNETES / "volume/fs-group.yaml").read_text())["spec"]["template"]["spec"]["securityContext"]
    mine = labelled(BARE["StatefulSet"])
    mine["spec"]["volumeClaimTemplates"].insert(0, claim)
    by_component = of_kind(kustomize([mine], tmp_path, ("relay", "volume")), "StatefulSet")
    by_chart = of_kind(helm("template", with_claim(chart([BARE["StatefulSet"]], tmp_path / "chart"))), "StatefulSet")
    by_hand = pasted(BARE["StatefulSet"])
    spec = template(by_hand)["spec"]
    spec["volumes"].remove(named(spec["volumes"], "connect-relay-queue"))
    spec["securityContext"] = group
    by_hand["spec"]["volumeClaimTemplates"].insert(0, claim)
    del by_component["metadata"]["labels"]["connect-relay/sidecar"]
    for found in (by_component, by_chart, by_hand):
        template(found)["spec"]["initContainers"][0] = "the relay"
        [first, *_] = found["spec"]["volumeClaimTemplates"]
        assert first["spec"]["resources"]["requests"].pop("storage") in ("1Gi", "1024Mi")
    assert by_component == by_chart == by_hand


@pytest.mark.needs(KUBECTL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_further_components_can_be_pasted_too(tmp_path, kind):
    """The members of their pod.yaml are those that kustomize adds."""
    further = ("secret", "tcp", "fleet")
    assert all(f"{name}/pod.yaml" in DOCUMENT for name in further)
    mine = pasted(BARE[kind])
    spec = template(mine)["spec"]
    for name in further:
        part = yaml.safe_load((KUBERNETES / name / "pod.yaml").read_text())["spec"]["template"]["spec"]
        [container] = part["initContainers"]
        for member in ("env", "volumeMounts"):
            spec["initContainers"][0][member].extend(container.pop(member, []))
        assert container == {"name": "connect-relay"}
        spec["volumes"].extend(part.pop("volumes", []))
        assert set(part) == {"initContainers"}, "nothing else to paste"
    for version in VERSIONS:
        assert kubernetes_validate.validate(mine, version, strict=True) == version
    components = template(of_kind(kustomize([labelled(BARE[kind])], tmp_path, ("relay", *further)), kind))["spec"]
    key = lambda one: one["name"]  # noqa: E731
    assert sorted(spec["volumes"], key=key) == sorted(components["volumes"], key=key)
    relay, theirs = spec["initContainers"][0], components["initContainers"][0]
    assert sorted(relay["volumeMounts"], key=key) == sorted(theirs["volumeMounts"], key=key)
    assert all(one in relay["env"] for one in theirs["env"])


def test_the_patches_for_a_cronjob_are_those_of_the_other_kinds():
    for name, patch in (("sidecar", "pod"), ("secret", "pod"), ("tcp", "pod"), ("fleet", "pod"), ("sidecar", "grace")):
        other = yaml.safe_load((KUBERNETES / name / f"{patch}.yaml").read_text())
        cron = "cronjob" if patch == "pod" else "grace-cronjob"
        mine = yaml.safe_load((KUBERNETES / name / f"{cron}.yaml").read_text())
        assert mine["kind"] == "CronJob" and template(mine) == template(other), (name, patch)


# The library chart.


@pytest.mark.needs(HELM_ENGINE)
def test_the_example_chart_passes_the_linter_and_is_valid(tmp_path):
    shutil.copytree(HELM / "example", tmp_path / "example")
    shutil.copytree(HELM / "connect-relay", tmp_path / "example/charts/connect-relay")
    assert helm("lint", tmp_path / "example") == []
    resources = helm("template", tmp_path / "example")
    for version in VERSIONS:
        assert {kubernetes_validate.validate(one, version, strict=True) for one in resources} == {version}
    [found] = resources
    spec = template(found)["spec"]
    assert spec["initContainers"][0]["name"] == "connect-relay"
    assert named(spec["containers"], "shop")["volumeMounts"] == snippet("volumeMounts")
    described = yaml.safe_load((HELM / "example/Chart.yaml").read_text())
    library = yaml.safe_load((HELM / "connect-relay/Chart.yaml").read_text())
    [dependency] = described["dependencies"]
    assert (dependency["name"], dependency["version"]) == (library["name"], library["version"]) and library["type"] == "library"


@pytest.mark.needs(HELM_ENGINE)
def test_the_packaged_library_renders_as_its_folder_does(tmp_path):
    """The document pushes a package, and `helm dependency update` puts that into charts/."""
    assert helm("lint", HELM / "connect-relay") == []
    by_folder = chart([BARE["Deployment"]], tmp_path / "folder")
    before = helm("template", by_folder)
    shutil.copytree(by_folder, tmp_path / "packaged")
    package = helm("package", tmp_path / "packaged/charts/connect-relay")
    assert f"{package}".endswith("packaged/charts/connect-relay-0.1.0.tgz") and "connect-relay-0.1.0.tgz" in DOCUMENT
    shutil.rmtree(tmp_path / "packaged/charts/connect-relay")
    assert helm("template", tmp_path / "packaged") == before


def test_the_documents_lines_for_a_chart_are_those_of_the_example():
    [block] = re.findall(r"^```yaml\n(  template:\n.*?)^```", DOCUMENT, re.M | re.S)
    example = (HELM / "example/templates/deployment.yaml").read_text().splitlines()
    assert [line for line in block.splitlines() if "include" in line] == [line for line in example if "{{- include" in line]
    assert set(block.splitlines()) <= set(example)


@pytest.mark.needs(HELM_ENGINE)
def test_a_statefulset_of_a_chart_gets_the_queue_on_a_claim_beside_its_own(tmp_path):
    [found] = helm("template", with_claim(chart([BARE["StatefulSet"]], tmp_path / "chart")))
    spec = template(found)["spec"]
    assert [volume["name"] for volume in spec["volumes"]] == ["connect-relay-socket"]
    assert [claim["metadata"]["name"] for claim in found["spec"]["volumeClaimTemplates"]] == ["connect-relay-queue", "data"]
    assert spec["securityContext"] == yaml.safe_load((KUBERNETES / "volume/fs-group.yaml").read_text())["spec"]["template"]["spec"]["securityContext"]
    for version in VERSIONS:
        assert kubernetes_validate.validate(found, version, strict=True) == version


def with_claim(mine):
    """The chart of a StatefulSet with the lines for a claim."""
    file = mine / "templates/statefulset.yaml"
    text = file.read_text().replace('"connect-relay.volumes" .', '"connect-relay.volumes" (dict "Values" .Values "claim" true)')
    text = text.replace("  volumeClaimTemplates:\n", '  volumeClaimTemplates:\n  {{- include "connect-relay.volumeClaimTemplate" . | nindent 2 }}\n')
    text = text.replace("\n      containers:\n", '\n      securityContext:\n        {{- include "connect-relay.fsGroup" . | nindent 8 }}\n      containers:\n')
    file.write_text(text)
    return mine


@pytest.mark.needs(HELM_ENGINE)
@pytest.mark.parametrize("env", [{}, {"CONNECT_RELAY__INGRESS__TCP": "127.0.0.1:9999"}])
def test_the_bots_variable_of_a_chart_is_the_relays_address(tmp_path, env):
    mine = chart([BARE["Job"]], tmp_path / "chart", tcp=True, env=env)
    file = mine / "templates/job.yaml"
    file.write_text(file.read_text().replace("volumeMounts:", "env:").replace("connect-relay.volumeMounts", "connect-relay.botEnv"))
    [found] = helm("template", mine)
    spec = template(found)["spec"]
    given = settings_of(spec["initContainers"][0], [])
    bot = settings_of(named(spec["containers"], "shop"), [])
    assert bot == {"AWS_ENDPOINT_URL_CONNECTPARTICIPANT": f"http://{given['CONNECT_RELAY__INGRESS__TCP']}"}
    values = yaml.safe_load((mine / "values.yaml").read_text())
    values["connect-relay"]["tcp"] = False
    (mine / "values.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(AssertionError, match="connect-relay.botEnv needs tcp: true"):
        helm("template", mine)


@pytest.mark.needs(HELM_ENGINE)
@pytest.mark.parametrize("period", [86400, 1000000, 2592000])
def test_a_long_grace_period_of_a_chart_stays_an_integer(tmp_path, period):
    [found] = helm("template", chart([BARE["Deployment"]], tmp_path / "chart", terminationGracePeriodSeconds=period))
    spec = template(found)["spec"]
    given = settings_of(spec["initContainers"][0], [])
    assert (spec["terminationGracePeriodSeconds"], given["CONNECT_RELAY__SHUTDOWN__GRACE"]) == (period, f"{period - 30}s")


@pytest.mark.needs(HELM_ENGINE)
def test_the_linter_finds_a_fault_in_a_chart(tmp_path):
    broken = chart([BARE["Job"]], tmp_path / "chart")
    (broken / "templates/job.yaml").write_text('{{ include "connect-relay.nothing" . }}\n')
    assert helm("lint", broken)


@pytest.mark.needs(HELM_ENGINE)
def test_the_charts_values_become_settings(tmp_path):
    env = {"CONNECT_RELAY__SENDER__LIFETIME": "30m", "CONNECT_RELAY__QUEUE__BYTES_MAX": "64MiB"}
    values = {"connectInstance": "shop", "tcp": True, "keysSecret": "keys", "env": env, "terminationGracePeriodSeconds": 120, "botEndsIn": 20}
    resources = helm("template", chart([BARE["Deployment"]], tmp_path / "chart", **values))
    spec = template(of_kind(resources, "Deployment"))["spec"]
    given = settings_of(spec["initContainers"][0], resources)
    assert spec["terminationGracePeriodSeconds"] == 120 and given["CONNECT_RELAY__SHUTDOWN__GRACE"] == "100s"
    assert env.items() <= given.items() and given["CONNECT_RELAY__SENDER__CONNECT_INSTANCE"] == "shop"
    assert given["CONNECT_RELAY__INGRESS__TCP"] == "127.0.0.1:8480"
    keys = named(spec["volumes"], "connect-relay-keys")["secret"]["secretName"]
    assert keys == "keys" and named(spec["initContainers"][0]["volumeMounts"], "connect-relay-keys")["readOnly"]
    given["CONNECT_RELAY__QUEUE__KEY_FILE"] = ""
    assert run(BINARY, "check", env={**environment(), **given}).returncode == 0


@pytest.mark.needs(HELM_ENGINE)
def test_the_charts_values_become_members_of_the_container(tmp_path):
    digest = f"sha256:{'0123456789abcdef' * 4}"
    values = {
        "image": {"repository": "localhost:5000/relay", "digest": digest, "pullPolicy": "IfNotPresent"},
        "resources": {"limits": {"memory": "512Mi", "cpu": 1}, "requests": {"cpu": "100m"}},
        "queueMiB": 2048,
        "keysSecret": "4711",
    }
    [found] = helm("template", chart([BARE["StatefulSet"]], tmp_path / "chart", **values))
    for version in VERSIONS:
        assert kubernetes_validate.validate(found, version, strict=True) == version
    relay, volume = relay_and_queue(found)
    assert (relay["image"], relay["imagePullPolicy"]) == (f"localhost:5000/relay@{digest}", "IfNotPresent")
    assert relay["resources"] == {
        "requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "2092Mi"},
        "limits": {"memory": "512Mi", "cpu": 1},
    }
    given = settings_of(relay, [])
    assert volume["emptyDir"]["sizeLimit"] == "2048Mi" and given["CONNECT_RELAY__QUEUE__BYTES_MAX"] == "1024MiB"
    assert named(template(found)["spec"]["volumes"], "connect-relay-keys")["secret"]["secretName"] == "4711"


@pytest.mark.needs(HELM_ENGINE)
@pytest.mark.parametrize("values, storage", [({}, "1024Mi"), ({"queueMiB": 4096}, "4096Mi")])
def test_the_charts_claim_holds_the_queue(tmp_path, values, storage):
    mine = chart([BARE["Job"]], tmp_path / "chart", **values)
    (mine / "templates/job.yaml").write_text('claims:\n  {{- include "connect-relay.volumeClaimTemplate" . | nindent 2 }}\n')
    [found] = helm("template", mine)
    assert found["claims"][0]["spec"]["resources"]["requests"]["storage"] == storage


@pytest.mark.needs(HELM_ENGINE)
def test_the_charts_fleet_is_that_of_the_components(tmp_path):
    values = {"connectInstance": "shop", "keysSecret": "connect-relay-keys", "fleet": {"serversSecret": "connect-relay-fleet", "replicate": True}}
    [found] = helm("template", chart([BARE["StatefulSet"]], tmp_path / "chart", **values))
    for version in VERSIONS:
        assert kubernetes_validate.validate(found, version, strict=True) == version
    components = of_kind(kustomize([labelled(BARE["StatefulSet"])], tmp_path, ("relay", "secret", "fleet", "replicate")), "StatefulSet")
    mine, theirs = (template(one)["spec"]["initContainers"][0] for one in (found, components))
    assert copies_as(mine["env"], tmp_path) == copies_as(theirs["env"], tmp_path)
    of_the_fleet = re.compile("CONNECT_RELAY__FLEET__|POD_")
    env = ([one for one in relay["env"] if of_the_fleet.match(one["name"])] for relay in (mine, theirs))
    by_name = [sorted(some, key=lambda one: one["name"]) for some in env]
    assert by_name[0] == by_name[1]
    key = lambda mount: mount["name"]  # noqa: E731
    assert sorted(mine["volumeMounts"], key=key) == sorted(theirs["volumeMounts"], key=key)
    assert sorted(template(found)["spec"]["volumes"], key=key) == sorted(template(components)["spec"]["volumes"], key=key)


@pytest.mark.needs(HELM_ENGINE)
def test_the_charts_servers_are_a_setting_where_there_is_no_secret(tmp_path):
    servers = ["nats://nats-1.nats.svc:4222", "tls://nats-2.nats.svc:4222"]
    [found] = helm("template", chart([BARE["Deployment"]], tmp_path / "chart", connectInstance="shop", fleet={"servers": servers}))
    given = settings_of(template(found)["spec"]["initContainers"][0], [])
    assert given["CONNECT_RELAY__FLEET__SERVERS"] == ",".join(servers) and "CONNECT_RELAY__FLEET__REPLICATE" not in given
    assert run(BINARY, "check", env={**environment(), **given}).returncode == 0


@pytest.mark.needs(HELM_ENGINE)
@pytest.mark.parametrize("values, word", [
    ({"fleet": {"servers": ["nats://n"]}}, "connectInstance is required"),
    ({"connectInstance": "shop", "fleet": {"servers": ["nats://relay:s3same@n"]}}, "fleet"),
    ({"connectInstance": "shop", "fleet": {"servers": ["nats://n"], "serversSecret": "urls"}}, "not both"),
    ({"connectInstance": "shop", "fleet": {"serversSecret": "urls", "replicate": True}}, "keysSecret"),
    ({"keysSecret": "k", "fleet": {"replicate": True}}, "fleet.replicate needs"),
    ({"region": ""}, "connect-relay.region is required"),
    ({"terminationGracePeriodSeconds": 30}, "must be longer than botEndsIn"),
    ({"regoin": "eu-west-2"}, "regoin"),
    ({"env": {"CONNECT_RELAY__SENDER__IN_FLIGHT_MAX": 8}}, "IN_FLIGHT_MAX"),
    ({"env": {"sender.lifetime": "30m"}}, "sender.lifetime"),
    ({"tcp": "true"}, "/tcp"),
    ({"terminationGracePeriodSeconds": "300"}, "/terminationGracePeriodSeconds"),
    ({"image": {"digest": "0.1.0"}}, "/image/digest"),
    ({"image": {"repository": "registry.example.com/relay@sha256", "tag": "0"}}, "/image/repository"),
    ({"image": {"tag": 1.0}}, "/image/tag"),
    ({"resources": {"limit": {"memory": "1Gi"}}}, "limit"),
    ({"queueMiB": "256Mi"}, "/queueMiB"),
    ({"queueMiB": 255}, "/queueMiB"),
])  # fmt: skip
def test_a_wrong_value_is_refused_by_its_name(tmp_path, values, word):
    with pytest.raises(Exception, match=word):
        helm("template", chart([BARE["Deployment"]], tmp_path / "chart", **values))


# A pod with a simulated Connect.

ENDPOINT = "CONNECT_RELAY__SENDER__ENDPOINT", "http://127.0.0.1:9580"


def with_simulator(bare):
    """The workload with the lines of the chapter Try it without AWS."""
    mine = copy.deepcopy(bare)
    spec = template(mine)["spec"]
    spec["initContainers"] = [*spec.get("initContainers", []), *yaml.safe_load(trial("yaml"))["initContainers"]]
    return mine


def trial(language):
    [chapter] = re.findall(r"^## Try it without AWS\n(.*?)^## ", DOCUMENT, re.M | re.S)
    assert all(f"`{word}`" in chapter for word in ENDPOINT)
    [block] = re.findall(rf"^```{language}\n(.*?)^```", chapter, re.M | re.S)
    return block


def simulated_by_kustomize(kind, folder):
    literals = ("AWS_REGION=eu-west-2", "=".join(ENDPOINT))
    return kustomize([labelled(with_simulator(BARE[kind]))], folder, literals=literals)


def simulated_by_helm(kind, folder):
    return helm("template", chart([with_simulator(BARE[kind])], folder / "chart", env=dict([ENDPOINT])))


def simulated_by_plain_yaml(kind, folder):
    mine = pasted(with_simulator(BARE[kind]))
    named(template(mine)["spec"]["initContainers"], "connect-relay")["env"].append(dict(zip(("name", "value"), ENDPOINT)))
    return [mine]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rendering",
    [
        pytest.param(simulated_by_kustomize, marks=pytest.mark.needs(KUBECTL)),
        pytest.param(simulated_by_helm, marks=pytest.mark.needs(HELM_ENGINE)),
        simulated_by_plain_yaml,
    ],
)
def test_a_pod_with_the_simulator_delivers_a_first_message(rendering, kind, simulators, relays, tmp_path):
    resources = rendering(kind, tmp_path)
    workload = of_kind(resources, kind)
    for version in VERSIONS:
        kubernetes_validate.validate(workload, version, strict=True)
    relay, simulated = (named(template(workload)["spec"]["initContainers"], name) for name in ("connect-relay", "simulator"))
    assert (simulated["args"], simulated["restartPolicy"]) == (["simulate"], "Always")
    settings = settings_of(relay, resources)
    assert settings[ENDPOINT[0]] == ENDPOINT[1]
    # The two containers as processes, on ports and paths of the test's own.
    simulator = simulators()
    here = relays(simulator.url, start=False, tcp=False)
    own = {"ADMIN__LISTEN", "SENDER__ENDPOINT"}
    given = {name.split("__", 1)[1]: value for name, value in settings.items() if name.startswith("CONNECT_RELAY__")}
    here.settings |= {name.replace("__", "."): value for name, value in given.items() if name not in own}
    here.start()
    script = trial("sh")
    for printed, mine in [
        ("kubectl exec -i deploy/shop-bot -c connect-relay -- connect-relay send", f"{BINARY} send --dir {here.folder} --wait 60s"),
        ("kubectl exec deploy/shop-bot -c connect-relay -- connect-relay status", f"{BINARY} status --dir {here.folder}"),
        ("kubectl port-forward deploy/shop-bot 9580 &", ""),
        ("http://127.0.0.1:9580", simulator.url),
    ]:
        assert printed in script, printed
        script = script.replace(printed, mine)
    done = run("sh", "-ec", script, env=environment(), cwd=tmp_path)
    assert done.returncode == 0 and '"accepted":1' in done.stdout, done.stdout + done.stderr
    assert [line["Content"] for line in simulator.ledger()] == ["hello"]
