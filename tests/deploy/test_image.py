"""The Dockerfile: linted, built, and run in a bare chroot: names are resolved and certificates are checked without a system."""

import http.server
import json
import os
import re
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import zlib

import pytest

from kit.containers import PLACE, buildah, copy_of, debian, image_of, podman
from kit.wait import until
from kit.processes import BINARY, environment, free_port
from kit.tools import MACHINE, ROOT, ROOT_USER, WORK, must, run

BUILDS = pytest.mark.needs("buildah", "mmdebstrap", "cargo", ROOT_USER)


@pytest.mark.needs("hadolint")
def test_linter_finds_no_fault_in_the_dockerfile():
    assert run("hadolint", ROOT / "Dockerfile").stdout == ""
    assert "DL3007" in run("hadolint", "-", input="FROM debian:latest\n").stdout, "a fault would be seen"


@pytest.fixture
def files(image):
    """The image's files, as a folder of their own."""
    container = buildah("from", f"localhost/{image}")
    folder = WORK / "image-files"
    shutil.rmtree(folder, ignore_errors=True)
    must("cp", "--archive", buildah("mount", container), folder)  # with its owners
    buildah("rm", container)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long
@BUILDS
def test_image_is_small_has_no_shell_and_runs_without_privileges(image, files):
    described = json.loads(buildah("inspect", "--type", "image", f"localhost/{image}"))["OCIv1"]
    config = described["config"]
    assert config["User"] == "29581:29581" and config["Entrypoint"] == ["/usr/bin/connect-relay"]
    assert "PATH=/usr/bin" in config["Env"], "by which `kubectl exec … -- connect-relay status` finds it"
    found = sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())
    assert found == ["etc/ssl/certs/ca-certificates.crt", "usr/bin/connect-relay"]
    size = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    print(f"{size} bytes")
    assert size <= 10_000_000
    assert (files / "var/lib/connect-relay").stat().st_uid == 29581
    assert b"Certificate" in must("openssl", "x509", "-noout", "-text", "-in", files / "etc/ssl/certs/ca-certificates.crt").encode()


@pytest.mark.long
@BUILDS
@pytest.mark.needs("objcopy")
def test_binary_lists_its_dependencies(files, tmp_path):
    must("objcopy", "--dump-section", f".dep-v0={tmp_path}/list", files / "usr/bin/connect-relay", tmp_path / "copy")
    listed = json.loads(zlib.decompress((tmp_path / "list").read_bytes()))["packages"]
    made_of = {(package["name"], package["version"]) for package in listed if package.get("kind") != "build"}
    locked = set(re.findall(r'^name = "(.+)"\nversion = "(.+)"$', (ROOT / "Cargo.lock").read_text(), re.M))
    direct = set(re.findall(r"^([\w-]+) = ", (ROOT / "Cargo.toml").read_text().split("\n[dependencies]\n")[1].split("\n[")[0], re.M))
    assert made_of <= locked and direct <= {name for name, _ in made_of}
    assert "proptest" not in {name for name, _ in made_of}, "what only tests need is not in it"


class Names:
    """A name server on a loopback address of its own that knows one name."""

    def __init__(self, address):
        self.asked = []
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                query, out = self.request
                # Ask for an IPv4 address and get 127.0.0.1; for anything else, nothing.
                end = query.index(b"\0", 12) + 5
                kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
                outer.asked.append(query[12 : end - 4])
                answer = b"\xc0\x0c" + struct.pack("!HHIH4s", 1, 1, 60, 4, socket.inet_aton("127.0.0.1")) if kind == 1 else b""
                head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1 if answer else 0, 0, 0)
                out.sendto(head + query[12:end] + answer, self.client_address)

        self.server = socketserver.UDPServer((address, 53), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def connect(tmp_path):
    """A Connect at https://participant.test, of a certificate authority of the test's own."""
    subject = ["-subj", "/CN=participant.test", "-addext", "subjectAltName=DNS:participant.test"]
    authority = ["-subj", "/CN=the test's own", "-addext", "basicConstraints=critical,CA:TRUE"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    ca, key, cert = tmp_path / "ca.pem", tmp_path / "key.pem", tmp_path / "cert.pem"
    must(*new, *authority, "-keyout", tmp_path / "ca.key", "-out", ca)
    leaf = ["-CA", ca, "-CAkey", tmp_path / "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    must(*new, *subject, *leaf, "-keyout", key, "-out", cert)

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"Id": "1", "AbsoluteTime": "2026-11-22T10:00:00.000Z"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://participant.test:{server.server_address[1]}", ca
    server.shutdown()
    server.server_close()


@pytest.mark.long
@BUILDS
@pytest.mark.needs("openssl")
@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "not trusted"])
def test_in_a_bare_chroot_it_resolves_names_and_checks_certificates(files, connect, trusted):
    url, ca = connect
    names = Names("127.53.0.1")
    (files / "etc/resolv.conf").write_text("nameserver 127.53.0.1\n")
    if trusted:
        # The authorities where the image has them: nothing is said to the relay about a file.
        shutil.copy(ca, files / "etc/ssl/certs/ca-certificates.crt")
    os.chmod(files, 0o755)
    settings = {"sender.endpoint": url, "shutdown.grace": "4s", "admin.listen": f"127.0.0.1:{free_port()}", "queue.volatile": "true"}
    inside = {"env": environment(settings, CONNECTION_TOKEN="canary"), "text": True, "stderr": subprocess.PIPE}
    chroot = ["chroot", "--userspec=29581:29581", files, "/usr/bin/connect-relay"]
    relay = subprocess.Popen([*chroot, "run"], **inside)
    try:
        until((files / "run/connect-relay/relay.sock").exists, "its socket is there")
        sent = subprocess.run([*chroot, "send", "--wait", "20s" if trusted else "1s", "hello"], stdout=subprocess.PIPE, timeout=60, **inside)
        assert sent.stdout, sent.stderr
        reply = json.loads(sent.stdout)
        assert (reply.get("Id") == "1") == trusted, (reply, sent.stderr)
        assert b"\x0bparticipant\x04test\0" in names.asked
    finally:
        names.stop()
        relay.terminate()
        said = relay.communicate(timeout=60)[1]
    assert relay.returncode == (0 if trusted else 75)
    assert ("UnknownIssuer" in said or "invalid peer certificate" in said) == (not trusted), said


@pytest.mark.long
@BUILDS
@pytest.mark.needs("podman", "runc")
def test_as_a_container_it_runs_the_demo(image):
    said = podman("run", "--rm", "--network=none", "--read-only", f"localhost/{image}", "demo", "--messages", "40", "--conversations", "4")
    assert "out of order" in said, said


# The base image's cargo, for a test of what is around the build: it hands out a binary that exists.
STAND_IN = """#!/bin/sh
case "$1 $2" in
"auditable build") install -D /opt/connect-relay target/stand-in/dist/connect-relay ;;
*) echo "cargo $*" >&2 && exit 1 ;;
esac
"""


@pytest.mark.long
@pytest.mark.needs("podman", "buildah", "runc", "mmdebstrap", ROOT_USER)
def test_release_saves_the_image_as_an_archive_that_can_be_loaded(containers, tmp_path):
    base = copy_of(debian("systemd-pattern", "systemd,dbus,ca-certificates"), "debian-stand-in")
    shutil.copy(BINARY, base / "opt/connect-relay")
    programs = {"cargo": STAND_IN, "cargo-auditable": STAND_IN, "rustc": "#!/bin/sh\necho stand-in\n"}
    # On this machine: a docker without its daemon, and podman with a place of the test's own.
    own = {"docker": "#!/bin/sh\nexit 1\n", "podman": f'#!/bin/sh\nexec {shutil.which("podman")} --runtime runc --cgroup-manager cgroupfs {" ".join(map(str, PLACE))} "$@"\n'}
    for folder, texts in ((base / "usr/bin", programs), (tmp_path, own)):
        for name, text in texts.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
    image_of(base, "stand-in")
    shutil.rmtree(base)
    env = {**MACHINE, "PATH": f"{tmp_path}:{MACHINE['PATH']}", "CARGO_TARGET_DIR": str(tmp_path)}
    must(ROOT / "deploy/release", "image", "--build-arg", "RUST=localhost/stand-in", "--isolation", "chroot", env=env)
    made = tmp_path / "release-files"
    must("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=made)
    [archive] = made.glob("connect-relay-*-image-*.tar.gz")
    podman("rmi", "--all", "--force")
    must("gunzip", archive)  # podman 4.3 refuses a compressed file
    name = podman("load", "--quiet", "--input", archive.with_suffix("")).split()[-1]
    [described] = json.loads(podman("image", "inspect", name))
    assert described["Config"]["Entrypoint"] == ["/usr/bin/connect-relay"] and described["User"] == "29581:29581"
