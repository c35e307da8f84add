"""An example bot, Python's standard library only: for each chat it connects, types, answers, says farewell and leaves.

A contact flow starts the chat and hands its ParticipantToken to the bot:

    POST / {"ContactId": "…", "ParticipantToken": "…"}

The reply comes when everything is on the relay's disk: within milliseconds, whether Connect throttles, is down or well.
"""

import http.client
import http.server
import json
import os
import signal
import socket
import threading
import time

SOCKET = os.environ.get("RELAY_SOCKET", "/run/connect-relay/relay.sock")
TYPING = "application/vnd.amazonaws.connect.event.typing"


class Relay(http.client.HTTPConnection):
    """HTTP over the relay's Unix socket."""

    def __init__(self):
        super().__init__("relay", timeout=30)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def call(operation, token, body):
    """One operation of the Participant Service; the same again where the relay says 429, 500 or 503, or restarts.

    That is safe, because what makes a message of it carries a ClientToken: a repeat makes no second one.
    """
    for _ in range(60):
        relay, pause = Relay(), 1.0
        try:
            headers = {"X-Amz-Bearer": token, "Content-Type": "application/json"}
            relay.request("POST", f"/participant/{operation}", json.dumps(body), headers)
            reply = relay.getresponse()
            text = reply.read()
            if reply.status < 300:
                return json.loads(text or "{}")
            if reply.status not in (429, 500, 503):
                raise RuntimeError(f"{operation}: {reply.status} {text.decode()}")
            pause = float(reply.headers.get("Retry-After", pause))
        except (OSError, http.client.HTTPException):
            pass
        finally:
            relay.close()
        time.sleep(pause)
    raise RuntimeError(f"{operation}: the relay does not take it")


def chat(contact, participant_token):
    """One chat from its beginning to its end. What is said goes out in this order, the farewell before the end."""
    wanted = {"Type": ["CONNECTION_CREDENTIALS"], "ConnectParticipant": True}
    token = call("connection", participant_token, wanted)["ConnectionCredentials"]["ConnectionToken"]
    call("event", token, {"ContentType": TYPING})
    for name, text in (("greeting", "Hello, what can I do for you?"), ("farewell", "Goodbye, and thank you.")):
        message = {"ContentType": "text/plain", "Content": text, "ClientToken": f"{contact}-{name}"}
        call("message", token, message)
    call("disconnect", token, {"ClientToken": f"{contact}-end"})


class Door(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            start = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            chat(start["ContactId"], start["ParticipantToken"])
            self.answer(200, {})
        except Exception as fault:  # whatever it was: the flow hears it, the bot goes on
            self.answer(500, {"Error": str(fault)})

    def do_GET(self):
        self.answer(200, {})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Bot(http.server.ThreadingHTTPServer):
    daemon_threads = False  # closing waits for the chats under way


if __name__ == "__main__":
    bot = Bot(("", int(os.environ.get("PORT", "8080"))), Door)
    # When it is asked to stop, it finishes its chats and ends; then the relay, which outlives it, delivers queued messages.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=bot.shutdown).start())
    print(f"listening on {bot.server_address[1]}", flush=True)
    bot.serve_forever()
    bot.server_close()
