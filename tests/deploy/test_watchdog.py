"""A disk that hangs: the watchdog and /livez react to a hung commit, and not to an outage of Connect."""

import socket
import subprocess
import time

import pytest

from kit.wait import TIMEOUT, until
from kit.processes import BINARY, Relay, environment
from kit.tools import ROOT_USER, must


@pytest.fixture
def relay(simulator, tmp_path):
    """A relay that is not started yet, with its queue on its own file system: while it is frozen, writes hang."""
    relay = Relay(simulator.url, tcp=False)
    relay.disk = relay.folder / "private"
    relay.disk.mkdir()
    must("truncate", "--size=256M", tmp_path / "image")
    must("mkfs.ext4", "-q", tmp_path / "image")
    must("mount", "-o", "loop", tmp_path / "image", relay.disk)
    yield relay
    subprocess.run(["fsfreeze", "--unfreeze", relay.disk], check=False, stderr=subprocess.DEVNULL)
    if relay.process:
        relay.kill()
    must("umount", relay.disk)
    relay.remove()


@pytest.mark.long
@pytest.mark.needs("mkfs.ext4", "fsfreeze", ROOT_USER)
def test_hung_commit_stops_watchdog_notifications_until_it_continues(relay, simulator, monkeypatch):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(relay.folder / "notify"))
    manager.settimeout(TIMEOUT)
    # The relay inherits this environment. It notifies three times per time-out.
    monkeypatch.setenv("NOTIFY_SOCKET", str(relay.folder / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")

    def wait_for(wanted, timeout=TIMEOUT):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if wanted in (said := manager.recv(4096).decode()):
                return said
        raise AssertionError(f"not received: {wanted}")

    relay.start()
    wait_for("WATCHDOG=1")
    must("fsfreeze", "--freeze", relay.disk)
    bot = [BINARY, "send", "--socket", relay.socket, "hello"]
    bot = subprocess.Popen(bot, env=environment(CONNECTION_TOKEN="canary"), stdout=subprocess.DEVNULL)
    # The relay reports a commit that has hung for a minute.
    said = wait_for("hangs", timeout=120)
    assert "WATCHDOG=1" not in said and "a commit to the queue has made no step for 6" in said
    assert relay.get("/livez")[0] == 503
    must("fsfreeze", "--unfreeze", relay.disk)
    wait_for("WATCHDOG=1")
    assert bot.wait(timeout=TIMEOUT) is not None
    # Whatever reply the bot got after a minute: accepted messages are delivered, and the relay continues.
    until(lambda: simulator.accepted() == 1, "the message is delivered")
    assert relay.stop() == 0
