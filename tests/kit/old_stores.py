"""Stores as older relays wrote them, kept in `format3.tar.gz` (commit b1326e8) and `format4.tar.gz` (commit 3cc6810);
and the script that made them:

    PYTHONPATH=tests tests/.venv/bin/python -m kit.old_stores FORMAT BINARY

BINARY is a relay of that commit. It runs twice: the first run sends, is paused, accepts and ends cleanly, so its rows are
in sled's log; the second accepts more and is killed, so those rows are in the journal alone. All callers come over TCP,
because conversations with a key belong to a user.
"""

import gzip
import io
import json
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from kit import processes
from kit.wait import until
from kit.upstream import CUT, Upstream, error

FORMATS = (3, 4)
PLAIN, JSON = "text/plain", "application/json"
WEEK, DEFAULT = 7 * 86400, 6 * 3600

# The messages of the first run. The token decides the service's answer.
DELIVERED = ["delivered-0", "delivered-1", "delivered-2"]
INVALID, OVER, HELD, FAILING, LOST = "invalid-0", "over-0", "held-0", "failing-0", "lost-0"
KEY = "contact-7/bot"
LONG = 150


def token(client_token):
    """Each conversation has a token of its own, but for the one with a key."""
    return f"canary-{client_token.rsplit('-', 1)[0]}"


def message(client_token):
    """A message with this ClientToken: its contents are made of it."""
    if client_token.startswith("large"):
        return {"ContentType": JSON, "Content": json.dumps(f"canary {client_token} " + "é" * 5000, ensure_ascii=False), "ClientToken": client_token}
    return {"ContentType": PLAIN, "Content": f"canary {client_token}", "ClientToken": client_token}


def headers(client_token, *more):
    """Those with which a message was accepted."""
    kept = {"X-Amz-Bearer": token(client_token), "Prefer": "respond-async"}
    if client_token.startswith("keyed"):
        kept["Relay-Conversation"] = KEY
    if client_token.startswith("week"):
        kept["Relay-Lifetime"] = str(WEEK)
    return {**kept, **dict(more)}


# The messages queued when the store was saved, in the order of acceptance, beside HELD, FAILING and LOST.
FIRST = [f"long-{n}" for n in range(LONG)] + ["large-0"] + [f"{name}-{n}" for n in range(3) for name in ("week", "keyed", "short")]
SECOND = [f"{name}-{n}" for n in range(3, 6) for name in ("week", "keyed", "short", "long2")]
QUEUED = [HELD, FAILING, LOST, *FIRST, *SECOND]
DEAD = {INVALID: ("invalid", 400, "ValidationException"), OVER: ("chat_over", 403, "AccessDeniedException")}


def call(url, path, body=None, headers=(), method="POST"):
    """One request over TCP: status, headers, JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, dict(headers), method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            status, head, text = reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        status, head, text = error.code, error.headers, error.read()
    return status, head, json.loads(text) if text else None


def send(url, client_token, *more, **changed):
    """Hands a message over."""
    return call(url, "/participant/message", {**message(client_token), **changed}, headers(client_token, *more))


def script(request):
    """The service's answers while the store was made."""
    name = (request.token or "").removeprefix("canary-")
    return {
        "invalid": lambda: error(400, "ValidationException", "no"),
        "over": lambda: error(403, "AccessDeniedException", "Access denied"),
        "held": lambda: error(403, "AccessDeniedException", "with an explicit deny"),
        "failing": lambda: error(500, "InternalServerException", "no"),
        "lost": lambda: CUT,
    }.get(name, lambda: None)()


def archive_of(version):
    return Path(__file__).with_name(f"format{version}.tar.gz")


def unpack(version, folder):
    """Puts the store where a relay with `--dir FOLDER` has it; gives the time at which it was made, in seconds."""
    with tarfile.open(archive_of(version)) as archive:
        archive.extractall(folder, filter="data")
        return archive.getmember("private/queue/format").mtime


def pack(folder, to):
    """Writes the archive: the names in order, without an owner, all with the time of the stamp."""
    made = int((folder / "private/queue/journal.0").stat().st_mtime)
    names = [name for name in sorted((folder / "private/queue").rglob("*")) if name.name not in ("ballast", "lock")]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in [folder / "private", folder / "private/queue", *names]:
            entry = archive.gettarinfo(path, str(path.relative_to(folder)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = made
            archive.addfile(entry, open(path, "rb") if path.is_file() else None)
    to.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))
    print(f"{to}: {to.stat().st_size} bytes")


def make(version, binary):
    """Runs that relay and keeps its queue."""
    processes.BINARY = binary
    upstream = Upstream(script)
    relay = processes.Relay(
        upstream.url, ingress__tcp_reply="accepted", sender__lifetime="6h", sender__attempts_max=1000, sender__token_wait="1h",
        queue__outcomes_kept_for="7d", shutdown__grace="2100ms",
    )  # fmt: skip

    def kept(client_token, *more):
        assert send(relay.url, client_token, *more)[0] == 202, client_token

    def control(*words):
        processes.command(*words, settings={"control.socket": relay.folder / "private/control.sock"})

    try:
        relay.start()
        for client_token in DELIVERED:
            kept(client_token)
        relay.until_empty()
        kept(INVALID)
        assert send(relay.url, OVER, ("Prefer", "wait=30"))[0] == 403
        for client_token in (HELD, FAILING, LOST):
            kept(client_token)
        metrics = relay.metrics
        until(lambda: metrics()["dead_letters"] == 2, "two are dead")
        until(lambda: metrics()['conversations_held{reason="token_refused"}'] == 1, "one is held")
        until(lambda: all(sum(r.token == token(c) for r in upstream.requests) > 1 for c in (FAILING, LOST)), "two are tried again")
        control("pause", "--reason", "kept")
        until(lambda: metrics()["in_flight"] == 0, "nothing is in flight")
        for client_token in FIRST:
            kept(client_token)
        assert relay.stop() == 75
        relay.start()
        for client_token in SECOND:
            kept(client_token)
        relay.kill()
        pack(relay.folder, archive_of(version))
    finally:
        relay.remove()
        upstream.stop()


if __name__ == "__main__":
    make(sys.argv[1], str(Path(sys.argv[2]).resolve()))
