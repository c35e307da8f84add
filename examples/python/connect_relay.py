"""A client of connect-relay for bots in Python. Copy this file into your bot; it needs boto3.

    from connect_relay import Relay, RelayUnavailable

    relay = Relay("/run/connect-relay/relay.sock", "eu-west-2")
    reply = relay.send_message("Hello!", connection_token, conversation=f"{contact_id}/bot")

The reply is a dict:

    State         "DELIVERED", or "QUEUED": on the relay's disk, and it will be sent
    Id            Connect's Id of the message; absent while it is queued
    AbsoluteTime  Connect's time of the message; absent while it is queued
    ClientToken   the same call with this client_token is a repeat, and never a second message
    Direct        True if the message went to Connect without the relay

An error is the exception that boto3 raises for it: relay.exceptions.AccessDeniedException, … (the classes of another
client are not the same), all of them botocore.exceptions.ClientError. RelayUnavailable means that the message is not
acknowledged.

While the relay does not answer, or answers 500 or 503, send_message tries again for `retry_for` seconds. Then it calls
Connect directly, with the same ClientToken, but only if the outcome of each earlier message of the conversation is
known: delivered, or dead. Otherwise a direct message could overtake one that is still in the relay's queue, and
send_message raises RelayUnavailable. A full queue (429) is never bypassed: the direct call would use the same quota.

It only sends messages. Connect, type and disconnect with a boto3 client over the same socket (examples/boto3_socket.py), with
the same conversation: a disconnect that goes past the relay cuts off what is queued.

A Relay may be used by any number of threads. The messages of one conversation go one after the other, in the order of
the calls; if one raises, those that wait behind it go on. Without `conversation` the connection token is the
conversation: pass one if your bot renews tokens. A Relay knows the messages that it sent itself: use one Relay in one
process for a chat. A process that is forked may use the Relay of its parent, for chats of its own.
"""

import http.client
import json
import logging
import os
import socket
import threading
import time
import urllib.parse
import uuid
import weakref
from contextlib import contextmanager

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

WAIT = 4  # The seconds for which the relay waits for the outcome, before it answers "queued".
WAITS_MAX = 64  # The calls that may wait at once. Any further call is answered as soon as its message is on disk.
FAULTS = (OSError, http.client.HTTPException)  # No answer, or none that can be read.
FINAL = ("ValidationException", "AccessDeniedException", "ConflictException")  # Connect's refusals of one message.

log = logging.getLogger("connect_relay")


class RelayUnavailable(Exception):
    """The message is not acknowledged within `retry_for`; it may arrive nevertheless.

    To repeat it, pass `client_token` of this exception: then it is never a second message.
    """

    def __init__(self, text, client_token):
        super().__init__(text)
        self.client_token = client_token


class Relay:
    """A relay's Unix socket, and Connect itself if the relay is down.

    The client for the direct calls takes its endpoint as every boto3 client does: AWS_ENDPOINT_URL_CONNECTPARTICIPANT
    applies. A relay behind that variable refuses a direct call, and send_message raises RelayUnavailable.
    """

    def __init__(self, socket_path, region_name, retry_for=10.0):
        self.socket_path, self.region_name, self.retry_for = os.fspath(socket_path), region_name, retry_for
        self._chats = {}  # Only those that are in use, or have messages whose outcome is unknown.
        self._begin(_client(region_name))
        _relays.add(self)

    def _begin(self, client):
        self._client = client
        self._waits = threading.Semaphore(WAITS_MAX)
        self._lock = threading.Lock()  # Guards the client, the chats and what they hold.
        self._is_watching = False

    @property
    def exceptions(self):
        """The exceptions that send_message raises, as a boto3 client has them."""
        return self._connect().exceptions

    def send_message(
        self, content, connection_token, client_token=None, conversation=None, content_type="text/plain"
    ):
        """Sends a message, and returns its state as the head of this file describes it."""
        deadline = time.monotonic() + self.retry_for
        message = _Message(client_token or str(uuid.uuid4()), connection_token, conversation)
        body = {"ContentType": content_type, "Content": content, "ClientToken": message.client_token}
        with self._turn(message.chat) as chat:
            pause = 0.05
            while True:
                hint, bypass = 0.0, True
                try:
                    status, headers, answer = self._submit(chat, message, body, deadline)
                except FAULTS as error:
                    fault = error
                else:
                    if status in (200, 202):
                        return self._acknowledged(chat, message, status, answer)
                    fault = self._error(status, headers, answer)
                    if _is_final(status, headers):
                        self._learn_if_possible(chat)
                        raise fault
                    bypass = status != 429
                    hint = float(headers.get("x-amz-retry-after") or 0) / 1000
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                time.sleep(min(left, max(hint, pause)))
                pause = min(2 * pause, 1.0)
            self._learn_if_possible(chat, but=message)
            if bypass and not chat.others(message):
                return self._send_directly(chat, message, body, fault)
            text = "the relay did not take the message"
            if bypass:
                text += ", and the outcome of an earlier message of the conversation is unknown"
            raise self._unavailable(f"{text}: {fault}", message) from fault

    # The relay.

    def _submit(self, chat, message, body, deadline):
        """One request to the relay. From the moment of the connection until an answer, the outcome is unknown."""
        known = message in chat.unknown
        may_wait = self._waits.acquire(blocking=False)
        prefer = f"wait={WAIT}" if may_wait else "respond-async"
        headers = {**message.headers, "Content-Type": "application/json", "Prefer": prefer}
        timeout = min(WAIT + 5, max(WAIT + 1, deadline - time.monotonic()))
        try:
            status, headers, answer = self._ask(
                "POST", "/participant/message", headers, json.dumps(body).encode(), timeout, lambda: self._add(chat, message)
            )
        finally:
            if may_wait:
                self._waits.release()
        nothing_kept = not known and (status == 503 or 400 <= status < 500)
        if nothing_kept or headers.get("relay-state") == "DEAD":
            self._settle(chat, message)
        return status, headers, answer

    def _ask(self, method, path, headers, body=None, timeout=5, connected=lambda: None):
        """A request on a connection of its own: a kept one can be closed by the relay just when it is used again."""
        connection = _Connection(self.socket_path, timeout)
        try:
            connection.putrequest(method, path)
            for name, value in headers.items():
                connection.putheader(name, value)  # Raises if HTTP cannot carry it. Nothing is sent then.
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.connect()
            connected()
            connection.endheaders(body)
            reply = connection.getresponse()
            return reply.status, reply.headers, _json_object(reply.read())
        finally:
            connection.close()

    def _acknowledged(self, chat, message, status, answer):
        if status == 202:
            self._add(chat, message)
            self._watch()
            return {"State": "QUEUED", "ClientToken": message.client_token, "Direct": False}
        self._settle(chat, message)
        self._learn_if_possible(chat)  # Earlier messages were delivered before this one, unless it is a repeat.
        return _delivered(answer, message, direct=False)

    def _error(self, status, headers, answer):
        """The exception that boto3 raises for this reply."""
        code = headers.get("x-amzn-errortype") or str(status)
        metadata = {"HTTPStatusCode": status, "HTTPHeaders": {name.lower(): value for name, value in headers.items()}}
        metadata["RequestId"] = headers.get("x-amzn-requestid", "")
        text = answer.get("Message", "")
        response = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": metadata, "Message": text}
        return self.exceptions.from_code(code)(response, "SendMessage")

    # Connect.

    def _connect(self):
        with self._lock:
            if self._client is None:
                self._client = _client(self.region_name)
            return self._client

    def _send_directly(self, chat, message, body, fault):
        """The same message to Connect. Until Connect answers 200 or refuses it, its outcome is unknown."""
        in_relay = message in chat.unknown
        log.warning("the relay does not answer: calling Connect directly: %s", fault)
        self._add(chat, message)
        try:
            reply = self._connect().send_message(ConnectionToken=message.connection_token, **body)
        except (ClientError, BotoCoreError) as error:
            response = error.response["Error"] if isinstance(error, ClientError) else {}
            is_relay = response.get("Message", "").startswith("connect-relay: ")
            is_final = isinstance(error, ParamValidationError) or response.get("Code") in FINAL
            if (is_relay or is_final) and not in_relay:
                self._settle(chat, message)
            if is_final and not is_relay:
                raise
            text = "AWS_ENDPOINT_URL_CONNECTPARTICIPANT leads to a relay, not to Connect" if is_relay else error
            text = f"neither the relay ({fault}) nor Connect took the message: {text}"
            raise self._unavailable(text, message) from error
        self._settle(chat, message)
        return _delivered(reply, message, direct=True)

    def _unavailable(self, text, message):
        self._watch()
        return RelayUnavailable(text, message.client_token)

    # Outcomes and order.

    @contextmanager
    def _turn(self, key):
        """The calls of a conversation one after the other, in their order."""
        mine = threading.Event()
        with self._lock:
            chat = self._chats.setdefault(key, _Chat())
            before, chat.last = chat.last, mine
            chat.users += 1
        try:
            if before:
                before.wait()
            yield chat
        finally:
            mine.set()
            with self._lock:
                chat.users -= 1
                if not chat.users and not chat.unknown:
                    del self._chats[key]

    def _add(self, chat, message):
        with self._lock:
            if message not in chat.unknown:
                chat.unknown.append(message)

    def _settle(self, chat, message):
        with self._lock:
            if message in chat.unknown:
                chat.unknown.remove(message)

    def _learn(self, chat, but=None):
        """Asks the relay for outcomes, the latest message first: while it is queued, the others do not matter."""
        for message in reversed(chat.others(but)):
            status, _, answer = self._ask("GET", message.path, message.headers)
            if status not in (200, 404, 409) or answer.get("State") == "QUEUED":
                return
            self._settle(chat, message)  # Delivered, dead, or not known to the relay: it will not be sent any more.

    def _learn_if_possible(self, chat, but=None):
        try:
            self._learn(chat, but)
        except FAULTS:
            pass  # What is not known stays unknown.
        if chat.unknown:
            self._watch()

    def _watch(self):
        """Starts the thread that asks for outcomes, unless it runs. It ends when all of them are known."""
        with self._lock:
            if self._is_watching:
                return
            self._is_watching = True
        try:
            threading.Thread(target=self._ask_until_all_is_known, name="connect-relay", daemon=True).start()
        except RuntimeError:  # No further thread, as while Python exits: the next call asks.
            self._is_watching = False

    def _ask_until_all_is_known(self):
        pause = 1.0
        while True:
            time.sleep(pause)
            pause = min(2 * pause, 5.0)  # Shorter again when an outcome has become known.
            with self._lock:
                chats = [(key, chat) for key, chat in self._chats.items() if chat.unknown]
                if not chats:
                    self._is_watching = False
                    return
            try:
                for key, chat in chats:
                    if not chat.users:
                        with self._turn(key) as chat:
                            before = len(chat.unknown)
                            self._learn(chat)
                            pause = 1.0 if len(chat.unknown) < before else pause
            except FAULTS:
                pass  # The relay is down: the next round asks again.

    def _begin_in_a_child(self):
        """After a fork: locks may be held for ever, the other threads and their calls are not in this process, and a
        connection belongs to the parent. What is unknown there is unknown here."""
        self._chats = {key: chat for key, chat in self._chats.items() if chat.unknown}
        for chat in self._chats.values():
            chat.last, chat.users = None, 0
        self._begin(client=None)


_relays = weakref.WeakSet()


def _begin_in_a_child():
    for relay in list(_relays):
        relay._begin_in_a_child()


os.register_at_fork(after_in_child=_begin_in_a_child)


class _Message:
    """The identity of a message; without its content, because it is kept until its outcome is known.

    With another connection token it is another one: Connect may recognise a ClientToken only together with its token.
    """

    def __init__(self, client_token, connection_token, conversation):
        self.client_token, self.connection_token = client_token, connection_token
        self.chat = (conversation, None if conversation else connection_token)
        self.path = f"/participant/message/{urllib.parse.quote(client_token, safe='')}"
        self.headers = {"X-Amz-Bearer": connection_token}
        if conversation:
            self.headers["Relay-Conversation"] = conversation

    def __eq__(self, other):
        tokens = (self.client_token, self.connection_token)
        return other is not None and tokens == (other.client_token, other.connection_token)


class _Chat:
    def __init__(self):
        self.last = None  # Set when the latest call of this conversation has returned.
        self.users = 0
        self.unknown = []  # The messages that a relay or Connect may have, and whose outcome is not known; in order.

    def others(self, message):
        return [other for other in self.unknown if other != message]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("relay", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self.path)
        except OSError as error:  # Python's own text does not name the socket.
            raise OSError(error.errno, error.strerror or str(error), self.path) from error


def _client(region_name):
    config = Config(signature_version=UNSIGNED, connect_timeout=3, read_timeout=5)
    client = boto3.session.Session().client("connectparticipant", region_name=region_name, config=config)
    client.meta.events.register("before-call.connectparticipant", _refuse_relays)
    return client


def _json_object(text):
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise http.client.HTTPException("the answer is no JSON object")
    return answer


def _is_final(status, headers):
    """True unless the same request can succeed later."""
    if headers.get("relay-state") == "DEAD" or headers.get("x-amzn-errortype") == "RelayTooLateException":
        return True
    return status not in (408, 429) and status < 500


def _delivered(reply, message, direct):
    known = {name: reply[name] for name in ("Id", "AbsoluteTime") if reply.get(name)}
    return {"State": "DELIVERED", **known, "ClientToken": message.client_token, "Direct": direct}


def _refuse_relays(params, **_):
    """Connect ignores this header, and a relay refuses its value: a direct call never enters a relay by its TCP port.
    There the chat would belong to another caller, and the socket would refuse it from then on."""
    params["headers"]["Relay-Lifetime"] = "0"
