"""A bot that reads the stream of its outcomes, and continues after the last event that it has read."""

import http.client
import json
import socket
import threading

from kit.monitoring import UnixConnection
from kit.wait import TIMEOUT


class Outcomes:
    """`events` has (event, data) of each event in the order of arrival, over all connections."""

    def __init__(self, relay):
        self._path = relay.socket
        self.events, self.cursors = [], []
        self.connect()

    def connect(self):
        """Opens the stream; from the second time on after the last event."""
        connection = UnixConnection(self._path)
        headers = {"Last-Event-ID": self.cursors[-1]} if self.cursors else {}
        connection.request("GET", "/participant/outcomes", headers=headers)
        self._socket = connection.sock
        reply = connection.getresponse()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream"), reply.read()
        self._reader = threading.Thread(target=self._read, args=(reply,), daemon=True)
        self._reader.start()

    def _read(self, reply):
        fields = {}
        try:
            for line in reply:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                    continue
                # An event counts when it is complete: one that is cut off comes again.
                if "id" in fields:
                    self.events.append((fields["event"], json.loads(fields["data"])))
                    self.cursors.append(fields["id"])
                fields = {}
        except (OSError, http.client.HTTPException):
            pass  # the connection was cut

    def cut(self):
        """Cuts the connection, as a network or a crash does."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the relay has ended it
        self.wait_for_end()
        self._socket.close()

    def wait_for_end(self):
        self._reader.join(TIMEOUT)
        assert not self._reader.is_alive(), "the stream has ended"

    def tokens(self, event):
        return [data["ClientToken"] for name, data in self.events if name == event]
