"""deploy/connect-relay.service: read by systemd's own tools, and run by a systemd in a container."""

import json
import re
import shutil

import pytest

from kit.containers import debian, podman
from kit.wait import until
from kit.processes import BINARY
from kit.tools import ROOT, ROOT_USER, run

UNIT = ROOT / "deploy/connect-relay.service"
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


@pytest.fixture
def machine(containers):
    """A machine under systemd with the unit and a simulated Connect, and a bot's command line in it."""
    root = debian("systemd", "systemd,dbus,ca-certificates")
    shutil.copy(BINARY, root / "usr/local/bin/connect-relay")
    shutil.copy(UNIT, root / "etc/systemd/system")
    # A drop-in as an operator may write it: here, longer limits for a test.
    drop_in = root / "etc/systemd/system/connect-relay.service.d/test.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=5s\n")
    (root / "etc/connect-relay").mkdir(exist_ok=True)
    shutil.rmtree(root / "var/lib/private/connect-relay", ignore_errors=True)
    ledger = root / "var/ledger"
    ledger.unlink(missing_ok=True)
    init = ["--rootfs", root, "/lib/systemd/systemd"]
    name = podman("run", "--detach", "--systemd=always", "--privileged", "--network=none", *init).strip()

    def inside(*words, check=True):
        return podman("exec", name, *words, check=check)

    inside.settings = root / "etc/connect-relay/relay.toml"
    inside.settings.write_text(f"[sender]\nendpoint = '{CONNECT}'\n")
    inside.delivered = lambda: len(ledger.read_text().splitlines())
    until(lambda: inside("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"), "systemd runs")
    inside("groupadd", "--system", "--force", "connect-bots")
    inside("systemd-run", "--quiet", "connect-relay", "simulate", "--ledger", "/var/ledger")
    until(ledger.exists, "the simulator runs")
    inside("systemctl", "enable", "--now", "connect-relay")
    yield inside
    print(inside("journalctl", "--no-pager", "--unit=connect-relay", "--lines=40", check=False))
    podman("rm", "--force", name, check=False)


def show(machine, *names):
    """Properties of the service."""
    lines = machine("systemctl", "show", "connect-relay", *(f"--property={name}" for name in names)).splitlines()
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
