"""The real binary on a machine whose clocks are set while it runs, between two runs, and over sleep and reboot."""

import pytest

from kit import clocks
from kit.callers import curl, look, send
from kit.drained import start_on
from kit.wait import until
from kit.upstream import Upstream

SETTINGS = {"shutdown.grace": "2100ms", "sender.lifetime": "15m"}
DAY = clocks.DAY


class Bench:
    """A machine, a service, and one relay after the other on one folder."""

    def __init__(self, folder, shim):
        self.folder, self.upstream = folder, Upstream()
        self.machine = clocks.Machine(folder / "machine", shim)
        self.run = None

    def start(self):
        self.run = start_on(self.folder, self.upstream.url, self.machine.before, **SETTINGS)
        assert self.run.started(), self.run.log()
        return self.run

    def control(self, path, method="GET"):
        listener = type("Listener", (), {"socket": str(self.folder / "private/control.sock")})
        reply = curl(listener, path, method=method)
        assert reply.status == 200, reply
        return reply.json

    def messages(self):
        return {line["ClientToken"]: line for line in self.control("/messages")["Messages"]}

    def restart(self, how):
        """Ends the relay, cleanly or not, and starts another one."""
        if how == "stop":
            assert self.run.stop() in (0, 75)
        self.run.end()
        return self.start()

    def deliver(self):
        self.control("/resume", "POST")
        until(lambda: self.control("/status")["queued"] == 0, "nothing is queued")
        return [request.json["ClientToken"] for request in self.upstream.messages()]


@pytest.fixture
def bench(home, shim):
    bench = Bench(home, shim)
    bench.start()
    bench.control("/pause", "POST")
    yield bench
    if bench.run:
        bench.run.end()
    bench.upstream.stop()


def accept(bench, client_token, lifetime=None):
    headers = [f"Relay-Lifetime: {lifetime}"] if lifetime else []
    assert send(bench.run, f"canary-{client_token}", "canary: x", client_token, headers=headers).status == 202


def near(bench, text):
    return abs(clocks.seconds_of(text) - bench.machine.now()) < 120


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("by", [DAY, -DAY], ids=["corrected forward", "corrected back"])
def test_correction_of_a_clock_by_a_day_expires_nothing_and_times_are_right(bench, how, by):
    bench.machine.step(-by)
    bench.restart(how)
    accept(bench, "before", lifetime=120)
    accept(bench, "usual")
    bench.machine.step(by)
    accept(bench, "after", lifetime=120)
    shown = bench.messages()
    assert all(near(bench, line["AcceptedTime"]) for line in shown.values()), shown
    told = look(bench.run, "canary-before", "before").json
    assert near(bench, told["AcceptedTime"])
    bench.restart(how)
    again = bench.messages()
    assert {line["State"] for line in again.values()} == {"QUEUED"} and len(again) == 3, again
    assert {name: line["AcceptedTime"] for name, line in again.items()} == {name: line["AcceptedTime"] for name, line in shown.items()}
    assert sorted(bench.deliver()) == ["after", "before", "usual"]
    waited = [line["waited_ms"] for line in bench.run.lines("delivered", 3)]
    assert len(waited) == 3 and max(waited) < 120_000, waited
    delivered = look(bench.run, "canary-before", "before").json
    assert near(bench, delivered["AcceptedTime"]), delivered


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_step_between_two_runs_in_one_boot_expires_nothing(bench, how):
    accept(bench, "minutes", lifetime=120)
    accept(bench, "week", lifetime=7 * DAY)
    for by in (DAY, -3 * DAY, 9 * DAY):
        if how == "stop":
            assert bench.run.stop() == 75
        bench.run.end()
        bench.machine.step(by)
        bench.start()
        assert {line["State"] for line in bench.messages().values()} == {"QUEUED"}
    assert sorted(bench.deliver()) == ["minutes", "week"]


def test_an_hour_of_sleep_counts_and_livez_does_not_fail_for_it(bench):
    accept(bench, "minutes", lifetime=120)
    accept(bench, "week", lifetime=7 * DAY)
    bench.machine.sleep(3600)
    assert not any("hangs" in problem.lower() for problem in bench.control("/status")["problems"])
    until(lambda: bench.messages()["minutes"]["State"] == "DEAD", "two minutes were slept away")
    bench.restart("kill")
    assert bench.deliver() == ["week"]


@pytest.mark.parametrize("off,left", [(60, ["minutes", "week"]), (3600, ["week"]), (8 * DAY, [])])
def test_time_switched_off_counts_over_a_reboot(bench, off, left):
    accept(bench, "minutes", lifetime=900)
    accept(bench, "week", lifetime=7 * DAY)
    bench.machine.step(30 * DAY)  # while it runs, and idle: what follows is counted from here
    until(lambda: "the wall clock was set" in bench.run.log(), "the step was noticed")
    until(lambda: near(bench, bench.messages()["week"]["AcceptedTime"]), "and is shown")
    bench.run.end()
    bench.machine.reboot(off)
    bench.start()
    until(lambda: bench.control("/status")["queued"] == len(left), "what outlived its time is dead")
    assert sorted(bench.deliver()) == left


def test_a_clock_a_year_behind_after_a_reboot_expires_nothing(bench):
    accept(bench, "minutes", lifetime=120)
    bench.run.end()
    bench.machine.reboot(5, wall=-365 * DAY)
    bench.start()
    accept(bench, "later", lifetime=120)
    assert sorted(bench.deliver()) == ["later", "minutes"]
