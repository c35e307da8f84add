"""The alerts on Prometheus and on VictoriaMetrics, which counts the value with which a series begins: the same alerts."""

import json
import subprocess
import time
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from kit.monitoring import RULES
from kit.processes import free_port
from kit.wait import TIMEOUT, until

pytestmark = pytest.mark.needs("victoria-metrics")

GROUPS = yaml.safe_load(RULES.read_text())["groups"]
EXPRESSIONS = {rule.get("alert", rule.get("record")): rule["expr"] for group in GROUPS for rule in group["rules"]}
STEP, END = 15, 7200  # seconds: a sample every 15 s, and a query at the end
RELAY = 'job="bots",instance="a"'
KUBE = 'namespace="n",pod="p",container="connect-relay"'
INFO = (f'connect_relay_info{{{RELAY},connect_instance="shop"}}', 0, [1])


def steps(count, every=120):
    """A counter that rises by one at a time: its values from its birth on."""
    return [number for number in range(count + 1) for _ in range(every // STEP)]


def restarts(count, every=120):
    return [1_790_000_000 + 100 * number for number in steps(count, every)]


def denied(values, born, delivered=0):
    attempts = "connect_relay_attempts_total{" + RELAY + ',outcome="%s"}'
    return [INFO, (attempts % "denied", born, values), (attempts % "delivered", born, [delivered])]


def stuck(delivered, born):
    names = {"oldest_due_seconds": 300, "gate_open": 1, "paused": 0}
    return [(f"connect_relay_{name}{{{RELAY}}}", born, [value]) for name, value in names.items()] + [
        (f"connect_relay_messages_delivered_total{{{RELAY}}}", born, delivered)
    ]


def disk(rejected, born):
    return [
        (f"connect_relay_disk_free_bytes{{{RELAY}}}", born, [1_000_000_000]),
        (f'connect_relay_messages_rejected_total{{{RELAY},reason="disk_full"}}', born, rejected),
    ]


def lost(values, born):
    return [(f'connect_relay_messages_dead_total{{{RELAY},reason="expired",told="false"}}', born, values)]


def waited(values, born):
    """All of the quota's share, beside a need for a quota."""
    info = (INFO[0], born, [1])
    accepted = (f"connect_relay_messages_accepted_total{{{RELAY}}}", born, [10 * n for n in range(END // STEP)])
    return [info, accepted, (f"connect_relay_quota_wait_seconds_total{{{RELAY}}}", born, values)]


PROCESS = f"process_start_time_seconds{{{RELAY}}}"
KUBE_RESTARTS = f"kube_pod_init_container_status_restarts_total{{{KUBE}}}"
YOUNG = END - 240  # seconds: born four minutes before the query
OLD = 0
# The alert, the series (name, birth, values from then on, the last one repeated), and whether it is true.
CASES = {
    "a process that starts": ("ConnectRelayRestarting", [INFO, (PROCESS, YOUNG, [1])], False),
    "a young process that restarts twice": ("ConnectRelayRestarting", [INFO, (PROCESS, YOUNG, restarts(2, 60))], False),
    "a young process that restarts three times": ("ConnectRelayRestarting", [INFO, (PROCESS, YOUNG, restarts(3, 60))], True),
    "an old process that restarts twice": ("ConnectRelayRestarting", [INFO, (PROCESS, END - 1800, [5] * 80 + restarts(1))], False),
    "an old process that restarts three times": ("ConnectRelayRestarting", [INFO, (PROCESS, END - 1800, [5] * 80 + restarts(2))], True),
    "a container first seen after three restarts": ("ConnectRelayRestarting", [(KUBE_RESTARTS, YOUNG, [3])], False),
    "a young container that restarts twice": ("ConnectRelayRestarting", [(KUBE_RESTARTS, YOUNG, steps(2, 60))], False),
    "a young container that restarts three times": ("ConnectRelayRestarting", [(KUBE_RESTARTS, YOUNG, steps(3, 60))], True),
    "an old container that restarts twice": ("ConnectRelayRestarting", [(KUBE_RESTARTS, END - 1800, [0] * 79 + steps(2))], False),
    "four tokens refused before the first scrape": ("ConnectRelayAllTokensRefused", denied([4], YOUNG), False),
    "five tokens refused before the first scrape": ("ConnectRelayAllTokensRefused", denied([5], YOUNG), True),
    "five, but others were delivered": ("ConnectRelayAllTokensRefused", denied([5], YOUNG, delivered=9), False),
    "four tokens refused in ten minutes": ("ConnectRelayAllTokensRefused", denied([0] * 445 + steps(4, 60), OLD), False),
    "five tokens refused in ten minutes": ("ConnectRelayAllTokensRefused", denied([0] * 445 + steps(5, 60), OLD), True),
    "stuck, but not yet for five minutes": ("ConnectRelayStuck", stuck([7], YOUNG), False),
    "stuck": ("ConnectRelayStuck", stuck([7], OLD), True),
    "a message lost before the first scrape": ("ConnectRelayMessagesLost", lost([3], YOUNG), True),
    "a message lost long ago": ("ConnectRelayMessagesLost", lost([3], OLD), False),
    "refused for lack of space before the first scrape": ("ConnectRelayDiskNearlyFull", disk([7], YOUNG), False),
    "refused for lack of space": ("ConnectRelayDiskNearlyFull", disk([0] * 470 + [7], OLD), True),
    "a write that failed before the first scrape": (
        "ConnectRelayStoreFailing",
        [(f'connect_relay_store_errors_total{{{RELAY},op="open"}}', YOUNG, [1])],
        True,
    ),
    "a young relay that only the quota held": (
        "ConnectRelayQuotaTooSmall",
        waited([15 * n for n in range(17)], YOUNG),
        False,
    ),
    "an old relay that only the quota held": ("ConnectRelayQuotaTooSmall", waited([5 * n for n in range(481)], OLD), True),
}


def whole(name):
    """The alert's expression without recorded series: each one is replaced by its own expression."""
    expression = EXPRESSIONS[name]
    for _ in range(5):
        for record in sorted((name for name in EXPRESSIONS if ":" in name), key=len, reverse=True):
            # A range over a record becomes a subquery.
            expression = expression.replace(f"{record}[1d]", f"({EXPRESSIONS[record]})[1d:5m]")
            expression = expression.replace(record, f"({EXPRESSIONS[record]})")
    return f"count({expression}) or vector(0)"


def samples(born, values):
    """Each time of a sample, with its value."""
    times = range(born, END + 1, STEP)
    return [(at, values[min(number, len(values) - 1)]) for number, at in enumerate(times)]


@pytest.fixture(scope="module")
def victoria(tmp_path_factory):
    """Returns a function that stores series of their own label and evaluates a query on them."""
    folder = tmp_path_factory.mktemp("victoria")
    url = f"http://127.0.0.1:{free_port()}"
    log = open(folder / "log", "wb")
    command = ["victoria-metrics", f"-httpListenAddr={url.removeprefix('http://')}", f"-storageDataPath={folder}/data"]
    process = subprocess.Popen([*command, "-memory.allowedPercent=5"], stdout=log, stderr=log)

    def call(path, data=None, **query):
        with urlopen(f"{url}{path}?{urlencode(query)}", data=data, timeout=TIMEOUT) as page:
            return page.read()

    def ready():
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return call("/health") == b"OK"
        except OSError:
            return False

    # The last minutes before now are hidden for a while.
    start = int(time.time()) // STEP * STEP - END - 3600

    def evaluate(series, query):
        # A series from the start on: the database is not younger than the cases.
        lines = [f"other 1 {(start + at) * 1000}" for at, _ in samples(0, [1])]
        lines += [f"{name} {value} {(start + at) * 1000}" for name, born, values in series for at, value in samples(born, values)]
        call("/api/v1/import/prometheus", "\n".join(lines).encode() + b"\n")
        call("/internal/force_flush")
        result = json.loads(call("/api/v1/query", query=query, time=start + END, nocache=1))["data"]["result"]
        call("/api/v1/admin/tsdb/delete_series", **{"match[]": '{__name__!=""}'})
        return float(result[0]["value"][1])

    until(ready, "VictoriaMetrics is ready")
    yield evaluate
    process.terminate()
    process.wait(timeout=TIMEOUT)
    log.close()


def prometheus(series, query, expected, folder):
    """True if promtool evaluates the query to the value."""
    inputs = [{"series": name, "values": f"{f'_x{born // STEP} ' if born else ''}{' '.join(str(value) for _, value in samples(born, values))}"}
              for name, born, values in series]
    test = {"interval": f"{STEP}s", "input_series": inputs, "promql_expr_test": [
        {"expr": query, "eval_time": f"{END}s", "exp_samples": [{"labels": "{}", "value": expected}]}]}
    file = folder / "test.json"  # JSON is YAML
    file.write_text(json.dumps({"evaluation_interval": f"{STEP}s", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60)
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("vmalert")
def test_vmalert_takes_the_rules_as_they_are(tmp_path):
    files = (RULES, RULES.with_name("expected.yaml"))
    done = subprocess.run(["vmalert", "-dryRun", *(f"-rule={file}" for file in files)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wrong = tmp_path / "rules.yaml"
    wrong.write_text(RULES.read_text().replace("connect_relay_paused == 1", "connect_relay_paused === 1"))
    done = subprocess.run(["vmalert", "-dryRun", f"-rule={wrong}"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, "a fault would be seen"


@pytest.mark.parametrize("case", CASES)
def test_prometheus_and_victoria_metrics_agree(case, victoria, tmp_path):
    alert, series, fires = CASES[case]
    query = whole(alert)
    right, said = prometheus(series, query, int(fires), tmp_path)
    assert right, said
    assert victoria(series, query) == int(fires), "VictoriaMetrics"
