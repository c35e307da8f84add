"""Sockets and ports: their places, and no access while they are being created."""

import contextlib
import ctypes
import errno
import os
import platform
import re
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kit.wait import TIMEOUT, until
from kit.processes import Relay, command, free_port

DOWN = "http://127.0.0.1:9"


@pytest.mark.parametrize("control", ["{bots}/control.sock", "{bots}/../bots/control.sock", "{link}/control.sock"])
def test_control_socket_in_the_bots_folder_is_refused(tmp_path, control):
    bots, link = tmp_path / "bots", tmp_path / "link"
    bots.mkdir()
    link.symlink_to(bots)
    settings = {
        "sender.endpoint": DOWN,
        "queue.path": tmp_path / "queue",
        "ingress.socket": bots / "relay.sock",
        "control.socket": control.format(bots=bots, link=link),
    }
    done = command("run", settings=settings)
    assert done.returncode == 78, done.stderr
    assert "control.socket" in done.stderr and "in another folder than ingress.socket" in done.stderr
    assert not any(bots.iterdir()) and not (tmp_path / "queue").exists(), "nothing was touched"


@pytest.mark.parametrize("address", ["0.0.0.0:8480", "[::]:8480", "10.0.0.1:8480", "[::ffff:10.0.0.1]:8480", "[2001:db8::1]:8480"])
def test_bots_port_on_a_non_loopback_address_is_refused(tmp_path, address):
    done = command("run", "--dir", tmp_path / "relay", settings={"sender.endpoint": DOWN, "ingress.tcp": address})
    assert done.returncode == 78 and "ingress.tcp" in done.stderr and "loopback" in done.stderr, done.stderr
    assert not (tmp_path / "relay").exists()


@pytest.mark.parametrize("lists", [{"ingress.allow_uids": "1000"}, {"ingress.allow_gids": "1000"}])
def test_bots_port_beside_an_access_list_is_refused(tmp_path, lists):
    settings = {"sender.endpoint": DOWN, "ingress.tcp": f"127.0.0.1:{free_port()}", **lists}
    done = command("run", "--dir", tmp_path / "relay", settings=settings)
    assert done.returncode == 78 and "TCP has no peer credentials" in done.stderr, done.stderr


def test_no_socket_ever_has_more_permissions_than_its_mode(tmp_path):
    """Under the widest umask: each socket is bound at its path, gets its mode, and only then listens. Before it
    listens, the kernel refuses every connection."""
    if not shutil.which("strace"):
        pytest.skip("NOT RUN: strace is needed")
    trace, folder = tmp_path / "trace", tmp_path / "relay"
    calls = "mkdir,mkdirat,bind,listen,chmod,fchmodat,?fchmodat2,rename,renameat,renameat2,umask"
    strace = ["strace", "-f", "-qq", "-s", "200", "-o", trace, "-e", f"trace={calls}"]
    relay = Relay(DOWN, tcp=False, folder=folder, before=strace, admin__listen="127.0.0.1:0")
    relay.spawn(umask=0, start_new_session=True)
    try:
        assert relay.started(), f"it did not start: {relay.log()}"
        [program] = re.findall(r"^(\d+)", trace.read_text())[:1]
        os.kill(int(program), 15)
        relay.wait()
    finally:
        relay.remove()
    steps = trace.read_text()
    for socket, mode in ((folder / "relay.sock", "0660"), (folder / "private/control.sock", "0600")):
        [number] = re.findall(rf'bind\((\d+), \{{sa_family=AF_UNIX, sun_path="{socket}"\}}, \d+\) = 0', steps)
        bound = re.search(rf'bind\({number}, \{{sa_family=AF_UNIX, sun_path="{socket}"', steps).start()
        ways = [rf'chmod\w*\((?:AT_FDCWD, )?"{socket}", {mode}[,)]', rf'listen\({number}, 4096\)\s+= 0']
        after = [re.search(way, steps[bound:]) for way in ways]
        assert all(after) and after[0].start() < after[1].start(), f"{after}\n{steps}"
    assert not re.search(r"rename\w*\(.*\.sock", steps), "the kernel knows the sockets by the paths that bots use"
    assert re.search(r"listen\(\d+, 4096\)\s+= 0", steps[: steps.index("sun_path")]), "the admin port too"
    made = dict(re.findall(r'mkdir\w*\((?:AT_FDCWD, )?"([^"]+)", (\d+)\) = 0', steps))
    assert made[str(folder)] == "0755" and made[str(folder / "private")] == "0700"


def test_the_kernel_knows_each_socket_by_its_path(relays):
    relay = relays(DOWN)
    known = Path("/proc/net/unix").read_text()
    assert known.count(f" {relay.socket}\n") == 1 and f" {relay.folder}/private/control.sock\n" in known


@pytest.mark.parametrize("lost", ["socket", "lock", "folder"])
def test_vanished_socket_is_bound_again_and_connections_continue(relays, tmp_path, lost):
    socket_path = tmp_path / "run/bots/relay.sock"
    relay = relays(DOWN, start=False, ingress__socket=socket_path)
    # --dir would override it.
    relay.settings |= {"queue.path": relay.folder / "queue", "control.socket": relay.folder / "private/control.sock"}
    relay.arguments = []
    relay.socket = str(socket_path)
    with contextlib.ExitStack() as stack:
        relay.start()
        before = stack.enter_context(connected(socket_path))
        assert get_reply(before)
        if lost == "folder":
            shutil.rmtree(socket_path.parent)
        else:
            socket_path.unlink()
        if lost == "lock":
            socket_path.with_name("relay.sock.lock").unlink()
        assert relay.get("/readyz")[0] == 503 and relay.metrics()["socket_present"] == 0
        until(socket_path.exists, "the socket is bound again", 6)
        assert get_reply(before) and get_reply(stack.enter_context(connected(socket_path)))
        assert socket_path.stat().st_mode & 0o777 == 0o660
        assert relay.get("/readyz")[0] == 200 and relay.metrics()["socket_present"] == 1
    warned = until(lambda: [line for line in relay.lines() if line["level"] == "WARN" and "socket" in line["message"]], "it is logged")
    assert len(warned) == 1 and warned[0]["socket"] == str(socket_path), warned
    assert relay.stop() == 0
    assert not list(socket_path.parent.iterdir()), "nothing is left"


@pytest.mark.parametrize("kind", ["file", "socket", "folder"])
def test_other_file_at_the_path_of_the_socket_is_left_alone(relays, kind):
    relay = relays(DOWN)
    path = Path(relay.socket)
    path.unlink()
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(path))
    inode = path.lstat().st_ino
    warned = lambda: [line for line in relay.lines() if line["level"] == "WARN" and "left alone" in line.get("error", "")]
    until(warned, "it is said")
    assert path.lstat().st_ino == inode and len(warned()) == 1
    assert relay.get("/readyz")[0] == 503 and relay.metrics()["socket_present"] == 0
    status = command("status", "--socket", relay.folder / "private/control.sock")
    assert "Bots cannot connect" in status.stdout and str(path) in status.stdout, status
    assert relay.stop() == 0 and path.lstat().st_ino == inode


def test_vanished_control_socket_is_bound_again(relays):
    relay = relays(DOWN)
    control = relay.folder / "private/control.sock"
    control.unlink()
    assert relay.get("/readyz")[0] == 200, "bots are served"
    until(control.exists, "the socket is bound again", 6)
    assert command("status", "--socket", control).returncode == 0
    assert control.stat().st_mode & 0o777 == 0o600


def test_stale_socket_is_replaced_by_one_of_two_starting_relays(relays):
    relay = relays(DOWN)
    relay.kill()
    assert Path(relay.socket).exists() and Path(relay.socket + ".lock").exists()
    relay.start()
    assert get_reply(connected(relay.socket))
    second = command("run", "--config", "/dev/null", settings={
        "sender.endpoint": DOWN, "admin.listen": "127.0.0.1:0", "queue.volatile": "true", "ingress.socket": relay.socket,
        "queue.path": relay.folder / "other/queue", "control.socket": relay.folder / "other/control.sock",
    })
    assert second.returncode == 1 and "another process is listening there" in second.stderr, second
    assert get_reply(connected(relay.socket))


@pytest.mark.parametrize("length", [99, 100, 104, 107, 108])
@pytest.mark.parametrize("key", ["ingress.socket", "control.socket", "--dir"])
def test_check_and_run_agree_on_every_length_of_a_path(relays, key, length):
    root = Path(tempfile.mkdtemp(prefix="r-"))
    try:
        name = "private/control.sock" if key == "--dir" else "s"
        fill = length - len(str(root)) - len(name) - 2
        folder = root / ("d" * fill)
        assert len(str(folder / name)) == length
        relay = Relay(DOWN, tcp=False, folder=folder, admin__listen="127.0.0.1:0")
        if key != "--dir":
            relay.settings |= {
                "ingress.socket": root / "b/s", "control.socket": root / "c/s", "queue.path": root / "q", key: folder / name,
            }
            relay.arguments = []
        checked = command("check", *relay.arguments, settings=relay.settings)
        assert checked.returncode == (0 if length <= 107 else 78), checked
        relay.spawn()
        try:
            started = relay.started()
            assert started == (length <= 107), relay.log()
            if started:
                assert '"started"' in relay.log().splitlines()[0], relay.log()
                connected(folder / name).close()
                relay.terminate()
            assert relay.wait() == checked.returncode
        finally:
            relay.remove()
    finally:
        shutil.rmtree(root)


def test_burst_of_connections_to_the_port_is_accepted_completely(relays):
    """No client has to repeat its SYN, which takes a second: all wait in the kernel at once."""
    relay = relays(DOWN)
    port = int(relay.url.rsplit(":", 1)[1])
    listening = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True) if shutil.which("ss") else None
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    if listening and listening.stdout:
        assert int(listening.stdout.split()[2]) == min(4096, most), listening.stdout
    relay.process.send_signal(signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            waiting = selectors.DefaultSelector()
            for _ in range(min(500, most)):
                stream = stack.enter_context(socket.socket())
                stream.setblocking(False)
                stream.connect_ex(("127.0.0.1", port))
                waiting.register(stream, selectors.EVENT_WRITE)
            connected_ones = set()
            while len(connected_ones) < min(500, most):
                ready = waiting.select(TIMEOUT)
                assert ready, f"{len(connected_ones)} connected"
                for key, _ in ready:
                    assert key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                    # The number of repeated SYNs: tcpi_total_retrans.
                    info = key.fileobj.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                    assert int.from_bytes(info[100:104], sys.byteorder) == 0, "a SYN was lost"
                    connected_ones.add(key.fileobj)
                    waiting.unregister(key.fileobj)
    finally:
        relay.process.send_signal(signal.SIGCONT)


def without_ipv6():
    """Makes IPv6 sockets fail in this process: seccomp returns EAFNOSUPPORT, as on a host without IPv6."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    steps = [(load, 0, 0, 0), (jump_if_equal, 0, 3, number), (load, 0, 0, 16), (jump_if_equal, 0, 1, socket.AF_INET6),
             (give, 0, 0, 0x00050000 | errno.EAFNOSUPPORT), (give, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(kept)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="NOT RUN: the filter is written for two machines")
def test_without_ipv6_the_admin_port_falls_back_to_ipv4(tmp_path):
    port = free_port()
    relay = Relay(DOWN, tcp=False, folder=tmp_path / "relay", admin__listen=f"[::]:{port}")
    relay.admin = f"http://127.0.0.1:{port}"
    relay.spawn(preexec_fn=without_ipv6)
    try:
        assert relay.started(), relay.log()
        warning, started = relay.lines()[:2]
        assert warning["level"] == "WARN" and "no IPv6" in warning["message"] and warning["instead"] == f"0.0.0.0:{port}", warning
        assert started["admin"] == f"0.0.0.0:{port}", started
        assert relay.get("/readyz")[0] == 200
        assert relay.stop() == 0
    finally:
        relay.remove()


def connected(path):
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(TIMEOUT)
    stream.connect(str(path))
    return stream


def get_reply(stream):
    stream.sendall(b"GET /participant/queue HTTP/1.1\r\nHost: x\r\n\r\n")
    return stream.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_files_and_folders_are_private_under_the_widest_umask(relays):
    old = os.umask(0)
    try:
        relay = relays(DOWN)
    finally:
        os.umask(old)
    private = relay.folder / "private"
    assert private.stat().st_mode & 0o777 == 0o700 and (relay.folder / "relay.sock").stat().st_mode & 0o777 == 0o660
    inside = [path for path in private.rglob("*") if path.is_file() or path.is_socket()]
    assert inside and all(path.stat().st_mode & 0o077 == 0 for path in inside), inside
