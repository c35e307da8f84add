"""A browser on the same machine connects to the TCP port for any page: no page can use the API."""

import json

import pytest

from kit.callers import MESSAGE, PLAIN, assert_error
from kit.other_users import request_once
from kit.processes import Relay
from kit.upstream import Upstream

ROUTES = [MESSAGE, "/participant/messages", "/participant/event", "/participant/disconnect", "/participant/connection",
          "/participant/queue", f"{MESSAGE}/c", "/participant/transcript", "/participant/views/v", "/", "*"]  # fmt: skip
PAGE = "Origin: https://page.example"
LINE = {"ContentType": PLAIN, "Content": "canary", "ConnectionToken": "canary-token"}


@pytest.fixture(scope="module")
def upstream():
    """One relay for all tests, because no request reaches it."""
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def relay(upstream):
    relay = Relay(upstream.url).start()
    yield relay
    relay.remove()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("listener", ["unix", "tcp"])
def test_preflight_requests_are_refused(relay, upstream, path, listener):
    headers = [PAGE, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-amz-bearer"]
    for more in (headers, headers[1:]):
        reply = request_once(relay, "OPTIONS", path, more, listener=listener)
        assert 400 <= reply.status < 500 and not any(name.startswith("access-control") for name in reply.headers)
    assert not upstream.requests, "the service would have given leave"


@pytest.mark.parametrize("origin", [PAGE, "Origin: null", "Origin: http://127.0.0.1:8480"])
def test_requests_of_a_page_without_preflight_are_refused(relay, upstream, origin):
    for path, body in ((MESSAGE, LINE), ("/participant/messages", LINE), ("/participant/transcript", {})):
        headers = [origin, "Content-Type: text/plain", "X-Amz-Bearer: canary-token"]
        assert_error(request_once(relay, "POST", path, headers, json.dumps(body).encode(), "tcp"), 403, "RelayForbiddenException", "web page")
    assert_error(request_once(relay, "GET", "/participant/queue", [origin], listener="tcp"), 403, "RelayForbiddenException", "web page")
    assert relay.metrics()["messages_accepted_total"] == 0 and not upstream.requests


@pytest.mark.parametrize("host,status", [
    ("page.example:8480", 403), ("127.0.0.1.page.example", 403), ("10.0.0.1", 403), ("", 403), ("127.0.0.1, x", 403),
    ("127.0.0.1:8480", 200), ("localhost:8480", 200), ("[::1]:8480", 200),
])  # fmt: skip
def test_foreign_host_name_that_resolves_to_loopback_is_refused(relay, host, status):
    """DNS rebinding: a page whose host name resolves to 127.0.0.1."""
    reply = request_once(relay, "GET", "/participant/queue", [f"Host: {host}"], listener="tcp")
    assert reply.status == status
    if status == 403:
        assert_error(reply, 403, "RelayForbiddenException", "Host")
    # No browser uses a Unix socket; curl sends an arbitrary host there.
    assert request_once(relay, "GET", "/participant/queue", [f"Host: {host}"]).status == 200
