"""Planted tokens and texts must not appear in any output of the relay: the log at its lowest level, every metric,
every reply to another user, the command line and environment, `check`, and with keys every byte on disk."""

import base64
import json
import os
from pathlib import Path

import pytest

from kit.callers import MESSAGE, PLAIN, READ, TYPING, assert_error, curl, look, send
from kit.other_users import request_once
from kit.wait import until
from kit.processes import command
from kit.upstream import CUT, Answer, error

TOKEN, RENEWED, PARTICIPANT = "canary-token/+=1", "canary-token/+=2", "canary-participant"
TEXT = "canary: something private"
DOWN = "http://127.0.0.1:9"
KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def bearer(token=TOKEN):
    return f"X-Amz-Bearer: {token}"


# The service's answers in turn; each echoes the whole request.
ANSWERS = [
    lambda told: error(400, "ValidationException", f"you said {told}"),
    lambda told: error(429, "ThrottlingException", told, **{"x-amz-retry-after": "1"}),
    lambda told: error(500, "InternalServerException", told),
    lambda told: Answer(502, f"<html>{told}</html>".encode(), {"Content-Type": "text/html"}),
    lambda told: Answer(200, f"not an object: {told}".encode()),
    lambda told: error(418, "TeapotException", told),
    lambda told: CUT,
    lambda told: error(403, "AccessDeniedException", f"{told}: explicit deny"),
]


class Echo:
    """A service that echoes its request, once in each answer, and is healthy afterwards."""

    def __init__(self):
        self.left = list(ANSWERS)

    def __call__(self, request):
        if request.target == MESSAGE and self.left:
            return self.left.pop(0)(f"token {request.token}, {request.token.replace('/', '%2F')}")
        if request.target == "/participant/transcript":
            return error(400, "ValidationException", "no such chat")
        return None


def test_planted_tokens_and_texts_are_found_nowhere(relays, upstreams, key_file):
    echo = Echo()
    upstream = upstreams(echo)
    relay = relays(
        upstream.url, log__level="trace", queue__key_file=key_file, sender__backoff__initial="10ms", sender__backoff__max="20ms",
        sender__probe_max="50ms", sender__token_wait="10m", sender__quota_rate=1000, sender__quota_burst=1000, ingress__request_timeout="1s",
    )  # fmt: skip
    relay.secrets |= {KEY, TEXT}
    told_others = []

    def others():
        """All replies to another user with a token of their own."""
        for path in ("c-0", "c-1", "batch", "unknown"):
            told_others.append(look(relay, "other", path))
            told_others.append(look(relay, "other", path, ["Relay-Conversation: chat/bot"]))
        told_others.append(curl(relay, "/participant/queue"))
        told_others.append(send(relay, "other", "x", "c-0", headers=["Relay-Replaces-Token: guessed", "Prefer: wait=0"]))

    # Every accepted input.
    send(relay, TOKEN, TEXT, "c-0")
    send(relay, TOKEN, TEXT, "c-1", headers=["Relay-Conversation: chat/bot"])  # a token of another conversation
    send(relay, RENEWED, TEXT * 30, "c-2", headers=["Relay-Conversation: chat/bot"])
    line = {"ContentType": PLAIN, "Content": TEXT, "ConnectionToken": "canary-batch", "ClientToken": "batch"}
    curl(relay, "/participant/messages", "\n".join(map(json.dumps, [line, {**line, "Content": 1}, {**line, "Lifetime": 0}])).encode() + b"\n{canary")
    curl(relay, "/participant/event", {"ContentType": READ, "Content": TEXT}, [bearer()])
    curl(relay, "/participant/event", {"ContentType": TYPING, "Content": TEXT}, [bearer()])
    others()
    until(lambda: not echo.left, "the service has said everything")
    until(lambda: relay.lines("held") or relay.lines("dead"), "what was refused is logged")
    send(relay, "canary-new", TEXT, "c-3", headers=[f"Relay-Replaces-Token: {TOKEN}", "Prefer: wait=20"])
    curl(relay, "/participant/connection", {"Type": ["CONNECTION_CREDENTIALS"]}, [bearer(PARTICIPANT)])
    curl(relay, "/participant/transcript", {"NextToken": TEXT}, [bearer()])
    curl(relay, "/participant/disconnect", {"ClientToken": "bye"}, [bearer("canary-batch")])
    # Every rejected input.
    for headers, body in (
        ([bearer("canary token")], {"ContentType": PLAIN, "Content": TEXT}),
        ([bearer(), bearer()], {"ContentType": PLAIN, "Content": TEXT}),
        ([bearer()], {"ContentType": PLAIN, "Content": TEXT * 60}),
        ([bearer()], {"ContentType": PLAIN, "Content": TEXT, "ClientToken": 5}),
        ([bearer()], {"ContentType": {"canary": 1}, "Content": TEXT}),
        ([bearer()], ('{"ContentType": "text/plain", "Content": "%s \\ud800"}' % TEXT).encode()),
        ([bearer()], b'{"Content": "canary'),
        ([bearer()], b"canary" * 60_000),
        ([bearer(), "Relay-Lifetime: canary"], {"ContentType": PLAIN, "Content": TEXT}),
        ([bearer(), "Relay-Conversation: canary key"], {"ContentType": PLAIN, "Content": TEXT}),
        ([bearer(), "Relay-Replaces-Token: canary-stranger"], {"ContentType": PLAIN, "Content": TEXT}),
        ([bearer(), "traceparent: canary", "Prefer: canary"], {"ContentType": PLAIN}),
    ):
        told_others.append(curl(relay, MESSAGE, body, headers))
    others()
    private = relay.folder / "private"
    operators = [request_once(listener_at(private / "control.sock"), "GET", path) for path in ("/status", "/nowhere", "/messages", "/messages?state=DEAD")]
    assert b'"State":"DEAD"' in operators[-1].body

    for reply in (*told_others, *operators):
        assert "canary" not in reply.body.decode() and not any("canary" in value for value in reply.headers.values()), reply
    for page in ("/metrics", "/livez", "/readyz"):
        assert "canary" not in relay.get(page)[1]
    process = Path(f"/proc/{relay.process.pid}")
    for kept in ("cmdline", "environ", "comm"):
        assert b"canary" not in (process / kept).read_bytes() and KEY.encode() not in (process / kept).read_bytes()
    checked = command("check", settings=relay.settings)
    assert checked.returncode == 0 and not any(word in checked.stdout + checked.stderr for word in ("canary", KEY))
    for name in (("status", "--json"), ("messages", "list"), ("messages", "redrive", "--all")):
        shown = command(*name, settings={**relay.settings, "control.socket": private / "control.sock"})
        assert shown.returncode == 0 and not any(word in shown.stdout + shown.stderr for word in ("canary", KEY))
    events = {"accepted", "deferred", "dead", "delivered"}
    until(lambda: events <= {line.get("event") for line in relay.lines()}, "there was much to say")
    assert_nowhere(private / "queue")
    relay.kill()
    written = sum(len(path.read_bytes().rstrip(b"\0")) for path in (private / "queue").glob("journal.*"))
    assert written > 4096, "what was said is there, and in nothing but the journal"
    assert_nowhere(private / "queue")


def test_search_finds_an_existing_text(relays):
    """Without keys texts and tokens are on disk in plain, in the journal first: the search above finds them."""
    relay = relays(DOWN)
    send(relay, TOKEN, TEXT, "c-0")
    relay.kill()
    with pytest.raises(AssertionError, match=r"is in \S+/queue/journal\.\d: canary"):
        assert_nowhere(relay.folder / "private/queue")


def test_echoed_token_is_redacted_in_the_reply_to_a_waiting_bot(relays, upstreams):
    relay = relays(upstreams(Echo()).url)
    reply = send(relay, TOKEN, TEXT, "c", headers=["Prefer: wait=20"])
    assert_error(reply, 400, "ValidationException", "you said token [token], [token]", own=False)
    state = look(relay, TOKEN, "c")
    assert state.json["Error"]["Message"] == "you said token [token], [token]", "nor is it kept"


def listener_at(path):
    return type("Listener", (), {"socket": str(path)})


def assert_nowhere(folder):
    looked = 0
    for path in folder.rglob("*"):
        if path.is_file():
            for spelling in (b"canary", b"something private", base64.b64encode(b"canary")[:7], "canary".encode("utf-16-le"), b"63616e617279"):
                assert spelling not in path.read_bytes(), f"{spelling} is in {path}: canary"
            looked += os.stat(path).st_size
    assert looked > 0
