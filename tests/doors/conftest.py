"""The relays and upstreams of the interop tests, and bots that run as other users."""

import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest

INTEROP = Path(__file__).resolve().parents[1] / "interop"
sys.path.insert(0, str(INTEROP))

# Their conftest has this one's name, so it is loaded by its path; its fixtures and hooks become this one's.
_spec = importlib.util.spec_from_file_location("interop_conftest", INTEROP / "conftest.py")
_interop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_interop)
globals().update({name: value for name, value in vars(_interop).items() if not name.startswith("_")})

pytest.register_assert_rewrite("neighbours", "raw")


@pytest.fixture(scope="session")
def seed():
    """Of everything that is left to chance; DOORS_SEED gives it."""
    chosen = int(os.environ.get("DOORS_SEED", random.randrange(1 << 32)))
    print(f"DOORS_SEED={chosen}")
    return chosen


@pytest.fixture
def users():
    """Only root can be somebody else."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: bots of other users need root")


@pytest.fixture
def shared(relays):
    """Makes relays whose socket every user can reach: `shared(endpoint, …)`."""

    def make(endpoint, start=True, **settings):
        relay = relays(endpoint, start=False, ingress__socket_mode="0666", **settings)
        relay.folder.chmod(0o711)
        return relay.start() if start else relay

    return make
