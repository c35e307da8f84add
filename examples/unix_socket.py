"""A bot's line with nothing but Python's standard library, over the relay's Unix socket.

    RELAY_SOCKET=/run/connect-relay/relay.sock CONNECTION_TOKEN=… CONTACT_ID=… python3 examples/unix_socket.py
"""

import http.client
import json
import os
import socket
import time


class Relay(http.client.HTTPConnection):
    """One connection, kept open. http.client opens it anew after the relay has closed it (ingress.idle_timeout)."""

    def __init__(self, path, timeout=10):
        super().__init__("relay", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def say(self, token, contact, content, client_token, **headers):
        """Returns (status, reply): 202 is on disk, 200 delivered. The same client_token again is a repeat."""
        body = json.dumps({"ContentType": "text/plain", "Content": content, "ClientToken": client_token})
        headers = {
            "X-Amz-Bearer": token,
            "Relay-Conversation": f"{contact}/bot",  # what is kept in order
            "Content-Type": "application/json",
            **headers,
        }
        for pause in (0.1, 0.5, 2, None):
            try:
                self.request("POST", "/participant/message", body, headers)
                reply = self.getresponse()
                answer = json.loads(reply.read())  # read it whole, or the connection cannot be used again
                if reply.status not in (429, 500, 503) or pause is None:
                    return reply.status, answer
            except (OSError, http.client.HTTPException):
                self.close()  # a relay that restarts: the next try dials anew, and the ClientToken makes it harmless
                if pause is None:
                    raise
            time.sleep(pause)


if __name__ == "__main__":
    relay = Relay(os.environ.get("RELAY_SOCKET", "/run/connect-relay/relay.sock"))
    token, contact = os.environ["CONNECTION_TOKEN"], os.environ["CONTACT_ID"]
    print(*relay.say(token, contact, "Hello!", "greeting-1"))
    # Prefer: wait asks for the outcome; the time-out above must be longer.
    print(*relay.say(token, contact, "How can I help?", "question-1", Prefer="wait=8"))
