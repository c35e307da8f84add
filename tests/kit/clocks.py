"""A machine whose clocks a test sets: `clock.c` is loaded into the relay and shifts the clocks that it reads."""

import mmap
import shutil
import struct
import subprocess
import time
import uuid
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).parent
SECOND = 1_000_000_000
DAY = 86400


def build_shim(folder, source="clock.c"):
    """Compiles a library that is loaded into the relay; returns its path."""
    shim = Path(folder) / source.replace(".c", ".so")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed"
    command = [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", shim, HERE / source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return shim


class Machine:
    """Its wall clock, its clock since boot, and its boot id, as seconds beside those of the real machine."""

    def __init__(self, folder, shim, wall=0):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.shim, self._shifts, self._boot_id = shim, folder / "clock", folder / "boot_id"
        self._shifts.write_bytes(bytes(16))
        with open(self._shifts, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)
        self.wall, self.boot = 0, 0
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        self.step(wall)

    @property
    def before(self):
        """The command prefix that runs a program on this machine."""
        clocks = f"CLOCK={self._shifts}", f"BOOT_ID={self._boot_id}"
        return ["env", f"LD_PRELOAD={self.shim}", *clocks]

    def now(self):
        """The time of its wall clock, in seconds."""
        return time.time() + self.wall

    def step(self, seconds):
        """Sets the wall clock forward, or back."""
        self.wall += seconds
        self._write()

    def sleep(self, seconds):
        """Suspends the machine: all clocks advance except those that stop during suspend."""
        self.boot += seconds
        self.step(seconds)

    def reboot(self, took=0, wall=0):
        """Reboots in `took` seconds, with a wall clock that is wrong by `wall` afterwards. No relay may run meanwhile."""
        self.boot = -int(time.clock_gettime(time.CLOCK_BOOTTIME))
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        self.step(took + wall)

    def _write(self):
        self._map[:] = struct.pack("<qq", int(self.wall * SECOND), int(self.boot * SECOND))


def seconds_of(text):
    """Converts a time of the relay to seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
