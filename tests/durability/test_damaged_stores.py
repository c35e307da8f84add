"""Damaged queues: hundreds of seeded cases on copies of real folders, each through `doctor`, some through a relay.

What must hold in every case: each command ends, and in its own words; nothing is delivered or exported that was not accepted
byte for byte; a repaired store is sound; with `queue.damaged = "set_aside"` the relay starts, whatever was hit.
"""

import json
import random
import shutil
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kit import damage
import pytest

from kit.bots import Bots, chat_token, message, place_of
from kit.drained import drained, start_on
from kit.processes import Simulator, command

CASES, STARTS = 200, 40
CHATS, LENGTH = 30, 12
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def stores(seed, tmp_path_factory):
    """Real folders: some of the messages delivered, most queued; one stopped cleanly, one killed, one restarted often."""
    made = []
    for number, ends in enumerate(["cleanly", "killed", "restarted"]):
        home = tmp_path_factory.mktemp(f"store{number}", numbered=False)
        relay = Path("/tmp") / f"damaged-{seed}-{number}"
        shutil.rmtree(relay, ignore_errors=True)
        bots = Bots(f"{seed}-{number}", str(relay / "relay.sock"), CHATS, LENGTH)
        simulator = Simulator("--rate", 1e9, "--burst", 1_000_000_000, "--latency", "0ms", "--jitter", "0ms")
        try:
            bots.length = LENGTH // 3
            _live(relay, simulator.url, bots, "cleanly")
            bots.length = LENGTH
            _live(relay, UNREACHABLE, bots, ends)
            for _ in range(3 if ends == "restarted" else 0):
                _live(relay, UNREACHABLE, bots, "killed")
        finally:
            simulator.remove()
        shutil.copytree(relay / "private/queue", home / "queue", ignore=shutil.ignore_patterns("ballast", "lock"))
        shutil.rmtree(relay)
        made.append((f"{seed}-{number}", home / "queue"))
    return made


def _live(relay, endpoint, bots, ends):
    run = start_on(relay, endpoint, **{"shutdown.grace": "2100ms"})
    try:
        assert run.started(), run.log()
        bots.run()
        if ends == "killed":
            run.process.kill()
        else:
            run.stop()
    finally:
        run.end()


def doctor(*args):
    """Runs one command, which may not panic or hang."""
    done = command("doctor", *args, timeout=60)
    assert done.returncode in (0, 1, 78) and "panicked" not in done.stderr, f"{args}: {done.returncode}: {done.stderr[-2000:]}"
    return done


def of_export(store_seed, folder):
    """The ClientTokens of queued messages; checks that every line equals the accepted message, byte for byte."""
    found = []
    for line in map(json.loads, doctor("export", folder).stdout.splitlines()):
        assert is_genuine(store_seed, line), f"forged or altered: {str(line)[:300]}"
        found.append(line["ClientToken"])
    assert len(found) == len(set(found)), "exported twice"
    return found


def is_genuine(store_seed, line):
    chat, place = place_of(line["ClientToken"])
    offered = {**message(store_seed, chat, place), "ConnectionToken": chat_token(store_seed, chat)}
    return chat < CHATS and place < LENGTH and all(line[name] == offered[name] for name in offered)


def in_order(tokens):
    places = defaultdict(list)
    for chat, place in map(place_of, tokens):
        places[chat].append(place)
    return all(of_one == sorted(of_one) for of_one in places.values())


def damaged_copy(scratch, source, seed, case):
    """Makes a copy with the damage of one case; returns the folder and the kind of damage."""
    rng = random.Random(f"{seed} damage {case}")
    kind = damage.KINDS[case % len(damage.KINDS)]
    folder = scratch / f"case{case}"
    shutil.copytree(source, folder)
    (folder / "blobs").mkdir(exist_ok=True)
    kind(folder, rng)
    return folder, kind.__name__


def test_stores_of_stopped_relays_are_sound(stores):
    for store_seed, folder in stores:
        done = doctor("check", folder)
        assert done.returncode == 0 and "sound" in done.stdout, done.stdout
        assert in_order(of_export(store_seed, folder))


def test_export_is_a_batch_that_a_relay_accepts(stores, home, scratch):
    store_seed, folder = stores[0]
    lines = scratch / "lines"
    lines.write_text(doctor("export", folder).stdout)
    run = start_on(home / "relay", UNREACHABLE, **{"shutdown.grace": "2100ms"})
    try:
        assert run.started(), run.log()
        sent = command("send", "--socket", run.socket, "--batch", lines)
        assert sent.returncode == 0, sent.stderr
        busy = doctor("check", home / "relay/private/queue")
        assert busy.returncode == 1 and "locked by another process" in busy.stderr
        run.stop()
    finally:
        run.end()
    assert of_export(store_seed, home / "relay/private/queue") == of_export(store_seed, folder)


def test_doctor_reads_and_repairs_valid_records(seed, stores, scratch, times):
    queued = {store_seed: set(of_export(store_seed, folder)) for store_seed, folder in stores}
    tally = defaultdict(Counter)

    def one(case):
        store_seed, source = stores[case // len(damage.KINDS) % len(stores)]
        folder, kind = damaged_copy(scratch, source, seed, case)
        before = {path.name: path.read_bytes() for path in damage.files(folder)}
        checked = doctor("check", folder)
        # 78: the format's digit was damaged, which looks like a newer format.
        carried = set()
        if checked.returncode != 78 and not checked.stderr:
            repaired = doctor("repair", folder, "--into", folder / "new")
            assert repaired.returncode == 0, repaired.stderr
            carried = of_export(store_seed, folder / "new")
            assert in_order(carried), "out of order"
            again = doctor("check", folder / "new")
            incomplete = "contents or token cannot be read" in checked.stdout
            assert again.returncode == 0 or incomplete, f"{kind}: {checked.stdout}\n{again.stdout}"
        assert before == {path.name: path.read_bytes() for path in damage.files(folder)}, "doctor wrote into the folder"
        shutil.rmtree(folder)
        of_kind = tally[kind]
        of_kind["cases"] += 1
        of_kind["said to be sound"] += checked.returncode == 0
        of_kind["messages"] += len(queued[store_seed])
        of_kind["carried over"] += len(queued[store_seed] & set(carried))
        of_kind["sent again"] += len(set(carried) - queued[store_seed])
        of_kind["silently lost"] += checked.returncode == 0 and not queued[store_seed] <= set(carried)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(CASES * times)))
    total = show(tally)
    assert not tally["dropped_file"]["silently lost"] + tally["emptied_file"]["silently lost"]
    # Less than half of the stores lose anything, and few lose all.
    assert total["carried over"] > 0.75 * total["messages"] and total["said to be sound"] < total["cases"] / 2


def test_relay_starts_on_damaged_stores_and_delivers_valid_records(seed, stores, scratch, times):
    queued = {store_seed: set(of_export(store_seed, folder)) for store_seed, folder in stores}
    tally = defaultdict(Counter)

    def one(case):
        store_seed, source = stores[case // len(damage.KINDS) % len(stores)]
        folder, kind = damaged_copy(scratch, source, f"{seed} start", case)
        (scratch / f"relay{case}/private").mkdir(parents=True)
        folder.rename(scratch / f"relay{case}/private/queue")
        ledger, wrong = drained(scratch / f"relay{case}")
        if restarted := any("exited with 1" in text and "Read corrupted data" in text for text in wrong):
            more, wrong = drained(scratch / f"relay{case}")
            ledger += more
        aside = [text for text in wrong if "doctor check" in text]
        refused = any("exit code 78" in text and "its format is" in text for text in wrong)
        assert refused or wrong == aside, f"{kind}, case {case}: {wrong}"
        for line in ledger:
            assert is_genuine(store_seed, line), f"forged or altered: {str(line)[:300]}"
        delivered = [line["ClientToken"] for line in ledger]
        assert in_order(dict.fromkeys(delivered)), f"{kind}, case {case}: out of order"
        kept = list((scratch / f"relay{case}/private/queue").glob("damaged-*"))
        assert bool(kept) == bool(aside)
        shutil.rmtree(scratch / f"relay{case}")
        of_kind = tally[kind]
        of_kind["cases"] += 1
        of_kind["set aside"] += bool(aside)
        of_kind["in the second start"] += restarted
        of_kind["messages"] += len(queued[store_seed])
        of_kind["delivered"] += len(queued[store_seed] & set(delivered))
        of_kind["sent again"] += len(set(delivered) - queued[store_seed])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(STARTS * times)))
    total = show(tally)
    assert total["delivered"] > 0.6 * total["messages"] and total["set aside"] > total["cases"] / 2


def show(tally):
    """Prints the figures of each kind and of all; returns those of all."""
    total = Counter()
    for kind, counts in sorted(tally.items()):
        print(f"{kind}: {dict(counts)}")
        total.update(counts)
    print(f"all: {dict(total)}")
    return total
