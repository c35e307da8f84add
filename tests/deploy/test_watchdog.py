"""A disk that hangs: the service manager's watchdog and /livez hear nothing of Connect, and of a commit without end all."""

import socket
import subprocess
import time

import pytest

from kit.patience import PATIENCE, until
from kit.processes import BINARY, Relay, environment
from kit.tools import ROOT_USER, must


@pytest.fixture
def relay(simulator, tmp_path):
    """A relay not started yet, whose queue is on a file system of its own: frozen, its writes wait, as on a lost volume."""
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
    manager.settimeout(PATIENCE)
    # What a relay is started with it takes from this process. Every third of this there is a beat.
    monkeypatch.setenv("NOTIFY_SOCKET", str(relay.folder / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")

    def hear(wanted, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if wanted in (said := manager.recv(4096).decode()):
                return said
        raise AssertionError(f"not heard: {wanted}")

    relay.start()
    hear("WATCHDOG=1")
    must("fsfreeze", "--freeze", relay.disk)
    bot = [BINARY, "send", "--socket", relay.socket, "hello"]
    bot = subprocess.Popen(bot, env=environment(CONNECTION_TOKEN="canary"), stdout=subprocess.DEVNULL)
    # A minute is the relay's own patience with a commit.
    said = hear("hangs", patience=120)
    assert "WATCHDOG=1" not in said and "a commit to the queue has made no step for 6" in said
    assert relay.get("/livez")[0] == 503
    must("fsfreeze", "--unfreeze", relay.disk)
    hear("WATCHDOG=1")
    assert bot.wait(timeout=PATIENCE) is not None
    # Whatever the bot was told after a minute: what was accepted is delivered, and the relay goes on.
    until(lambda: simulator.accepted() == 1, "the message is delivered")
    assert relay.stop() == 0
