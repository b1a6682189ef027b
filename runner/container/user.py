"""The user of the container's processes: root prepares the folders, and an unprivileged user trains.

SageMaker mounts /opt/ml as root's and does not document that another user may write there. So the image starts as root,
gives the unprivileged user the folders to write to, and continues as that user if it can read and write what a training
needs.
"""

from __future__ import annotations

import logging
import os
import pwd
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runner.container.tree import Tree
from runner.parcel import CONTAINER_USER

log = logging.getLogger(__name__)

USUAL_USER = "runner"
"""The image's unprivileged user (container/Dockerfile)."""
ELASTIC_FABRIC = Path("/dev/infiniband")
"""Network devices that need locked memory, which is unlimited for root."""
WITHOUT_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def leave_root(tree: Tree) -> None:
    """Continue as an unprivileged user; as root if there is no such user or, with a warning, if it could not work."""
    if os.geteuid() != 0:
        return
    try:
        account = pwd.getpwnam(os.environ.get(CONTAINER_USER, USUAL_USER))
    except KeyError:
        return
    if account.pw_uid == 0:
        return
    try:
        _give(tree.written, account)
        if ELASTIC_FABRIC.exists():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, WITHOUT_LIMIT)
        obstacle = _obstacle(tree, account)
    except (OSError, ValueError) as error:
        obstacle = str(error)
    if obstacle:
        log.warning("continuing as root: %s", obstacle)
        return
    _become(account)
    os.environ["HOME"] = account.pw_dir


def _give(folders: Sequence[Path], account: pwd.struct_passwd) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _become(account: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _obstacle(tree: Tree, account: pwd.struct_passwd) -> str:
    """What that user cannot do here, tried by a child process of that user; empty if nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the trial did not end"
        try:
            os.close(reading)
            _become(account)
            said = _tried(tree)
        except OSError as error:
            said = str(error)
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said


def _tried(tree: Tree) -> str:
    """Try to read the first file of each channel and to write wherever a training writes; returns any other obstacle.

    Raises:
        OSError: a file could not be read or written.
    """
    for entry in sorted(tree.data.iterdir()) if tree.data.exists() else []:
        firsts = (Path(path, min(names)) for path, _, names in os.walk(entry, onerror=_raise) if names)
        # There may be files beside the channels: `serve.json` of an endpoint, or a list that SageMaker leaves.
        if (file := entry if entry.is_file() else next(firsts, None)) is not None:
            with file.open("rb") as stream:
                stream.read(1)
    for folder in (*tree.written, Path(tempfile.gettempdir())):
        with tempfile.TemporaryFile(dir=folder):
            pass
    return "" if os.access(sys.executable, os.X_OK) else f"{sys.executable} cannot be run"


def _raise(error: OSError) -> None:
    raise error
