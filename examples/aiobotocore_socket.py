"""A bot with aiobotocore, over the relay's Unix socket.

    RELAY_SOCKET=/run/connect-relay/relay.sock PARTICIPANT_TOKEN=… CONTACT_ID=… python3 examples/aiobotocore_socket.py
"""

import asyncio
import os
import urllib.parse
from contextvars import ContextVar

import aiohttp
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.session import get_session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

SOCKET = os.environ.get("RELAY_SOCKET", "/run/connect-relay/relay.sock")

# The chat of the running code; each asyncio task has its own.
contact = ContextVar("contact")


def add_conversation(params, **_):
    """Names the conversation on every call, and asks for the outcome: there are no parameters for these headers."""
    params["headers"]["Prefer"] = "wait=8"  # without it the socket answers 202 as soon as the message is on disk
    if name := contact.get(None):
        params["headers"]["Relay-Conversation"] = f"{name}/bot"


def over_socket(http):
    """Returns a handler of before-send: aiobotocore sends a request itself unless it returns the response."""

    async def send(request, **_):
        url = urllib.parse.urlsplit(request.url)
        target = urllib.parse.urlunsplit(("http", "relay", url.path, url.query, ""))
        text = lambda value: value.decode() if isinstance(value, bytes) else value  # noqa: E731
        headers = {name: text(value) for name, value in request.headers.items()}
        try:
            reply = await http.request(request.method, target, data=request.body, headers=headers)
            lower = {name.lower(): value for name, value in reply.headers.items()}
            response = AioAWSResponse(request.url, reply.status, lower, reply)
            await response.content
            return response
        # aiobotocore retries botocore's exceptions, and a bot catches them.
        except aiohttp.ClientConnectorError as error:
            raise EndpointConnectionError(endpoint_url=f"unix:{SOCKET}", error=error) from error
        except asyncio.TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except aiohttp.ClientError as error:
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error

    return send


async def chat():
    contact.set(os.environ["CONTACT_ID"])
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(SOCKET), timeout=timeout) as http:
        # UNSIGNED: the service needs no signature. The URL's host is not used.
        config = Config(signature_version=UNSIGNED)
        options = {"region_name": "eu-west-2", "endpoint_url": "http://relay", "config": config}
        async with get_session().create_client("connectparticipant", **options) as client:
            client.meta.events.register("before-send.connectparticipant", over_socket(http))
            client.meta.events.register("before-call.connectparticipant", add_conversation)
            connection = await client.create_participant_connection(
                ParticipantToken=os.environ["PARTICIPANT_TOKEN"],
                Type=["CONNECTION_CREDENTIALS"],
                ConnectParticipant=True,
            )
            token = connection["ConnectionCredentials"]["ConnectionToken"]
            for client_token, content in [("greeting-1", "Hello!"), ("farewell-1", "Goodbye!")]:
                reply = await client.send_message(
                    ConnectionToken=token, ContentType="text/plain", Content=content, ClientToken=client_token
                )
                state = reply["ResponseMetadata"]["HTTPHeaders"]["relay-state"]
                print(state, reply.get("Id"))  # no Id while it is queued
            # It waits for its turn: the farewell is not cut off.
            await client.disconnect_participant(ConnectionToken=token)


if __name__ == "__main__":
    asyncio.run(chat())
