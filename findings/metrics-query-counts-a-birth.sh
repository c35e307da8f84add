#!/usr/bin/env bash
# victoria-metrics 1.79.5+ds1, prometheus 2.42.0+ds (Debian bookworm); same samples, same queries
#
# Behaviour: a series appears in the middle of the range. Prometheus counts from its first sample on: 0.
#   VictoriaMetrics takes a series that was not there for one that was 0: increase() is the first value, changes() of
#   a constant gauge is 1, while rate() over the same range stays 0. A heuristic leaves large first values out: 7 is
#   counted, 1000 is not.
# Seen (each series is constant, and starts 4 min before the query):
#   increase(small_total[5m]): Prometheus 0, VictoriaMetrics 7
#   increase(large_total[5m]): Prometheus 0, VictoriaMetrics 0
#   rate(small_total[5m]): Prometheus 0, VictoriaMetrics 0
#   changes(gauge[5m]): Prometheus 0, VictoriaMetrics 1
# Wrong guess: an alert such as increase(errors_total[5m]) > 0, or changes(state[5m]) > 0, works the same on both;
#   and increase() is rate() times the range.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The packages are unpacked, not installed: no service is started.
chmod 755 "$work"
(cd "$work" && apt-get download -qq 'victoria-metrics=1.79.5+ds1-*' 'prometheus=2.42.0+ds-*' 2>apt.log) || {
  cat "$work/apt.log" >&2
  exit 2
}
for package in "$work"/*.deb; do
  dpkg-deb -x "$package" "$work/root"
done

cat >"$work/probe.py" <<'PY'
import json, pathlib, signal, socket, subprocess, sys, time
from urllib.parse import urlencode
from urllib.request import urlopen

work = pathlib.Path(sys.argv[1])
# SIGTERM becomes an exception, so that the server is stopped then too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

SERIES = {"small_total": 7, "large_total": 1000, "gauge": 3}
EXPECTED = {
    "increase(small_total[5m])": (0, 7),
    "increase(large_total[5m])": (0, 0),
    "rate(small_total[5m])": (0, 0),
    "changes(gauge[5m])": (0, 1),
}
STEP, BIRTH, QUERY = 15, 360, 600  # Seconds: a sample every 15 s from 360 s on, queried at 600 s.

def prometheus(query, value):
    """Returns true if promtool evaluates the query to the value."""
    series = [{"series": name, "values": f"_x{BIRTH // STEP - 1} {number}x{(QUERY - BIRTH) // STEP}"}
              for name, number in SERIES.items()]
    test = {"interval": f"{STEP}s", "input_series": series, "promql_expr_test": [
        {"expr": query, "eval_time": f"{QUERY}s", "exp_samples": [{"labels": "{}", "value": value}]}]}
    file = work / "test.json"  # JSON is YAML.
    file.write_text(json.dumps({"evaluation_interval": f"{STEP}s", "tests": [test]}))
    return subprocess.run([work / "root/usr/bin/promtool", "test", "rules", file], capture_output=True).returncode == 0

def victoria_metrics(queries):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    server = subprocess.Popen([work / "root/usr/bin/victoria-metrics", f"-httpListenAddr={address}",
                               f"-storageDataPath={work}/store", "-memory.allowedPercent=5"],
                              stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urlopen(f"http://{address}/health", timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        # An hour ago: recent samples are hidden for a while.
        start = int(time.time()) // STEP * STEP - 3600
        # A series that exists all the time: the database is not empty before the birth.
        lines = [f"other 1 {(start + t) * 1000}" for t in range(0, QUERY + 1, STEP)]
        lines += [f"{name} {value} {(start + t) * 1000}" for name, value in SERIES.items()
                  for t in range(BIRTH, QUERY + 1, STEP)]
        urlopen(f"http://{address}/api/v1/import/prometheus", data="\n".join(lines).encode() + b"\n", timeout=5).read()
        urlopen(f"http://{address}/internal/force_flush", timeout=5).read()
        values = {}
        for query in queries:
            parameters = urlencode({"query": query, "time": start + QUERY, "nocache": 1})
            with urlopen(f"http://{address}/api/v1/query?{parameters}", timeout=5) as response:
                values[query] = float(json.load(response)["data"]["result"][0]["value"][1])
        return values
    finally:
        server.terminate()
        server.wait(20)

seen = victoria_metrics(EXPECTED)
for query, (value, victoria) in EXPECTED.items():
    agrees = prometheus(query, value)
    print(f"{query}: Prometheus {value if agrees else f'not {value}'}, VictoriaMetrics {seen[query]:g}")
    assert agrees and seen[query] == victoria, "the behaviour changed"
PY
python3 "$work/probe.py" "$work"
