"""deploy/connect-relay.service, and with it deploy/systemd: read by systemd's own tools, and run by a systemd in a
container."""

import json
import re
import shutil
import socket

import pytest

from kit.connecting import Connecting, all_have_sent
from kit.containers import copy_of, debian, podman
from kit.wait import TIMEOUT, until
from kit.processes import BINARY, command
from kit.tools import MACHINE, ROOT, ROOT_USER, run

UNIT = ROOT / "deploy/connect-relay.service"
SOCKET_UNIT = ROOT / "deploy/systemd/connect-relay.socket"
# The service's drop-in for it.
WITH_SOCKET = ROOT / "deploy/systemd/connect-relay.service.d/socket.conf"
SOCKET = "/run/connect-relay/relay.sock"
BOT = ("-p", "SupplementaryGroups=connect-bots")
# The address of `simulate` inside the machine.
CONNECT = "http://127.0.0.1:9580"


@pytest.fixture
def unit(tmp_path):
    """The unit with the path of the binary under test: systemd checks that it is executable."""
    text = UNIT.read_text()
    assert text.count("/usr/local/bin/connect-relay ") == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/usr/local/bin/connect-relay ", f"{BINARY} "))
    return copy


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(unit):
    done = run("systemd-analyze", "verify", unit)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("RestartSec=", "RestartSecs="))
    assert "RestartSecs" in run("systemd-analyze", "verify", unit).stderr, "a fault would be seen"


@pytest.mark.needs("systemd-analyze")
def test_sandbox_exposure_is_low(unit):
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)
    assert done.returncode == 0, done.stdout
    level = re.search(r"Overall exposure level for \S+ ([\d.]+)", done.stdout.replace(":", ""))
    assert float(level[1]) <= 2.0


def with_key(text):
    """The unit with the lines of the key, which are comments in it."""
    text, changed = re.subn(r"^#(LoadCredential=|Environment=)", r"\1", text, flags=re.M)
    assert changed == 2
    return text


def test_a_credentials_folder_that_systemd_did_not_resolve_is_refused():
    """As a systemd before 251 leaves it, which does not know %d: the queue would not be sealed."""
    done = command("check", settings={"sender.region": "eu-west-2", "queue.key_file": "%d/sealing-keys"})
    assert done.returncode == 78 and "queue.key_file = %d/sealing-keys" in done.stderr


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_no_fault_in_the_optional_parts(unit):
    unit.write_text(with_key(unit.read_text()))
    done = run("systemd-analyze", "verify", unit)
    assert (done.returncode, done.stderr) == (0, "")
    # A drop-in's lines come after the unit's own.
    sections = re.split(r"^\[(\w+)\]$", WITH_SOCKET.read_text(), flags=re.M)[1:]
    unit.write_text(unit.read_text() + "".join(f"[{name}]\n{lines}" for name, lines in zip(sections[::2], sections[1::2])))
    shutil.copy(SOCKET_UNIT, unit.parent)
    for one in (unit, unit.parent / SOCKET_UNIT.name):
        done = run("systemd-analyze", "verify", one, env={**MACHINE, "SYSTEMD_UNIT_PATH": f"{unit.parent}:"})
        assert (done.returncode, done.stderr) == (0, ""), one


@pytest.fixture(scope="session")
def root(containers):
    """A Debian with the relay's program."""
    root = copy_of(debian("systemd-pattern", "systemd,dbus,ca-certificates"), "debian-unit")
    (root / CLONE / "target/release").mkdir(parents=True)
    shutil.copy(BINARY, root / CLONE / "target/release/connect-relay")
    yield root
    shutil.rmtree(root)


# A clone on the machine, after `cargo build --release`.
CLONE = "root/clone"


def installation():
    """The commands at the head of the unit."""
    [block] = re.findall(r"In a clone, after `cargo build --release`:\n#\n((?:#   .+\n)+)#\n", UNIT.read_text())
    commands = re.findall(r"^#   (.+)$", block, flags=re.M)
    assert commands[-1] == "systemctl enable --now connect-relay"
    return commands


@pytest.fixture
def machine(containers, root):
    """A machine under systemd with the unit and a simulated Connect, and a bot's command line in it."""
    (root / CLONE / "deploy").mkdir(exist_ok=True)
    shutil.copy(UNIT, root / CLONE / "deploy")
    (root / "etc/systemd/system" / UNIT.name).unlink(missing_ok=True)
    # A drop-in as an operator may write it: here, longer limits for a test.
    units = root / "etc/systemd/system"
    (units / SOCKET_UNIT.name).unlink(missing_ok=True)
    (units / f"sockets.target.wants/{SOCKET_UNIT.name}").unlink(missing_ok=True)
    drop_in = units / "connect-relay.service.d/test.conf"
    shutil.rmtree(drop_in.parent, ignore_errors=True)
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=5s\n")
    shutil.rmtree(root / "var/lib/private/connect-relay", ignore_errors=True)
    ledger = root / "var/ledger"
    ledger.unlink(missing_ok=True)
    init = ["--rootfs", root, "/lib/systemd/systemd"]
    name = podman("run", "--detach", "--systemd=always", "--privileged", "--network=none", *init).strip()

    def inside(*words, check=True):
        return podman("exec", name, *words, check=check)

    inside.root, inside.units = root, units
    inside.process = podman("inspect", "--format", "{{.State.Pid}}", name).strip()
    inside.settings = root / "etc/connect-relay/relay.toml"
    inside.delivered = lambda: len(ledger.read_text().splitlines())
    until(lambda: inside("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"), "systemd runs")
    # As on a machine: the mounts that systemd makes for credentials are seen by the services. podman's root is private.
    inside("mount", "--make-rshared", "/")
    inside("groupdel", "connect-bots", check=False)  # of another test
    inside("sh", "-exc", f"cd /{CLONE}\n" + "\n".join(installation()))
    assert show(inside, "ActiveState") == {"ActiveState": "active"}, "as the head of the unit installs it"
    inside.settings.write_text(f"[sender]\nendpoint = '{CONNECT}'\n")
    inside("systemd-run", "--quiet", "connect-relay", "simulate", "--ledger", "/var/ledger")
    until(ledger.exists, "the simulator runs")
    inside("systemctl", "restart", "connect-relay")
    yield inside
    print(inside("journalctl", "--no-pager", "--unit=connect-relay", "--lines=40", check=False))
    podman("rm", "--force", name, check=False)


def show(machine, *names, unit="connect-relay.service"):
    """Properties of a unit."""
    lines = machine("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def send(machine, text, *properties):
    """A bot with these properties sends one message; returns its output."""
    bot = ["systemd-run", "--wait", "--quiet", "--pipe", "-p", "DynamicUser=yes", "-E", "CONNECTION_TOKEN=canary", *properties]
    return machine(*bot, "connect-relay", "send", text, check=False)


@pytest.mark.needs("podman", "runc", "mmdebstrap", ROOT_USER)
def test_systemd_starts_watches_and_stops_the_relay(machine):
    assert show(machine, "ActiveState") == {"ActiveState": "active"}, "READY was received"
    assert json.loads(send(machine, "hello", "-p", "SupplementaryGroups=connect-bots"))["State"] == "QUEUED"
    assert "permission denied: only users that the socket's mode allows can connect" in send(machine, "hello"), "who is not of the bots' group is kept out"
    until(lambda: machine.delivered() == 1, "the message is delivered, through the whole sandbox")
    until(lambda: show(machine, "StatusText")["StatusText"].startswith("ready: 0 queued"), "the status tells")

    machine("systemctl", "kill", "--signal=SIGSTOP", "connect-relay")
    until(lambda: show(machine, "NRestarts", "ActiveState") == {"NRestarts": "1", "ActiveState": "active"}, "the watchdog saw it hang")

    # Connect stops: the queued messages stay on disk, exit code 75, and systemd counts no failure.
    machine.settings.write_text('[sender]\nendpoint = "http://127.0.0.1:9"\n[shutdown]\ngrace = "3s"\n')
    machine("systemctl", "restart", "connect-relay")
    assert json.loads(send(machine, "later", "-p", "SupplementaryGroups=connect-bots"))["State"] == "QUEUED"
    machine("systemctl", "stop", "connect-relay")
    assert show(machine, "ExecMainStatus", "Result", "ActiveState") == {"ExecMainStatus": "75", "Result": "success", "ActiveState": "inactive"}

    # systemd does not retry after a wrong configuration.
    machine.settings.write_text("nonsense = 1\n")
    machine("systemctl", "start", "connect-relay", check=False)
    assert show(machine, "ExecMainStatus", "ActiveState", "NRestarts") == {"ExecMainStatus": "78", "ActiveState": "failed", "NRestarts": "0"}

    machine.settings.write_text(f"[sender]\nendpoint = '{CONNECT}'\n")
    machine("systemctl", "start", "connect-relay")
    until(lambda: machine.delivered() == 2, "the next start delivers what was left")


@pytest.mark.needs("podman", "runc", "mmdebstrap", ROOT_USER)
@pytest.mark.parametrize("folder", ["%d", "/run/credentials/connect-relay.service"])
def test_key_that_root_alone_can_read_seals_the_queue(machine, folder):
    """Also as the document has it for a systemd without %d."""
    assert folder in (ROOT / "docs/systemd.md").read_text()
    nowhere = '[sender]\nendpoint = "http://127.0.0.1:9"\n[shutdown]\ngrace = "0s"\n'
    machine.settings.write_text(nowhere)
    machine("systemctl", "restart", "connect-relay")
    queue = machine.root / "var/lib/private/connect-relay/queue"

    def is_readable_on_disk(text):
        return any(text.encode() in file.read_bytes() for file in queue.rglob("*") if file.is_file())

    assert json.loads(send(machine, "canary-in-clear", *BOT))["State"] == "QUEUED"
    assert is_readable_on_disk("canary-in-clear")
    [command] = re.findall(r"^#   (\(umask 077 .+)$", UNIT.read_text(), flags=re.M)
    machine("sh", "-c", command)
    key = "/etc/connect-relay/sealing-keys"
    assert machine("stat", "--format=%U %a", key).split() == ["root", "600"]
    unit = machine.units / UNIT.name
    unit.write_text(with_key(UNIT.read_text()).replace("=%d/", f"={folder}/"))
    machine("systemctl", "daemon-reload")
    machine("systemctl", "restart", "connect-relay")
    machine("systemctl", "reload", "connect-relay")
    until(lambda: "configuration reloaded" in machine("journalctl", "--unit=connect-relay", "--lines=20"), "the key can be read again")
    assert json.loads(send(machine, "canary-sealed", *BOT))["State"] == "QUEUED"
    assert not is_readable_on_disk("canary-sealed")
    for path in (key, "/run/credentials/connect-relay.service/sealing-keys"):
        tried = machine("systemd-run", "--wait", "--quiet", "--pipe", "-p", "DynamicUser=yes", *BOT, "cat", path, check=False)
        assert "Permission denied" in tried, "a bot cannot read it"

    # Without its key the queue is not opened.
    unit.write_text(UNIT.read_text())
    machine("systemctl", "daemon-reload")
    machine("systemctl", "restart", "connect-relay", check=False)
    assert show(machine, "ExecMainStatus", "ActiveState") == {"ExecMainStatus": "78", "ActiveState": "failed"}


@pytest.fixture
def socket_machine(machine):
    """A machine with the socket unit, installed as its first lines say."""
    head = SOCKET_UNIT.read_text().split("[Unit]")[0]
    commands = re.findall(r"^#   (.+)$", head, flags=re.M)
    assert len(commands) == 6
    # A stop with messages queued does not wait longer than it must.
    machine.settings.write_text(f"[sender]\nendpoint = '{CONNECT}'\n[shutdown]\ngrace = '3s'\n")
    folder = machine.root / "root/systemd"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOCKET_UNIT.parent, folder)
    machine("sh", "-exc", "cd /root/systemd\n" + "\n".join(commands))
    # How root of this machine reaches the socket inside.
    machine.socket = f"/proc/{machine.process}/root{SOCKET}"
    return machine


@pytest.mark.needs("podman", "runc", "mmdebstrap", ROOT_USER)
def test_every_connect_succeeds_over_a_restart_and_two_kills_of_the_service(socket_machine):
    machine = socket_machine

    def socket_file():
        return machine("stat", "--format=%i %U %G %a %z", SOCKET).split()

    made = socket_file()
    assert made[1:4] == ["root", "connect-bots", "660"]
    assert machine("stat", "--format=%U %a", "/run/connect-relay").split() == ["root", "755"]
    assert json.loads(send(machine, "hello", *BOT))["State"] == "QUEUED"
    assert "permission denied" in send(machine, "hello"), "who is not of the bots' group is kept out"
    bots = [Connecting(machine.socket) for _ in range(2)]
    for bot in bots:
        bot.start()
    all_have_sent(bots)
    machine("systemctl", "restart", "connect-relay")
    for _ in range(2):
        all_have_sent(bots)
        before = show(machine, "MainPID")
        machine("systemctl", "kill", "--signal=SIGKILL", "connect-relay")
        until(lambda: show(machine, "MainPID")["MainPID"] not in ("0", before["MainPID"]), "the next one starts")
    all_have_sent(bots)
    for bot in bots:
        bot.end()
    assert [bot.refused for bot in bots] == [[], []]
    assert socket_file() == made
    # A bot starts a relay that is stopped.
    machine("systemctl", "stop", "connect-relay.service")
    assert socket_file() == made
    checked = machine("connect-relay", "check", "--online", check=False)
    assert f"ingress.socket {SOCKET}: ok (held by systemd, which starts the relay when a bot connects)\n" in checked
    assert show(machine, "ActiveState")["ActiveState"] == "inactive", "the check starts nothing"
    assert json.loads(send(machine, "wake up", *BOT))["State"] == "QUEUED"
    assert show(machine, "ActiveState")["ActiveState"] == "active"
    checked = machine("connect-relay", "check", "--online", check=False)
    assert checked.count(": ok (a relay is running)\n") == 4, checked


@pytest.mark.needs("podman", "runc", "mmdebstrap", ROOT_USER)
@pytest.mark.parametrize(("settings", "code"), [("nonsense = 1", "78"), (f"[sender]\nendpoint = '{CONNECT}'\n[queue]\npath = '/proc/queue'", "1")])
def test_client_that_waits_while_starts_fail_is_served_once_one_succeeds(socket_machine, settings, code):
    machine = socket_machine
    machine("systemctl", "stop", "connect-relay.service")
    machine.settings.write_text(f"{settings}\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.settimeout(TIMEOUT)
        waiting.connect(machine.socket)
        waiting.sendall(b"GET /participant/queue HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
        # The pause after a failure: systemd starts nothing in it.
        until(lambda: show(machine, "ExecMainStatus", "SubState") == {"ExecMainStatus": code, "SubState": "stop-post"}, "a start has failed")
        machine.settings.write_text(f"[sender]\nendpoint = '{CONNECT}'\n")
        assert waiting.recv(64).startswith(b"HTTP/1.1 200 ")
    assert show(machine, "ActiveState", unit=SOCKET_UNIT.name)["ActiveState"] == "active"
    assert show(machine, "ActiveState")["ActiveState"] == "active"


@pytest.mark.needs("podman", "runc", "mmdebstrap", ROOT_USER)
def test_socket_whose_path_is_gone_is_made_again_as_the_warning_says(socket_machine):
    machine = socket_machine
    pid = show(machine, "MainPID")
    machine("rm", SOCKET)
    remedy = "systemctl restart connect-relay.socket"
    until(lambda: remedy in machine("journalctl", "--unit=connect-relay", "--grep=not at its path", check=False), "it warns")
    assert show(machine, "MainPID") == pid
    machine(*remedy.split())
    assert json.loads(send(machine, "hello", *BOT))["State"] == "QUEUED"
    assert show(machine, "MainPID") != pid
