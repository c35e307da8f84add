"""A bot with boto3, over the relay's Unix socket: only users that the socket's mode admits can speak for the bot.
It needs boto3 (`pip install boto3`).

    RELAY_SOCKET=/run/connect-relay/relay.sock PARTICIPANT_TOKEN=… CONTACT_ID=… python3 examples/boto3_socket.py
"""

import os
import socket
import urllib.parse
from contextvars import ContextVar

import boto3
import urllib3
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError
from urllib3.exceptions import NewConnectionError, ProtocolError
from urllib3.exceptions import ReadTimeoutError as TooSlow

# The chat of the running code; each thread and each asyncio task has its own.
contact = ContextVar("contact")


def add_conversation(params, **_):
    """Names the conversation on every call, and asks for the outcome: boto3 has no parameters for these headers."""
    params["headers"]["Prefer"] = "wait=8"  # without it the socket answers 202 as soon as the message is on disk
    if name := contact.get(None):
        params["headers"]["Relay-Conversation"] = f"{name}/bot"


class Connection(urllib3.connection.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(Pool.path)
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error


class Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = Connection
    path = os.environ.get("RELAY_SOCKET", "/run/connect-relay/relay.sock")


pool = Pool("relay", maxsize=10, timeout=urllib3.Timeout(connect=5, read=60))


def send_over_socket(request, **_):
    """botocore sends a request itself unless a handler of before-send returns the response."""
    url = urllib.parse.urlsplit(request.url)
    target = urllib.parse.urlunsplit(("", "", url.path, url.query, ""))
    options = {"retries": False, "preload_content": False, "decode_content": False}
    try:
        reply = pool.urlopen(request.method, target, request.body, dict(request.headers), **options)
        response = AWSResponse(request.url, reply.status, reply.headers, reply)
        response.content  # reads the body, and gives the connection back to the pool
        return response
    # botocore retries its own exceptions, and a bot catches them.
    except NewConnectionError as error:
        raise EndpointConnectionError(endpoint_url=f"unix:{Pool.path}", error=error) from error
    except TooSlow as error:
        raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
    except ProtocolError as error:
        raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error


# UNSIGNED: the service needs no signature, and so the bot no AWS credentials. The URL's host is not used.
client = boto3.client(
    "connectparticipant",
    region_name="eu-west-2",
    endpoint_url="http://relay",
    config=Config(signature_version=UNSIGNED),
)
client.meta.events.register("before-send.connectparticipant", send_over_socket)
client.meta.events.register("before-call.connectparticipant", add_conversation)

if __name__ == "__main__":
    contact.set(os.environ["CONTACT_ID"])
    connection = client.create_participant_connection(
        ParticipantToken=os.environ["PARTICIPANT_TOKEN"], Type=["CONNECTION_CREDENTIALS"], ConnectParticipant=True
    )
    token = connection["ConnectionCredentials"]["ConnectionToken"]
    client.send_event(ConnectionToken=token, ContentType="application/vnd.amazonaws.connect.event.typing")
    for client_token, content in [("greeting-1", "Hello!"), ("farewell-1", "Goodbye!")]:
        reply = client.send_message(
            ConnectionToken=token, ContentType="text/plain", Content=content, ClientToken=client_token
        )
        state = reply["ResponseMetadata"]["HTTPHeaders"]["relay-state"]
        print(state, reply.get("Id"))  # no Id while it is queued
    client.disconnect_participant(ConnectionToken=token)  # waits for its turn: the farewell is not cut off
