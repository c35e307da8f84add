"""Output of commands: on a full disk, with a closed pipe; and the log when stderr is not read."""

import json
import os
import subprocess

import pytest

from kit.callers import curl
from kit.wait import TIMEOUT, until
from kit.processes import BINARY, environment

TOKEN = "canary-token"
LINE = {"ContentType": "text/plain", "Content": "canary", "ConnectionToken": TOKEN}
# Commands that write to stdout, with a relay in FOLDER whose store's copy is in COPY.
COMMANDS = {
    "check": ["check"],
    "status": ["status", "--dir", "FOLDER"],
    "status --json": ["status", "--json", "--dir", "FOLDER"],
    "status --watch": ["status", "--watch", "--dir", "FOLDER"],
    "pause": ["pause", "--dir", "FOLDER"],
    "resume": ["resume", "--dir", "FOLDER"],
    "messages list": ["messages", "list", "--dir", "FOLDER"],
    "messages list --json": ["messages", "list", "--json", "--dir", "FOLDER"],
    "messages summary": ["messages", "summary", "--dir", "FOLDER"],
    "messages redrive": ["messages", "redrive", "--all", "--dir", "FOLDER"],
    "send": ["send", "--dir", "FOLDER", "canary"],
    "doctor check": ["doctor", "check", "COPY"],
    "doctor export": ["doctor", "export", "COPY"],
    "completion": ["completion", "bash"],
    "man": ["man"],
    "--help": ["--help"],
    "run --help": ["run", "--help"],
    "--version": ["--version"],
}


@pytest.fixture
def run(stranded, tmp_path):
    assert curl(stranded, "/participant/messages", json.dumps(LINE).encode()).status == 200
    copy = tmp_path / "copy"
    stranded.kill()
    subprocess.run(["cp", "-a", stranded.folder / "private" / "queue", copy], check=True)
    stranded.start()

    def run(name, stdout):
        args = [{"FOLDER": stranded.folder, "COPY": copy}.get(arg, arg) for arg in COMMANDS[name]]
        env = environment({"sender.region": "eu-west-2"}, CONNECTION_TOKEN=TOKEN)
        done = subprocess.run([BINARY, *map(str, args)], env=env, stdin=subprocess.DEVNULL, stdout=stdout,
                              stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_output_that_cannot_be_written_is_a_failure(run, name):
    with open("/dev/full", "w") as full:
        code, said = run(name, full)
    assert code == 1, said
    assert "help" in name or "version" in name or "No space left on device" in said, said


@pytest.mark.parametrize("name", COMMANDS)
def test_closed_output_pipe_is_no_failure_and_prints_nothing(run, name):
    reader, writer = os.pipe()
    os.close(reader)
    code, said = run(name, writer)
    os.close(writer)
    assert code == 0 and "roken pipe" not in said and "panicked" not in said, said


def test_dropped_log_lines_are_counted_and_logged_while_the_relay_runs(relays):
    relay = relays("http://127.0.0.1:9", start=False, queue__messages_max=20000, ingress__batch_bytes_max="4MiB")
    os.mkfifo(relay.log_path)
    pipe = os.open(relay.log_path, os.O_RDONLY | os.O_NONBLOCK)
    read = bytearray()

    def drain():
        try:
            while part := os.read(pipe, 1 << 16):
                read.extend(part)
        except BlockingIOError:
            pass
        return read

    try:
        relay.start()
        for batch in range(4):
            lines = [json.dumps({**LINE, "ClientToken": f"{batch}-{number}"}) for number in range(3000)]
            assert curl(relay, "/participant/messages", "\n".join(lines).encode()).status == 200
        dropped = until(lambda: relay.metrics()["log_lines_dropped_total"], "lines are dropped")
        until(lambda: b"log lines were dropped" in drain(), "the count is logged once there is space again")
        said = next(json.loads(line) for line in read.splitlines() if b"log lines were dropped" in line)
        assert said["level"] == "WARN" and said["lines"] >= dropped > 1000
        assert relay.process.poll() is None, "and the relay goes on"
    finally:
        # The log of a relay is read when it is removed: a pipe without a writer would never end.
        relay.kill()
        os.close(pipe)
        relay.log_path.unlink()


def test_cpu_time_is_finer_than_whole_seconds(relay):
    def used():
        page = relay.get("/metrics")[1]
        return next(float(line.split()[1]) for line in page.splitlines() if line.startswith("process_cpu_seconds_total "))

    assert until(lambda: 0 < used() % 1 and used(), "it has used a part of a second")
