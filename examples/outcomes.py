"""The outcomes of this user's messages, pushed by the relay over its Unix socket, with Python's standard library.

    RELAY_SOCKET=/run/connect-relay/relay.sock python3 examples/outcomes.py [LAST_ID]

Prints a line for each event: its id, `delivered` or `dead`, its data. Keep the last id with what you did about the event: with
it, the stream continues where it was cut, also after a restart of the relay or of this program.
"""

import http.client
import os
import socket
import sys
import time


class Relay(http.client.HTTPConnection):
    def __init__(self, path):
        # The relay sends a comment every 15 s: a longer silence is a dead connection.
        super().__init__("relay", timeout=40)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class TooOld(Exception):
    """Outcomes after this id are not kept any more: ask for the states of the messages that you still miss."""


def outcomes(path, last=""):
    """Yields (id, event, data) for ever; begins now without an id."""
    while True:
        relay = Relay(path)
        try:
            relay.request("GET", "/participant/outcomes", headers={"Last-Event-ID": last} if last else {})
            reply = relay.getresponse()
            if reply.status == 410:
                raise TooOld(last)
            if reply.status in (400, 403):
                raise ValueError(reply.read().decode())
            fields = {}
            while reply.status == 200 and (line := reply.readline()):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                elif "data" in fields:
                    last = fields["id"]
                    yield last, fields["event"], fields["data"]
                    fields = {}
        except (OSError, http.client.HTTPException):
            pass  # the relay restarts, or has cut a reader that was too slow
        finally:
            relay.close()
        time.sleep(0.5)


if __name__ == "__main__":
    where = os.environ.get("RELAY_SOCKET", "/run/connect-relay/relay.sock")
    for event in outcomes(where, *sys.argv[1:2]):
        print(*event, flush=True)
