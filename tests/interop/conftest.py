"""What the tests are given: relays, simulators and upstreams, all of which are gone when the test is over."""

import os
import shutil

import pytest

pytest.register_assert_rewrite("callers", "patience", "processes", "raw", "upstream")

from hooks import binary, pytest_collection_modifyitems, pytest_configure  # noqa: F401
from processes import Relay, Simulator
from upstream import Upstream

# The machine's own AWS settings and proxies are not what is tested; a bot needs NO_PROXY, as docs/clients.md says.
for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
    del os.environ[name]
os.environ["NO_PROXY"] = "127.0.0.1"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the campaigns at the true rate")


@pytest.fixture(scope="session", autouse=True)
def tools():
    assert shutil.which("curl"), "curl is needed"


@pytest.fixture
def upstreams():
    made = []

    def make(script=None):
        made.append(Upstream(script))
        return made[-1]

    yield make
    for upstream in made:
        upstream.stop()
    faults = [fault for upstream in made for fault in upstream.faults]
    assert not faults, faults


@pytest.fixture
def upstream(upstreams):
    """One that says what a good service says."""
    return upstreams()


@pytest.fixture
def simulators():
    made = []

    def make(*args, **options):
        made.append(Simulator(*args, **options))
        return made[-1]

    yield make
    for simulator in made:
        simulator.remove()


@pytest.fixture
def relays(request):
    """Makes relays: `relays(endpoint, sender__lifetime="1m")`; started unless `start=False`."""
    made = []

    def make(endpoint, start=True, **settings):
        made.append(Relay(endpoint, **settings))
        return made[-1].start() if start else made[-1]

    yield make
    faults = []
    for relay in made:
        try:
            relay.remove()
        except AssertionError as fault:
            faults.append(str(fault))
    assert not faults, "\n".join(faults)


@pytest.fixture
def relay(relays, upstream):
    """One relay before the good upstream."""
    return relays(upstream.url)


@pytest.fixture
def stranded(relays):
    """A relay whose upstream is not there: what it accepts stays queued."""
    return relays("http://127.0.0.1:9", sender__probe_max="500ms")
