"""Raw bytes over a connection to the relay, for requests that curl would not send."""

import socket

from kit.wait import TIMEOUT


def dial(relay, listener="unix"):
    """Opens a connection to one of the bots' listeners."""
    if listener == "unix":
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(TIMEOUT)
        stream.connect(relay.socket)
    else:
        host, port = relay.url.removeprefix("http://").split(":")
        stream = socket.create_connection((host, int(port)), TIMEOUT)
    return stream


def received(stream):
    """Reads until the other side closes."""
    parts = []
    while part := stream.recv(65536):
        parts.append(part)
    return b"".join(parts)
