"""What people see of the copy in the fleet: `status`, `/status.json`, and `doctor`."""

import json

import pytest

import kit.copies
from kit.callers import send
from kit.processes import command
from kit.wait import until


@pytest.fixture
def copied(relays, cluster, tmp_path):
    """`copied(endpoint, …)`: a relay whose queue is copied into the cluster, and which shares no quota."""

    def make(endpoint, **settings):
        return relays(endpoint, tcp=False, **kit.copies.settings(cluster.url, tmp_path, **settings))

    return make


def copy_of(relay):
    done = command("status", "--json", "--dir", relay.folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["fleet"]["copy"]


def line_of(relay):
    [line] = [line for line in command("status", "--dir", relay.folder).stdout.splitlines() if line.startswith("copy ")]
    return line


def test_status_says_since_when_and_why_the_copy_is_behind(copied, cluster, simulator):
    relay = copied(simulator.url)
    until(lambda: copy_of(relay)["state"] == "up", "the copy is up")
    until(lambda: copy_of(relay)["stream_bytes"] > 0, "the stream is measured")
    up = copy_of(relay)
    assert {name: up[name] for name in up if name != "stream_bytes"} == {
        "identity": "pod-0", "state": "up", "behind_since": None, "behind_commits": 0, "behind_why": None, "orphans": 0,
    }
    assert "up as pod-0, " in line_of(relay) and "in the stream" in line_of(relay)
    cluster.kill()
    until(lambda: copy_of(relay)["state"] == "behind", "the copy is behind")
    assert command("pause", "--dir", relay.folder).returncode == 0
    for number in range(3):
        send(relay, "canary-token", "canary", client_token=f"t-{number}")
    behind = until(lambda: (found := copy_of(relay))["behind_why"] and found["behind_commits"] >= 3 and found, "the reason is known")
    assert any(server.url in behind["behind_why"] for server in cluster.servers), behind
    assert behind["behind_since"] == copy_of(relay)["behind_since"], "the beginning stays"
    assert f"behind as pod-0 since {behind['behind_since']}, " in line_of(relay)
    shown = json.loads(relay.get("/status.json")[1])
    assert shown["fleet"]["copy"]["state"] == "behind"
    assert line_of(relay).split(None, 1)[1].split(",")[0] in {figure["value"].split(",")[0] for figure in shown["figures"]}
    assert not any("fleet" in problem for problem in shown["problems"]), "no problem before a minute has passed"
    cluster.start()
    until(lambda: copy_of(relay)["state"] == "up", "the copy is up again")
    again = copy_of(relay)
    assert (again["behind_since"], again["behind_commits"], again["behind_why"]) == (None, 0, None)


def test_doctor_says_that_the_store_is_copied_and_what_a_store_that_was_set_aside_still_holds(copied, simulator):
    old = copied(simulator.url)
    assert command("pause", "--dir", old.folder).returncode == 0
    until(lambda: copy_of(old)["state"] == "up", "the copy is up")
    send(old, "canary-token", "canary", client_token="t-0")
    old.kill()
    new = copied(simulator.url)
    assert new.queued() == 1
    new.stop()
    store = old.folder / "private/queue"
    key_file = ["--key-file", old.settings["queue.key_file"]]
    said = command("doctor", "check", store, *key_file)
    assert said.returncode == 0 and "copied into a fleet: " in said.stdout and "set aside" not in said.stdout, said.stdout
    # It returns to find that it was succeeded: its queue is set aside.
    old.start()
    until(lambda: list(store.glob("left-*/taken")), "what the successor lacks is accepted")
    old.stop()
    [left] = store.glob("left-*")
    said = command("doctor", "check", store, *key_file)
    assert said.returncode == 0, said.stderr
    assert f"{left}: set aside because another relay continued this queue; a relay has accepted its messages anew" in said.stdout
    (left / "taken").unlink()
    (left / "from").write_text("0\n")
    said = command("doctor", "check", store, *key_file)
    assert f"{left}: set aside because another relay continued this queue; 1 message in it waits; " in said.stdout, said.stdout
