"""Power cuts: one relay is recorded under load, then every cut rebuilds what the disk could hold at some moment of it,
starts a relay on that, and compares what it sends with what was promised."""

import os
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kit import disk, wire
from kit.audit import Known, faults
from kit.bots import Bots
from kit.disk import Disk
from kit.drained import drained, start_on
from kit.processes import Simulator

QUEUED = 200  # at most, so that a drain is short
KEPT = Path(os.environ.get("CUTS_KEPT", "/tmp/connect-relay-cuts"))  # what a failure leaves behind


class Load:
    """A relay that was recorded while bots spoke through it."""

    def __init__(self, seed, folder, recorder, chats, length, **settings):
        self.seed, self.folder, self.chats = seed, Path(folder), chats
        self.recorder, self.settings = recorder, settings
        self.root = self.folder / "recorded"
        self.root.mkdir(parents=True)
        simulator = Simulator(
            "--rate", 1e9, "--burst", 1_000_000_000, "--latency", "15ms", "--jitter", "10ms",
            "--error-rate", 0.01, "--lost-reply-rate", 0.01, "--seed", seed,
        )
        run = start_on(self.root / "relay", simulator.url, [recorder, self.file, self.root, "--"], **settings)
        try:
            assert run.started(), run.log()
            bots = Bots(seed, run.socket, chats, length, lambda: QUEUED - (bots.acknowledged - simulator.accepted()))
            bots.run()
            assert run.stop() == 0, run.log()[-3000:]
            known = Known(chats)
            for chat in range(chats):
                known.note("offered", f"{chat}-{length - 1}")
                known.note("accepted", f"{chat}-{length - 1}")
            assert bots.acknowledged == chats * length, f"{bots.acknowledged} of {chats * length} {bots.refused}"
            assert not (wrong := faults(seed, known, simulator.ledger())), wrong
        finally:
            run.end()
            simulator.remove()
        self.events = disk.read(self.file)
        self.said = wire.said(self.events)
        self._complete(bots)

    @property
    def file(self):
        return self.folder / "recording"

    def _complete(self, bots):
        """Checks that the recording is complete: replayed, it gives the real folder and the bots' replies."""
        true = disk.found_in(self.root)
        replayed = Disk(self.root, self.events, empty=True)
        replayed.advance(len(self.events))
        replayed = replayed.tree("all", None)
        assert replayed.keys() == true.keys(), replayed.keys() ^ true.keys()
        different = [path for path in true if replayed[path] != true[path]]
        assert not different, different
        known = Known(self.chats)
        for _, what, token in self.said:
            known.note(what, token)
        assert known.highest["accepted"] == bots.told, "a reply is missing in the recording"

    @property
    def written(self):
        """Bytes written to the log."""
        logs = disk.files_called(self.events, "db")
        return sum(len(event.data) for event in self.events if event.kind == "W" and event.inode in logs)


@dataclass
class Cut:
    """One power cut: at an event of a recording, in a style."""

    number: int
    at: int
    style: str
    recover: bool  # its recovery is recorded, and cut in its turn


def choose(load, count, passed_over=frozenset(), recoveries=True):
    """Half of them where the log opens a segment, a tenth in the very first start, a tenth while the log is opened anew or
    its compacted copy takes its place, a tenth around the first record of an epoch, a tenth where the journal gets longer,
    the others anywhere. `passed_over` are the syncs that a mutant does not do."""
    rng, events = random.Random(f"{load.seed} cuts"), load.events
    opened = disk.segments_opened(events)
    synced = [i for i, event in enumerate(events) if event.kind == "S" and i not in passed_over]
    epoch_heads, lengthened = disk.checkpoints(events), disk.lengthened(events)
    moved = [i for i, event in enumerate(events) if event.kind == "R" and "/compacted/" in event.paths[0]]
    moved += disk.opened_anew(events)
    first_reply = next(at for at, what, _ in load.said if what in ("accepted", "delivered"))
    cuts = []
    for number in range(count):
        if number % 2 == 0:
            begun = rng.choice(opened)
            at = rng.randint(begun + 1, next((i for i in synced if i > begun), begun + 1) + 2)
        elif number % 10 == 1:
            at = rng.randint(1, first_reply + 20)
        elif number % 10 == 3 and moved:
            at = rng.choice(moved) + rng.randint(-25, 35)
        elif number % 10 == 5:
            at = max(1, rng.choice(epoch_heads) + rng.randint(-40, 10))
        elif number % 10 == 7 and lengthened:
            at = max(1, rng.choice(lengthened) + rng.randint(-5, 25))
        else:
            at = rng.randint(1, len(events))
        style = rng.choices(disk.STYLES, disk.WEIGHTS)[0]
        cuts.append(Cut(number, min(at, len(events)), style, recoveries and number % 10 == 9))
    return sorted(cuts, key=lambda cut: cut.at)


class Campaign:
    """Cuts of a load's recording, two at a time; counts them and gathers what is wrong.

    `ignore` makes a mutant of the relay that was recorded; for that the first fault is enough.
    """

    def __init__(self, load, folder, ignore=None, first_fault=False):
        self.load, self.folder = load, Path(folder)
        self.ignore, self.first_fault = ignore, first_fault
        self.cuts = self.recoveries = self.sent = 0
        self.faults = []
        self._lock = threading.Lock()

    def report(self):
        return (
            f"{self.cuts} power cuts, {self.recoveries} of them in the recovery from another, of a relay that wrote "
            f"{self.load.written >> 20} MiB to its log; {self.sent} messages sent after them; {len(self.faults)} faults"
        )

    def failure(self):
        lines = [f"{name}:\n    " + "\n    ".join(wrong[:5]) for name, wrong in self.faults[:10]]
        return (
            f"{self.report()}\nto repeat: TEST_SEED={self.load.seed} (the disk after the first of these, and the "
            f"recording, are kept in {KEPT})\n" + "\n".join(lines)
        )

    def run(self, cuts):
        """The cuts are taken in their order, so that the recording is gone through once."""
        known, said = Known(self.load.chats), iter(self.load.said)
        state = Disk(self.load.root, self.load.events, self.ignore, empty=True)
        upcoming, done = next(said, None), []
        room = threading.Semaphore(3)
        with ThreadPoolExecutor(2) as workers:
            for cut in cuts:
                state.advance(cut.at)
                while upcoming and upcoming[0] < cut.at:
                    known.note(*upcoming[1:])
                    upcoming = next(said, None)
                tree = state.tree(cut.style, random.Random(f"{self.load.seed} cut {cut.number}"))
                room.acquire()
                if self.first_fault and self.faults:
                    break
                done.append(workers.submit(self._cut, room, cut, tree, known.copy()))
        for cut in done:
            cut.result()

    def _cut(self, room, cut, tree, known):
        try:
            self._recover(f"cut {cut.number} ({cut.style}, before event {cut.at})", cut, tree, known)
        finally:
            room.release()

    def _recover(self, name, cut, tree, known):
        """A relay starts on what the disk held. Its recovery may be recorded, and cut in its turn."""
        home = self.folder / f"{cut.number}-{cut.at}"
        root, file = home / "disk", home / "recording"
        disk.lay(tree, root)
        try:
            before = cut.recover and Disk(root, [])
            recorder = [self.load.recorder, file, root, "--"] if cut.recover else []
            ledger, wrong = drained(root / "relay", recorder, **self.load.settings)
            self._judge(name, tree, wrong + faults(self.load.seed, known, ledger), len(ledger))
            if cut.recover:
                before.events = disk.read(file)
                self._recoveries(name, cut, before, known)
        finally:
            shutil.rmtree(home)

    def _recoveries(self, name, cut, state, known):
        """Two cuts while it opens the store, one while it sends."""
        rng = random.Random(f"{self.load.seed} recovery {cut.number}")
        said = wire.said(state.events)
        opened = next((at for at, what, _ in said if what == "sent"), len(state.events))
        moments = [rng.randint(1, opened), rng.randint(1, opened), rng.randint(1, len(state.events))]
        for at in sorted(moments):
            state.advance(at)
            then = known.copy()
            for _, what, token in (line for line in said if line[0] < at):
                then.note(what, token)
            again = Cut(cut.number, at, rng.choices(disk.STYLES, disk.WEIGHTS)[0], False)
            with self._lock:
                self.recoveries += 1
            title = f"{name}, then one in its recovery ({again.style}, before event {at})"
            self._recover(title, again, state.tree(again.style, rng), then)

    def _judge(self, name, tree, wrong, sent):
        with self._lock:
            self.cuts += 1
            self.sent += sent
            if wrong:
                self.faults.append((name, wrong))
                if len(self.faults) == 1 and not self.first_fault:
                    shutil.rmtree(KEPT, ignore_errors=True)
                    disk.lay(tree, KEPT / "disk")
                    shutil.copy(self.load.file, KEPT / "recording")
