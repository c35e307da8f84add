"""A relay in a folder that has the image's files and no others: no shell, no `kill`, not even `ls`. What an operator does in it is a
command of the relay, as `kubectl exec POD -c connect-relay -- connect-relay …` runs it.

The folder is made as the Dockerfile makes the image, of the binary under test and the libraries that it is linked with, and a chroot
makes it the root: the image itself takes minutes to build, and the tests of `deploy` run it.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from kit.processes import BINARY, Relay
from kit.wait import TIMEOUT

# The user of the image.
USER = 29581
CONFIGURATION = "etc/connect-relay/relay.toml"


class BareRelay(Relay):
    """A relay alone in its root folder. `write` is what the kubelet does to a mounted ConfigMap."""

    def __init__(self, endpoint, configuration="", **settings):
        # Short, because a socket's path may have 107 bytes.
        root = Path(tempfile.mkdtemp(prefix="bare-"))
        super().__init__(endpoint, tcp=False, folder=root, **settings)
        self._fill(root)
        self.write(configuration)
        self.socket = str(root / "run/connect-relay/relay.sock")
        self.before, self.program = [shutil.which("chroot"), f"--userspec={USER}:{USER}", root], "connect-relay"
        self.arguments = []
        own = {"CONNECT_RELAY__" + key.upper().replace(".", "__"): str(value) for key, value in self.settings.items()}
        self.environment = {"PATH": "/usr/bin", **own}

    @staticmethod
    def _fill(root):
        linked = subprocess.run(["ldd", BINARY], capture_output=True, text=True, timeout=TIMEOUT).stdout
        libraries = re.findall(r"(/\S+) \(0x", linked)  # none if it is static, as the image's is
        for source, target in [(BINARY, "usr/bin/connect-relay"), *((path, path.lstrip("/")) for path in libraries)]:
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / target)
        for folder, mode in (("run/connect-relay", 0o755), ("var/lib/connect-relay", 0o700)):
            (root / folder).mkdir(parents=True)
            os.chown(root / folder, USER, USER)
            (root / folder).chmod(mode)
        (root / CONFIGURATION).parent.mkdir(parents=True)
        root.chmod(0o755)

    def programs(self):
        """The files in it that can be executed, without the libraries of the binary."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and os.access(path, os.X_OK)]
        return [str(path.relative_to(self.folder)) for path in files if ".so" not in path.name]

    def write(self, text):
        """Replaces the configuration at once."""
        path = self.folder / CONFIGURATION
        new = path.with_suffix(".new")
        new.write_text(text)
        new.rename(path)

    def operate(self, *words, code=0):
        """Runs a command of the relay in the folder; returns its output."""
        done = subprocess.run(
            [*map(str, self.before), self.program, *words], env=self.environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT,
        )
        assert done.returncode == code, done
        return done.stdout

    def remove(self):
        try:
            super().remove()
            left = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_inside(entry)]
            assert not left, f"processes are left behind: {left}"
        finally:
            shutil.rmtree(self.folder)

    def _is_inside(self, entry):
        try:
            return os.readlink(entry / "root") == str(self.folder)
        except OSError:  # it has ended
            return False
