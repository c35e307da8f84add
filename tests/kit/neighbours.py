"""Bots that run as other users of the machine, each in a process of its own, so that the kernel vouches for them."""

import json
import multiprocessing
import os
import socket

from kit.callers import MESSAGE, PLAIN, parse
from kit.patience import PATIENCE
from kit.raw import dial, received

# Users that nobody is.
VICTIM, NEIGHBOUR, THIRD = 61001, 61002, 61003

_FORK = multiprocessing.get_context("fork")


class Neighbour:
    """Runs `work(pipe, *args)` as another user until it returns; what it sends comes out of `heard`."""

    def __init__(self, uid, work, *args, groups=(), gid=None):
        self._pipe, theirs = _FORK.Pipe()
        self._said = []
        self._process = _FORK.Process(target=_as_user, args=(uid, uid if gid is None else gid, groups, theirs, work, args), daemon=True)
        self._process.start()
        theirs.close()

    def heard(self, patience=PATIENCE):
        """The next thing that it says."""
        assert self._pipe.poll(patience), "the neighbour says nothing"
        kind, said = self._pipe.recv()
        assert kind == "said", f"the neighbour failed: {said}"
        return said

    def all(self):
        """Everything that it has said since this was asked first."""
        while self._pipe.poll():
            self._said.append(self.heard())
        return list(self._said)

    def count(self):
        return len(self.all())

    def end(self):
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _as_user(uid, gid, groups, pipe, work, args):
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    try:
        work(lambda said: pipe.send(("said", said)), *args)
    except BaseException as fault:  # noqa: BLE001 - told to the test, whatever it is
        pipe.send(("failed", repr(fault)))


def ask(relay, uid, method, path, headers=(), body=None, **who):
    """One request of another user's bot; gives the reply."""

    def work(say):
        say(asked(relay, method, path, headers, body))

    neighbour = Neighbour(uid, work, **who)
    try:
        return neighbour.heard()
    finally:
        neighbour.end()


def say(relay, uid, token, content, client_token, headers=(), **who):
    """SendMessage of another user's bot."""
    body = {"ContentType": PLAIN, "Content": content, "ClientToken": client_token}
    return ask(relay, uid, "POST", MESSAGE, [f"X-Amz-Bearer: {token}", *headers], body, **who)


def asked(relay, method, path, headers=(), body=None, door="unix"):
    """One request over a connection of its own."""
    with dial(relay, door) as stream:
        stream.sendall(request(method, path, [*headers, "Connection: close"], body))
        return parse(received(stream))


def request(method, path, headers=(), body=None):
    """The bytes of a request; a body that is not bytes is sent as JSON. It names its own Host, or the relay's."""
    body = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append("Host: localhost")
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def connects(relay):
    """Whether this process may connect at all."""
    with socket.socket(socket.AF_UNIX) as stream:
        try:
            stream.connect(relay.socket)
        except PermissionError:
            return False
    return True
