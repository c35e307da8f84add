"""A minimal HTTP/1.1 parser for bots and recordings."""

import bisect
import json


def body(head, stream, at):
    """Returns the body after a head, and its end; None if it is not complete."""
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if fields.get(b"transfer-encoding") != b"chunked":
        end = at + int(fields.get(b"content-length", 0))
        return (stream[at:end], end) if end <= len(stream) else None
    parts = []
    while True:
        line = stream.find(b"\r\n", at)
        size = int(stream[at:line], 16) if line >= 0 else 0
        if line < 0 or len(stream) < line + size + 4:
            return None
        parts.append(stream[line + 2 : line + 2 + size])
        at = line + size + 4
        if size == 0:
            return b"".join(parts), at


def messages(stream):
    """The complete messages of one direction: (head, body, first byte, end)."""
    at = 0
    while (split := stream.find(b"\r\n\r\n", at)) >= 0:
        head = stream[at:split]
        found = body(head, stream, split + 4)
        if found is None:
            return
        yield head, found[0], at, found[1]
        at = found[1]


def field(head, name):
    """Returns a header's value; None if it is missing."""
    for line in head.split(b"\r\n")[1:]:
        known, value = line.split(b": ", 1)
        if known.lower() == name:
            return value.decode()
    return None


class Stream:
    """One direction of a connection, with the event of each of its bytes."""

    def __init__(self):
        self.parts, self.ends, self.at = [], [], []

    def add(self, index, data):
        self.parts.append(bytes(data))
        self.ends.append((self.ends[-1] if self.ends else 0) + len(data))
        self.at.append(index)

    def messages(self):
        """(head, body, event of its first byte, event of its last byte)."""
        for head, text, begins, ends in messages(b"".join(self.parts)):
            yield head, text, self.event(begins), self.event(ends - 1)

    def event(self, offset):
        return self.at[bisect.bisect_right(self.ends, offset)]


def said(events):
    """The traffic of the relay's connections, as (event, what, ClientToken): `offered` when a bot's message had arrived,
    `accepted` and `delivered` just before the reply that says so is sent, `sent` just before an attempt is sent,
    `answered` when Connect's 200 had arrived."""
    sockets = {}
    for index, event in enumerate(events):
        if event.kind in "<>":
            sockets.setdefault(event.inode, {"<": Stream(), ">": Stream(), "first": event.kind})[event.kind].add(index, event.data)
    found = []
    for streams in sockets.values():
        if streams["first"] == "<":
            found += _ingress(list(streams["<"].messages()), list(streams[">"].messages()))
        else:
            found += _upstream(list(streams[">"].messages()), list(streams["<"].messages()))
    return sorted(found)


def _ingress(requests, replies):
    for head, text, _, came in requests:
        if head.startswith(b"POST /participant/message"):
            for line in text.splitlines():
                yield came, "offered", json.loads(line)["ClientToken"]
    for head, text, begins, _ in replies:
        if not head.startswith(b"HTTP/1.1 2"):
            continue
        if token := field(head, b"relay-client-token"):
            yield begins, _of(field(head, b"relay-state")), token
        elif field(head, b"content-type") == "application/x-ndjson":
            for line in map(json.loads, text.splitlines()):
                if "Error" not in line:
                    yield begins, _of(line["State"]), line["ClientToken"]


def _of(state):
    return {"QUEUED": "accepted", "DELIVERED": "delivered"}[state]


def _upstream(requests, answers):
    for number, (head, text, begins, _) in enumerate(requests):
        token = json.loads(text)["ClientToken"]
        yield begins, "sent", token
        if number < len(answers) and answers[number][0].startswith(b"HTTP/1.1 200"):
            yield answers[number][3], "answered", token
