"""What is under deploy/, run with the real tools. A tool that cannot be had is said aloud: NOT RUN, never passed over."""

import os
import signal
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("containers", "patience", "processes", "tools")

from containers import forget
from processes import BINARY, Relay, Simulator
from tools import missing

# hadolint; and checkov, which has an environment of its own.
HERE = Path(sys.executable).parent
os.environ["PATH"] = f"{HERE}:{os.environ['PATH']}:{HERE.parents[1]}/.venv-checkov/bin"


def pytest_configure(config):
    # Told to stop, leave through the fixtures, which end what they started.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


def pytest_collection_modifyitems(config, items):
    for item in items:
        wanted = [tool for mark in item.iter_markers("needs") for tool in mark.args]
        if absent := missing(wanted):
            item.add_marker(pytest.mark.skip(reason=f"NOT RUN: {', '.join(absent)}"))


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("skipped"):
        terminalreporter.write_line(f"NOT RUN: {report.nodeid}: {report.longrepr[2]}", red=True)


@pytest.fixture(scope="session", autouse=True)
def binary():
    assert os.access(BINARY, os.X_OK), f"no binary at {BINARY}: cargo build, or set CONNECT_RELAY_BINARY"
    return Path(BINARY)


@pytest.fixture(scope="session", autouse=True)
def containers():
    forget()
    yield
    forget()


@pytest.fixture
def simulator():
    simulator = Simulator()
    yield simulator
    simulator.remove()


@pytest.fixture
def relay(simulator):
    relay = Relay(simulator.url, tcp=False)
    yield relay.start()
    relay.remove()
