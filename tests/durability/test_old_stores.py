"""The stores of formats 3 and 4 that are kept in the repository (`old_stores.py` says what they hold), opened by today's relay on
a machine whose clock shows the time at which they were made: so this holds in years, too."""

import pytest

from kit import clocks, old_stores
from kit.callers import curl
from kit.drained import start_on
from kit.old_stores import DEAD, DELIVERED, FIRST, HELD, LOST, FAILING, QUEUED, SECOND, send, token
from kit.wait import until
from kit.processes import free_port
from kit.upstream import Upstream

SETTINGS = {
    "ingress.tcp_reply": "accepted", "sender.lifetime": "6h", "sender.token_wait": "1h", "queue.outcomes_kept_for": "7d",
    "queue.messages_max": 1000, "shutdown.grace": "2100ms",
}  # fmt: skip


class Kept:
    """A relay that opens a store of an older format for the first time, at a chosen later time."""

    def __init__(self, version, folder, shim, later):
        made = old_stores.unpack(version, folder)
        self.machine = clocks.Machine(folder / "machine", shim)
        self.machine.step(made + later - self.machine.now())
        self.upstream = Upstream()
        self.url = f"http://127.0.0.1:{free_port()}"
        settings = {**SETTINGS, "ingress.tcp": self.url.removeprefix("http://")}
        self.run = start_on(folder, self.upstream.url, self.machine.before, **settings)
        assert self.run.started(), self.run.log()

    def control(self, path, method="GET"):
        listener = type("Listener", (), {"socket": str(self.run.folder / "private/control.sock")})
        reply = curl(listener, path, method=method)
        assert reply.status == 200, reply
        return reply.json

    def messages(self, state):
        page = self.control(f"/messages?state={state}&limit=100")
        found = page["Messages"]
        while after := page.get("Next"):
            page = self.control(f"/messages?state={state}&limit=100&after={after}")
            found += page["Messages"]
        return found

    def end(self):
        self.run.end()
        self.upstream.stop()


@pytest.fixture(params=old_stores.FORMATS, ids="format{}".format)
def kept(request, home, shim):
    relays = []

    def opened(later):
        relays.append(Kept(request.param, home, shim, later))
        return relays[-1]

    yield opened
    for relay in relays:
        relay.end()


def by_conversation(client_tokens):
    """Contents in the order of each conversation."""
    lines = {}
    for client_token in client_tokens:
        lines.setdefault(token(client_token), []).append(client_token)
    return lines


def test_every_message_outcome_and_dead_letter_of_an_older_format_is_kept(kept):
    relay = kept(later=60)
    queued = relay.messages("QUEUED")
    assert [line["ClientToken"] for line in queued] == QUEUED
    for line in queued:
        lifetime = clocks.seconds_of(line["ExpiryTime"]) - clocks.seconds_of(line["AcceptedTime"])
        assert lifetime == (old_stores.WEEK if line["ClientToken"].startswith("week") else old_stores.DEFAULT)
        assert 0 <= relay.machine.now() - clocks.seconds_of(line["AcceptedTime"]) < 600, line
    attempts = {line["ClientToken"]: line["Attempts"] for line in queued}
    assert attempts[FAILING] > 0 and attempts[LOST] > 0 and attempts["long-0"] == 0
    dead = {line["ClientToken"]: line for line in relay.messages("DEAD")}
    assert {name: line["Reason"] for name, line in dead.items()} == {name: reason for name, (reason, _, _) in DEAD.items()}
    status = relay.control("/status")
    assert (status["queued"], status["held"], status["dead_letters"]) == (len(QUEUED), 1, 2)
    assert status["paused"]["reason"] == "kept"


def test_repeats_of_messages_of_an_older_format_get_the_first_result(kept):
    relay = kept(later=60)
    for client_token in DELIVERED:
        code, headers, reply = send(relay.url, client_token)
        assert code == 200 and headers["Relay-State"] == "DELIVERED" and reply["Id"].startswith("id-"), client_token
    for client_token in [name for name in QUEUED if name != HELD]:
        code, _, reply = send(relay.url, client_token)
        assert code == 202 and reply["ClientToken"] == client_token and reply["State"] == "QUEUED", client_token
    for client_token in [*DELIVERED, *FIRST[::20], *SECOND, *DEAD]:
        code, headers, _ = send(relay.url, client_token, Content="canary: another text", ContentType="text/plain")
        assert code == 409 and headers["x-amzn-ErrorType"] == "ConflictException", client_token
    for client_token, (_, status, name) in DEAD.items():
        code, headers, _ = send(relay.url, client_token)
        assert (code, headers["x-amzn-ErrorType"]) == (status, name), client_token
    assert relay.control("/status")["queued"] == len(QUEUED), "no repeat became a message"


def test_messages_of_an_older_format_are_delivered_once_and_in_order(kept):
    relay = kept(later=60)
    relay.control("/resume", "POST")
    until(lambda: relay.control("/status")["queued"] == 0, "all of it is delivered, and a resume lifts the hold")
    sent = [request.json for request in relay.upstream.messages()]
    assert sorted(body["ClientToken"] for body in sent) == sorted(QUEUED)
    assert by_conversation(body["ClientToken"] for body in sent) == by_conversation(QUEUED)
    for request in relay.upstream.messages():
        assert request.json == old_stores.message(request.json["ClientToken"])
        assert request.token == token(request.json["ClientToken"])
    assert len(relay.messages("DEAD")) == 2


def test_after_three_days_messages_with_a_week_are_delivered_and_others_have_expired(kept):
    relay = kept(later=3 * clocks.DAY)
    week = [name for name in QUEUED if name.startswith("week")]
    others = {name for name in QUEUED if name not in week}
    until(lambda: relay.control("/status")["queued"] == len(week), "what had six hours has expired")
    dead = {line["ClientToken"]: line for line in relay.messages("DEAD")}
    assert {name for name, line in dead.items() if line["Reason"] == "expired"} == others
    heads = {names[0] for names in by_conversation(QUEUED).values()}
    assert LOST in (doubtful := {name for name, line in dead.items() if line.get("MaybeDelivered")}) and doubtful <= heads
    relay.control("/resume", "POST")
    until(lambda: relay.control("/status")["queued"] == 0, "the others are delivered")
    assert [request.json["ClientToken"] for request in relay.upstream.messages()] == week
