"""Root prepares and an unprivileged user takes over; where that cannot work, root continues and says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from runner.container.tree import ROOT as ML_ROOT
from runner.parcel import CONTAINER_USER
from tests.command_line import ROOT
from tests.container.opt_ml import OptMl

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave root")

USER_NAME, USER_ID = "nobody", 65534
PACKAGES = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
GO_ON = """
import os
from runner.container.tree import Tree
from runner.container.user import leave_root
import logging
logging.basicConfig(format="%(message)s")
tree = Tree.here()
leave_root(tree)
tree.write_failure(f"{os.geteuid()} {os.getegid()} {os.getgroups()}")
(tree.checkpoints / "cache" / "new").touch()
"""


@pytest.fixture
def tree(tmp_path: Path) -> OptMl:
    # pytest's own folders are closed to other users.
    pytest_folder = next((at for at in tmp_path.parents if at.name.startswith("pytest-of-")), tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(pytest_folder):
            folder.chmod(0o755)
    tree = OptMl(tmp_path / "ml")
    (tree.data / "config" / "plan.json").write_text("{}")
    (tree.root / "checkpoints" / "cache").mkdir(parents=True)
    (tree.root / "checkpoints" / "cache" / "old").write_text("restored")
    return tree


def anybodys_python() -> str:
    """A Python of this version that every user may run: the virtual environment's may be in root's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for program in (sys.executable, *(shutil.which(version, path=path) for path in ("/usr/local/bin", "/usr/bin"))):
        with suppress(PermissionError):
            if program and not subprocess.run([program, "-c", ""], user=USER_ID, cwd="/", check=False).returncode:
                return program
    # A Python in root's home is closed to others, and the machine's own may be of another version.
    pytest.skip(f"no {version} on this machine that another user than root may run")


def go_on(tree: OptMl, extra: Mapping[str, str] = {}, python: str = sys.executable) -> tuple[str, str]:
    """What the process reported about itself, in the file and in its log."""
    environment = {**os.environ, "PYTHONPATH": PACKAGES, ML_ROOT: str(tree.root), CONTAINER_USER: USER_NAME, **extra}
    done = subprocess.run([python, "-c", GO_ON], env=environment, capture_output=True, text=True, check=True, cwd="/")
    return tree.failure.read_text(), done.stderr


def test_what_was_restored_and_what_is_new_is_the_users(tree: OptMl) -> None:
    assert go_on(tree, python=anybodys_python()) == (f"{USER_ID} {USER_ID} []", "")
    cache = tree.root / "checkpoints" / "cache"
    assert [(cache / name).stat().st_uid for name in ("old", "new")] == [USER_ID, USER_ID]
    assert (tree.data / "config" / "plan.json").stat().st_uid == 0, "what was sent is nobody's to change"


def test_a_channel_that_only_root_can_read_keeps_root(tree: OptMl) -> None:
    (tree.data / "config" / "plan.json").chmod(0o600)
    identity, said = go_on(tree)

    assert identity.startswith("0 0 ")
    assert said.startswith("continuing as root: ") and "Permission denied" in said and "plan.json" in said


def test_a_file_beside_the_channels_is_read_as_they_are(tree: OptMl) -> None:
    """Such as an endpoint's `serve.json`, and the lists that SageMaker puts beside channels."""
    file = tree.data / "serve.json"
    file.write_text("{}")
    assert go_on(tree, python=anybodys_python())[0].startswith(f"{USER_ID} ")
    file.chmod(0o600)
    identity, said = go_on(tree)
    assert identity.startswith("0 0 ") and "Permission denied" in said and "serve.json" in said


@pytest.mark.parametrize("user", ["root", "nobody-has-this-name"])
def test_without_such_a_user_nothing_changes_hands(tree: OptMl, user: str) -> None:
    identity, said = go_on(tree, {CONTAINER_USER: user})

    assert identity.startswith("0 0 ") and said == ""
    assert (tree.root / "checkpoints" / "cache" / "old").stat().st_uid == 0
