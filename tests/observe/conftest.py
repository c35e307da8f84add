"""The relays, simulators and upstreams of the interop tests, and a Prometheus beside them."""

import importlib.util
import shutil
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

pytest.register_assert_rewrite("scene")

from scene import Load, Prometheus  # noqa: E402


@pytest.fixture
def loads():
    """`loads(relay, per_second)`: a bot that talks until the test is over."""
    made = []

    def make(relay, per_second, **message):
        made.append(Load(relay, per_second, **message))
        return made[-1]

    yield make
    for load in made:
        load.stop()


@pytest.fixture
def prometheus():
    """`prometheus(relays, rules)`: scrapes them every second."""
    made = []

    def make(relays, rules):
        made.append(Prometheus(relays, rules))
        return made[-1]

    assert shutil.which("prometheus") and shutil.which("promtool"), "prometheus and promtool are needed: tests/run gets them"
    yield make
    for one in made:
        one.remove()
