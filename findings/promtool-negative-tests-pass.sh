#!/usr/bin/env bash
# promtool 2.42.0 (Debian bookworm, prometheus 2.42.0+ds)
#
# Behaviour: "promtool test rules" reports success for a test that expects no alert and names an alert that no rule
#   defines. A renamed alert, or a rule file whose pattern matches no file (a warning, no error), leaves the negative
#   tests green while the alert that they guard against fires.
# Seen (the series makes the alert QueueStuck fire; each test expects no alert):
#   QueueStuck: failed
#   QueueIsStuck, which no rule defines: success
#   QueueStuck, and a pattern that matches no rule file: success
# Wrong guess: an unknown alert name, and a missing rule file, is an error of the test.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The package is unpacked, not installed: no service is started.
chmod 755 "$work"
cd "$work"
apt-get download -qq 'prometheus=2.42.0+ds-*' 2>apt.log || { cat apt.log >&2; exit 2; }
dpkg-deb -x prometheus_*.deb root

cat >rules.yml <<'YAML'
groups:
  - name: queue
    rules:
      - alert: QueueStuck
        expr: queue_depth > 10
YAML

# Prints the verdict on a test that expects no alert of the given name from the given rule files.
verdict() {
  cat >test.yml <<YAML
rule_files: ["$2"]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: queue_depth
        values: 50x20
    alert_rule_test:
      - alertname: $1
        eval_time: 10m
        exp_alerts: []
YAML
  if root/usr/bin/promtool test rules test.yml >output 2>&1; then echo success; else echo failed; fi
}
right=$(verdict QueueStuck rules.yml)
grep -q 'alertname="QueueStuck"' output # It failed because the alert fires.
unknown=$(verdict QueueIsStuck rules.yml)
missing=$(verdict QueueStuck 'rule/*.yml')
echo "QueueStuck: $right"
echo "QueueIsStuck, which no rule defines: $unknown"
echo "QueueStuck, and a pattern that matches no rule file: $missing"
[ "$right $unknown $missing" = "failed success success" ] || { echo "the behaviour changed" >&2; exit 1; }
