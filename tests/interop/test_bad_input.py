"""Bad input of every kind: each gets its error, in AWS's shape, and nothing else changes."""

import gzip
import json
import socket
from types import SimpleNamespace

import pytest

from kit.callers import MESSAGE, PLAIN, READ, TYPING, assert_error, curl, queued, send
from kit.processes import Relay
from kit.raw_http import dial, received

TOKEN = "canary-token"
BEARER = f"X-Amz-Bearer: {TOKEN}"
GOOD = {"ContentType": PLAIN, "Content": "canary"}
INTERACTIVE = "application/vnd.amazonaws.connect.message.interactive.response"


def without(member):
    return {name: value for name, value in GOOD.items() if name != member}


# Bodies for /participant/message with a valid token, and words that the error must contain.
BODIES = {
    "nothing": (b"", []),
    "no JSON": (b"canary", []),
    "cut short": (b'{"ContentType": "text/plain", "Content": "canary', []),
    "two values": (json.dumps(GOOD).encode() * 2, []),
    "an array": (b"[]", []),
    "a string": (b'"canary"', []),
    "null": (b"null", []),
    "not UTF-8": (b'{"ContentType": "text/plain", "Content": "canary \xff"}', []),
    "a lone surrogate": (b'{"ContentType": "text/plain", "Content": "canary \\ud83d"}', ["surrogate"]),
    "a surrogate the wrong way round": (b'{"ContentType": "text/plain", "Content": "canary \\ude00\\ud83d"}', ["surrogate"]),
    "a lone surrogate in ClientToken": (b'{"ContentType": "text/plain", "Content": "canary", "ClientToken": "\\udc00"}', ["surrogate"]),
    "a bare control character": (b'{"ContentType": "text/plain", "Content": "canary\n"}', []),
    "no ContentType": (without("ContentType"), ["ContentType"]),
    "empty ContentType": ({**GOOD, "ContentType": ""}, ["ContentType"]),
    "unknown ContentType": ({**GOOD, "ContentType": "text/html"}, ["ContentType", "text/html"]),
    "ContentType with a parameter": ({**GOOD, "ContentType": "text/plain; charset=utf-8"}, ["ContentType"]),
    "ContentType too long": ({**GOOD, "ContentType": "x" * 101}, ["ContentType"]),
    "ContentType a number": ({**GOOD, "ContentType": 1}, []),
    "no Content": (without("Content"), ["Content"]),
    "empty Content": ({**GOOD, "Content": ""}, ["Content"]),
    "Content null": ({**GOOD, "Content": None}, ["Content"]),
    "Content an object": ({**GOOD, "Content": {"text": "canary"}}, []),
    "plain too long": ({**GOOD, "Content": "é" * 1025}, ["Content", "1025", "1024", "ingress.content_chars_max.plain"]),
    "markdown too long": (
        {"ContentType": "text/markdown", "Content": "x" * 1025},
        ["Content", "1025", "1024", "ingress.content_chars_max.markdown"],
    ),
    "JSON too long": (
        {"ContentType": "application/json", "Content": "x" * 12001},
        ["Content", "12001", "12000", "ingress.content_chars_max.json"],
    ),
    "interactive too long": (
        {"ContentType": INTERACTIVE, "Content": "x" * 12289},
        ["Content", "12289", "12288", "ingress.content_chars_max.interactive"],
    ),
    "too many bytes": (
        {"ContentType": "application/json", "Content": "😀" * 4097},
        ["Content", "16388", "16384", "ingress.content_bytes_max"],
    ),
    "ClientToken too long": ({**GOOD, "ClientToken": "x" * 501}, ["ClientToken", "501", "500"]),
    "ClientToken a number": ({**GOOD, "ClientToken": 7}, []),
}

# Headers with a valid body.
HEADERS = {
    "no token": ([], ["ConnectionToken"]),
    "empty token": (["X-Amz-Bearer;"], ["ConnectionToken"]),
    "token too long": (["X-Amz-Bearer: " + "x" * 1001], ["ConnectionToken", "1001", "1000"]),
    "token with a space": (["X-Amz-Bearer: canary token"], ["ConnectionToken"]),
    "token with a tab": (["X-Amz-Bearer: canary\ttoken"], ["ConnectionToken"]),
    "empty key": ([BEARER, "Relay-Conversation;"], ["Relay-Conversation"]),
    "key too long": ([BEARER, "Relay-Conversation: " + "x" * 257], ["Relay-Conversation", "257", "256"]),
    "key with a space": ([BEARER, "Relay-Conversation: a b"], ["Relay-Conversation"]),
    "key outside ASCII": ([BEARER, "Relay-Conversation: é".encode()], ["Relay-Conversation"]),
    "two tokens": ([BEARER, BEARER], ["X-Amz-Bearer", "more than once"]),
    "two keys": ([BEARER, "Relay-Conversation: a", "Relay-Conversation: b"], ["Relay-Conversation", "more than once"]),
    "two lifetimes": ([BEARER, "Relay-Lifetime: 60", "Relay-Lifetime: 60"], ["Relay-Lifetime", "more than once"]),
    "two tokens renewed": ([BEARER, "Relay-Replaces-Token: a", "Relay-Replaces-Token: b"], ["Relay-Replaces-Token", "more than once"]),
    "empty token renewed": ([BEARER, "Relay-Replaces-Token;"], ["Relay-Replaces-Token", "0 bytes"]),
    "token renewed too long": ([BEARER, "Relay-Replaces-Token: " + "x" * 1001], ["Relay-Replaces-Token", "1001", "1000"]),
    "token renewed with a space": ([BEARER, "Relay-Replaces-Token: canary token"], ["Relay-Replaces-Token"]),
    "empty lifetime": ([BEARER, "Relay-Lifetime;"], ["Relay-Lifetime"]),
    "lifetime 0": ([BEARER, "Relay-Lifetime: 0"], ["Relay-Lifetime"]),
    "lifetime negative": ([BEARER, "Relay-Lifetime: -1"], ["Relay-Lifetime"]),
    "lifetime a fraction": ([BEARER, "Relay-Lifetime: 1.5"], ["Relay-Lifetime"]),
    "lifetime no number": ([BEARER, "Relay-Lifetime: soon"], ["Relay-Lifetime"]),
    "lifetime over 7 days": ([BEARER, "Relay-Lifetime: 604801"], ["Relay-Lifetime"]),
    "lifetime beyond any integer": ([BEARER, "Relay-Lifetime: 99999999999999999999999"], ["Relay-Lifetime"]),
}

# Bodies for /participant/event with a valid token.
EVENTS = {
    "no ContentType": ({}, ["ContentType is missing"]),
    "empty ContentType": ({"ContentType": ""}, ["ContentType"]),
    "ContentType too long": ({"ContentType": "x" * 101}, ["ContentType", "101", "100"]),
    "ContentType a number": ({"ContentType": 1}, ["ContentType"]),
    "Content a number": ({"ContentType": READ, "Content": 1}, ["Content"]),
    "too many bytes": ({"ContentType": READ, "Content": "é" * 8193}, ["Content", "16386", "16384", "ingress.content_bytes_max"]),
    "ClientToken too long": ({"ContentType": READ, "ClientToken": "x" * 501}, ["ClientToken", "501", "500"]),
    "typing with a ClientToken too long": ({"ContentType": TYPING, "ClientToken": "x" * 501}, ["ClientToken"]),
}

# A line of a batch.
LINE = {**GOOD, "ConnectionToken": TOKEN}
LINES = {
    "no JSON": (b"canary", ["bad JSON"]),
    "an array": (b"[]", ["not an object"]),
    "no ConnectionToken": (GOOD, ["ConnectionToken is missing"]),
    "empty ConnectionToken": ({**LINE, "ConnectionToken": ""}, ["ConnectionToken", "0 bytes"]),
    "ConnectionToken too long": ({**LINE, "ConnectionToken": "x" * 1001}, ["ConnectionToken", "1001", "1000"]),
    "ConnectionToken with a space": ({**LINE, "ConnectionToken": "canary token"}, ["ConnectionToken"]),
    "ConnectionToken a number": ({**LINE, "ConnectionToken": 1}, ["ConnectionToken"]),
    "empty Conversation": ({**LINE, "Conversation": ""}, ["Conversation", "256"]),
    "Conversation too long": ({**LINE, "Conversation": "x" * 257}, ["Conversation", "257", "256"]),
    "Conversation with a space": ({**LINE, "Conversation": "a b"}, ["Conversation"]),
    "Lifetime 0": ({**LINE, "Lifetime": 0}, ["Lifetime", "604800"]),
    "Lifetime over 7 days": ({**LINE, "Lifetime": 604801}, ["Lifetime", "604800"]),
    "Lifetime a fraction": ({**LINE, "Lifetime": 1.5}, ["Lifetime", "604800"]),
    "Lifetime a string": ({**LINE, "Lifetime": "60"}, ["Lifetime", "604800"]),
    "ClientToken too long": ({**LINE, "ClientToken": "x" * 501}, ["ClientToken", "501", "500"]),
    "no Content": ({**LINE, "Content": None}, ["Content is missing"]),
    "plain too long": ({**LINE, "Content": "x" * 1025}, ["1025", "1024", "ingress.content_chars_max.plain"]),
    "unknown ContentType": ({**LINE, "ContentType": "text/html"}, ["text/html"]),
    "a lone surrogate": (json.dumps(LINE).replace("canary\"", "\\ud83d\"", 1).encode(), ["surrogate"]),
}

NO_SUCH_OPERATION = [
    ("GET", "/x"),
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/status"),
    ("POST", "/participants/message"),
    ("POST", "/Participant/Message"),
    ("DELETE", "/messages"),
    ("GET", MESSAGE),
    ("PUT", MESSAGE),
    ("DELETE", f"{MESSAGE}/kept"),
    ("GET", "/participant/disconnect"),
    ("GET", "/participant/event"),
    ("GET", "/participant/connection"),
    ("GET", "/participant/messages"),
    ("POST", "/participant/queue"),
    ("POST", "/participant/"),
    ("POST", "/participant"),
]

POST = b"POST /participant/message HTTP/1.1\r\nHost: x\r\n"

# Bytes that are no request of HTTP/1.1, and the status that they get. The client cannot read an object, so the reply has no body.
RAW = {
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no version": (b"POST /participant/message\r\n\r\n", 400),
    "another version": (b"GET /participant/queue HTTP/1.2\r\nHost: x\r\n\r\n", 400),
    "a token with DEL": (POST + b"X-Amz-Bearer: a\x7fb\r\nContent-Length: 0\r\n\r\n", 400),
    "a key with a control character": (POST + b"Relay-Conversation: a\x01b\r\nContent-Length: 0\r\n\r\n", 400),
    "a space before the colon": (b"GET /participant/queue HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "an unknown encoding": (POST + b"Transfer-Encoding: gzip\r\n\r\n{}", 400),
    "a head without end": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 600_000, 431),
    "a path without end": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "too many headers": (b"GET /participant/queue HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
}


@pytest.fixture(scope="module")
def relay():
    """One relay for the whole table, with one queued message, which must not change."""
    relay = Relay("http://127.0.0.1:9", ingress__request_timeout="2s").start()
    try:
        assert send(relay, TOKEN, "canary", "kept").status == 202
        yield relay
    finally:
        relay.remove()


@pytest.fixture(autouse=True)
def unchanged(relay):
    before = relay.metrics()
    yield
    assert relay.process.poll() is None
    assert relay.get("/readyz")[0] == 200 and relay.get("/livez")[0] == 200
    assert queued(relay) == 1
    after = relay.metrics()
    for name in ("messages_accepted_total", "queue_messages", "dead_letters", "conversations"):
        assert after[name] == before[name], name
    assert send(relay, TOKEN, "canary", "kept").headers["relay-state"] == "QUEUED"


@pytest.mark.parametrize("name", BODIES)
def test_body(relay, name):
    body, words = BODIES[name]
    rejected = 'messages_rejected_total{reason="invalid"}'
    before = relay.metrics()[rejected]
    assert_error(curl(relay, MESSAGE, body, [BEARER]), 400, "ValidationException", *words)
    assert relay.metrics()[rejected] == before + 1


@pytest.mark.parametrize("name", HEADERS)
def test_header(relay, name):
    headers, words = HEADERS[name]
    assert_error(curl(relay, MESSAGE, GOOD, headers), 400, "ValidationException", *words)


def test_renewal_of_an_unknown_token(relay):
    headers = [BEARER, "Relay-Replaces-Token: canary-unknown"]
    assert_error(curl(relay, MESSAGE, GOOD, headers), 403, "RelayForbiddenException")


@pytest.mark.parametrize("extra", [(), ("--header", "Transfer-Encoding: chunked")], ids=["by its length", "in chunks"])
def test_body_over_the_limit(relay, extra):
    body = json.dumps({**GOOD, "Content": "x" * (256 * 1024)}).encode()
    reply = curl(relay, MESSAGE, body, [BEARER], extra=extra)
    assert_error(reply, 413, "ValidationException", "ingress.body_bytes_max")


def test_too_large_body_with_expect_continue_is_refused_before_it_is_sent(relay):
    with dial(relay, "unix") as stream:
        stream.sendall(POST + b"X-Amz-Bearer: t\r\nExpect: 100-continue\r\nContent-Length: 9000000\r\n\r\n")
        answer = stream.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ") and b"9000000 bytes, at most 262144" in answer


@pytest.mark.parametrize("method,path,status", [("GET", "/nowhere", 404), ("POST", "/status", 405), ("POST", MESSAGE, 404)])
def test_operators_api_refuses_unknown_requests(relay, method, path, status):
    [control] = [path for path in relay.folder.rglob("control.sock")]
    reply = curl(SimpleNamespace(socket=str(control)), path, method=method)
    assert reply.status == status and reply.json["Error"].startswith("connect-relay: ")
    assert reply.headers.get("allow") == ("GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize("method,path", NO_SUCH_OPERATION)
def test_no_such_operation(relay, method, path):
    reply = curl(relay, path, method=method)
    assert_error(reply, 404, "UnknownOperationException")
    assert reply.json["Message"] == f"connect-relay: no such operation: {method} {path}"


@pytest.mark.parametrize("name", EVENTS)
def test_event(relay, name):
    body, words = EVENTS[name]
    assert_error(curl(relay, "/participant/event", body, [BEARER]), 400, "ValidationException", *words)


@pytest.mark.parametrize("content_type", [TYPING, READ])
def test_event_without_a_token(relay, content_type):
    reply = curl(relay, "/participant/event", {"ContentType": content_type})
    assert_error(reply, 400, "ValidationException", "X-Amz-Bearer")


@pytest.mark.parametrize("name", LINES)
def test_line_of_a_batch(relay, name):
    line, words = LINES[name]
    reply = curl(relay, "/participant/messages", line if isinstance(line, bytes) else json.dumps(line).encode())
    [answer] = reply.lines
    assert reply.status == 200 and answer["Error"]["Code"] == "ValidationException"
    text = answer["Error"]["Message"]
    assert text.startswith("connect-relay: ") and "canary" not in text and all(word in text for word in words), text


def test_batch_without_lines(relay):
    for body in (b"", b"\n", b"\r\n \n"):
        reply = curl(relay, "/participant/messages", body)
        assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize("method,path", [("POST", "/participant/connection"), ("POST", "/participant/transcript"), ("GET", "/participant/views/v")])
def test_forwarded_request_without_an_upstream_is_503(relay, method, path):
    reply = curl(relay, path, b"{}" if method == "POST" else None, [BEARER], method=method)
    assert_error(reply, 503, "ServiceUnavailableException", "cannot be reached")
    assert int(reply.headers["x-amz-retry-after"]) > 0 and int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", ["/participant/event", "/participant/disconnect"])
@pytest.mark.parametrize("headers,body", [([], b"{}"), ([BEARER], b"[1]"), ([BEARER], b"{")], ids=["no token", "an array", "cut short"])
def test_other_queued_operations(relay, path, headers, body):
    assert_error(curl(relay, path, body, headers), 400, "ValidationException")


@pytest.mark.parametrize("path,word", [("%ff", "UTF-8"), ("a" * 501, "501"), ("%C3%A9" * 501, "501")])
def test_state_of_an_impossible_client_token(relay, path, word):
    assert_error(curl(relay, f"{MESSAGE}/{path}", headers=[BEARER]), 400, "ValidationException", "ClientToken", word)


def test_state_of_an_unknown_message(relay):
    for headers in ([BEARER], ["X-Amz-Bearer: canary-other"]):
        reply = curl(relay, f"{MESSAGE}/unknown", headers=headers)
        assert_error(reply, 404, "ResourceNotFoundException")
    assert_error(curl(relay, f"{MESSAGE}/kept", headers=["X-Amz-Bearer: canary-other"]), 404, "ResourceNotFoundException")
    assert_error(curl(relay, f"{MESSAGE}/kept", headers=[BEARER, "Relay-Conversation: key"]), 409, "ConflictException")


def test_repeat_with_other_contents(relay):
    for body in ({**GOOD, "Content": "canary: other"}, {**GOOD, "ContentType": "text/markdown"}):
        reply = curl(relay, MESSAGE, {**body, "ClientToken": "kept"}, [BEARER])
        assert_error(reply, 409, "ConflictException", "other contents at 20")
    reply = curl(relay, "/participant/event", {"ContentType": READ, "ClientToken": "kept"}, [BEARER])
    assert_error(reply, 409, "ConflictException", "other contents")


def test_token_under_another_key(relay):
    reply = curl(relay, MESSAGE, GOOD, [BEARER, "Relay-Conversation: key"])
    assert_error(reply, 409, "ConflictException", "another conversation")


def test_state_without_a_token(relay):
    assert_error(curl(relay, f"{MESSAGE}/kept"), 400, "ValidationException", "ConnectionToken")


@pytest.mark.parametrize("listener", ["unix", "tcp"])
@pytest.mark.parametrize("name", RAW)
def test_malformed_request_gets_a_bare_status_and_closes_the_connection(relay, name, listener):
    sent, status = RAW[name]
    with dial(relay, listener) as stream:
        try:
            stream.sendall(sent)
            stream.shutdown(socket.SHUT_WR)
            answer = received(stream)
        except OSError:
            assert len(sent) > 65536, "the relay may close a connection only while the client writes"
            return
    if status is None:
        assert answer == b""
        return
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and body == b"", answer[:200]
    assert {b"connection: close", b"content-length: 0"} <= set(head.lower().split(b"\r\n"))


def test_bad_chunks(relay):
    with dial(relay, "unix") as stream:
        stream.sendall(POST + b"X-Amz-Bearer: t\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
        stream.shutdown(socket.SHUT_WR)
        assert b" 400 " in (answer := received(stream)) and b"the body ended before its time" in answer


@pytest.mark.parametrize("sent", [
    b"POST /participant/message HTTP/1.1\r\nHost:",
    b"POST /participant/message HTTP/1.1\r\nHost: x\r\nX-Amz-Bearer: canary\r\nContent-Length: 100\r\n\r\n{\"ContentType\"",
], ids=["in its head", "in its body"])
def test_incomplete_request_times_out(relay, sent):
    with dial(relay, "unix") as stream:
        stream.sendall(sent)
        answer = received(stream)  # returns when the relay closes: request_timeout is 2 s
        assert answer == b"" or b" 408 " in answer.splitlines()[0] or b" 400 " in answer.splitlines()[0]


def test_disconnect_within_a_body_stores_nothing(relay):
    with dial(relay, "unix") as stream:
        body = json.dumps(GOOD).encode()
        head = f"POST {MESSAGE} HTTP/1.1\r\nHost: x\r\n{BEARER}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        stream.sendall(head + body[:-1])


def test_two_requests_in_one_packet_get_two_replies(relay):
    request = b"GET /participant/queue HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /participant/queue HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with dial(relay, "unix") as stream:
        stream.sendall(request + last)
        assert received(stream).count(b"HTTP/1.1 200 OK") == 2


ENCODED = {
    "message": GOOD,
    "event": {"ContentType": READ},
    "disconnect": {},
    "messages": {**GOOD, "ConnectionToken": TOKEN},
}


@pytest.mark.parametrize("path", ENCODED)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "aws-chunked", "identity, zstd"])
def test_error_about_an_encoded_body_names_the_encoding(relay, path, encoding):
    before = relay.metrics()['messages_rejected_total{reason="invalid"}']
    body = gzip.compress(json.dumps(ENCODED[path]).encode())
    headers = [BEARER, f"Content-Encoding: {encoding}"]
    words = ["Content-Encoding", encoding.split(", ")[-1], "identity"]
    assert_error(curl(relay, f"/participant/{path}", body, headers), 415, "ValidationException", *words)
    assert relay.metrics()['messages_rejected_total{reason="invalid"}'] == before + 1


def test_identity_encoding_is_accepted(relay):
    for encoding in ("identity", "Identity"):
        assert send(relay, TOKEN, "canary", "kept", headers=[f"Content-Encoding: {encoding}"]).status == 202
