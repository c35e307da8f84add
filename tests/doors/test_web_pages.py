"""A browser on the same machine dials the TCP port for any page that it shows: none gets anything done."""

import json

import pytest

from kit.callers import MESSAGE, PLAIN, assert_error
from kit.neighbours import asked
from kit.processes import Relay
from kit.upstream import Upstream

ROUTES = [MESSAGE, "/participant/messages", "/participant/event", "/participant/disconnect", "/participant/connection",
          "/participant/queue", f"{MESSAGE}/c", "/participant/transcript", "/participant/views/v", "/", "*"]  # fmt: skip
PAGE = "Origin: https://page.example"
LINE = {"ContentType": PLAIN, "Content": "canary", "ConnectionToken": "canary-token"}


@pytest.fixture(scope="module")
def upstream():
    """One for all, because nothing ever comes to it."""
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def relay(upstream):
    relay = Relay(upstream.url).start()
    yield relay
    relay.remove()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_preflight_requests_are_refused(relay, upstream, path, door):
    headers = [PAGE, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-amz-bearer"]
    for more in (headers, headers[1:]):
        reply = asked(relay, "OPTIONS", path, more, door=door)
        assert 400 <= reply.status < 500 and not any(name.startswith("access-control") for name in reply.headers)
    assert not upstream.requests, "the service would have given leave"


@pytest.mark.parametrize("origin", [PAGE, "Origin: null", "Origin: http://127.0.0.1:8480"])
def test_requests_of_a_page_without_preflight_are_refused(relay, upstream, origin):
    for path, body in ((MESSAGE, LINE), ("/participant/messages", LINE), ("/participant/transcript", {})):
        headers = [origin, "Content-Type: text/plain", "X-Amz-Bearer: canary-token"]
        assert_error(asked(relay, "POST", path, headers, json.dumps(body).encode(), "tcp"), 403, "RelayForbiddenException", "web page")
    assert_error(asked(relay, "GET", "/participant/queue", [origin], door="tcp"), 403, "RelayForbiddenException", "web page")
    assert relay.metrics()["messages_accepted_total"] == 0 and not upstream.requests


@pytest.mark.parametrize("host,status", [
    ("page.example:8480", 403), ("127.0.0.1.page.example", 403), ("10.0.0.1", 403), ("", 403), ("127.0.0.1, x", 403),
    ("127.0.0.1:8480", 200), ("localhost:8480", 200), ("[::1]:8480", 200),
])  # fmt: skip
def test_foreign_host_name_that_resolves_to_loopback_is_refused(relay, host, status):
    """What a page does whose own name has come to mean 127.0.0.1."""
    reply = asked(relay, "GET", "/participant/queue", [f"Host: {host}"], door="tcp")
    assert reply.status == status
    if status == 403:
        assert_error(reply, 403, "RelayForbiddenException", "Host")
    # There is no browser behind a Unix socket; curl calls its host whatever it likes.
    assert asked(relay, "GET", "/participant/queue", [f"Host: {host}"]).status == 200
