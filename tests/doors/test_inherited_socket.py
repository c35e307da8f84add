"""The bots' socket from a service manager. The test is the manager: it makes the socket, and keeps it over the relay's
stops, crashes and kills."""

import http.client
import json
import os
import select
import shutil
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from kit.callers import assert_error, send
from kit.connecting import Connecting, all_have_sent
from kit.other_users import OTHER, OtherUser
from kit.processes import BINARY, CANARY, command
from kit.wait import TIMEOUT, until

DOWN = "http://127.0.0.1:9"
REMEDY = "systemctl restart connect-relay.socket"
HELD = "ok (held by systemd, which starts the relay when a bot connects)"

# Becomes the program, with these sockets from descriptor 3 on. Its own number is the program's.
PASS_ON = """
import fcntl, json, os, sys
numbers, variables, program = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
for place, number in enumerate([fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in numbers]):
    os.dup2(number, 3 + place)
os.environ.update({name: value or str(os.getpid()) for name, value in variables.items()})
os.execv(program[0], program)
"""


def listen(path, mode=0o660):
    """A listening socket as systemd makes it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    os.chmod(path, mode)
    listener.listen(4096)
    return listener


def spawn(relay, *sockets, **variables):
    """Starts the relay with these sockets, without waiting. A variable without a value is the relay's process id."""
    variables = {"LISTEN_PID": "", "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": "ingress", **variables}
    variables = {name: value for name, value in variables.items() if value is not None}
    numbers = [one.fileno() for one in sockets]
    relay.before = [sys.executable, "-c", PASS_ON, json.dumps(numbers), json.dumps(variables)]
    relay.spawn(pass_fds=numbers)
    return relay


def start(relay, *sockets, **variables):
    spawn(relay, *sockets, **variables)
    until(relay.ready, "the relay is ready")


@pytest.fixture
def simulator(simulators):
    return simulators("--rate", "2000", "--burst", "2000")


@pytest.fixture
def inherited(relays, simulator):
    """Makes relays that are not started, each with its socket."""

    def make(**settings):
        relay = relays(simulator.url, start=False, tcp=False, **settings)
        relay.listener = listen(relay.socket)
        made.append(relay.listener)
        return relay

    made = []
    yield make
    for listener in made:
        listener.close()


def state_of(path):
    """What changes if the socket is made anew, or its mode, owner or name is changed."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_ctime_ns


def test_every_connect_succeeds_over_a_restart_and_two_kills(inherited, simulator):
    relay = inherited(sender__quota_rate=1000, sender__quota_burst=1000)
    before = state_of(relay.socket)
    start(relay, relay.listener)
    bots = [Connecting(relay.socket) for _ in range(4)]
    for bot in bots:
        bot.start()
    all_have_sent(bots)
    assert relay.stop() in (0, 75)
    start(relay, relay.listener)
    for _ in range(2):
        all_have_sent(bots)
        relay.kill()
        start(relay, relay.listener)
    all_have_sent(bots)
    for bot in bots:
        bot.end()
    assert [bot.refused for bot in bots] == [[]] * 4
    assert state_of(relay.socket) == before, "it is the manager's socket, as it was"
    relay.until_empty()
    delivered = [line["ClientToken"] for line in simulator.ledger()]
    assert sorted(delivered) == sorted(token for bot in bots for token in bot.sent)
    assert relay.stop() == 0
    assert state_of(relay.socket) == before


def test_client_that_waits_while_a_start_ends_in_78_is_served_by_the_next(inherited):
    relay = inherited()
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    waiting.settimeout(TIMEOUT)
    waiting.connect(relay.socket)
    waiting.sendall(b"GET /participant/queue HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
    for fault in ({"sender.quota_rate": "fast"}, {}):
        settings = dict(relay.settings)
        relay.settings |= fault
        spawn(relay, relay.listener, **({} if fault else {"LISTEN_FDNAMES": "other"}))
        assert relay.wait() == 78, relay.log()
        relay.settings = settings
    assert not (relay.folder / "private").exists(), "the store was not touched"
    start(relay, relay.listener)
    reply = http.client.HTTPResponse(waiting)
    reply.begin()
    assert (reply.status, json.loads(reply.read())["Queued"]) == (200, 0)


def unix(kind=socket.SOCK_STREAM):
    return socket.socket(socket.AF_UNIX, kind)


def a_port(folder):
    return socket.create_server(("127.0.0.1", 0))


def a_datagram_socket(folder):
    made = unix(socket.SOCK_DGRAM)
    made.bind(str(folder / "datagram"))
    return made


def a_connection(folder):
    ours, theirs = socket.socketpair()
    theirs.detach()
    return ours


def a_socket_that_does_not_listen(folder):
    made = unix()
    made.bind(str(folder / "silent"))
    return made


def a_socket_at_another_path(folder):
    return listen(folder / "other.sock")


def a_file(folder):
    return open(folder / "file", "w")


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (a_port, "it is not a Unix socket"),
        (a_datagram_socket, "it is not a stream socket"),
        (a_connection, "it does not listen"),
        (a_socket_that_does_not_listen, "it does not listen"),
        (a_socket_at_another_path, "other.sock, and ingress.socket is"),
        (a_file, "it is not a socket"),
    ],
)
def test_descriptor_that_is_not_the_bots_socket_ends_the_start_with_78(relays, tmp_path, make, cause):
    relay = relays(DOWN, start=False)
    with make(tmp_path) as passed:
        spawn(relay, passed)
        assert relay.wait() == 78
    assert "connect-relay: the inherited socket ingress (descriptor 3) cannot be used: " in relay.log()
    assert cause in relay.log()
    assert {file.name for file in relay.folder.iterdir()} == {"log"}, "nothing was touched"


@pytest.mark.parametrize(
    ("number", "variables", "cause"),
    [
        (1, {"LISTEN_FDNAMES": "metrics"}, 'the unknown name "metrics"'),
        (1, {"LISTEN_FDNAMES": "connect-relay.socket"}, 'the unknown name "connect-relay.socket"'),
        (1, {"LISTEN_FDNAMES": None}, "has no name (LISTEN_FDNAMES)"),
        (2, {"LISTEN_FDNAMES": "ingress:ingress"}, "2 sockets are inherited"),
        (2, {"LISTEN_FDNAMES": "ingress:control"}, "2 sockets are inherited"),
        (0, {"LISTEN_FDS": "1"}, "the inherited socket ingress (descriptor 3) cannot be used: it "),
        (1, {"LISTEN_FDS": "one"}, 'LISTEN_FDS="one" is not a number'),
    ],
)
def test_sockets_that_the_relay_does_not_know_end_the_start_with_78(relays, tmp_path, number, variables, cause):
    relay = relays(DOWN, start=False)
    sockets = [listen(place) for place in (relay.socket, tmp_path / "second.sock")]
    spawn(relay, *sockets[:number], **variables)
    assert relay.wait() == 78
    assert cause in relay.log()
    if "LISTEN_FDS" not in variables:
        assert "connect-relay takes one, with FileDescriptorName=ingress in its socket unit" in relay.log()
    assert {file.name for file in relay.folder.iterdir()} == {"log", "relay.sock"}, "nothing was touched"
    for one in sockets:
        one.close()


@pytest.mark.parametrize("variables", [{"LISTEN_PID": "1"}, {"LISTEN_PID": None}, {"LISTEN_FDS": "0"}])
def test_sockets_of_another_process_are_ignored(inherited, tmp_path, variables):
    relay = inherited()
    os.unlink(relay.socket)
    start(relay, relay.listener, **{"LISTEN_FDNAMES": "other", **variables})
    assert send(relay, CANARY, "hello").status == 202, "the relay made its own socket"
    [line] = relay.lines("started")
    assert line["inherited"] is False
    assert relay.stop() == 0
    assert not os.path.lexists(relay.socket), "and removed it"


def test_peers_of_an_inherited_socket_are_checked(inherited):
    relay = inherited(ingress__allow_uids=os.geteuid() + 1)
    start(relay, relay.listener)
    assert_error(send(relay, CANARY, "hello"), 403, "RelayForbiddenException", "uid")
    relay.stop()
    relay.settings["ingress.allow_uids"] = os.geteuid()
    start(relay, relay.listener)
    assert send(relay, CANARY, "hello").status == 202


def test_vanished_inherited_socket_is_reported_and_never_made_anew(inherited):
    relay = inherited()
    start(relay, relay.listener)
    folder = sorted(file.name for file in relay.folder.iterdir())
    os.unlink(relay.socket)
    status, text = relay.get("/readyz")
    assert status == 503 and "nothing is there" in text and REMEDY in text
    assert relay.metrics()["socket_present"] == 0
    [warning] = until(lambda: relay.lines("the socket is not at its path: new connections cannot reach it"), "it is logged")
    assert warning["level"] == "WARN" and REMEDY in warning["error"]
    assert REMEDY in relay.get("/status.json")[1] and "binds the socket again" not in relay.get("/status.json")[1]
    # A start finds the same.
    relay.stop()
    spawn(relay, relay.listener)
    assert relay.started(), relay.log()
    until(lambda: REMEDY in relay.get("/readyz")[1], "it is not ready")
    assert len(relay.lines("the socket is not at its path: new connections cannot reach it", 2)) == 2
    assert sorted({file.name for file in relay.folder.iterdir()} | {"relay.sock"}) == folder
    relay.end()
    # `systemctl restart connect-relay.socket`
    with listen(relay.socket) as again:
        start(relay, again)
        assert relay.metrics()["socket_present"] == 1
        assert send(relay, CANARY, "hello").status == 202
        relay.end()


def test_other_mode_than_configured_is_logged_and_kept(inherited):
    relay = inherited()
    os.chmod(relay.socket, 0o666)
    before = state_of(relay.socket)
    start(relay, relay.listener)
    [line] = relay.lines("the inherited socket has another mode than ingress.socket_mode: set SocketMode= in connect-relay.socket", 1)
    assert (line["level"], line["mode"], line["configured"]) == ("WARN", "0666", "0660")
    assert state_of(relay.socket) == before


@contextmanager
def named(name):
    """Gives this process a name in /proc, such as systemd's."""
    comm = Path(f"/proc/{os.getpid()}/comm")
    before = comm.read_text()
    comm.write_text(name)
    try:
        yield
    finally:
        comm.write_text(before)


def line_on_the_bots_socket(relay):
    done = command("check", "--online", "--dir", relay.folder, settings=relay.settings)
    [line] = [line for line in done.stderr.splitlines() if line.startswith(f"ingress.socket {relay.socket}: ")]
    return line.split(": ", 1)[1]


def connections_wait(listener):
    return bool(select.select([listener], [], [], 0)[0])


def test_check_finds_a_socket_of_systemd_without_starting_a_relay(inherited):
    relay = inherited()
    before = state_of(relay.socket)
    with named("systemd"):
        assert line_on_the_bots_socket(relay) == HELD
        assert not connections_wait(relay.listener), "no connection, which would start the relay"
        # A relay that runs answers itself.
        start(relay, relay.listener)
        assert line_on_the_bots_socket(relay) == "ok (a relay is running)"
        assert relay.stop() == 0
        assert line_on_the_bots_socket(relay) == HELD
        assert not connections_wait(relay.listener) and state_of(relay.socket) == before
    # This process under its own name is another program.
    assert line_on_the_bots_socket(relay).startswith("another program listens there: stop it, or set ")
    assert connections_wait(relay.listener)


def test_check_of_a_user_who_cannot_see_systemds_sockets_asks_the_kernel(users, inherited, monkeypatch):
    relay = inherited()
    relay.folder.chmod(0o711)
    os.chmod(relay.socket, 0o666)
    copy = shutil.copy(BINARY, relay.folder)  # The other user may not reach the binary's own folder.
    monkeypatch.setattr("kit.processes.BINARY", copy)
    with named("systemd"):
        other = OtherUser(OTHER, lambda say: say(line_on_the_bots_socket(relay)))
        assert other.receive() == HELD
        other.end()
    other = OtherUser(OTHER, lambda say: say(line_on_the_bots_socket(relay)))
    assert other.receive().startswith("another program listens there")
    other.end()
