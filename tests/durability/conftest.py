"""What the durability tests are given; everything that they start is gone when they are over."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("clocks", "cuts", "callers", "patience", "processes", "upstream")

import clocks
import relays
from hooks import binary, pytest_collection_modifyitems, pytest_configure  # noqa: F401


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="ten times as many cuts, and the mutant that must be built")


@pytest.fixture(scope="session")
def seed():
    """Of everything that is left to chance; DURABILITY_SEED gives it."""
    chosen = int(os.environ.get("DURABILITY_SEED", random.randrange(1 << 32)))
    print(f"DURABILITY_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session")
def recorder(tmp_path_factory):
    return relays.build_recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    return clocks.build_shim(tmp_path_factory.mktemp("shim"))


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
