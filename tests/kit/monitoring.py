"""Production around a relay: a bot that sends continuously, and a Prometheus that scrapes and alerts."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from kit.wait import TIMEOUT, until
from kit.processes import ROOT, free_port

RULES = ROOT / "deploy/prometheus/rules.yaml"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("relay", timeout=TIMEOUT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def say(relay, token, content="canary", lifetime=None):
    """Hands one message over, without waiting for its outcome; gives back the status."""
    connection = UnixConnection(relay.socket)
    headers = {"X-Amz-Bearer": token, "Content-Type": "application/json"}
    if lifetime:
        headers["Relay-Lifetime"] = str(lifetime)
    body = json.dumps({"ContentType": "text/plain", "Content": content})
    try:
        connection.request("POST", "/participant/message", body, headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


class Load:
    """A bot in twenty chats that says something so often a second, whatever the relay answers."""

    def __init__(self, relay, per_second):
        self.statuses = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, args=(relay, 1 / per_second), daemon=True)
        self._thread.start()

    def _talk(self, relay, pause):
        number = 0
        while not self._over.wait(pause):
            number += 1
            try:
                status = say(relay, f"canary-load-{number % 20}")
            except OSError:
                status = 0  # the relay is down just now
            self.statuses[status] = self.statuses.get(status, 0) + 1

    def stop(self):
        self._over.set()
        self._thread.join(timeout=TIMEOUT)


class Prometheus:
    """A real one, which scrapes and evaluates every second; the relays under each of the jobs, with these labels. Other
    `scrape_configs` take the place of the jobs."""

    def __init__(self, relays, rules, jobs=("connect-relay",), labels=None, scrape_configs=None):
        self.folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        self.url = f"http://127.0.0.1:{free_port()}"
        (self.folder / "rules.yaml").write_text(rules)
        targets = [relay.admin.removeprefix("http://") for relay in relays]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": scrape_configs
            or [{"job_name": job, "static_configs": [{"targets": targets, "labels": labels or {}}]} for job in jobs],
        }
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={self.folder}/prometheus.yaml", f"--storage.tsdb.path={self.folder}/data",
             f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=warn"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )
        until(self._ready, "Prometheus is ready")

    def _ready(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            with urllib.request.urlopen(self.url + "/-/ready", timeout=5) as page:
                return page.status == 200
        except OSError:
            return False

    def _get(self, path, **query):
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=20) as page:
            answer = json.loads(page.read())
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression):
        return self._get("query", query=expression)["result"]

    def alerts(self, name=None, state="firing", **labels):
        """The alerts in this state, as objects with `labels`, `annotations` and `value`."""
        wanted = {**labels, **({"alertname": name} if name else {})}
        return [alert for alert in self._get("alerts")["alerts"]
                if alert["state"] == state and wanted.items() <= alert["labels"].items()]

    def fired(self, name, **labels):
        """True if it has fired since the test began, even if it has cleared meanwhile."""
        matchers = ",".join(f'{label}="{value}"' for label, value in {"alertname": name, **labels}.items())
        return self.query(f'max_over_time(ALERTS{{alertstate="firing",{matchers}}}[1h])')

    def until_fires(self, name, **labels):
        until(lambda: self.fired(name, **labels), f"{name} fires {labels}: {self.alerts()}", timeout=2 * TIMEOUT)

    def until_clears(self, name=None, **labels):
        until(lambda: not self.alerts(name, **labels), f"{name} clears {labels}", timeout=2 * TIMEOUT)

    def until_scraped(self, target, up):
        until(lambda: self.query(f'up{{instance="{target["instance"]}"}} == {up}'), f"{target} is seen with up = {up}")

    def remove(self):
        self.process.terminate()
        self.process.wait(timeout=TIMEOUT)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def hastened(rules):
    """The rules with seconds for minutes, half a minute for an hour, and 5 s for the 60 that something may be due."""
    seconds = {"m": 1, "h": 30, "d": 720}

    def shorter(match):
        return f"{match[1]}{int(match[2]) * seconds[match[3]]}s{match[4]}"

    rules = rules.replace(":30s]", ":1s]").replace("[1h]) / 3600", "[1h]) / 30")
    rules = re.sub(r"(\[)(\d+)([mhd])(\]|:)", shorter, rules)
    rules = re.sub(r"(\boffset )(\d+)([mhd])(\b)", shorter, rules)
    rules = re.sub(r"(\bfor: )(\d+)([mhd])(\b)", shorter, rules)
    return rules.replace("oldest_due_seconds > 60", "oldest_due_seconds > 5")
