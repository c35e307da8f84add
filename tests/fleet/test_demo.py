"""`connect-relay demo --fleet`: its audit, and that nothing of it is left, whatever its end."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from kit.nats import SERVER
from kit.processes import BINARY, command, environment
from kit.wait import TIMEOUT, until


@pytest.fixture
def demo():
    """The environment of a demo, whose folder is below `demo.folder`."""

    class Demo:
        folder = Path(tempfile.mkdtemp(prefix="demo-"))  # short, because a socket's path may have 107 bytes
        env = environment(PATH=f"{Path(SERVER).parent}:{os.environ['PATH']}", TMPDIR=str(folder))

        def start(self):
            return subprocess.Popen([BINARY, "demo", "--fleet"], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        def running(self):
            """The command lines of its servers and relays."""
            lines = []
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    lines.append(path.read_bytes().replace(b"\0", b" ").decode())
                except OSError:
                    pass  # it has ended
            return [line for line in lines if str(self.folder) in line]

        def left(self):
            return [str(path) for path in self.folder.iterdir()] + self.running()

    yield Demo()
    shutil.rmtree(Demo.folder)


def test_demo_of_a_fleet_loses_nothing_when_a_relay_with_its_folder_and_a_server_are_killed(demo):
    process = demo.start()
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    rows = re.findall(r"^  ([a-z ]+?) +(\d+)   (.*)$", text, re.M)
    audit = {name: int(count) for name, count, _ in rows}
    assert audit["lost"] == audit["duplicated"] == audit["out of order"] == 0, text
    assert audit["accepted"] == audit["delivered"] == 400, text
    assert audit["copied"] > 0 and audit["restored"] > 0, text
    killed = [meaning.split(",")[0] for name, _, meaning in rows if name == "killed"]
    assert killed == ["relay", "server"], text
    assert text.rstrip().splitlines()[-1].startswith("PASS  "), text
    assert "\x1b[" not in text, "plain lines where there is no terminal"
    assert demo.left() == []


@pytest.mark.parametrize("act", ["the bots are writing", "the relay was killed"])
def test_interrupted_demo_leaves_no_process_and_no_folder(demo, act):
    process = demo.start()
    seen = []
    for line in process.stdout:
        seen.append(line)
        if act in line:
            break
    assert len(demo.running()) == 4, "three servers and a relay"
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and "STOP  " in rest, "".join(seen) + rest
    assert demo.left() == []


def test_demo_that_is_interrupted_while_the_servers_start_leaves_nothing(demo):
    process = demo.start()
    until(lambda: len(demo.running()) >= 3, "the servers start")
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and "stopped before it began" in text, text
    assert demo.left() == []


def test_demo_whose_server_ends_fails_with_its_last_words_and_leaves_no_process(demo, tmp_path):
    program = tmp_path / "nats-server"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "nats-server: v2.15.1" && exit\necho "no, thank you" >&2\nexit 3\n')
    program.chmod(0o755)
    demo.env["PATH"] = f"{tmp_path}:{demo.env['PATH']}"
    process = demo.start()
    text, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, text
    assert re.search(r"the server nats-\d ended by itself, exit status: 3: no, thank you", text), text
    assert demo.left() == []


@pytest.mark.parametrize("said, words", [(None, "not on the PATH"), ("nats-server: v2.13.9", "v2.13.9"), ("hello", "hello")])
def test_missing_or_old_server_is_a_failure_that_says_what_to_install(demo, tmp_path, said, words):
    programs = tmp_path / "programs"
    programs.mkdir()
    if said:
        (programs / "nats-server").write_text(f"#!/bin/sh\necho '{said}'\n")
        (programs / "nats-server").chmod(0o755)
    done = command("demo", "--fleet", env={"PATH": str(programs), "TMPDIR": str(demo.folder)})
    assert (done.returncode, done.stdout) == (1, ""), done.stdout
    assert words in done.stderr and "install version 2.14 or newer" in done.stderr, done.stderr
    assert demo.left() == []
