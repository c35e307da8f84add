"""Bots that run as other users of this machine, each in a process of its own, so that the kernel reports their uid."""

import json
import multiprocessing
import os
import socket

from kit.callers import MESSAGE, PLAIN, parse
from kit.wait import TIMEOUT
from kit.raw_http import dial, received

# Unused user ids.
VICTIM, OTHER, THIRD = 61001, 61002, 61003

_FORK = multiprocessing.get_context("fork")


class OtherUser:
    """Runs `work(pipe, *args)` as another user until it returns; `receive` returns what it sends."""

    def __init__(self, uid, work, *args, groups=(), gid=None):
        self._pipe, theirs = _FORK.Pipe()
        self._said = []
        self._process = _FORK.Process(target=_as_user, args=(uid, uid if gid is None else gid, groups, theirs, work, args), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self, timeout=TIMEOUT):
        """Returns the next object that it sent."""
        assert self._pipe.poll(timeout), "the other user's process sent nothing"
        kind, said = self._pipe.recv()
        assert kind == "said", f"the other user's process failed: {said}"
        return said

    def all(self):
        """Returns all objects that it has sent so far."""
        while self._pipe.poll():
            self._said.append(self.receive())
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
    except BaseException as fault:  # noqa: BLE001 - reported to the test
        pipe.send(("failed", repr(fault)))


def ask(relay, uid, method, path, headers=(), body=None, **who):
    """Sends one request as another user; returns the reply."""

    def work(say):
        say(request_once(relay, method, path, headers, body))

    other = OtherUser(uid, work, **who)
    try:
        return other.receive()
    finally:
        other.end()


def say(relay, uid, token, content, client_token, headers=(), **who):
    """Sends a message as another user."""
    body = {"ContentType": PLAIN, "Content": content, "ClientToken": client_token}
    return ask(relay, uid, "POST", MESSAGE, [f"X-Amz-Bearer: {token}", *headers], body, **who)


def request_once(relay, method, path, headers=(), body=None, listener="unix"):
    """Sends one request over its own connection."""
    with dial(relay, listener) as stream:
        stream.sendall(request(method, path, [*headers, "Connection: close"], body))
        return parse(received(stream))


def request(method, path, headers=(), body=None):
    """Builds the bytes of a request; a body that is not bytes becomes JSON. Host is localhost unless it is given."""
    body = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append("Host: localhost")
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def connects(relay):
    """True if this process may connect."""
    with socket.socket(socket.AF_UNIX) as stream:
        try:
            stream.connect(relay.socket)
        except PermissionError:
            return False
    return True
