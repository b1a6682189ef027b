"""Unpacks the project's package as it was where the command was typed, and runs it instead of the image's own."""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from runner.container.tree import Tree
from runner.errors import RunnerError
from runner.parcel import CODE, CODE_FILE

UNPACKED = "RUNNER_CODE"
"""Environment variable with the folder of the package that was sent; set once that package runs."""


def run_sent_code(tree: Tree, arguments: Sequence[str]) -> None:
    """Continue as the package that was sent; return if none was sent, or if this already is it.

    Raises:
        RunnerError: what was sent is not this package.
    """
    file = tree.channel(CODE) / CODE_FILE
    if UNPACKED in os.environ or not file.parent.exists():
        return
    folder = _unpack(file)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Nothing in the current folder must shadow it.
    os.environ.update({UNPACKED: str(folder), "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"})
    # In the same process, so that it still gets the signals meant for the container.
    os.execv(sys.executable, [sys.executable, "-m", "runner.container", *arguments])


def _unpack(file: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="runner-code-"))
    try:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise RunnerError(f"{file} cannot be unpacked: {error}") from error
    if not (folder / "runner" / "container" / "__main__.py").is_file():
        raise RunnerError(f"{file} does not hold the package runner")
    return folder
