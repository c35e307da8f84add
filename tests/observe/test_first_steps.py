"""The first steps of docs/clients.md, as a new author of a bot takes them: each printed command, in a clone of its own."""

import json
import re
import subprocess
import sys

from kit.helpers import NODE, beside_packages
from kit.processes import BINARY, ROOT, environment, free_port
from kit.wait import TIMEOUT

ENDS = "kill %2; wait %2; kill %1"


def test_first_steps_lead_to_delivered_messages(tmp_path, home):
    text = (ROOT / "docs/clients.md").read_text().split("## Try it with your own bot")[1].split("\n### ")[0]
    start, message, bots = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    assert f"`{ENDS}`" in text and "When `relay.log` says `started`" in text
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    beside_packages(ROOT / "examples/aws-sdk.mjs")
    connect, tcp, admin = (f"127.0.0.1:{free_port()}" for _ in range(3))
    script = "\n".join(
        [
            "set -em; trap 'kill $(jobs -p)' EXIT",
            start,
            "until grep -q '\"message\":\"started\"' relay.log; do kill -0 %2; done",
            message,
            bots,
            f"trap - EXIT; {ENDS}",
        ]
    )
    for printed, here in [
        ("cargo build --release\n", ""),
        ("python3 -m venv venv && venv/bin/pip install boto3\n", ""),
        ("(cd examples && npm ci) ", ""),
        ("target/release/connect-relay", str(BINARY)),
        ("connect-relay simulate", f"connect-relay simulate --listen {connect}"),
        ("127.0.0.1:9580", connect),
        ("127.0.0.1:8480", tcp),
        ("/var/tmp/relay", str(home)),
        ("venv/bin/python", sys.executable),
        ("node examples/aws-sdk.mjs", f"node {NODE}/aws-sdk.mjs"),
    ]:
        assert printed in script, printed
        script = script.replace(printed, here)
    env = environment({"admin.listen": admin, "queue.volatile": "true"})
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=2 * TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "relay.log").read_text()
    ledger = [json.loads(line) for line in (tmp_path / "ledger.ndjson").read_text().splitlines()]
    assert [line["Content"] for line in ledger] == ["hello", *["Hello!", "Goodbye!"] * 2]
    ids = re.findall(r"^(?:DELIVERED|200) (\S+)$", done.stdout, re.M)
    assert ids == [line["Id"] for line in ledger[1:]]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {f"/{name}" for name in ("venv", "ledger.ndjson", "relay.log", "examples/node_modules")} <= set(ignored)
