"""Access control and ownership: bots of several users on one socket."""

from itertools import product

import pytest

from kit.callers import MESSAGE, assert_error
from kit.other_users import OTHER, THIRD, VICTIM, OtherUser, ask, connects, say
from kit.wait import until
from kit.upstream import Answer, error

pytestmark = pytest.mark.usefixtures("users")

DOWN = "http://127.0.0.1:9"
KEY = "Relay-Conversation: contact-4711/bot"


def test_the_sockets_mode_keeps_other_users_out(relays):
    relay = relays(DOWN)
    relay.folder.chmod(0o711)
    assert not can_connect(relay, OTHER)
    assert can_connect(relay, OTHER, gid=relay.folder.stat().st_gid), "its group may: the mode is 0660"


def can_connect(relay, uid, **who):
    other = OtherUser(uid, lambda say: say(connects(relay)), **who)
    try:
        return other.receive()
    finally:
        other.end()


@pytest.mark.parametrize("who,allowed", [
    (dict(uid=VICTIM), True),
    (dict(uid=OTHER), False),
    (dict(uid=OTHER, gid=62000), True),
    (dict(uid=OTHER, groups=[62001, 62000]), True),
    (dict(uid=OTHER, gid=62001, groups=[VICTIM]), False),
    (dict(uid=0, gid=0), False),
], ids=["the user", "another user", "the group", "a supplementary group", "other groups", "root"])
def test_only_listed_users_and_groups_can_submit(shared, who, allowed):
    relay = shared(DOWN, tcp=False, ingress__allow_uids=VICTIM, ingress__allow_gids=62000)
    reply = say(relay, token="canary-token", content="canary", client_token="c", **who)
    if allowed:
        assert reply.status == 202
    else:
        assert_error(reply, 403, "RelayForbiddenException", "ingress.allow_uids")
        for method, path in (("GET", "/participant/queue"), ("POST", "/participant/connection"), ("GET", "/x")):
            assert_error(ask(relay, method=method, path=path, **who), 403, "RelayForbiddenException")
    assert relay.queued() == int(allowed)


def test_a_bot_sees_only_messages_of_tokens_that_it_presents(shared):
    relay = shared(DOWN)
    assert say(relay, VICTIM, "canary-1", "canary", "c").status == 202
    assert say(relay, VICTIM, "canary-2", "canary", "k", [KEY]).status == 202
    look = lambda uid, path, *headers: ask(relay, uid, "GET", f"{MESSAGE}/{path}", headers)  # noqa: E731
    assert look(VICTIM, "c", "X-Amz-Bearer: canary-1").json["State"] == "QUEUED"
    assert look(VICTIM, "k", "X-Amz-Bearer: canary-2", KEY).json["State"] == "QUEUED"
    assert_error(look(OTHER, "c"), 400, "ValidationException", "ConnectionToken")
    for path in ("c", "k"):
        for headers in (["X-Amz-Bearer: canary-3"], ["X-Amz-Bearer: canary-3", KEY]):
            assert_error(look(OTHER, path, *headers), 404, "ResourceNotFoundException")
    queued = lambda uid: ask(relay, uid, "GET", "/participant/queue").json["Queued"]  # noqa: E731
    assert (queued(VICTIM), queued(OTHER)) == (2, 0), "counts are each user's own"


def test_equal_keys_of_two_users_are_two_conversations(shared, upstreams):
    upstream = upstreams()
    upstream.stop()
    relay = shared(upstream.url, sender__probe_max="100ms")
    for uid in (VICTIM, OTHER):
        for number in range(3):
            reply = say(relay, uid, f"canary-{uid}", f"canary: {uid}", f"c-{number}", [KEY])
            assert reply.status == 202 and reply.headers["relay-state"] == "QUEUED"
    reply = ask(relay, THIRD, "GET", f"{MESSAGE}/c-0", [f"X-Amz-Bearer: canary-{VICTIM}", KEY])
    assert_error(reply, 409, "ConflictException")
    upstream.start()
    relay.until_empty()
    assert len(upstream.messages()) == 6
    assert all(request.token in request.json["Content"].replace(": ", "-") for request in upstream.messages())


class Chats:
    """A service with two participants: a participant's token gets new connection tokens, and the victim's
    first one is refused, as after a day."""

    def __init__(self):
        self.count = 0

    def __call__(self, request):
        if request.target == "/participant/connection":
            self.count += 1
            token = {"ConnectionToken": f"{request.token}-connection-{self.count}", "Expiry": "2030-01-01T00:00:00.000Z"}
            return Answer(200, {"ConnectionCredentials": token})
        if request.token == "canary-victim":
            return error(403, "AccessDeniedException", "User is not authorized: explicit deny")
        return None


@pytest.mark.parametrize("keyed", [True, False], ids=["under a key", "without a key"])
@pytest.mark.parametrize("intruder", [OTHER, VICTIM], ids=["another user", "a bot of the same user"])
def test_queued_text_cannot_be_redirected_to_a_chat_of_another_user(shared, upstreams, keyed, intruder):
    """The victim's token has expired, and its text is held. The intruder has its own chat, knows the victim's key and
    its ClientToken, and tries every way in which a renewed token takes over queued messages."""
    upstream = upstreams(Chats())
    relay = shared(upstream.url, tcp=False, sender__token_wait="10m")
    key = [KEY] if keyed else []
    assert say(relay, VICTIM, "canary-victim", "canary: the victim's", "c", key).status == 202
    until(lambda: relay.lines("held"), "the victim's text is held")

    def connected(uid, participant):
        reply = ask(relay, uid, "POST", "/participant/connection", [f"X-Amz-Bearer: {participant}"], {"Type": ["CONNECTION_CREDENTIALS"]})
        return reply.json["ConnectionCredentials"]["ConnectionToken"]

    own = connected(intruder, "canary-intruder")
    assert say(relay, intruder, own, "canary: the intruder's", "t-1").status == 202
    # The same key; the same ClientToken, which would redrive or repeat; the intruder's own token as the renewed one.
    another = connected(intruder, "canary-intruder-2")
    say(relay, intruder, another, "canary: the intruder's", "t-2", [KEY])
    say(relay, intruder, another, "canary: the intruder's", "c", [KEY])
    bearers, olds = (own, connected(intruder, "canary-intruder"), "canary-made-up"), ("canary-guessed", own, another)
    for number, (bearer, old, headers) in enumerate(product(bearers, olds, ([], [KEY]))):
        say(relay, intruder, bearer, "canary: the intruder's", f"r-{number}", [f"Relay-Replaces-Token: {old}", *headers])
    # A token under the key, renewed by a connection that the relay sees.
    renewed = connected(intruder, "canary-intruder-2")
    say(relay, intruder, renewed, "canary: the intruder's", "t-3", [KEY])
    reply = say(relay, intruder, own, "canary: the intruder's", "t-4", ["Relay-Replaces-Token: canary-guessed"])
    assert_error(reply, 403, "RelayForbiddenException", "never accepted in this conversation")
    until(lambda: any(request.token == own for request in upstream.messages()), "the intruder's own chat goes on")
    assert_no_theft(upstream)

    # The holder of the old token may renew it: the text goes to its own chat.
    reply = say(relay, VICTIM, "canary-renewed", "canary: more", "d", ["Relay-Replaces-Token: canary-victim", *key])
    assert reply.status == 202
    until(lambda: len(theirs(upstream, "canary-renewed")) >= 2, "the victim's text arrives")
    assert theirs(upstream, "canary-renewed")[0] == "canary: the victim's"
    assert_no_theft(upstream)


def theirs(upstream, token):
    return [request.json["Content"] for request in upstream.messages() if request.token == token]


def assert_no_theft(upstream):
    for request in upstream.messages():
        victims = request.token in ("canary-victim", "canary-renewed")
        assert ("intruder" in request.json["Content"]) != victims, f"{request.token} carried {request.json['Content']}"
