"""Bots that connect anew for each message."""

import http.client
import json
import socket
import threading
import uuid

from kit.callers import MESSAGE
from kit.processes import CANARY
from kit.wait import TIMEOUT, until


class Connecting(threading.Thread):
    """Sends messages, each on a connection and in a conversation of its own; repeats one whose connection was cut.
    `refused` has the connects that failed."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path = str(path)
        self.sent, self.refused = [], []
        self._ends = threading.Event()

    def run(self):
        while not self._ends.is_set():
            token = str(uuid.uuid4())
            while not self._say(token):
                pass
            self.sent.append(token)

    def _say(self, token):
        dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        dialled.settimeout(TIMEOUT)
        try:
            dialled.connect(self.path)
        except OSError as error:
            self.refused.append(error)
            return False
        connection = http.client.HTTPConnection("relay")
        connection.sock = dialled
        body = json.dumps({"ContentType": "text/plain", "Content": token, "ClientToken": token})
        try:
            connection.request("POST", MESSAGE, body, {"X-Amz-Bearer": f"{CANARY}-{token}"})
            return connection.getresponse().status in (200, 202)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self):
        self._ends.set()
        self.join(TIMEOUT)
        assert not self.is_alive(), "its last message was answered"


def all_have_sent(bots):
    """Waits until each of them has sent one more message."""
    counts = [len(bot.sent) for bot in bots]
    until(lambda: all(len(bot.sent) > count for bot, count in zip(bots, counts)), "each bot sends one more message")
