#!/usr/bin/env bash
# CPython asyncio (3.11.7), aiohttp 3.14.5, uvloop 0.23.0; Linux
#
# Behaviour: the listen queue of a Unix socket is full. A non-blocking connect() then fails with EAGAIN, and nothing
#   is in progress. asyncio takes EAGAIN for EINPROGRESS, waits until the socket is writable (it is), finds no error
#   and reports a connection. The failure appears at the first write. aiohttp on asyncio therefore reports that it
#   could not write the body; the same aiohttp on uvloop reports that it could not connect.
# Seen:
#   asyncio open_unix_connection: connected, then an OSError at the first write
#   asyncio aiohttp: ClientOSError, a connect error: False
#   uvloop open_unix_connection: BlockingIOError 11
#   uvloop aiohttp: UnixClientConnectorError, a connect error: True
# Wrong guess: a connect() that cannot succeed raises in open_unix_connection; a retry of everything that is a
#   ClientConnectorError is enough for requests that never left the process.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet aiohttp==3.14.5 uvloop==0.23.0

cat >"$work/probe.py" <<'PY'
import asyncio, socket, sys
import aiohttp, uvloop

path = sys.argv[1] + "/socket"

async def open_connection():
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"
    try:
        writer.write(b"x")
        await writer.drain()
    except OSError:  # EINVAL, or a reset if the reading side noticed first.
        return "connected, then an OSError at the first write"
    finally:
        writer.close()
    return "connected"

async def request():
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
        try:
            async with session.post("http://service/", data=b"x"):
                return "answered"
        except aiohttp.ClientError as error:
            connect_error = isinstance(error, aiohttp.ClientConnectorError)
            return f"{type(error).__name__}, a connect error: {connect_error}"

seen = []
def show(line):
    print(line)
    seen.append(line)

with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
    listener.bind(path)
    listener.listen(0)
    first.connect(path)  # Fills the queue: nothing accepts.
    for name, run in (("asyncio", asyncio.run), ("uvloop", uvloop.run)):
        for what, probe in (("open_unix_connection", open_connection), ("aiohttp", request)):
            show(f"{name} {what}: {run(asyncio.wait_for(probe(), 20))}")

assert seen == [
    "asyncio open_unix_connection: connected, then an OSError at the first write",
    "asyncio aiohttp: ClientOSError, a connect error: False",
    "uvloop open_unix_connection: BlockingIOError 11",
    "uvloop aiohttp: UnixClientConnectorError, a connect error: True",
], "the behaviour changed"
PY
"$work/venv/bin/python" "$work/probe.py" "$work"
