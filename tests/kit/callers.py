"""Clients of the relay: curl on the Unix socket, boto3 on TCP."""

import http.client
import json
import os
import subprocess
import threading
from dataclasses import dataclass
from unittest import mock

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from kit.processes import CANARY
from kit.wait import TIMEOUT

PLAIN = "text/plain"
TYPING = "application/vnd.amazonaws.connect.event.typing"
READ = "application/vnd.amazonaws.connect.event.message.read"
MESSAGE = "/participant/message"


@dataclass
class Reply:
    """A reply, as curl received it."""

    status: int
    headers: dict  # names in lower case
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def lines(self):
        return [json.loads(line) for line in self.body.splitlines()]


def curl(relay, path, body=None, headers=(), method=None, extra=()):
    """Sends one request with curl. A body that is not bytes is sent as JSON; a header may be bytes."""
    args = ["curl", "--disable", "--silent", "--show-error", "--include", "--max-time", "90", "--noproxy", "*"]
    args += ["--unix-socket", relay.socket, *extra]
    for header in headers:
        args += ["--header", header]
    if body is not None:
        args += ["--header", "Expect:", "--data-binary", "@-"]
        if not any(bytes(h, "latin-1").lower().startswith(b"content-type") if isinstance(h, str) else False for h in headers):
            args += ["--header", "Content-Type: application/json"]
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    if method:
        args += ["--request", method]
    done = subprocess.run([*args, f"http://relay{path}"], input=body or b"", capture_output=True, timeout=120)
    assert done.returncode == 0, f"curl exited with {done.returncode}: {done.stderr.decode()}"
    return parse(done.stdout)


def parse(output):
    """Parses the output of curl --include; skips interim replies."""
    while True:
        head, _, output = output.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").splitlines()
        status = int(first.split(" ")[1])
        if status >= 200:
            break
    headers = {}
    for line in rest:
        name, value = line.split(":", 1)
        assert name.lower() not in headers, f"{name} came twice"
        headers[name.lower()] = value.strip()
    return Reply(status, headers, output)


def send(relay, token, content, client_token=None, content_type=PLAIN, headers=(), **options):
    """SendMessage with curl."""
    body = {"ContentType": content_type, "Content": content}
    if client_token is not None:
        body["ClientToken"] = client_token
    return curl(relay, MESSAGE, body, [f"X-Amz-Bearer: {token}", *headers], **options)


def look(relay, token, client_token, headers=()):
    """The state route; `client_token` is percent-encoded already."""
    return curl(relay, f"{MESSAGE}/{client_token}", headers=[f"X-Amz-Bearer: {token}", *headers])


def queued(relay):
    """The number of queued messages of this caller, from the bots' API."""
    return curl(relay, "/participant/queue").json["Queued"]


def assert_error(reply, status, code, *words, own=True):
    """Checks an error in the form that SDKs need: its code in the header, its text in a JSON object of exact length."""
    assert reply.status == status, reply
    assert reply.headers["x-amzn-errortype"] == code
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert "content-encoding" not in reply.headers
    text = reply.json["Message"]
    assert text.startswith("connect-relay: ") or not own, text
    assert CANARY not in text
    for word in words:
        assert word in text, f"{word!r} is missing in: {text}"


_ENVIRONMENT = threading.Lock()


def bot(url, attempts=1, signed=False, connections=10):
    """Creates a boto3 client that reaches the relay by the endpoint variable alone, as a bot's does."""
    settings = {
        "retries": {"total_max_attempts": attempts, "mode": "standard"},
        "max_pool_connections": connections,
    }
    if not signed:
        settings["signature_version"] = UNSIGNED
    keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "secret", "aws_session_token": "session"}
    with _ENVIRONMENT, mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL_CONNECTPARTICIPANT": url}):
        session = boto3.session.Session()
        return session.client(
            "connectparticipant", region_name="eu-west-2", config=Config(**settings), **(keys if signed else {})
        )


def connect(client, participant_token):
    """Calls CreateParticipantConnection; returns the connection token."""
    reply = client.create_participant_connection(
        ParticipantToken=participant_token, Type=["CONNECTION_CREDENTIALS"], ConnectParticipant=True
    )
    return reply["ConnectionCredentials"]["ConnectionToken"]


def fill(relay, content_type, content, ends):
    """Sends batches until one line is rejected because of this setting; returns the number of accepted messages, and the error."""
    api = http.client.HTTPConnection(relay.url.removeprefix("http://"), timeout=TIMEOUT)
    taken = 0
    while True:
        lines = [
            {"ContentType": content_type, "Content": content, "ConnectionToken": f"canary-{taken % 2000 + n}", "ClientToken": f"c-{taken + n}"}
            for n in range(50)
        ]
        body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        api.request("POST", "/participant/messages", body.encode())
        replies = [json.loads(line) for line in api.getresponse().read().splitlines()]
        taken += sum("State" in reply for reply in replies)
        if refused := [reply["Error"]["Message"] for reply in replies if "Error" in reply]:
            assert all(ends in text for text in refused), refused[0]
            return taken, refused[0]
