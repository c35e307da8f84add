"""A small Debian, and podman and buildah with a place of their own: the machine's own containers are neither seen nor
touched, and nothing stays when the tests are over."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import uuid

from kit.tools import MACHINE, WORK, must, run

# Each worker of pytest-xdist has a place of its own.
STORE = WORK / f"containers{os.environ.get('PYTEST_XDIST_WORKER', '')}"
# podman remembers the two together; sockets lie in the second, so it is short.
RUNNING = f"/tmp/connect-relay-{hashlib.sha256(str(STORE).encode()).hexdigest()[:8]}"
PLACE = ["--root", STORE, "--runroot", RUNNING]
# podman asks for more open files than some machines let even root have.
CONF = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'


def debian(name, packages):
    """Creates a Debian root folder with these packages, once. It is a pattern: nothing runs in it or changes it. An incomplete
    one is never used."""
    folder = WORK / f"debian-{name}"
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another worker may be making it.
        if not folder.exists():
            making = WORK / f"debian-{name}.{uuid.uuid4().hex}"
            must("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", making)
            making.rename(folder)
    return folder


def copy_of(root, name):
    """Makes a copy of a root folder, in which a system can run."""
    copy = WORK / name
    shutil.rmtree(copy, ignore_errors=True)
    must("cp", "--archive", "--reflink=auto", root, copy)
    return copy


def podman(*words, check=True):
    """Runs a podman command; returns its output, without `check` also its errors."""
    conf = WORK / f"{STORE.name}.conf"
    conf.write_text(CONF)
    command = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", *PLACE, *words]
    env = {**MACHINE, "CONTAINERS_CONF": str(conf)}
    if check:
        return must(*command, env=env)
    done = run(*command, env=env)
    return done.stdout + done.stderr


def buildah(*words):
    """Runs a buildah command; returns its output."""
    return must("buildah", *PLACE, *words, timeout=1800).strip()


def image_of(folder, name, *config):
    """Makes an image from a root folder, because there is no registry."""
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, folder, "/")
    if config:
        buildah("config", *config, container)
    buildah("commit", "--quiet", "--rm", container, name)


def forget():
    """Stops all containers and removes them."""
    if STORE.exists():
        podman("rm", "--all", "--force", "--time", "0", check=False)
        podman("pod", "rm", "--all", "--force", "--time", "0", check=False)
        # Its own mounts go first: what is below them is not ours.
        for line in reversed(open("/proc/self/mounts").read().splitlines()):
            if (target := line.split()[1]).startswith((str(STORE), RUNNING)):
                subprocess.run(["umount", target], check=False)
        shutil.rmtree(STORE, ignore_errors=True)
    shutil.rmtree(RUNNING, ignore_errors=True)
