"""An example bot with boto3 over the relay's Unix socket. In each chat it connects, types, answers, says farewell and leaves.

A contact flow starts the chat and hands its ParticipantToken to the bot:

    POST / {"ContactId": "…", "ParticipantToken": "…"}

boto3_socket.py, beside it, is examples/boto3_socket.py: boto3's client, each call of which goes to the relay's socket.
"""

import http.server
import json
import os
import signal
import threading

from boto3_socket import client, contact

TYPING = "application/vnd.amazonaws.connect.event.typing"


def chat(name, participant_token):
    """One chat from its beginning to its end. A repeat of any call has the same ClientToken and makes no second message."""
    contact.set(name)
    wanted = {"Type": ["CONNECTION_CREDENTIALS"], "ConnectParticipant": True}
    connection = client.create_participant_connection(ParticipantToken=participant_token, **wanted)
    token = connection["ConnectionCredentials"]["ConnectionToken"]
    client.send_event(ConnectionToken=token, ContentType=TYPING)
    for part, text in (("greeting", "Hello, what can I do for you?"), ("farewell", "Goodbye, and thank you.")):
        message = {"ContentType": "text/plain", "Content": text, "ClientToken": f"{name}-{part}"}
        client.send_message(ConnectionToken=token, **message)  # no Id in the reply while it is queued
    client.disconnect_participant(ConnectionToken=token, ClientToken=f"{name}-end")


class Door(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            start = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            chat(start["ContactId"], start["ParticipantToken"])
            self.answer(200, {})
        except Exception as error:  # any error: the contact flow gets it, and the bot continues
            self.answer(500, {"Error": str(error)})

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
    daemon_threads = False  # closing waits for the chats in progress


if __name__ == "__main__":
    bot = Bot(("", int(os.environ.get("PORT", "8080"))), Door)
    # On SIGTERM it finishes its chats and ends; then the relay, which ends after it, delivers what is queued.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=bot.shutdown).start())
    print(f"listening on {bot.server_address[1]}", flush=True)
    bot.serve_forever()
    bot.server_close()
