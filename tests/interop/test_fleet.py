"""Relays that share one quota over a real NATS server: they join, divide, leave, fall silent and come back."""

import json
import os
import signal
import subprocess
import time

import pytest

from kit.callers import send
from kit.nats import SERVER, NatsCluster, NKey
from kit.processes import ROOT, command
from kit.wait import until

TOKEN = "canary-token"
SUBJECT = "cr.connect-relay.q.shop."


def reports(listener):
    """The messages of the relays that a listener has read."""
    return [json.loads(payload) for _, payload in list(listener.messages)]


def fill(relay, messages, chats=20):
    """Hands over a batch: more than the quota sends in the test."""
    lines = [
        json.dumps({"ContentType": "text/plain", "Content": "canary", "ClientToken": f"m-{number}", "ConnectionToken": f"canary-{number % chats}"})
        for number in range(messages)
    ]
    done = command("send", "--socket", relay.socket, "--batch", "-", stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def fleet(relays, simulators, nats_servers):
    """`fleet(count, servers, …)`: relays in front of one simulator of 20 a second."""

    def make(count, servers=None, start=True, simulator=None, **settings):
        make.simulator = simulator or getattr(make, "simulator", None) or simulators("--rate", "20", "--burst", "10", "--latency", "1ms", "--jitter", "0ms")
        make.server = getattr(make, "server", None) or nats_servers()
        chosen = {"sender__connect_instance": "shop", "sender__quota_rate": 20, "sender__quota_burst": 10, "shutdown__grace": "2s"}
        chosen |= {"fleet__servers": servers or make.server.url} | settings
        return [relays(make.simulator.url, start=start, tcp=False, **chosen) for _ in range(count)]

    return make


def status(relay):
    return json.loads(command("status", "--json", "--dir", relay.folder).stdout)


def members(relay):
    return relay.metrics().get("fleet_members")


def until_members(all_of, number):
    until(lambda: all(members(relay) == number for relay in all_of), f"each relay counts {number} members")


def until_shared(all_of):
    """Waits until the relays divide one rate equally."""

    def equal():
        found = [relay.metrics() for relay in all_of]
        shares = [one["send_rate"] for one in found]
        rates = [one["fleet_quota_rate"] for one in found]
        return max(rates) < 1.05 * min(rates) and max(shares) < 1.1 * min(shares) and abs(sum(shares) / rates[0] - 1) < 0.1

    until(equal, f"{len(all_of)} relays divide one rate")


def test_relays_divide_one_rate_and_one_that_stops_gives_its_share_up_at_once(fleet, nats_listeners):
    one, two, three = all_of = fleet(3)
    listener = nats_listeners(fleet.server)
    for relay in all_of:
        fill(relay, 2000)
    until_members(all_of, 3)
    until_shared(all_of)
    assert all(relay.metrics()["fleet_up"] == 1 for relay in all_of)
    assert all(len(relay.lines("fleet joined", 1)) == 1 for relay in all_of)
    third = one.metrics()["send_rate"]
    assert three.stop() == 75
    until_members([one, two], 2)
    until_shared([one, two])
    assert one.metrics()["send_rate"] > 1.2 * third
    leavers = {report["run"] for report in reports(listener) if report.get("leaving")}
    assert len(leavers) == 1, "it said goodbye"
    assert {subject for subject, _ in listener.messages} == {SUBJECT + fleet.simulator.url.split("//")[1].replace(".", "=2e").replace(":", "=3a")}
    for run in {report["run"] for report in reports(listener)}:
        assert [report["run"] for report in reports(listener) if report.get("leaving")].count(run) <= 1


def test_relay_that_is_stopped_is_missed_and_joins_again_when_it_goes_on(fleet):
    one, two = both = fleet(2)
    for relay in both:
        fill(relay, 2000)
    until_members(both, 2)
    two.process.send_signal(signal.SIGSTOP)
    try:
        until_members([one], 1)
    finally:
        two.process.send_signal(signal.SIGCONT)
    until_members(both, 2)
    until_shared(both)


def test_server_that_is_killed_is_one_warning_and_no_report_is_sent_late(fleet, nats_listeners):
    both = fleet(2)
    for relay in both:
        fill(relay, 2000)
    until_members(both, 2)
    fleet.server.kill()
    until(lambda: all(relay.metrics()["fleet_up"] == 0 for relay in both), "the relays notice")
    until(lambda: all(relay.lines(WARNING) for relay in both), "the relays warn")
    before = [relay.metrics()['attempts_total{outcome="delivered"}'] for relay in both]
    until(lambda: all(members(relay) == 1 for relay in both), "each relay is alone")
    until(
        lambda: all(relay.metrics()['attempts_total{outcome="delivered"}'] > was + 3 for relay, was in zip(both, before)),
        "each goes on alone from its last share",
    )
    fleet.server.start()
    listener = nats_listeners(fleet.server)
    until_members(both, 2)
    assert all(relay.metrics()["fleet_up"] == 1 for relay in both)
    until(lambda: len(reports(listener)) >= 8, "the relays report again")
    for relay in both:
        assert len(relay.lines(WARNING)) == 1 and relay.lines(WARNING)[0]["level"] == "WARN"
        assert len(relay.lines("fleet joined", 2)) == 2
    late_by = {}
    for arrived, report in zip(listener.arrivals, reports(listener)):
        late_by.setdefault(report["run"], []).append(arrived * 1000 - report["sent"])
    assert len(late_by) == 2
    for delays in late_by.values():
        assert max(delays) - min(delays) < 1000, "a report older than a second is never sent"


WARNING = "the fleet is not reached: this relay goes on alone from its last share, and tries again until it is"


def test_server_that_hangs_is_left_for_another_one(fleet, nats_servers):
    hangs, works = nats_servers(), nats_servers()
    hangs.freeze()
    try:
        [relay] = fleet(1, servers=f"{hangs.url},{works.url}")
        until(lambda: relay.metrics()["fleet_up"] == 1, "the relay joins through the other server")
        [joined] = relay.lines("fleet joined", 1)
        assert joined["server"] == works.url
        hangs.thaw()
        works.freeze()
        until(lambda: len(relay.lines("fleet joined")) > 1 or relay.metrics()["fleet_up"] == 0, "the relay leaves the server")
        until(lambda: relay.metrics()["fleet_up"] == 1, "the relay joins through the first server")
        assert relay.lines("fleet joined")[-1]["server"] in (hangs.url, works.url)
    finally:
        hangs.thaw()
        works.thaw()


def test_servers_that_cannot_be_reached_delay_a_first_message_by_three_seconds_at_most(fleet):
    begun = time.monotonic()
    [relay] = fleet(1, servers="nats://127.0.0.1:9")
    reply = send(relay, TOKEN, "canary", headers=["Prefer: wait=20"])
    assert reply.status == 200
    assert time.monotonic() - begun < 20
    [line] = until(lambda: relay.lines(WARNING), "the relay warns")
    assert "nats://127.0.0.1:9: " in line["why"] and "refused" in line["why"].lower()
    until(lambda: any("The fleet connect-relay is not reached" in problem for problem in status(relay)["problems"]), "status says it")


def test_wrong_password_is_one_warning_without_the_password(fleet, nats_servers):
    server = nats_servers('authorization { users: [{ user: relay, password: "right" }] }')
    url = server.url.replace("//", "//relay:{}@")
    [wrong] = fleet(1, servers=url.format("s3same"), start=False)
    wrong.secrets |= {"s3same"}
    wrong.start()
    [line] = until(lambda: wrong.lines(WARNING), "the relay warns")
    assert "authorization violation" in line["why"].lower(), line
    assert send(wrong, TOKEN, "canary", headers=["Prefer: wait=20"]).status == 200
    [right] = fleet(1, servers=url.format("right"))
    until(lambda: right.metrics()["fleet_up"] == 1, "the relay joins")
    assert wrong.metrics()["fleet_up"] == 0
    assert len(wrong.lines(WARNING)) == 1


def test_account_without_the_right_to_the_subject_is_a_warning_that_names_it(fleet, nats_servers):
    rights = 'permissions: { publish: ["other.>"], subscribe: ["cr.>"] }'
    server = nats_servers('authorization { users: [{ user: relay, password: "right", %s }] }' % rights)
    [relay] = fleet(1, servers=server.url.replace("//", "//relay:right@"))
    [line] = until(lambda: relay.lines(WARNING), "the relay warns")
    assert "permissions violation for publish" in line["why"].lower() and "cr.connect-relay.q.shop" in line["why"]
    assert relay.metrics()["fleet_up"] == 0


@pytest.mark.needs("openssl")
def test_credentials_file_with_an_nkey_is_accepted(fleet, nats_servers, tmp_path):
    mine, other = NKey(tmp_path / "mine", "user"), NKey(tmp_path / "other", "user")
    file = tmp_path / "relay.nk"
    file.write_text(mine.seed + "\n")
    server = nats_servers("authorization { users: [{ nkey: %s }] }" % mine.public)
    [relay] = fleet(1, servers=server.url, start=False, fleet__credentials_file=file)
    relay.secrets |= {mine.seed}
    relay.start()
    until(lambda: relay.metrics()["fleet_up"] == 1, "the relay joins")
    file.write_text(other.seed)
    [wrong] = fleet(1, servers=server.url, fleet__credentials_file=file)
    [line] = until(lambda: wrong.lines(WARNING), "the relay warns")
    assert "authorization violation" in line["why"].lower()


@pytest.mark.needs("openssl")
def test_credentials_file_with_a_jwt_is_accepted(fleet, nats_servers, tmp_path):
    operator, account, user = (NKey(tmp_path / kind, kind) for kind in ("operator", "account", "user"))
    unlimited = {name: -1 for name in ("subs", "data", "payload", "imports", "exports", "conn", "leaf")}
    accounts = operator.issue(account.public, "account", limits=unlimited | {"wildcards": True})
    operators = operator.issue(operator.public, "operator")
    server = nats_servers(f"operator: {operators}\nresolver: MEMORY\nresolver_preload: {{ {account.public}: {accounts} }}")
    file = tmp_path / "relay.creds"
    token = account.issue(user.public, "user", subs=-1, data=-1, payload=-1, pub={"allow": ["cr.>"]}, sub={"allow": ["cr.>"]})
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    [relay] = fleet(1, servers=server.url, start=False, fleet__credentials_file=file)
    relay.secrets |= {user.seed, token}
    relay.start()
    until(lambda: relay.metrics()["fleet_up"] == 1, "the relay joins")


def certificates(folder):
    """An authority, a server's certificate for localhost, and a client's."""
    run = lambda *args: subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, cwd=folder)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        (folder / "extensions").write_text(f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        run("req", "-new", *key[:-2], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", f"{name}.pem")


@pytest.mark.needs("openssl")
def test_server_with_tls_is_verified_by_the_ca_file_and_may_ask_for_a_certificate(fleet, nats_servers, tmp_path):
    certificates(tmp_path)
    tls = 'tls { cert_file: "%s", key_file: "%s", ca_file: "%s", verify: true }' % tuple(tmp_path / name for name in ("server.pem", "server.key", "ca.pem"))
    server = nats_servers(tls)
    url = f"tls://localhost:{server.port}"
    files = {"fleet__ca_file": tmp_path / "ca.pem", "fleet__cert_file": tmp_path / "client.pem", "fleet__cert_key_file": tmp_path / "client.key"}
    [relay] = fleet(1, servers=url, **files)
    until(lambda: relay.metrics()["fleet_up"] == 1, "the relay joins")
    [untrusting] = fleet(1, servers=url)
    [line] = until(lambda: untrusting.lines(WARNING), "the relay warns")
    assert "certificate" in line["why"].lower(), line
    plain = nats_servers()
    [strict] = fleet(1, servers=f"tls://localhost:{plain.port}", **files)
    [line] = until(lambda: strict.lines(WARNING), "the relay warns")
    assert strict.metrics()["fleet_up"] == 0, "tls:// never falls back to a connection without TLS"


def test_instances_fleets_and_destinations_on_one_server_do_not_mix(fleet, simulators):
    shop = fleet(2)
    [bank] = fleet(1, sender__connect_instance="bank")
    [test] = fleet(1, fleet__name="test fleet.>")
    [elsewhere] = fleet(1, simulator=simulators())
    until_members(shop, 2)
    for other in (bank, test, elsewhere):
        until(lambda: other.metrics()["fleet_up"] == 1, "it joins")
        assert members(other) == 1
    assert all(members(relay) == 2 for relay in shop)


def test_what_others_publish_on_the_subject_is_no_report_and_harms_nothing(fleet, nats_listeners):
    [relay] = fleet(1)
    listener = nats_listeners(fleet.server)
    until(lambda: reports(listener), "the relay reports")
    subject, payload = listener.messages[0]
    report = json.loads(payload)
    for garbage in (b"", b"\x00\xff", b"{}", b"[]", b"null", payload[:20], payload * 2, b"x" * 100_000):
        listener.publish(subject, garbage)
    other = report | {"id": "zzz", "run": report["run"] ^ 1}
    for wild in (other, other | {"used": 1e308}, other | {"accepted": 2**64 - 1}, other | {"sent": 2**64 - 1}, other | {"division": {"rate": -1}}):
        listener.publish(subject, json.dumps(wild).encode())
    until(lambda: members(relay) == 2, "a report from any sender counts")
    until(lambda: members(relay) == 1, "and is forgotten")
    assert send(relay, TOKEN, "canary", headers=["Prefer: wait=20"]).status == 200


def test_servers_that_are_divided_divide_the_fleet_and_each_part_goes_on_until_they_are_united(fleet):
    cluster = NatsCluster(wires=True)
    try:
        cluster.start()
        # Each relay knows one of the servers.
        one, two, three = all_of = [fleet(1, servers=server.url)[0] for server in cluster.servers]
        for relay in all_of:
            fill(relay, 3000)
        until_members(all_of, 3)
        until_shared(all_of)
        cluster.divide(2)
        until_members([one, two], 2)
        until_members([three], 1)
        delivered = [relay.metrics()['attempts_total{outcome="delivered"}'] for relay in all_of]
        until(
            lambda: all(relay.metrics()['attempts_total{outcome="delivered"}'] > was + 30 for relay, was in zip(all_of, delivered)),
            "both parts go on",
        )
        until_shared([one, two])
        assert [members(relay) for relay in all_of] == [2, 2, 1]
        assert all(relay.metrics()["fleet_up"] == 1 and not relay.lines(WARNING) for relay in all_of), "each reaches its own server"
        cluster.unite()
        until_members(all_of, 3)
        until_shared(all_of)
        assert all(len(relay.lines("fleet joined", 1)) == 1 for relay in all_of)
    finally:
        cluster.remove()


def test_check_online_tries_each_server_and_says_what_to_do(fleet, nats_servers):
    users = '{ user: relay, password: "right" }, { user: guest, password: "guest", permissions: { publish: ["other"] } }'
    server = nats_servers("authorization { users: [ %s ] }" % users)
    relay, *_ = fleet(1, start=False)

    def lines(login, url=server.url):
        servers = url.replace("//", f"//{login}@")
        done = command("check", "--online", "--dir", relay.folder, settings=relay.settings | {"fleet.servers": servers})
        assert "s3same" not in done.stdout + done.stderr
        return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("fleet.servers nats")]

    name = f"fleet.servers {server.url}: "
    assert lines("relay:right") == (0, [name + "ok"])
    code, [line] = lines("relay:s3same")
    assert code == 1 and line.startswith(name) and "authorization violation" in line
    assert line.endswith("check the user and password in fleet.servers, or fleet.credentials_file")
    code, [line] = lines("guest:guest")
    assert code == 1 and "allow the relay's account to publish and subscribe on cr.connect-relay.q.shop." in line
    code, [line] = lines("relay:right", "nats://127.0.0.1:9")
    assert code == 1 and "refused" in line.lower() and "check fleet.servers, and that this host may connect there" in line


def test_shipped_configuration_of_the_servers_is_valid_and_gives_the_relays_their_rights_alone(fleet, nats_servers):
    path = ROOT / "deploy/nats/nats.conf"
    variables = {"NATS_NAME": "nats-1", "RELAY_PASSWORD": "s3same", "OPERATOR_PASSWORD": "other"}
    done = subprocess.run([SERVER, "-t", "-c", path], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rights = path.read_text().partition("accounts {")[2].replace("$RELAY_PASSWORD", "s3same").replace("$OPERATOR_PASSWORD", "other")
    # Shared quota alone needs no JetStream.
    server = nats_servers("accounts {" + rights.replace("jetstream: enabled", ""))
    url = server.url.replace("//", "//relay:s3same@")
    [relay] = fleet(1, servers=url)
    until(lambda: relay.metrics()["fleet_up"] == 1, "the relay joins")
    [stranger] = fleet(1, servers=url, fleet__name="another")
    [line] = until(lambda: stranger.lines(WARNING), "another fleet is refused")
    assert "permissions violation" in line["why"].lower()


@pytest.mark.parametrize(
    "settings",
    [
        {"fleet.servers": "nats://a"},
        {"fleet.servers": "a:4222"},
        {"fleet.servers": "nats://a", "sender.connect_instance": "shop", "fleet.ca_file": "ca.pem"},
        {"fleet.servers": "nats://a", "sender.connect_instance": "shop", "fleet.credentials_file": "/nowhere"},
        {"fleet.servers": "nats://a", "sender.connect_instance": "shop", "fleet.cert_file": "/etc/passwd"},
    ],
)
def test_bad_settings_are_78_before_a_socket_is_touched(settings, tmp_path):
    done = command("run", "--dir", tmp_path / "relay", settings={"sender.region": "eu-west-2"} | settings)
    assert done.returncode == 78 and "fleet." in done.stderr, done.stderr
    assert not (tmp_path / "relay").exists()


def connections(relay):
    """The number of connections to other hosts or ports that a process has, and its threads."""
    folder = f"/proc/{relay.process.pid}"
    inodes = set()
    for entry in os.listdir(f"{folder}/fd"):
        try:
            inodes.add(os.readlink(f"{folder}/fd/{entry}"))
        except FileNotFoundError:
            pass
    with open(f"{folder}/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return sum(row[3] == "01" and f"socket:[{row[9]}]" in inodes for row in rows), len(os.listdir(f"{folder}/task"))


def test_without_servers_there_is_no_connection_no_thread_and_no_metric(fleet, relays, upstream):
    alone = relays(upstream.url, tcp=False, sender__connect_instance="shop")
    [member] = fleet(1)
    until(lambda: member.metrics()["fleet_up"] == 1, "the relay joins")
    assert not [name for name in alone.metrics() if name.startswith("fleet_")]
    assert status(alone)["fleet"] is None
    until(lambda: connections(alone)[0] == 0, "no connection")
    until(lambda: connections(member)[0] == 1, "one connection")
    assert connections(alone)[1] == connections(member)[1], "the fleet has no thread either"
