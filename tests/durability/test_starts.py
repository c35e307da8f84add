"""Starts on faulty folders: each ends soon, with a relay that serves or with a log line that gives the reason,
and the matching exit code."""

import base64
import json
import os
import shutil
import subprocess

import pytest

from kit.callers import send
from kit.drained import drained, start_on
from kit.wait import until
from kit.processes import BINARY, Relay, Simulator, command, environment

DOWN = "http://127.0.0.1:9"
GRACE = {"shutdown.grace": "2100ms"}
# The time-out of src/storage/open_guard.rs, and an allowance for a busy machine.
TIMEOUT, MORE = 60, 60


@pytest.fixture
def relay():
    relay = Relay(DOWN, shutdown__grace="2100ms")
    yield relay
    relay.remove()


@pytest.fixture
def left(relay):
    """A relay that was killed with three messages on disk; returns its queue's folder."""
    relay.start()
    for number in range(3):
        assert send(relay, "canary-token", f"canary: {number}", f"c-{number}").status == 202
    relay.kill()
    relay.log_path.unlink()
    return relay.folder / "private/queue"


def before(folder, function):
    """Starts a program with this function in place of the C library's."""
    head = "#define _GNU_SOURCE\n#include <sys/syscall.h>\n#include <time.h>\n#include <unistd.h>\n"
    (folder / "other.c").write_text(head + function)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "other.so", folder / "other.c"], check=True)
    return ["env", f"LD_PRELOAD={folder / 'other.so'}"]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "ballast"}


def failed(relay):
    """Returns the one log line with the reason of the failed start."""
    relay.spawn()
    code = relay.wait()
    [line] = [line for line in relay.lines() if line["level"] == "ERROR"]
    return code, line["error"]


def test_store_is_quarantined_after_eight_hung_starts(relay, left, tmp_path):
    """Makes sled's lock on its log hang. The relay's own lock is another call."""
    (left / "opening").write_text("." * 7)
    run = start_on(relay.folder, DOWN, before(tmp_path, "int flock(int file, int how) { for (;;) pause(); }"), **GRACE)
    try:
        run.process.wait(timeout=TIMEOUT + MORE)
        code = run.wait()
    finally:
        run.end()
    assert code == 1 and "started" not in run.log(), run.log()
    [line] = [json.loads(line) for line in run.log().splitlines() if '"ERROR"' in line]
    assert f"open sled: no result within {TIMEOUT} s" in line["error"], line
    assert (left / "opening").read_text() == "." * 8, "the start was counted"
    ledger, wrong = drained(relay.folder)
    assert [line["Content"] for line in ledger] == [f"canary: {number}" for number in range(3)]
    assert len(wrong) == 1 and "8 starts in a row ended while it was being opened" in wrong[0], wrong
    assert not (left / "opening").exists()


def spoilt(left):
    """A record of the journal is damaged, and a later one is valid."""
    [path] = [path for path in left.glob("journal.*") if b"canary: 1" in path.read_bytes()]
    journal = bytearray(path.read_bytes())
    journal[journal.index(b"canary: 1")] ^= 1
    path.write_bytes(journal)


def test_damaged_store_is_left_alone_with_exit_code_1_if_queue_damaged_is_refuse(relay, left):
    spoilt(left)
    before = files(left)
    relay.settings["queue.damaged"] = "refuse"
    for _ in range(2):
        code, why = failed(relay)
        assert code == 1 and "it is damaged: commits in its journal cannot be read: 1" in why, why
        assert f"connect-relay doctor check {left}" in why
        relay.log_path.unlink()
    now = files(left)
    kept = ("journal.0", "journal.1", "format")
    assert all(now[name] == before[name] for name in kept) and not list(left.glob("damaged-*"))
    done = command("doctor", "check", left)
    assert done.returncode == 1 and "queued: 2" in done.stdout and "DAMAGED" in done.stdout, done.stdout


def test_quarantine_is_logged_once_and_store_damaged_is_1_until_its_folder_is_gone(relay, left):
    spoilt(left)
    relay.start()
    [line] = until(lambda: [line for line in relay.lines() if line["level"] == "ERROR"], "it is logged")
    [aside] = left.glob("damaged-*")
    assert line["message"].endswith(f"connect-relay doctor check {aside}") and line["queued"] == 2, line
    assert relay.metrics()["store_damaged"] == 1
    shown = command("status", settings={"control.socket": relay.folder / "private/control.sock"})
    assert "doctor check" in shown.stdout, shown.stdout
    done = command("doctor", "check", aside)
    assert done.returncode == 1 and "commits in its journal cannot be read: 1" in done.stdout, done.stdout
    assert relay.stop() == 75
    relay.start()
    assert relay.metrics()["store_damaged"] == 1, "and after a restart"
    shutil.rmtree(aside)
    until(lambda: relay.metrics()["store_damaged"] == 0, "it is noticed that the folder is gone")
    assert len([line for line in relay.lines() if line["level"] == "ERROR"]) == 1


@pytest.mark.parametrize("given,why", [
    ("", "queue.key_file is not set, so nothing opens it"),
    ("\x02", "none of the 1 key(s) in queue.key_file opens it"),
], ids=["none", "another"])
@pytest.mark.parametrize("stamped", [True, False], ids=["", "without its stamp"])
def test_sealed_store_opens_only_with_its_key(relay, tmp_path, given, why, stamped):
    def keys(byte):
        path = tmp_path / "keys"
        path.write_text(base64.b64encode(byte.encode() * 32).decode() + "\n")
        return path

    relay.settings["queue.key_file"] = keys("\x01")
    relay.start()
    assert send(relay, "canary-token", "canary: sealed", "c").status == 202
    relay.kill()
    relay.log_path.unlink()
    queue = relay.folder / "private/queue"
    if not stamped:
        (queue / "format").unlink()
    before = files(queue)
    relay.settings["queue.key_file"] = keys(given) if given else ""
    code, said = failed(relay)
    assert code == 78 and why in said, said
    assert files(queue) == before and not list(queue.glob("damaged-*"))
    ledger, _ = drained(relay.folder, **{"queue.key_file": keys("\x01")})
    assert [line["Content"] for line in ledger] == ["canary: sealed"]


@pytest.mark.parametrize("make,why", [
    (lambda path: path.write_text("x"), "create the folder: File exists (os error 17); it is no folder"),
    (lambda path: path.symlink_to("/nowhere/at/all"), "it is a link that leads nowhere"),
], ids=["a file", "a link that leads nowhere"])
def test_queue_path_that_is_not_a_folder_is_reported(relay, make, why):
    (relay.folder / "private").mkdir(mode=0o700)
    make(relay.folder / "private/queue")
    code, said = failed(relay)
    assert code == 1 and said.endswith(why), said


def test_queue_folder_of_another_user_is_reported(relay, left):
    """Starts it as another user who can reach the folder."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: needs root")
    for folder in (relay.folder, left.parent):
        os.chown(folder, 65534, 65534)
    done = command_as(65534, relay.folder)
    assert done.returncode == 1 and "it belongs to user 0, and the relay is user 65534" in done.stderr, done.stderr


def command_as(user, folder):
    # That user may not reach root's folders: it gets the program as an open file.
    with open(BINARY, "rb") as program:
        return subprocess.run(
            [f"/proc/self/fd/{program.fileno()}", "run", "--dir", folder], user=user, group=user, extra_groups=[], cwd="/",
            pass_fds=[program.fileno()], env=environment({"sender.endpoint": DOWN, "admin.listen": "127.0.0.1:0", "queue.volatile": "true"}),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


def test_clock_set_back_a_year_expires_nothing_and_repeats_are_recognised(relay, left, tmp_path):
    back = before(tmp_path, """int clock_gettime(clockid_t which, struct timespec *time) {
        int failed = syscall(SYS_clock_gettime, which, time);
        if (which == CLOCK_REALTIME) time->tv_sec -= 365 * 86400;
        return failed;
    }""")
    simulator = Simulator("--rate", 1000, "--burst", 1000)
    run = start_on(relay.folder, simulator.url, back, **GRACE)
    try:
        assert run.started(), run.log()
        until(lambda: simulator.accepted() == 3, "what was accepted in a year is delivered")
        again = send(run, "canary-token", "canary: 1", "c-1")
        assert again.status == 200 and again.headers["relay-state"] == "DELIVERED"
        assert run.stop() == 0
    finally:
        run.end()
        simulator.remove()
    year = json.loads(run.log().splitlines()[0])["timestamp"][:4]
    assert int(year) < left.stat().st_mtime / (365.25 * 86400) + 1970 - 0.5, "the clock did go back"
