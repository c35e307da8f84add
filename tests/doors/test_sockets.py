"""Where the doors are, and that nobody slips in while they are being made."""

import os
import re
import shutil
import subprocess

import pytest

from patience import PATIENCE
from processes import BINARY, command, environment, free_port

DOWN = "http://127.0.0.1:9"


@pytest.mark.parametrize("control", ["{bots}/control.sock", "{bots}/../bots/control.sock", "{link}/control.sock"])
def test_the_control_socket_refuses_to_lie_where_bots_can_reach_it(tmp_path, control):
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
def test_a_port_for_others_than_this_machine_is_refused(tmp_path, address):
    done = command("run", "--dir", tmp_path / "relay", settings={"sender.endpoint": DOWN, "ingress.tcp": address})
    assert done.returncode == 78 and "ingress.tcp" in done.stderr and "loopback" in done.stderr, done.stderr
    assert not (tmp_path / "relay").exists()


@pytest.mark.parametrize("lists", [{"ingress.allow_uids": "1000"}, {"ingress.allow_gids": "1000"}])
def test_a_port_beside_a_list_of_users_is_refused(tmp_path, lists):
    settings = {"sender.endpoint": DOWN, "ingress.tcp": f"127.0.0.1:{free_port()}", **lists}
    done = command("run", "--dir", tmp_path / "relay", settings=settings)
    assert done.returncode == 78 and "TCP has no peer credentials" in done.stderr, done.stderr


def test_no_socket_is_ever_wider_than_its_mode(tmp_path):
    """Under the widest umask there is: each socket is bound in a folder that only its owner can enter, has its mode before
    it comes to its place, and nothing is bound or widened there."""
    if not shutil.which("strace"):
        pytest.skip("NOT RUN: strace is needed")
    trace, folder = tmp_path / "trace", tmp_path / "relay"
    settings = {"sender.endpoint": DOWN, "admin.listen": "127.0.0.1:0", "queue.volatile": "true"}
    with subprocess.Popen(
        ["strace", "-f", "-qq", "-s", "200", "-o", trace, "-e", "trace=mkdir,mkdirat,bind,chmod,fchmodat,rename,renameat,renameat2,umask",
         BINARY, "run", "--dir", folder],
        env=environment(settings), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, umask=0, text=True, start_new_session=True,
    ) as process:
        try:
            line = next((line for line in process.stderr if '"started"' in line), None)
            assert line, "it did not start"
            [relay] = re.findall(r"^(\d+)", trace.read_text())[:1]
            os.kill(int(relay), 15)
            process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    steps = trace.read_text()
    for socket, mode in ((folder / "relay.sock", "0660"), (folder / "private/control.sock", "0600")):
        [made] = re.findall(rf'rename\w*\((?:AT_FDCWD, )?"([^"]+)", (?:AT_FDCWD, )?"{socket}"', steps)
        private = os.path.dirname(made)
        ways = [
            rf'mkdir\w*\((?:AT_FDCWD, )?"{private}", 0700\) = 0',
            rf'bind\(\d+, \{{sa_family=AF_UNIX, sun_path="{made}"\}}, \d+\) = 0',
            rf'chmod\w*\((?:AT_FDCWD, )?"{made}", {mode}\)',
            rf'rename\w*\((?:AT_FDCWD, )?"{made}", (?:AT_FDCWD, )?"{socket}"',
        ]
        at = [[match.start() for match in re.finditer(way, steps)] for way in ways]
        assert all(len(found) == 1 for found in at) and at == sorted(at), f"{at}\n{steps}"
        assert f'sun_path="{socket}"' not in steps.replace("connect", ""), "nothing is bound in its place"
        assert not re.search(rf'chmod\w*\((?:AT_FDCWD, )?"(?:{socket}|{private})"', steps)
    made = dict(re.findall(r'mkdir\w*\((?:AT_FDCWD, )?"([^"]+)", (\d+)\) = 0', steps))
    assert made[str(folder)] == "0755" and made[str(folder / "private")] == "0700"


def test_under_the_widest_umask_folders_and_files_are_still_the_owners(relays):
    old = os.umask(0)
    try:
        relay = relays(DOWN)
    finally:
        os.umask(old)
    private = relay.folder / "private"
    assert private.stat().st_mode & 0o777 == 0o700 and (relay.folder / "relay.sock").stat().st_mode & 0o777 == 0o660
    inside = [path for path in private.rglob("*") if path.is_file() or path.is_socket()]
    assert inside and all(path.stat().st_mode & 0o077 == 0 for path in inside), inside
