"""What a command prints, and to whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import environment


@pytest.mark.parametrize("arguments", [["seed=0"], ["-m", "seed=0,1"]], ids=["one job", "a sweep"])
def test_a_reader_that_stops_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runner", *arguments, "launcher.dry_run=true"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        running.stdout.close()  # as `| head` does, before the first line
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert running.returncode == 0
