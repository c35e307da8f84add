"""What is under deploy/, run with the real tools. A tool that cannot be had is said aloud: NOT RUN, never passed over."""

import os
import re
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("containers", "patience", "processes", "tools")

from containers import buildah, debian, forget, image_of
from hooks import binary, pytest_configure  # noqa: F401
from processes import Relay, Simulator
from tools import ROOT, WORK, missing, must

# hadolint; and checkov, which has an environment of its own.
HERE = Path(sys.executable).parent
os.environ["PATH"] = f"{HERE}:{os.environ['PATH']}:{HERE.parents[1]}/.venv-checkov/bin"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the image and the pod: a release build of its own")


def pytest_collection_modifyitems(config, items):
    for item in items:
        wanted = [tool for mark in item.iter_markers("needs") for tool in mark.args]
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="only with --long"))
        elif absent := missing(wanted):
            item.add_marker(pytest.mark.skip(reason=f"NOT RUN: {', '.join(absent)}"))


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("skipped"):
        terminalreporter.write_line(f"NOT RUN: {report.nodeid}: {report.longrepr[2]}", red=True)


@pytest.fixture(scope="session")
def containers():
    """A place for containers; nothing of it is there before or after."""
    forget()
    yield
    forget()


@pytest.fixture(scope="session")
def image(containers):
    """The image, built from the Dockerfile: no registry, so its first stage is a Debian with this machine's Rust in it."""
    path = "PATH=/opt/rust/bin:/usr/local/bin:/usr/bin:/bin"
    image_of(debian("build", "gcc,libc6-dev,ca-certificates"), "build-base", "--env", path, "--env", "CARGO_HOME=/opt/cargo")
    must("cargo", "fetch", "--locked", cwd=ROOT)
    auditable = re.search(r"cargo-auditable@[\d.]+", (ROOT / "Dockerfile").read_text())[0]
    must("cargo", "install", "--locked", "--debug", "--root", WORK / "cargo", auditable)
    registry = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry"
    rust = must("rustc", "--print", "sysroot", cwd=ROOT).strip()
    (WORK / "image-target").mkdir(exist_ok=True)
    mounts = {f"{rust}": "/opt/rust:ro", f"{registry}": "/opt/cargo/registry", f"{WORK}/image-target": "/relay/target"}
    mounts[f"{WORK}/cargo/bin/cargo-auditable"] = "/usr/local/bin/cargo-auditable:ro"
    volumes = [word for here, there in mounts.items() for word in ("--volume", f"{here}:{there}")]
    base = ["--isolation", "chroot", "--build-arg", "RUST=localhost/build-base", "--layers=false"]
    buildah("build", "--quiet", *base, *volumes, "--tag", "connect-relay", ROOT)
    return "connect-relay"


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
