"""A real pod, by podman: the Job example's two containers as they are rendered, and the simulator as its Connect.

What differs from a cluster, because podman 4.3 knows no native sidecars: the relay is among the containers, without
its probes (podman would run curl in it) and ports, and all of them are asked to stop at once. The queue's volume is a
folder that outlives the pod, as a claim does.
"""

import copy
import json

import pytest
import yaml

from kit.containers import debian, image_of, podman
from kit.wait import until
from kit.tools import KUBECTL, ROOT_USER, named, pod, rendered, settings

pytestmark = [pytest.mark.long, pytest.mark.needs("podman", "buildah", "runc", "mmdebstrap", "cargo", KUBECTL, ROOT_USER)]

MESSAGES = 60
CHATS = [
    {"ContactId": f"contact-{n}", "ConnectionToken": f"canary-{n % 12}", "Text": f"notice {n}"} for n in range(MESSAGES)
]


def manifests(name, folder, bot):
    """The rendered Job as a pod of this name, its queue on a volume that outlives it, Connect's ledger in a folder."""
    spec = copy.deepcopy(pod("job"))
    relay = spec.pop("initContainers")[0]
    for key in ("restartPolicy", "startupProbe", "livenessProbe", "ports"):
        del relay[key]
    relay["image"] = "localhost/connect-relay"
    relay["envFrom"] = [{"configMapRef": {"name": "settings"}}]
    connect = {
        "name": "connect",
        "image": "localhost/connect-relay",
        # Slow, so that only a part is delivered when the pod is asked to stop.
        "args": ["simulate", "--rate", "4", "--burst", "4", "--ledger", "/ledger/ledger"],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "ledger", "mountPath": "/ledger"}],
    }
    mine = named(spec["containers"], "bot")
    mine["image"] = "localhost/bot"
    spec["containers"] = [relay, connect, mine] if bot else [relay, connect]
    spec["restartPolicy"] = "Never"
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    # The kubelet makes an emptyDir with mode 0777; podman's would be root's.
    for of in ("connect-relay-queue", "connect-relay-socket"):
        path = folder / of
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
        volumes[of] = {"name": of, "hostPath": {"path": str(path), "type": "Directory"}}
    volumes["chats"] = {"name": "chats", "configMap": {"name": "chats"}}
    volumes["ledger"] = {"name": "ledger", "hostPath": {"path": str(folder), "type": "Directory"}}
    spec["volumes"] = list(volumes.values())
    told = {**settings("job"), "CONNECT_RELAY__SENDER__ENDPOINT": "http://127.0.0.1:9580", "CONNECT_RELAY__SHUTDOWN__GRACE": "4s"}
    maps = [one for one in rendered("job") if one["kind"] == "ConfigMap"]
    for of, data in (("settings", told), ("chats", {"chats.ndjson": "".join(json.dumps(chat) + "\n" for chat in CHATS)})):
        maps.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": of}, "data": data})
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    return yaml.safe_dump_all([*maps, whole])


@pytest.fixture
def play(image, tmp_path):
    """Starts a pod; removes every pod when the test is over."""
    image_of(debian("bot", "python3"), "bot", "--env", "PATH=/usr/bin:/bin")

    def start(name, **how):
        file = tmp_path / f"{name}.yaml"
        file.write_text(manifests(name, tmp_path, **how))
        podman("play", "kube", "--network=none", file)

    yield start
    for container in podman("ps", "--all", "--quiet", check=False).split():
        print(podman("logs", "--tail", "15", container, check=False))


def test_messages_of_a_deleted_pod_are_delivered_by_the_next_one_on_its_volume(play, tmp_path):
    def delivered():
        ledger = tmp_path / "ledger"
        text = ledger.read_text() if ledger.exists() else ""
        return [json.loads(line)["ClientToken"] for line in text[: text.rfind("\n") + 1].splitlines()]

    def status(name):
        return json.loads(podman("exec", f"{name}-connect-relay", "connect-relay", "status", "--json"))

    def code(container):
        return int(podman("inspect", "--format", "{{.State.ExitCode}}", container))

    play("first", bot=True)
    until(lambda: len(delivered()) >= 8, "some are delivered")
    until(lambda: status("first")["queued"] + len(delivered()) >= MESSAGES, "the bot has submitted everything")
    assert len(delivered()) < MESSAGES
    podman("pod", "stop", "--time", "60", "first")
    assert code("first-connect-relay") == 75, "asked to stop with messages queued"
    before = delivered()
    assert len(set(before)) < MESSAGES, "Connect went with the pod: a part is left"
    podman("pod", "rm", "--force", "first")

    play("second", bot=False)
    expected = {f"{chat['ContactId']}-notice" for chat in CHATS}
    until(lambda: set(delivered()) == expected, "the rest is delivered from the volume")
    until(lambda: status("second")["queued"] == 0, "nothing is queued")
    # An answer in flight when Connect stopped is lost: the message is sent again with the same ClientToken, once per chat.
    assert len(delivered()) - len(expected) <= 12
    for chat in range(12):
        mine = [f"contact-{n}-notice" for n in range(MESSAGES) if n % 12 == chat]
        assert list(dict.fromkeys(token for token in delivered() if token in mine)) == mine, "in order"
    podman("pod", "stop", "--time", "60", "second")
    assert code("second-connect-relay") == 0, "drained"
