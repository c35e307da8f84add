"""Relays whose queues are copied to NATS servers, and what the servers say about the copies."""

import base64
import json
import socket

from kit.processes import command
from kit.wait import TIMEOUT

KEY = base64.b64encode(b"k" * 32).decode()
NO_MESSAGE = 10037


def settings(url, folder, **more):
    """The settings of a relay whose queue is copied; the key file is made in `folder`."""
    keys = folder / "keys"
    keys.write_text(KEY + "\n")
    chosen = {
        "fleet__servers": url,
        "fleet__share_quota": "false",
        "fleet__replicate": "true",
        "fleet__identity": "pod-0",
        "fleet__lease": "10s",
        "fleet__ack_timeout": "20s",  # a loaded machine is not an outage
        "queue__key_file": keys,
        "shutdown__grace": "2s",
    }
    return chosen | more


def control(relay, *args):
    """Runs a command of the operators; returns its output."""
    done = command(*args, "--socket", relay.folder / "private/control.sock")
    assert done.returncode == 0, done.stderr
    return done.stdout


def stream_of(relay):
    """The name of a relay's stream."""
    return f"CR_{relay.settings.get('fleet.name', 'connect-relay')}=_{relay.settings['fleet.identity']}"


def ask(server, operation, stream, body=None):
    """A request to JetStream about a stream; None if the server does not answer."""
    data = json.dumps(body).encode() if body is not None else b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as connection:
        reader = connection.makefile("rb")
        assert reader.readline().startswith(b"INFO ")
        subject = f"$JS.API.STREAM.{operation}.{stream}".encode()
        options = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB inbox.* 1\r\n'
        connection.sendall(options + b"PUB %s inbox.1 %d\r\n%s\r\n" % (subject, len(data), data))
        while line := reader.readline():
            if line.startswith(b"PING"):
                connection.sendall(b"PONG\r\n")
            elif line.startswith(b"MSG "):
                return json.loads(reader.read(int(line.split()[-1]) + 2))
            elif line.startswith(b"HMSG "):
                return None  # no responders
    return None


def state(server, relay):
    """The state of a relay's stream: messages, bytes, first_seq, last_seq."""
    return ask(server, "INFO", stream_of(relay))["state"]


def records(server, relay):
    """All records of a relay's stream, in order, without those that the relay has removed or removes meanwhile."""
    now = state(server, relay)
    numbers = range(now["first_seq"], now["last_seq"] + 1)
    answers = [ask(server, "MSG.GET", stream_of(relay), {"seq": sequence}) for sequence in numbers]
    assert all("message" in answer or answer["error"]["err_code"] == NO_MESSAGE for answer in answers), answers
    return [base64.b64decode(answer["message"]["data"]) for answer in answers if "message" in answer]


def claims(server, relay):
    """The claim of each record of a relay's stream, in order."""
    return [int.from_bytes(record[2:10], "big") for record in records(server, relay)]
