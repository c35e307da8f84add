#!/usr/bin/env bash
# victoria-metrics 1.79.5+ds1, prometheus 2.42.0+ds (Debian bookworm); same samples, same queries
#
# Behaviour: rate() of a counter over a range that is longer than the counter exists. Prometheus divides the increase by the
#   range (it extrapolates by half a scrape interval only), VictoriaMetrics divides it by the time for which the series exists. A
#   share such as rate(wait_seconds_total[1h]) > 0.25 is true on VictoriaMetrics a minute after a process starts.
# Seen (the counter rises by 15 every 15 s; it starts 4 min before the query at 0):
#   rate(young_total[1h]): Prometheus 0.07, VictoriaMetrics 1.00
#   increase(young_total[1h]) / 3600: Prometheus 0.07, VictoriaMetrics 0.07
#   rate(old_total[1h]): Prometheus 1.00, VictoriaMetrics 1.00
# Wrong guess: increase() is rate() times the range on both, so either of them gives the share of the last hour.
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

# Birth of each counter, in seconds; it rises by one a second.
SERIES = {"young_total": 4260, "old_total": 0}
EXPECTED = {
    "rate(young_total[1h])": (0.07, 1),
    "increase(young_total[1h]) / 3600": (0.07, 0.07),
    "rate(old_total[1h])": (1, 1),
}
STEP, QUERY = 15, 4500  # seconds: a sample every 15 s, queried at 4,500 s

def prometheus(query, value):
    """Returns true if promtool evaluates the query to the value, rounded to hundredths."""
    series = [{"series": name, "values": f"{f'_x{birth // STEP} ' if birth else ''}0+{STEP}x{(QUERY - birth) // STEP}"}
              for name, birth in SERIES.items()]
    test = {"interval": f"{STEP}s", "input_series": series, "promql_expr_test": [
        {"expr": f"round({query}, 0.01)", "eval_time": f"{QUERY}s", "exp_samples": [{"labels": "{}", "value": value}]}]}
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
        start = int(time.time()) // STEP * STEP - QUERY - 3600
        # A series that exists all the time: the database is not empty before the birth.
        lines = [f"other 1 {(start + t) * 1000}" for t in range(0, QUERY + 1, STEP)]
        lines += [f"{name} {t - birth} {(start + t) * 1000}" for name, birth in SERIES.items()
                  for t in range(birth, QUERY + 1, STEP)]
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
    print(f"{query}: Prometheus {f'{value:.2f}' if agrees else f'not {value:.2f}'}, VictoriaMetrics {seen[query]:.2f}")
    assert agrees and round(seen[query], 2) == victoria, "the behaviour changed"
PY
python3 "$work/probe.py" "$work"
