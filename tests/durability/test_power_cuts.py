"""Power cuts: a message with a 2xx survives, whatever else the disk had written.

`recorder.c` writes down what a relay does to its disk and says to the world, `disk.py` knows what a disk may hold after a
cut, `audit.py` what must hold then. And the test is tested: of relays that keep one rule less it must find fault.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kit import disk, mutants
from kit.cuts import Campaign, Load, choose
from kit.processes import ROOT
from kit.tools import MACHINE

CHATS, LENGTH = 20, 150
# With the small store the journal stays short, so that more goes to the log, and the log is compacted in the middle of the load.
STORES = {"the default": {}, "a small store": {"queue.bytes_max": "16MiB"}}


@pytest.fixture(scope="module", params=STORES, ids=lambda name: name.replace(" ", "-"))
def load(request, seed, recorder, tmp_path_factory):
    return Load(seed, tmp_path_factory.mktemp("load"), recorder, CHATS, LENGTH, **STORES[request.param])


def test_acknowledged_messages_are_delivered_after_any_power_cut(load, scratch, times):
    if load.settings:
        assert load.written > 50 << 20, "segments of the log are used again"
    else:
        assert len(disk.lengthened(load.events)) > 2, "the journal gets longer"
    assert_cuts_lose_nothing(load, scratch, times)


def assert_cuts_lose_nothing(load, scratch, times):
    campaign = Campaign(load, scratch)
    campaign.run(choose(load, 120 * times))
    print(campaign.report())
    assert not campaign.faults, campaign.failure()
    assert campaign.cuts >= 150 * times


def test_no_sync_covers_two_segments_of_which_one_confirms_the_other(load):
    assert len(disk.segments_opened(load.events)) > (50 if load.settings else 5)
    assert not disk.vouched_too_early(load.events), f"TEST_SEED={load.seed}"


def found(load, scratch, ignore=None, passed_over=frozenset()):
    """True if cuts detect a mutant; stops at the first fault."""
    campaign = Campaign(load, scratch, ignore, first_fault=True)
    campaign.run(choose(load, 400, passed_over, recoveries=False))
    print(campaign.failure())
    return campaign.faults


def test_mutant_without_fdatasync_is_detected(load, scratch):
    assert found(load, scratch, mutants.no_fdatasync)


def test_mutant_without_folder_sync_is_detected(load, scratch):
    assert found(load, scratch, mutants.no_folder_sync)


# With the default little goes to the log.
@pytest.mark.parametrize("load", ["a small store"], indirect=True, scope="module")
def test_mutant_that_syncs_every_fourth_batch_is_detected(load, scratch):
    passed_over = mutants.four_batches(load.events)
    assert disk.vouched_too_early(load.events, passed_over)
    assert found(load, scratch, lambda index, _call: index in passed_over, passed_over)


@pytest.mark.long
def test_mutant_with_contents_in_one_row_is_detected(seed, recorder, home, scratch, monkeypatch):
    binary = build(home, {"INLINE_MAX": 1 << 20, "ROW_MAX": 2 << 20})
    monkeypatch.setattr("kit.processes.BINARY", str(binary))
    assert found(Load(seed, home / "load", recorder, CHATS, LENGTH), scratch)


@pytest.mark.long
def test_relay_that_opens_its_log_anew_again_and_again_loses_nothing(seed, recorder, home, scratch, times, monkeypatch):
    """A relay opens its log anew when it has rested for a minute after much work. Here it rests in every tick."""
    at_once = "Duration::from_millis(0)"
    binary = build(home, {"TICK": "Duration::from_millis(50)", "GIVE_BACK": at_once, "REST": at_once, "WORN_ROWS": 500})
    monkeypatch.setattr("kit.processes.BINARY", str(binary))
    load = Load(seed, home / "load", recorder, CHATS, LENGTH)
    assert len(disk.opened_anew(load.events)) > 2
    assert_cuts_lose_nothing(load, scratch, times)


# The constants that a build changes, and the files that define them.
CONSTANTS = {
    "INLINE_MAX": "src/queue/rows/record.rs", "ROW_MAX": "src/storage/row.rs", "WORN_ROWS": "src/storage/store.rs",
    "TICK": "src/queue/thread.rs", "GIVE_BACK": "src/queue/thread.rs", "REST": "src/queue/thread.rs",
}


def build(home, constants):
    """Builds a relay from a copy of the source with other constants."""
    source = home / "source"
    source.mkdir()
    for name in ("src", "benches", "tests", "config", "Cargo.toml", "Cargo.lock"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(".*", "node_modules"))
        else:
            shutil.copy(ROOT / name, source / name)
    for name, value in constants.items():
        file = source / CONSTANTS[name]
        text, changed = re.subn(rf"(const {name}: \w+ = )[^;]+;", rf"\g<1>{value};", file.read_text())
        assert changed == 1, f"{name} is not in {CONSTANTS[name]}: the build is as any other"
        file.write_text(text)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "mutant"
    done = subprocess.run(
        ["cargo", "build", "--release", "--locked", "--bin", "connect-relay"], cwd=source, capture_output=True, text=True,
        env={**MACHINE, "CARGO_TARGET_DIR": str(target)}, check=False,
    )
    assert done.returncode == 0, done.stderr
    return target / "release/connect-relay"
