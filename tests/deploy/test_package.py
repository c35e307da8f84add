"""The Debian package: its contents, and its life under systemd: installed, started, upgraded with a full queue and with a
store of format 3, removed and purged.

The life is that of one binary in two packages of different versions, installed by dpkg in a container with Debian 12. Not
shown here: apt with a repository, another architecture, another release of Debian or Ubuntu.
"""

import json
import re
import shutil
import time

import pytest

from kit import clocks, old_stores
from kit.containers import copy_of, debian, podman
from kit.processes import BINARY, command
from kit.tools import MACHINE, ROOT, ROOT_USER, must, run
from kit.wait import until

OLD, NEW = "0.0.1-1", "9.0.0-1"
TOOLS = pytest.mark.needs("cargo-deb", "dpkg-deb", "dpkg-shlibdeps", "strip")
SHARE = "usr/share"
FILES = {
    "etc/connect-relay/relay.toml": "-rw-r--r--",
    "usr/bin/connect-relay": "-rwxr-xr-x",
    "usr/lib/systemd/system/connect-relay.service": "-rw-r--r--",
    "usr/lib/sysusers.d/connect-relay.conf": "-rw-r--r--",
    f"{SHARE}/bash-completion/completions/connect-relay": "-rw-r--r--",
    f"{SHARE}/doc/connect-relay/changelog.Debian.gz": "-rw-r--r--",
    f"{SHARE}/doc/connect-relay/changelog.gz": "-rw-r--r--",
    f"{SHARE}/doc/connect-relay/copyright": "-rw-r--r--",
    f"{SHARE}/doc/connect-relay/examples/connect-relay.socket": "-rw-r--r--",
    f"{SHARE}/doc/connect-relay/examples/relay.toml": "-rw-r--r--",
    f"{SHARE}/doc/connect-relay/examples/socket.conf": "-rw-r--r--",
    f"{SHARE}/fish/vendor_completions.d/connect-relay.fish": "-rw-r--r--",
    f"{SHARE}/lintian/overrides/connect-relay": "-rw-r--r--",
    f"{SHARE}/man/man1/connect-relay.1.gz": "-rw-r--r--",
    f"{SHARE}/zsh/vendor-completions/_connect-relay": "-rw-r--r--",
}


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """Makes the package of a version: `package(version)`."""
    made = {}

    def make(version):
        if version not in made:
            target = tmp_path_factory.mktemp("package")
            env = {**MACHINE, "CARGO_TARGET_DIR": str(target)}
            must(ROOT / "deploy/release", "deb", BINARY, "--fast", "--deb-version", version, env=env)
            made[version] = next((target / "release-files").glob("*.deb"))
        return made[version]

    return make


@TOOLS
def test_package_has_its_files_and_no_other(package):
    listed = re.findall(r"^(\S+) 0/0 .* \./(\S*[^/\s])$", must("dpkg-deb", "--contents", package(OLD)), re.M)
    assert {path: mode for mode, path in listed} == FILES
    fields = must("dpkg-deb", "--field", package(OLD))
    assert f"\nVersion: {OLD}\n" in fields and re.search(r"^Depends: .*libc6", fields, re.M)
    assert must("dpkg-deb", "--info", package(OLD), "conffiles").split() == ["/etc/connect-relay/relay.toml"]


@TOOLS
def test_packaged_texts_are_those_of_the_binary(package, tmp_path):
    must("dpkg-deb", "--extract", package(OLD), tmp_path)
    assert must("gzip", "-dc", tmp_path / SHARE / "man/man1/connect-relay.1.gz") == command("man").stdout
    for shell, path in {
        "bash": "bash-completion/completions/connect-relay",
        "fish": "fish/vendor_completions.d/connect-relay.fish",
        "zsh": "zsh/vendor-completions/_connect-relay",
    }.items():
        assert (tmp_path / SHARE / path).read_text() == command("completion", shell).stdout
    unit = (tmp_path / "usr/lib/systemd/system/connect-relay.service").read_text()
    assert "\nExecStart=/usr/bin/connect-relay run\n" in unit and "/usr/local/bin/connect-relay" not in unit
    settings = tmp_path / "etc/connect-relay/relay.toml"
    done = command("check", "--config", settings)
    assert done.returncode == 78 and "sender.region" in done.stderr, "the package's settings lack only the region"
    settings.write_text(settings.read_text().replace("# region", "region"))
    assert command("check", "--config", settings).returncode == 0


@pytest.mark.long
@TOOLS
@pytest.mark.needs("lintian")
def test_lintian_finds_no_fault_in_the_package(package):
    lintian = ["lintian", "--allow-root", "--fail-on", "error,warning"]
    done = run(*lintian, package("1.0-1"))
    assert (done.returncode, done.stdout) == (0, "")
    assert "initial-upload" in run(*lintian, "--no-override", package("1.0-1")).stdout, "a fault would be seen"


CONNECT = "http://127.0.0.1:9580"
QUEUED = 20


class Host:
    """A Debian under systemd, with a place for packages, and a simulator that is no part of the package."""

    def __init__(self, root):
        self.root, self.ledger = root, root / "var/ledger"
        init = ["--rootfs", root, "/lib/systemd/systemd"]
        self.name = podman("run", "--detach", "--systemd=always", "--privileged", "--network=none", *init).strip()
        until(lambda: self("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"), "systemd runs")

    def __call__(self, *words, check=True):
        return podman("exec", "--env", "CONNECTION_TOKEN=canary", self.name, *words, check=check)

    def dpkg(self, *words):
        return self("dpkg", *words)

    def install(self, package):
        shutil.copy(package, self.root / "var/connect-relay.deb")
        self.dpkg("--install", "/var/connect-relay.deb")
        (self.root / "var/connect-relay.deb").unlink()

    def show(self, name):
        return self("systemctl", "show", "connect-relay", f"--property={name}", "--value").strip()

    def send(self, tokens):
        """Hands messages over; gives the states or the errors."""
        lines = [
            {"ContentType": "text/plain", "Content": f"canary {token}", "ClientToken": token, "ConnectionToken": "canary"}
            for token in tokens
        ]
        (self.root / "var/batch").write_text("".join(json.dumps(line) + "\n" for line in lines))
        replies = self("connect-relay", "send", "--batch", "/var/batch", check=False).splitlines()
        replies = [json.loads(line) for line in replies if line.startswith("{")]
        return [reply.get("State") or reply["Error"]["Code"] for reply in replies]

    def status(self):
        return json.loads(self("connect-relay", "status", "--json"))

    def connect(self):
        """Starts the simulated Connect."""
        self("systemd-run", "--quiet", "--unit=connect", "/opt/connect-relay", "simulate", "--ledger", "/var/ledger", "--rate", "1000")

    def delivered(self):
        if not self.ledger.exists():
            return []
        return [json.loads(line)["ClientToken"] for line in self.ledger.read_text().splitlines()]


@pytest.fixture
def host(containers):
    root = copy_of(debian("systemd-pattern", "systemd,dbus,ca-certificates"), "debian-package")
    shutil.copy(BINARY, root / "opt/connect-relay")
    made = Host(root)
    yield made
    print(made("journalctl", "--no-pager", "--unit=connect-relay", "--lines=60", check=False))
    podman("rm", "--force", "--time", "0", made.name, check=False)
    shutil.rmtree(root)


@TOOLS
@pytest.mark.needs("podman", "runc", "mmdebstrap", "cc", ROOT_USER)
def test_package_is_installed_upgraded_and_removed_without_losing_a_message(host, package, tmp_path):
    settings, state = host.root / "etc/connect-relay/relay.toml", host.root / "var/lib/private/connect-relay"

    host.install(package(OLD))
    assert host("getent", "group", "connect-bots").startswith("connect-bots:")
    assert host("systemctl", "is-enabled", "connect-relay", check=False).strip() == "disabled"
    assert host.show("ActiveState") == "inactive", "an installation starts nothing: the region is missing"
    host("systemctl", "start", "connect-relay", check=False)
    assert host.show("ExecMainStatus") == "78"

    settings.write_text(f'[sender]\nendpoint = "{CONNECT}"\n[queue]\nmessages_max = {QUEUED}\n[shutdown]\ngrace = "1s"\n')
    host("systemctl", "enable", "--now", "connect-relay")
    tokens = [f"first-{n:02}" for n in range(QUEUED)]
    assert host.send(tokens) == ["QUEUED"] * QUEUED
    assert host.send(["more"]) == ["ThrottlingException"], "the queue is full"

    # An upgrade while the queue is full and Connect is down.
    before, edited = host.show("MainPID"), settings.read_text()
    host.install(package(NEW))
    assert host("dpkg-query", "--show", "--showformat=${Version} ${db:Status-Status}", "connect-relay") == f"{NEW} installed"
    assert host.show("ActiveState") == "active" and host.show("MainPID") not in (before, "0"), "the upgrade restarted it"
    assert settings.read_text() == edited and host("systemctl", "is-enabled", "connect-relay").strip() == "enabled"
    assert host.status()["queued"] == QUEUED and host.send(["more"]) == ["ThrottlingException"]
    host.connect()
    until(lambda: host.status()["queued"] == 0, "the queue is delivered")
    assert host.delivered() == tokens, "each once, in order"

    # An upgrade while it is stopped, over a store of format 3, at the time at which that was made.
    host("systemctl", "stop", "connect-relay")
    made = old_stores.unpack(3, tmp_path)
    shutil.rmtree(state / "queue")
    must("cp", "--recursive", tmp_path / "private/queue", state / "queue")
    must("chown", "--recursive", f"--reference={state}", state / "queue")
    shutil.copy(clocks.build_shim(tmp_path), host.root / "usr/lib/clock.so")
    clock = clocks.Machine(host.root / "opt/clock", "/usr/lib/clock.so", wall=made + 60 - time.time())
    drop_in = host.root / "etc/systemd/system/connect-relay.service.d/clock.conf"
    drop_in.parent.mkdir()
    words = " ".join(word.replace(str(host.root), "") for word in clock.before[1:])
    drop_in.write_text(f"[Service]\nEnvironment={words}\n")
    settings.write_text(f'[sender]\nendpoint = "{CONNECT}"\nlifetime = "6h"\n[shutdown]\ngrace = "1s"\n')
    host.install(package(OLD))
    assert host.show("ActiveState") == "inactive", "an upgrade does not start a stopped relay"
    host("systemctl", "start", "connect-relay")
    status = host.status()
    assert (status["queued"], status["dead_letters"]) == (len(old_stores.QUEUED), len(old_stores.DEAD))
    host("connect-relay", "resume")
    until(lambda: host.status()["queued"] == 0, "what format 3 held is delivered")
    assert sorted(host.delivered()[QUEUED:]) == sorted(old_stores.QUEUED)

    # A removal keeps what is queued, and the settings; so does a purge, but for the settings.
    drop_in.unlink()
    host("systemctl", "stop", "connect")
    host("systemctl", "daemon-reload")
    host("systemctl", "restart", "connect-relay")
    assert host.send(["last"]) == ["QUEUED"]
    host.dpkg("--remove", "connect-relay")
    assert not (host.root / "usr/bin/connect-relay").exists() and settings.exists() and (state / "queue").is_dir()
    assert host.show("ActiveState") == "inactive", "the removal stopped it"
    host.dpkg("--purge", "connect-relay")
    assert not settings.exists() and (state / "queue").is_dir()
    host.install(package(NEW))
    settings.write_text(f'[sender]\nendpoint = "{CONNECT}"\n')
    host.connect()
    host("systemctl", "start", "connect-relay")
    until(lambda: host.delivered()[-1] == "last", "the next installation delivers what was left")


@pytest.mark.needs("cargo")
def test_tarball_has_the_binary_its_texts_units_and_a_checksum(tmp_path):
    env = {**MACHINE, "CARGO_TARGET_DIR": str(tmp_path)}
    made = []
    for _ in range(2):
        must(ROOT / "deploy/release", "tarball", BINARY, env=env)
        made.append((tmp_path / "release-files/SHA256SUMS").read_text())
    assert made[0] == made[1], "the same files make the same tarball"
    must("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=tmp_path / "release-files")
    must("tar", "--extract", "--file", *(tmp_path / "release-files").glob("*.tar.gz"), cwd=tmp_path)
    folder = next(tmp_path.glob("connect-relay-*-linux"))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {"connect-relay", "relay.toml", "LICENSE", "share/connect-relay.1", "systemd/connect-relay.service", "systemd/connect-relay.socket"}
    assert must(folder / "connect-relay", "man") == (folder / "share/connect-relay.1").read_text()
