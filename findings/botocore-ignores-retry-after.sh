#!/usr/bin/env bash
# boto3 1.44.8, botocore 1.44.8
#
# Behaviour: the default retry mode obeys x-amz-retry-after (milliseconds) and ignores Retry-After, on a 429 and on
#   a 503. It trusts x-amz-retry-after only up to 5 s more than its own delay: a hint of 30 s is cut to some 6 s. The
#   retry mode "legacy" obeys neither header.
# Seen (delay before the second attempt):
#   default 429 Retry-After: 4 -> ignored
#   default 503 Retry-After: 4 -> ignored
#   default 429 x-amz-retry-after: 4000 -> obeyed
#   default 503 x-amz-retry-after: 4000 -> obeyed
#   default 429 x-amz-retry-after: 30000 -> cut to under 8 s
#   legacy 429 Retry-After: 4 -> ignored
#   legacy 429 x-amz-retry-after: 4000 -> ignored
# Wrong guess: an HTTP client that honours a Retry-After hint honours the header of the HTTP standard.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet boto3==1.44.8 botocore==1.44.8

cat >"$work/probe.py" <<'PY'
import http.server, threading, time
import boto3
from botocore import UNSIGNED
from botocore.config import Config

def delay(mode, status, header, value):
    """Returns the seconds between the first attempt, which fails, and the second."""
    attempts = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            attempts.append(time.monotonic())
            if len(attempts) == 1:
                self.send_response(status)
                self.send_header("x-amzn-ErrorType", "ThrottlingException" if status == 429 else "ServiceUnavailable")
                self.send_header(header, value)
                body = b'{"Message": "later"}'
            else:
                self.send_response(200)
                body = b'{"Id": "1"}'
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        retries = {"retries": {"mode": mode}} if mode != "default" else {}
        client = boto3.client(
            "connectparticipant", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{server.server_port}",
            config=Config(signature_version=UNSIGNED, proxies={}, **retries))
        client.send_message(ContentType="text/plain", Content="x", ConnectionToken="t")
        server.shutdown()
    return attempts[1] - attempts[0]

for mode, status, header, value, expected in (
        ("default", 429, "Retry-After", "4", "ignored"),
        ("default", 503, "Retry-After", "4", "ignored"),
        ("default", 429, "x-amz-retry-after", "4000", "obeyed"),
        ("default", 503, "x-amz-retry-after", "4000", "obeyed"),
        ("default", 429, "x-amz-retry-after", "30000", "cut to under 8 s"),
        ("legacy", 429, "Retry-After", "4", "ignored"),
        ("legacy", 429, "x-amz-retry-after", "4000", "ignored")):
    waited = delay(mode, status, header, value)
    if value == "30000":
        seen = "cut to under 8 s" if 5 <= waited < 8 else f"{waited:.1f} s"
    else:
        seen = "obeyed" if waited >= 3.9 else "ignored"
    print(f"{mode} {status} {header}: {value} -> {seen}")
    assert seen == expected, "the behaviour changed"
PY
env -u AWS_RETRY_MODE -u AWS_MAX_ATTEMPTS -u AWS_PROFILE AWS_CONFIG_FILE="$work/none" \
  AWS_SHARED_CREDENTIALS_FILE="$work/none" "$work/venv/bin/python" "$work/probe.py"
