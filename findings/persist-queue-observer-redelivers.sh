#!/usr/bin/env bash
# persist-queue 1.1.0 (PyPI)
#
# Behaviour: constructing a SQLiteAckQueue sets every unacknowledged item of the file back to "ready", also items
#   that another live process is working on. A second process that opens the queue only to read its size therefore
#   makes an item in progress available again, and a second worker receives it. Both acknowledge it without an error.
#   The constructor's auto_resume=False avoids this; it is not the default.
# Seen:
#   worker has the item: size 0, unacknowledged 1
#   a monitor opens the file and reads: size 1
#   another worker gets: the same item
#   both workers acknowledge: no error
# Wrong guess: a constructor and a read of the size change nothing; unacknowledged items become ready when their
#   owner is gone, not when anybody opens the file.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps persist-queue==1.1.0

cat >"$work/probe.py" <<'PY'
import subprocess, sys
from persistqueue import SQLiteAckQueue

path = sys.argv[1] + "/queue"

def other_process(expression):
    code = f"from persistqueue import SQLiteAckQueue; queue = SQLiteAckQueue({path!r}); print({expression})"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

worker = SQLiteAckQueue(path)
worker.put("item")
item = worker.get(block=False)
before = (worker.size, worker.unack_count())
print("worker has the item: size {}, unacknowledged {}".format(*before))
monitor = other_process("queue.size")
print(f"a monitor opens the file and reads: size {monitor}")
second = other_process("(lambda got: (queue.ack(got), got)[1])(queue.get(block=False))")
print(f"another worker gets: {'the same item' if second == item else second}")
worker.ack(item)
print("both workers acknowledge: no error")
assert (before, monitor, second) == ((0, 1), "1", "item"), "the behaviour changed"
PY
"$work/venv/bin/python" "$work/probe.py" "$work"
