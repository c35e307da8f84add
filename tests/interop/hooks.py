"""What every one of these test runs does, whatever it tests: each conftest takes its hooks and its fixture from here."""

import os
import signal
from pathlib import Path

import pytest
from processes import BINARY


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
    return Path(BINARY)
