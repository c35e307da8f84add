"""`doctor` on a sealed store: with its keys, without keys, and with other keys."""

import base64
import json
import os
import pty
import subprocess

import pytest

from kit.callers import send
from kit.processes import BINARY, Relay, Simulator, command, environment

DOWN = "http://127.0.0.1:9"
TEXTS = ["canary: one", "canary: " + "two " * 1500, "canary: three"]
JSON = "application/json"


def key(path, *bytes_of):
    path.write_text("".join(base64.b64encode(bytes([byte]) * 32).decode() + "\n" for byte in bytes_of))
    path.chmod(0o600)
    return path


@pytest.fixture
def keys(tmp_path):
    return key(tmp_path / "keys", 1)


@pytest.fixture
def store(keys):
    """The queue's folder of a relay that was killed: three messages under a conversation's key, one of them long."""
    relay = Relay(DOWN, queue__key_file=keys, sender__lifetime="6h")
    relay.start()
    for number, text in enumerate(TEXTS):
        kind = {"content_type": JSON} if len(text) > 1024 else {}
        text = json.dumps(text) if kind else text
        assert send(relay, "canary-token", text, f"c-{number}", headers=["Relay-Conversation: chat/bot"], **kind).status == 202
    relay.kill()
    yield relay.folder / "private/queue"
    relay.remove()


def doctor(*args):
    done = command("doctor", *args, timeout=60)
    assert "panicked" not in done.stderr, done.stderr
    return done


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_the_key_doctor_counts_and_lists_but_copies_nothing(store, tmp_path):
    before = files(store)
    checked = doctor("check", store)
    assert checked.returncode == 0 and "sealed" in checked.stdout and "queued: 3\n" in checked.stdout
    assert checked.stdout.endswith("sound, as far as can be told without its key\n")
    listed = doctor("export", store)
    assert listed.returncode == 0 and "this is a listing" in listed.stderr and "--key-file" in listed.stderr
    lines = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(line["ClientToken"], line["State"], line["Conversation"]) for line in lines] == [(f"c-{n}", "QUEUED", "chat/bot") for n in range(3)]
    assert all(set(line) == {"Id", "State", "ClientToken", "Conversation", "AcceptedTime"} for line in lines)
    repaired = doctor("repair", store, "--into", tmp_path / "new")
    assert repaired.returncode == 78 and f"{store}: the store is sealed; name its key file with --key-file" in repaired.stderr
    assert not (tmp_path / "new").exists() and files(store) == before


def test_wrong_key_is_reported_by_every_command(store, tmp_path):
    other = key(tmp_path / "other", 2, 3)
    for args in (["check"], ["export"], ["repair", "--into", tmp_path / "new"]):
        done = doctor(args[0], store, "--key-file", other, *args[1:])
        assert done.returncode == 78 and f"the store is sealed, and no key in {other} opens it" in done.stderr, done.stderr
        assert not done.stdout and not (tmp_path / "new").exists()
    for path, text in ((tmp_path / "none", "No such file"), (key(tmp_path / "short"), "holds no key")):
        done = doctor("check", store, "--key-file", path)
        assert done.returncode == 1 and str(path) in done.stderr and text in done.stderr


def test_lines_exported_with_the_key_are_delivered_unchanged_by_another_relay(store, keys, tmp_path):
    checked = doctor("check", store, "--key-file", keys)
    assert checked.returncode == 0 and checked.stdout.endswith("\nsound\n"), checked.stdout
    exported = doctor("export", store, "--key-file", keys)
    assert exported.returncode == 0 and "ConnectionTokens" in exported.stderr
    (tmp_path / "lines").write_text(exported.stdout)
    simulator = Simulator("--rate", 1000, "--burst", 1000)
    relay = Relay(simulator.url)
    try:
        relay.start()
        sent = command("send", "--socket", relay.socket, "--batch", tmp_path / "lines")
        assert sent.returncode == 0 and "3 accepted" in sent.stderr, sent.stderr
        relay.until_empty()
        again = command("send", "--socket", relay.socket, "--batch", tmp_path / "lines")
        assert again.returncode == 0 and '"State":"DELIVERED"' in again.stdout, "a repeat is one"
        assert_delivered(simulator)
    finally:
        relay.remove()
        simulator.remove()


def test_a_repaired_store_is_sound_and_a_relay_delivers_from_it(store, keys, tmp_path):
    (store / "conf").write_text("?")
    before = files(store)
    assert doctor("check", store, "--key-file", keys).returncode == 1
    simulator = Simulator("--rate", 1000, "--burst", 1000)
    # Another key seals new records; the old one still opens the others.
    rotated = key(tmp_path / "rotated", 9, 1)
    relay = Relay(simulator.url, queue__key_file=rotated)
    try:
        new = relay.folder / "private/queue"
        new.parent.mkdir(mode=0o700)
        repaired = doctor("repair", store, "--into", new, "--key-file", keys)
        assert repaired.returncode == 0 and f"{new}: 3 messages queued" in repaired.stderr and "lost: 0" in repaired.stderr
        assert files(store) == before, "the damaged one stays as it is"
        assert doctor("check", new, "--key-file", keys).returncode == 0
        for into in (store, new):
            taken = doctor("repair", store, "--into", into, "--key-file", keys)
            assert taken.returncode == 1 and "the folder is not empty" in taken.stderr
        relay.start()
        relay.until_empty()
        assert_delivered(simulator)
    finally:
        relay.remove()
        simulator.remove()


def assert_delivered(simulator):
    ledger = simulator.ledger()
    assert [line["ClientToken"] for line in ledger] == ["c-0", "c-1", "c-2"]
    assert [line["Content"] for line in ledger] == [TEXTS[0], json.dumps(TEXTS[1]), TEXTS[2]]
    assert {line["ConnectionToken"] for line in ledger} == {"canary-token"}


def test_record_that_no_key_opens_is_reported_by_name(store, keys, tmp_path):
    """Two keys: the later messages are sealed by the second one, which is missing."""
    relay = Relay(DOWN, queue__key_file=key(tmp_path / "two", 2, 1), sender__lifetime="6h")
    (relay.folder / "private").mkdir(mode=0o700)
    store.rename(relay.folder / "private/queue")
    try:
        relay.start()
        assert send(relay, "canary-later", "canary", "later").status == 202
        relay.kill()
        queue = relay.folder / "private/queue"
        done = doctor("check", queue, "--key-file", key(tmp_path / "second", 2))
        assert done.returncode == 1 and "contents or token cannot be read: 3 messages" in done.stdout, done.stdout
        exported = doctor("export", queue, "--key-file", tmp_path / "second")
        assert exported.returncode == 1 and "cannot be read" in exported.stderr
        assert [json.loads(line)["ClientToken"] for line in exported.stdout.splitlines()] == ["later"]
    finally:
        relay.remove()


def test_progress_is_shown_on_a_terminal_only(store, keys):
    args = [BINARY, "doctor", "check", str(store), "--key-file", str(keys)]
    ours, theirs = pty.openpty()
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=theirs, env=environment(TERM="xterm")) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # the last who had it has closed it
        assert b"sound" in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0 and b"reading" in shown and b"%" in shown, shown
    assert not doctor("check", store).stderr
