"""An example Job, Python's standard library only: says one line in each of many chats, and ends when nothing is queued.

CHATS is a file with a JSON object a line: {"ContactId": "…", "ConnectionToken": "…", "Text": "…"}. The last step, GET
/participant/queue, waits until nothing of this user's is queued: each message is delivered then, or a dead letter, which
`connect-relay messages list` and the metric connect_relay_messages_dead_total show.
"""

import http.client
import json
import os
import socket
import sys
import time

SOCKET = os.environ.get("RELAY_SOCKET", "/run/connect-relay/relay.sock")


class Relay(http.client.HTTPConnection):
    """HTTP over the relay's Unix socket."""

    def __init__(self):
        super().__init__("relay", timeout=70)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def call(method, path, body=None, **headers):
    """One request; 503 where the relay is about to start again."""
    relay = Relay()
    try:
        relay.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = relay.getresponse()
        return reply.status, reply.headers, json.loads(reply.read() or "{}")
    except (OSError, http.client.HTTPException) as fault:
        return 503, {}, {"Message": str(fault)}
    finally:
        relay.close()


def say(chat):
    """Hands one line over. A Job that is started again says nothing twice: the ClientToken is the contact's."""
    message = {"ContentType": "text/plain", "Content": chat["Text"], "ClientToken": f"{chat['ContactId']}-notice"}
    for _ in range(60):
        status, headers, body = call("POST", "/participant/message", json.dumps(message), X_Amz_Bearer=chat["ConnectionToken"])
        if status < 300:
            return True
        if status not in (429, 500, 503):
            break
        time.sleep(float(headers.get("Retry-After", 1)))
    print(f"{chat['ContactId']}: {status} {body}", file=sys.stderr)
    return False


def delivered(patience):
    """Waits until the queue is empty; each request waits on the relay's side, so this asks once in 50 seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        status, _, waiting = call("GET", "/participant/queue", Prefer="wait=50")
        if status == 200 and waiting["Queued"] == 0:
            return True
        print(waiting, flush=True)
        time.sleep(1)
    return False


if __name__ == "__main__":
    with open(os.environ.get("CHATS", "/run/chats/chats.ndjson")) as chats:
        refused = sum(not say(json.loads(line)) for line in chats)
    empty = delivered(float(os.environ.get("PATIENCE_SECONDS", "3600")))
    sys.exit(0 if empty and not refused else 1)
