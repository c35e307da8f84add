"""The pytest plugin of all suites: options, markers and fixtures. Everything that a fixture starts has ended when its
test is over."""

import os
import random
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from kit import clocks, drained, processes
from kit.bare import BareRelay
from kit.browser import Browser
from kit.containers import buildah, debian, forget, image_of
from kit.helpers import NodeHelper, PythonHelper
from kit.monitoring import Load, Prometheus
from kit.nats import NatsCluster, NatsListener, NatsServer
from kit.outcomes import Outcomes
from kit.processes import ROOT, Relay, Simulator
from kit.tools import MACHINE, WORK, missing, must
from kit.upstream import ScriptedRelay, Upstream

# The machine's own AWS settings and proxies are not under test; a bot needs NO_PROXY, as the README says. The tools of
# `kit.tools` keep them (MACHINE): they download.
for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
    del os.environ[name]
os.environ["NO_PROXY"] = "127.0.0.1"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the tests that take minutes, and more cases of the others")


def pytest_configure(config):
    # On SIGTERM, leave through the fixtures, which end what they started.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


def pytest_collection_modifyitems(config, items):
    for item in items:
        wanted = [tool for mark in item.iter_markers("needs") for tool in mark.args]
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="only with --long"))
        elif absent := missing(wanted):
            item.add_marker(pytest.mark.skip(reason=f"NOT RUN: {', '.join(absent)}"))


# The members of log lines that differ in type between two workers of pytest-xdist; each worker compares its own.
_differing = []
_members = {}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Receives what a worker has seen, in the process that started it."""
    for name, (kind, line) in getattr(node, "workeroutput", {}).get("members", {}).items():
        known, where = _members.setdefault(name, (kind, line))
        if kind != known:
            _differing.append(f"FAILED {name} is {kind} here and {known} there:\n{line}\n{where}")


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["members"] = {name: (kind.__name__, line) for name, (kind, line) in processes.MEMBERS.items()}
    elif _differing:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for text in _differing:
        terminalreporter.write_line(text, red=True)
    # record_property("figures", text): also from a worker, whose output is not shown.
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "figures" and report.when == "call":
                terminalreporter.write_line(text)
    for report in terminalreporter.getreports("skipped"):
        terminalreporter.write_line(f"NOT RUN: {report.nodeid}: {report.longrepr[2]}", red=True)


@pytest.fixture(scope="session", autouse=True)
def binary():
    assert shutil.which("curl"), "curl is needed"
    path = processes.BINARY
    assert os.access(path, os.X_OK), f"no binary at {path}: cargo build, or set CONNECT_RELAY_BINARY"
    return Path(path)


@pytest.fixture(scope="session")
def seed():
    """The seed of everything random; TEST_SEED sets it, to repeat a run as far as the clock allows."""
    chosen = int(os.environ.get("TEST_SEED", random.randrange(1 << 32)))
    print(f"TEST_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session")
def times(pytestconfig):
    """The factor on the number of cases."""
    return 10 if pytestconfig.getoption("--long") else 1


# Relays, upstreams and simulators.


@pytest.fixture
def upstreams():
    """Creates upstreams: `upstreams(script)`."""
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
    """A healthy service."""
    return upstreams()


@pytest.fixture
def simulators():
    """Creates simulators: `simulators("--rate", 10)`."""
    made = []

    def make(*args, **options):
        made.append(Simulator(*args, **options))
        return made[-1]

    yield make
    for simulator in made:
        simulator.remove()


@pytest.fixture
def simulator(simulators):
    """A simulator with its own defaults."""
    return simulators()


@pytest.fixture
def relays():
    """Creates relays: `relays(endpoint, sender__lifetime="1m")`; started unless `start=False`."""
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
def bare_relays():
    """Creates and starts relays without a shell beside them: `bare_relays(endpoint, configuration, sender__lifetime="1m")`."""
    made = []

    def make(endpoint, configuration="", **settings):
        made.append(BareRelay(endpoint, configuration, **settings))
        return made[-1].start()

    yield make
    for relay in made:
        relay.remove()


@pytest.fixture
def outcomes():
    """Opens streams of outcomes: `outcomes(relay)`."""
    made = []

    def make(relay):
        made.append(Outcomes(relay))
        return made[-1]

    yield make
    for stream in made:
        stream.cut()


@pytest.fixture
def nats_servers():
    """Creates NATS servers: `nats_servers(config)`; started unless `start=False`."""
    made = []

    def make(config="", start=True):
        made.append(NatsServer(config))
        return made[-1].start() if start else made[-1]

    yield make
    for server in made:
        server.remove()


@pytest.fixture
def cluster():
    """Three NATS servers with JetStream."""
    made = NatsCluster()
    try:
        yield made.start()
    finally:
        made.remove()


@pytest.fixture
def nats_listeners():
    """Creates listeners: `nats_listeners(server, subject)`."""
    made = []

    def make(server, subject=">"):
        made.append(NatsListener(server, subject))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


@pytest.fixture
def scripted_relays():
    """Makes relays that a test scripts: `scripted_relays(script)`."""
    made = []

    def make(script):
        # Short, because a socket's path may have 107 bytes.
        made.append(ScriptedRelay(Path(tempfile.mkdtemp(prefix="scripted-")) / "relay.sock", script))
        return made[-1]

    yield make
    for one in made:
        if one.path.exists():
            one.stop()
        shutil.rmtree(one.path.parent)
    faults = [fault for one in made for fault in one.faults]
    assert not faults, faults


@pytest.fixture(params=[PythonHelper, NodeHelper], ids=["python", "node"])
def helpers(request):
    """Makes bots with one of the two helper files: `helpers(socket, endpoint)`."""
    made = []

    def make(socket, endpoint, retry_for=0.5):
        made.append(request.param(str(socket), endpoint, retry_for))
        return made[-1]

    yield make
    for helper in made:
        helper.close()


@pytest.fixture
def relay(relays, upstream):
    """A relay in front of a healthy service."""
    return relays(upstream.url)


@pytest.fixture
def stranded(relays):
    """A relay without an upstream: accepted messages stay queued."""
    return relays("http://127.0.0.1:9", sender__probe_max="500ms")


# Other users of the machine.


@pytest.fixture
def users():
    """Skips the test without root, which alone can start processes of other users."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: bots of other users need root")


@pytest.fixture
def shared(relays):
    """Creates relays whose socket every user can reach: `shared(endpoint, …)`."""

    def make(endpoint, start=True, **settings):
        relay = relays(endpoint, start=False, ingress__socket_mode="0666", **settings)
        relay.folder.chmod(0o711)
        return relay.start() if start else relay

    return make


# Durability.


@pytest.fixture(scope="session")
def recorder(tmp_path_factory):
    """The program that records all that a relay does to its disk and its connections."""
    return drained.build_recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library that shifts a relay's clocks."""
    return clocks.build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def home():
    """A folder on a disk, with a name short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="durable-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def scratch():
    """A folder in which disks are rebuilt."""
    folder = drained.scratch()
    yield folder
    shutil.rmtree(folder)


# Monitoring.


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

    def make(relays, rules, **options):
        made.append(Prometheus(relays, rules, **options))
        return made[-1]

    assert shutil.which("prometheus") and shutil.which("promtool"), "prometheus and promtool are needed: tests/setup installs them"
    yield make
    for one in made:
        one.remove()


@pytest.fixture
def browser():
    """A headless Chromium."""
    made = Browser()
    yield made
    made.remove()


# Containers.


@pytest.fixture(scope="session")
def containers():
    """A store for containers, empty before and after."""
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
    registry = Path(MACHINE.get("CARGO_HOME", Path.home() / ".cargo")) / "registry"
    rust = must("rustc", "--print", "sysroot", cwd=ROOT).strip()
    (WORK / "image-target").mkdir(exist_ok=True)
    mounts = {f"{rust}": "/opt/rust:ro", f"{registry}": "/opt/cargo/registry", f"{WORK}/image-target": "/relay/target"}
    mounts[f"{WORK}/cargo/bin/cargo-auditable"] = "/usr/local/bin/cargo-auditable:ro"
    volumes = [word for here, there in mounts.items() for word in ("--volume", f"{here}:{there}")]
    base = ["--isolation", "chroot", "--build-arg", "RUST=localhost/build-base", "--layers=false"]
    buildah("build", "--quiet", *base, *volumes, "--tag", "connect-relay", ROOT)
    return "connect-relay"
