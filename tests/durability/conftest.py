"""What the durability tests are given; everything that they start is gone when they are over."""

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("cuts", "callers", "patience", "processes", "upstream")

import relays
from processes import BINARY


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="ten times as many cuts, and the mutant that must be built")


def pytest_configure(config):
    # Told to stop, leave through the fixtures, which end what they started.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="only with --long"))


@pytest.fixture(scope="session", autouse=True)
def binary():
    assert os.access(BINARY, os.X_OK), f"no binary at {BINARY}: cargo build, or set CONNECT_RELAY_BINARY"


@pytest.fixture(scope="session")
def seed():
    """Of everything that is left to chance; DURABILITY_SEED gives it."""
    chosen = int(os.environ.get("DURABILITY_SEED", random.randrange(1 << 32)))
    print(f"DURABILITY_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session")
def recorder(tmp_path_factory):
    return relays.build_recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def home():
    """A folder on a disk, with a name short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="durable-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def workshop():
    """Where disks are rebuilt."""
    folder = relays.workshop()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def times(pytestconfig):
    """How much more of everything."""
    return 10 if pytestconfig.getoption("--long") else 1
