"""kill -9 at random moments, hundreds of times on one folder, while bots send, messages are delivered and answers lost; some
kills hit a start, some a drain. At the end the ledger is audited."""

import random
import signal
import threading
import time

from kit.audit import Known, faults
from kit.bots import Bots
from kit.drained import start_on
from kit.processes import Simulator

CHATS = 20
KILLS = 200
QUEUED = 100


def test_hundreds_of_kills_on_one_folder_lose_nothing(seed, home, times):
    rng = random.Random(f"{seed} kills")
    simulator = Simulator(
        "--rate", 1e9, "--burst", 1_000_000_000, "--latency", "5ms", "--jitter", "5ms",
        "--error-rate", 0.02, "--lost-reply-rate", 0.05, "--seed", seed,
    )
    bots = Bots(seed, str(home / "relay/relay.sock"), CHATS, 1 << 30, lambda: QUEUED - (bots.acknowledged - simulator.accepted()))
    started = 0
    try:
        for _ in range(KILLS * times):
            run = start_on(home / "relay", simulator.url, **{"queue.bytes_max": "16MiB"})
            try:
                started += live(run, bots, rng)
            finally:
                run.end()
        run = start_on(home / "relay", simulator.url, **{"queue.bytes_max": "16MiB"})
        try:
            assert run.started(), run.log()
            assert run.stop() == 0, run.log()[-3000:]
        finally:
            run.end()
        ledger, counts = simulator.ledger(), simulator.counts()
    finally:
        simulator.remove()
    known = Known(CHATS)
    for chat, told in bots.told.items():
        known.highest["accepted"][chat] = told
        known.highest["offered"][chat] = told + 20
    print(
        f"{KILLS * times} kills, {started} of them after the start; {bots.acknowledged} messages acknowledged, "
        f"{len(ledger)} delivered, {counts['duplicates']} sent again"
    )
    assert not (wrong := faults(seed, known, ledger)), f"TEST_SEED={seed}\n" + "\n".join(wrong)
    assert len(ledger) == len({(line["ConnectionToken"], line["ClientToken"]) for line in ledger})
    assert started > KILLS * times // 2 and bots.acknowledged > KILLS * times, "hardly anything happened between the kills"
    assert counts["duplicates"] > 0, "no answer was lost, no attempt cut short: this run shows little"


def live(run, bots, rng):
    """One run of the relay, killed during its start, later, or in a drain. Returns true if it had started."""
    started = rng.random() < 0.6 and run.started()
    drains = started and rng.random() < 0.2

    def kill():
        if drains:
            run.process.send_signal(signal.SIGTERM)
            time.sleep(rng.uniform(0, 0.02))
        run.process.kill()

    killer = threading.Timer(rng.uniform(0, 0.25 if started else 0.12), kill)
    killer.start()
    gone = lambda: run.process.poll() is not None  # noqa: E731
    while not gone():
        bots.run(gone)
        time.sleep(0.002)  # until it listens, or is gone
    killer.join()
    code, log = run.wait(), run.log()
    assert code in (-signal.SIGKILL, 0), f"{code}: {log[-3000:]}"
    assert "panicked" not in log and '"level":"ERROR"' not in log, log[-3000:]
    return '"message":"started"' in log
