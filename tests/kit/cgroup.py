"""A memory limit for a process: a cgroup of either version, if this machine allows one."""

import os
import re
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class MemoryLimit:
    """Limits the memory of processes; `close` needs it empty. Without a cgroup `enforced` is False, and the peak of the
    process is the only measurement."""

    def __init__(self, bytes_max):
        self.folder = None
        for base, limit in ((ROOT, "memory.max"), (ROOT / "memory", "memory.limit_in_bytes")):
            if not (base / "cgroup.procs").exists() or not os.access(base, os.W_OK):
                continue
            folder = base / f"connect-relay-{os.getpid()}"
            folder.mkdir()
            if (folder / limit).exists():
                (folder / limit).write_text(str(bytes_max))
                self.folder = folder
                return
            folder.rmdir()  # the controller is not given to this part of the tree

    @property
    def enforced(self):
        return self.folder is not None

    def add(self, pid):
        if self.folder:
            (self.folder / "cgroup.procs").write_text(str(pid))

    def close(self):
        if self.folder:
            self.folder.rmdir()


def peak(pid):
    """The peak memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10
