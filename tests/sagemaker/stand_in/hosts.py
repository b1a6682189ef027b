"""One host of a job as a process of this machine, with its own tree for /opt/ml.

As root, the process gets its own namespaces: its tree is at /opt/ml, it is PID 1, it is called algo-N, and whatever it
started dies with it. Without root, it finds the tree by the variable SM_ML_ROOT, and host names do not resolve.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .images import Image
from .instances import InstanceType, write_nvidia_smi
from .platform import Settings

ML_ROOT = "SM_ML_ROOT"
NAMESPACES = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
ENTER = (
    'mount --bind "$1/ml" /opt/ml && mount --bind "$1/hosts" /etc/hosts || exit 125; '
    'echo "$2" > /proc/sys/kernel/hostname; shift 2; exec "$@"'
)
Entry = tuple[list[str], list[str]]
FOLDERS = ("input/config", "input/data", "model", "output/data")


@functools.cache
def can_bind() -> bool:
    """Whether a process can get its own /opt/ml here."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/opt/ml").mkdir(parents=True, exist_ok=True)  # the mount point; it stays empty
    probe = [*NAMESPACES, "sh", "-c", "mount --bind /tmp /opt/ml && test -w /proc/sys/kernel/hostname"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Host:
    """The tree of a host, and its main process once it is started."""

    def __init__(self, settings: Settings, name: str, folder: Path, names: list[str]) -> None:
        self.settings, self.name, self.folder, self.names = settings, name, folder, names
        self.ml = folder / "ml"
        self.process: subprocess.Popen[bytes] | None = None
        self.temporary: str | None = None
        for each in FOLDERS:
            (self.ml / each).mkdir(parents=True)
        for each in ("bin", "home", "work"):
            (folder / each).mkdir()
        (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(names)}\n::1 localhost\n")

    @property
    def interface(self) -> str:
        """The network interface through which the hosts of a job see each other."""
        return "lo"

    def equip(self, instance: InstanceType) -> None:
        """Give the host its GPUs, as far as `nvidia-smi` is concerned."""
        write_nvidia_smi(self.folder / "bin" / "nvidia-smi", instance, self.name)

    def start(self, image: Image, entry: Entry, environment: dict[str, str]) -> Any:
        """Start the container's command; returns its output as a pipe."""
        entrypoint, arguments = entry
        command = [*(entrypoint or image.entrypoint), *arguments]
        commands = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        own = {"PATH": ":".join(commands), "HOME": str(self.folder / "home"), "LANG": "C.UTF-8", **image.environment}
        # A container's /tmp disappears with it. Not in the tree: socket names must be short.
        self.temporary = tempfile.mkdtemp(prefix="host-")
        Path(self.temporary).chmod(0o1777)
        own |= {"TMPDIR": self.temporary, **environment}
        if self.settings.ml_root == "bound" or (self.settings.ml_root == "auto" and can_bind()):
            command = [*NAMESPACES, "sh", "-c", ENTER, "sh", str(self.folder), self.name, *command]
        else:
            own[ML_ROOT] = str(self.ml)
        # If the stand-in itself is killed, the host dies with it.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        self.process = subprocess.Popen(
            command,
            cwd=image.folder or self.folder / "work",
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self.process.stdout

    @property
    def exit_code(self) -> int | None:
        """Exit code of the main process; 128 + n if signal n ended it; None while it runs."""
        code = self.process.poll() if self.process else None
        return code if code is None or code >= 0 else 128 - code

    def terminate(self) -> None:
        """Send SIGTERM to the main process only."""
        if self.exit_code is None:
            for pid in self._main():
                _signal(pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the main process and everything it started."""
        if self.process is None:
            return
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pid in _processes_of(self.ml):
            _signal(pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing behind but the folder."""
        self.kill()
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _main(self) -> list[int]:
        """The container's PID 1, in this machine's numbering."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "unshare":
                return [int(child) for child in children.read_text().split()]
        return [pid]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _processes_of(ml: Path) -> list[int]:
    """Processes that got the tree through its variable, whoever started them."""
    marker = f"{ML_ROOT}={ml}\0".encode()
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marker in file.read_bytes() + b"\0":
                found.append(int(file.parent.name))
    return found
