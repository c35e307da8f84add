"""The rights of the relays' accounts at the NATS servers: the table of docs/fleet.md and deploy/nats/nats.conf, each of which is
enough, and of which each is needed."""

import base64
import json
import re
import shutil
import urllib.request

import pytest

from kit.callers import send
from kit.nats import NatsCluster
from kit.processes import ROOT, command, free_port
from kit.wait import until

KEY = base64.b64encode(b"k" * 32).decode()
CONF = (ROOT / "deploy/nats/nats.conf").read_text()
LOGIN = "relay:s3same@"


def section(name):
    """A block of the shipped configuration, with the passwords of this test."""
    text = CONF[CONF.index(f"\n{name} {{"):]
    return text[: text.index("\n}\n") + 3].replace("$RELAY_PASSWORD", "s3same").replace("$OPERATOR_PASSWORD", "op3n")


def table(identity):
    """The rows of the document's table for a relay of this identity, as (right, subject)."""
    rows = re.findall(r"^\| (publish|subscribe|publish, subscribe) \| `(\S+)` \|", (ROOT / "docs/fleet.md").read_text(), re.M)
    stream = "*" if identity == "*" else f"CR_connect-relay=_{identity}"
    names = {"NAME": "connect-relay", "IDENTITY": identity, "STREAM": stream}
    # "STREAM" is also a word of JetStream's own subjects: the name is the last part.
    filled = [(rights, ".".join([names.get(part, part) if part != "STREAM" or last else part
                                 for last, part in enumerate_last(subject.split("."))])) for rights, subject in rows]
    return [(right, subject) for rights, subject in filled for right in rights.split(", ")]


def enumerate_last(parts):
    return [(number == len(parts) - 1, part) for number, part in enumerate(parts)]


def account(rights):
    """The configuration of an account with a user of these rights."""
    lists = "\n".join(f"{right}: {json.dumps([subject for one, subject in rights if one == right])}" for right in ("publish", "subscribe"))
    return f"""accounts {{ RELAYS {{ jetstream: enabled, users: [
        {{ user: relay, password: s3same, permissions: {{ {lists} }} }}
    ] }} }}"""


@pytest.fixture
def copied(relays, simulator, tmp_path):
    """`copied(servers, …)`: a relay that shares its quota and whose queue is copied."""
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")

    def make(servers, start=True, **settings):
        chosen = {
            "sender__connect_instance": "shop",
            "fleet__servers": servers,
            "fleet__replicate": "true",
            "fleet__identity": "pod-0",
            "fleet__lease": "10s",
            "fleet__ack_timeout": "20s",  # a loaded machine is not an outage
            "queue__key_file": keys,
            "shutdown__grace": "2s",
        }
        return relays(simulator.url, start=start, tcp=False, **(chosen | settings))

    return make


def monitored(port, path):
    """A reply of a server's monitoring port."""
    return json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}{path}", timeout=30))


def violations(*servers):
    return [line for server in servers for line in server.log_path.read_text().splitlines() if "Violation" in line]


def live(relay, simulator):
    """The life of a relay in a fleet, in which it uses all of its rights."""
    until(lambda: relay.metrics()["fleet_up"] == 1, "it shares its quota")
    assert command("pause", "--dir", relay.folder).returncode == 0
    for number in range(5):
        reply = send(relay, "canary-token", f"m-{number}", client_token=f"t-{number}")
        assert (reply.status, reply.headers["relay-durable"]) == (202, "fleet")
    until(lambda: relay.metrics()["fleet_stream_bytes"] > 0, "the stream is measured")
    relay.kill()
    shutil.rmtree(relay.folder / "private")
    relay.settings["fleet.stream_bytes_max"] = "640MiB"
    relay.start()
    assert relay.metrics()["fleet_restored_messages_total"] == 5
    assert command("resume", "--dir", relay.folder).returncode == 0
    relay.until_empty()
    assert [line["Content"] for line in simulator.ledger()] == [f"m-{number}" for number in range(5)]


def test_shipped_accounts_are_enough_for_relays_and_operators_and_their_records_are_on_disk(copied, simulator):
    cluster = NatsCluster(config=section("accounts"), login=LOGIN)
    try:
        cluster.start()
        relay = copied(cluster.url)
        live(relay, simulator)
        assert violations(*cluster.servers) == []
        # What `fleet` does for an operator, with the rights of the other user.
        assert command("pause", "--dir", relay.folder).returncode == 0
        send(relay, "canary-token", "canary", client_token="t-9")
        relay.kill()
        settings = {**relay.settings, "fleet.servers": cluster.url.replace(LOGIN, "operator:op3n@")}
        listed = json.loads(command("fleet", "list", "--json", settings=settings).stdout)
        assert [(one["Identity"], one["Queued"], one["Orphan"]) for one in listed] == [("pod-0", 1, True)]
        exported = command("fleet", "export", "pod-0", settings=settings)
        assert json.loads(exported.stdout)["ClientToken"] == "t-9", exported.stderr
        refused = command("fleet", "remove", "pod-0", "--yes", settings={**settings, "fleet.servers": cluster.url})
        assert refused.returncode == 1 and "$JS.API.STREAM.DELETE.CR_connect-relay=_pod-0" in refused.stderr, refused.stderr
        assert command("fleet", "remove", "pod-0", "--yes", settings=settings).returncode == 0
        assert json.loads(command("fleet", "list", "--json", settings=settings).stdout) == []
    finally:
        cluster.remove()


def test_rights_of_the_table_are_those_of_the_shipped_configuration():
    [relay] = re.findall(r"user: relay\n.*?permissions: \{(.*?)\n        \}", CONF, re.S)
    shipped = [(right, subject) for right, subjects in re.findall(r"(publish|subscribe): \[(.*?)\]", relay, re.S)
               for subject in re.findall(r'"(\S+)"', subjects)]
    assert sorted(shipped) == sorted(table("*")) and len(shipped) == 14


def test_relay_with_rights_to_its_own_stream_alone_works_and_is_refused_at_a_foreign_one(copied, simulator, nats_servers, tmp_path):
    port = free_port()
    server = nats_servers(f'http: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}/js" }}\n{account(table("pod-0"))}')
    url = server.url.replace("//", f"//{LOGIN}")
    relay = copied(url, fleet__replicas=1)
    live(relay, simulator)
    assert violations(server) == []
    [account_of_all] = monitored(port, "/jsz?streams=1&config=1&accounts=1")["account_details"]
    [stream] = account_of_all["stream_detail"]
    assert stream["config"]["max_bytes"] == 640 << 20, "the second start changed it"
    other = copied(url, start=False, fleet__identity="pod-1", fleet__replicas=1)
    other.spawn()
    refused = "$JS.API.STREAM.INFO.CR_connect-relay=_pod-1"
    [warning] = until(lambda: other.lines("the fleet's servers do not answer yet"), "the foreign stream is refused")
    assert refused in warning["why"] and "permissions violation" in warning["why"].lower(), warning
    other.kill()
    assert all("pod-1" in line for line in violations(server)) and violations(server)
    assert relay.stop() == 0, "the other one's stream is untouched"


NEEDED = table("pod-0")


# Those of the whole table are tried with --long, and every third otherwise.
TRIED = [
    pytest.param(right, subject, marks=pytest.mark.long if number % 3 else [], id=f"{right} {subject}")
    for number, (right, subject) in enumerate(NEEDED)
]


@pytest.mark.parametrize("right, subject", TRIED)
def test_each_right_is_needed(copied, nats_servers, tmp_path, right, subject):
    rest = [one for one in NEEDED if one != (right, subject)]
    server = nats_servers(f'jetstream {{ store_dir: "{tmp_path}/js" }}\n{account(rest)}')
    relay = copied(server.url.replace("//", f"//{LOGIN}"), start=False, fleet__replicas=1)
    kind = "Publish Violation" if right == "publish" else "Subscription Violation"
    begins = subject.rstrip(">*")

    def refused():
        return any(kind in line and f'"{begins}' in line for line in violations(server))

    relay.spawn()
    if "UPDATE" in subject or "MSG.GET" in subject:
        # The second start finds the stream.
        until(relay.ready, "it has made its stream")
        assert not violations(server)
        relay.stop()
        relay.settings["fleet.stream_bytes_max"] = "640MiB"
        relay.spawn()
    # The streams are listed a minute after the start.
    until(refused, f"the server refuses to {right} {subject}", 120)


def test_documented_look_at_the_monitoring_port_shows_if_records_are_synced(nats_servers, tmp_path):
    """With the shipped block, and without its setting."""
    [path] = re.findall(r"^curl -s http://127.0.0.1:8222/varz \| jq (\S+)", (ROOT / "docs/fleet.md").read_text(), re.M)
    assert 'http: "127.0.0.1:8222"' in CONF

    def shown(jetstream):
        port = free_port()
        nats_servers(f'http: "127.0.0.1:{port}"\n{jetstream}')
        found = monitored(port, "/varz")
        for name in path.strip(".").split("."):
            found = found.get(name)
        return found

    shipped = section("jetstream").replace('"/data"', f'"{tmp_path}/js"').replace("20GB", "1GB")
    assert shown(shipped) is True
    assert shown(shipped.replace("sync_interval: always", "").replace("/js", "/other")) is None
