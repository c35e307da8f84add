"""Bytes to a door and back, where curl would be too polite."""

import socket

from kit.patience import PATIENCE


def dial(relay, door="unix"):
    """A connection to one of the bots' doors."""
    if door == "unix":
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(PATIENCE)
        stream.connect(relay.socket)
    else:
        host, port = relay.url.removeprefix("http://").split(":")
        stream = socket.create_connection((host, int(port)), PATIENCE)
    return stream


def received(stream):
    """Everything until the other side closes."""
    parts = []
    while part := stream.recv(65536):
        parts.append(part)
    return b"".join(parts)
