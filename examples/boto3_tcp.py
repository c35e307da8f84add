"""A bot with boto3, over the relay's loopback TCP port (ingress.tcp): one variable, and no code.

TCP has no peer credentials: every process of the pod can send to this port, and all of them are one caller.
examples/boto3_socket.py uses the Unix socket. It needs boto3 (`pip install boto3`).

    AWS_ENDPOINT_URL_CONNECTPARTICIPANT=http://127.0.0.1:8480 NO_PROXY=127.0.0.1 \\
        PARTICIPANT_TOKEN=… CONTACT_ID=… python3 examples/boto3_tcp.py
"""

import os
from contextvars import ContextVar

import boto3
from botocore import UNSIGNED
from botocore.config import Config

# Which chat the running code speaks in; each thread and each asyncio task has its own.
contact = ContextVar("contact")


def add_conversation(params, **_):
    """Names the conversation on every call, because boto3 has no parameter for it."""
    if name := contact.get(None):
        params["headers"]["Relay-Conversation"] = f"{name}/bot"


# UNSIGNED: the service needs no signature, and so the bot no AWS credentials.
client = boto3.client("connectparticipant", region_name="eu-west-2", config=Config(signature_version=UNSIGNED))
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
