"""Runs the project as a person does: in its own process, with a command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.forked_command import ROOT, can_fork, run_forked


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    output: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's environment, with this checkout importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(extra or {})}


def runner(
    *arguments: str, cwd: Path | None = None, extra: Mapping[str, str] | None = None, timeout_s: float = 240
) -> Answer:
    """Run `python -m runner` and wait for it."""
    return _run("runner", arguments, cwd=cwd, extra=extra, timeout_s=timeout_s)


def command(name: str, *arguments: str, extra: Mapping[str, str] | None = None, timeout_s: float = 120) -> Answer:
    """Run `python -m runner.<name>` and wait for it."""
    return _run(f"runner.{name}", arguments, cwd=None, extra=extra, timeout_s=timeout_s)


def _run(
    module: str, arguments: Sequence[str], *, cwd: Path | None, extra: Mapping[str, str] | None, timeout_s: float
) -> Answer:
    whole = environment(extra)
    if can_fork(whole):
        return Answer(*run_forked(module, arguments, cwd=cwd or ROOT, environment=whole, timeout_s=timeout_s))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd or ROOT,
        env=whole,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Answer(done.returncode, done.stdout)


def trained(folder: Path, *arguments: str) -> None:
    """Fill a folder with the results of an undisturbed run; its only job is at `outputs/dev/<id>`."""
    extra = {"RUNNER_OUTPUTS": str(folder / "outputs"), "RUNNER_CACHE": str(folder / "cache")}
    answer = runner(*arguments, extra=extra)
    assert answer.code == 0, answer.output
