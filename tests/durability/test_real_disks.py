"""Real file systems: an ext4 that is shut down under the relay, and a full one. They need root and loop devices;
without them the tests are reported as NOT RUN."""

import fcntl
import os
import random
import shutil
import struct
import subprocess
import threading

import pytest

from kit.audit import Known, faults
from kit.bots import Bots
from kit.callers import queued, send
from kit.drained import drained, start_on
from kit.wait import until
from kit.processes import Relay, Simulator
from kit.upstream import Upstream

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # as `xfs_io -x -c shutdown` does: nothing more reaches the disk
MIB = 1 << 20
CHATS = 20


class Ext4:
    """A new ext4 in a file."""

    def __init__(self, home, size):
        if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not os.path.exists("/dev/loop-control"):
            pytest.skip("NOT RUN: a real file system needs root, mkfs.ext4 and loop devices")
        self.image, self.path = home / "image", home / "mnt"
        self.path.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self.image], check=True)
        self.mount()

    def mount(self):
        done = subprocess.run(["mount", "-o", "loop", self.image, self.path], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NOT RUN: {done.stderr}")

    def unmount(self):
        if os.path.ismount(self.path):
            subprocess.run(["umount", self.path], check=True)

    def shut_down(self):
        folder = os.open(self.path, os.O_RDONLY)
        fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(folder)

    def free(self):
        volume = os.statvfs(self.path)
        return volume.f_bavail * volume.f_frsize


@pytest.fixture
def ext4(home):
    made = []

    def make(size):
        made.append(Ext4(home, size))
        return made[-1]

    yield make
    for volume in made:
        volume.unmount()


def test_ext4_shut_down_under_the_relay_keeps_acknowledged_messages(seed, ext4, times):
    volume, rng = ext4(256 * MIB), random.Random(f"{seed} ext4")
    acknowledged = 0
    for cut in range(6 * times):
        if cut:
            volume.mount()
        acknowledged += shut_down(f"{seed}{cut}", volume, volume.path / str(cut), rng)
        shutil.rmtree(volume.path / str(cut))
        volume.unmount()
    print(f"an ext4 shut down {6 * times} times under the relay: {acknowledged} messages acknowledged, lost 0")


def shut_down(seed, volume, folder, rng):
    """The disk fails while bots send; after its return all acknowledged messages are delivered."""
    simulator = Simulator("--rate", 1e9, "--burst", 1_000_000_000, "--latency", "15ms", "--jitter", "10ms")
    run = start_on(folder, simulator.url)
    try:
        assert run.started(), run.log()
        bots = Bots(seed, run.socket, CHATS, 1 << 30, lambda: 200 - (bots.acknowledged - simulator.accepted()))
        gone = threading.Timer(rng.uniform(0.05, 1.0), volume.shut_down)
        gone.start()
        bots.run(lambda: run.process.poll() is not None)
        gone.join()
        code = run.wait()
        assert code == 1 and "the store failed" in run.log() and "panicked" not in run.log(), f"{code}: {run.log()[-3000:]}"
        before = simulator.ledger()
    finally:
        run.end()
        simulator.remove()
    volume.unmount()
    volume.mount()
    ledger, wrong = drained(folder)
    known = Known(CHATS)
    for chat, told in bots.told.items():
        known.highest["accepted"][chat], known.highest["offered"][chat] = told, told + 20
    # The earlier deliveries, and the rest: at most the last one of a chat is in both.
    sent = {line["ClientToken"] for line in before}
    whole = before + [line for line in ledger if line["ClientToken"] not in sent]
    repeated = len(before) + len(ledger) - len(whole)
    assert not (wrong := wrong + faults(seed, known, whole)), wrong[:5]
    assert repeated <= CHATS, f"{repeated} messages were sent again"
    return bots.acknowledged


def with_a_backlog(volume, request, **settings):
    """A relay with its folder on that volume and 50 messages queued; its upstream, which is down, and its ballast."""
    upstream = Upstream()
    upstream.stop()
    folder = volume.path / "relay"
    limits = {"queue__bytes_max": "64MiB", "sender__probe_max": "100ms", "sender__quota_rate": 1000}
    relay = Relay(upstream.url, folder=folder, **limits, **settings)
    request.addfinalizer(upstream.stop)
    request.addfinalizer(relay.remove)
    relay.start()
    for number in range(50):
        assert send(relay, "canary-token", f"canary: {number}").status == 202
    ballast = relay.folder / "private/queue/ballast"
    assert ballast.exists()
    return relay, upstream, ballast


def test_start_on_a_full_disk_releases_the_ballast_and_delivers_queued_messages(ext4, request):
    volume = ext4(200 * MIB)
    relay, upstream, ballast = with_a_backlog(volume, request)
    relay.kill()
    with open(volume.path / "filler", "wb", buffering=0) as filler:
        with pytest.raises(OSError, match="No space left"):
            for _ in range(volume.free() // 4096 + 1):
                filler.write(bytes(4096))
    assert volume.free() < 4096
    upstream.start()
    relay.start()
    relay.until_empty()
    assert len(upstream.messages()) == 50 and not ballast.exists()
    until(lambda: "the relay releases the reserved space" in relay.log(), "it is logged")
    assert send(relay, "canary-token", "canary: more").status == 429
    os.unlink(volume.path / "filler")
    until(lambda: send(relay, "canary-token", "canary: at last").status == 202, "intake resumes by itself")
    relay.until_empty()
    assert relay.stop() == 0


def test_a_full_disk_stops_intake_not_delivery_and_intake_resumes_by_itself(ext4, request):
    volume = ext4(200 * MIB)
    relay, upstream, ballast = with_a_backlog(volume, request, queue__free_disk_min="32MiB")
    filler = os.open(volume.path / "filler", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(filler, 0, volume.free() - 16 * MIB)
    refused = until(lambda: (reply := send(relay, "canary-token", "canary: more")).status != 202 and reply, "intake stops")
    assert refused.status == 429 and "queue.free_disk_min" in refused.json["Message"]
    assert int(refused.headers["retry-after"]) > 0 and int(refused.headers["x-amz-retry-after"]) > 0
    assert relay.get("/readyz")[0] == 200, "a full disk is no reason to send bots elsewhere"

    size = os.fstat(filler).st_size
    os.posix_fallocate(filler, size, volume.free())
    until(lambda: not ballast.exists(), "the ballast is given up")
    waiting = queued(relay)
    upstream.start()
    relay.until_empty()
    assert len(upstream.messages()) == waiting >= 50, "deliveries go on, and their outcomes are recorded"
    assert send(relay, "canary-token", "canary: more").status == 429

    os.close(filler)
    os.unlink(volume.path / "filler")
    until(lambda: send(relay, "canary-token", "canary: at last").status == 202, "intake resumes by itself")
    until(ballast.exists, "the ballast is set aside again")
    relay.until_empty()
    assert relay.stop() == 0
