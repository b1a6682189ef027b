"""Commands are forked from a process that has loaded everything, instead of loading it again for each one.

A command takes half a second to start and a worker four; a run of the tests starts hundreds of both. What a process
does when it really starts is tested where `tests.launchers.running` and others start it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import TimeoutExpired

READ_WHEN_LOADED = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "OMP_", "GOMP_", "PYTHON", "CUDA_", "LD_", "TORCH")
"""Libraries read such variables when they are loaded: if these differ, a command must load its own."""
ALL_THE_SAME = ("TORCHINDUCTOR_CACHE_DIR", "GOMP_SPINCOUNT")
"""Torch sets the first itself, both in a test that has loaded it and in a command; a single thread never spins."""
SERVER = "FORK_SERVER"
"""Variable with the address of the process that all tests fork from, and the environment in which it loaded."""

ROOT = Path(__file__).resolve().parents[1]


def _when_loaded(environment: Mapping[str, str]) -> dict[str, str]:
    read = {name: value for name, value in environment.items() if name.startswith(READ_WHEN_LOADED)}
    return {name: value for name, value in read.items() if name not in ALL_THE_SAME}


AT_FIRST = _when_loaded({**os.environ, "PYTHONPATH": str(ROOT)})

# One process for all tests, whatever has started it; it ends with them.
forkserver._forkserver._stop = lambda: None  # type: ignore[attr-defined]
forkserver.set_forkserver_preload(["tests.preloaded"])


def serve() -> None:
    """Start the process that others are forked from, for all processes that run tests; it ends with this one."""
    forkserver.ensure_running()
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    os.environ[SERVER] = json.dumps({"address": address, "environment": AT_FIRST})


if os.environ.get(SERVER):
    there = json.loads(os.environ[SERVER])
    AT_FIRST = there["environment"]
    forkserver._forkserver._forkserver_address = there["address"]  # type: ignore[attr-defined]
    # It lives as long as the process that started it, whoever else forks from it.
    forkserver._forkserver._forkserver_alive_fd = os.open(os.devnull, os.O_WRONLY)  # type: ignore[attr-defined]
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a command with this environment may be forked."""
    return _when_loaded(environment) == AT_FIRST


def run_forked(
    module: str, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], timeout_s: float
) -> tuple[int, str]:
    """Run `python -m MODULE`; returns its exit code and its output."""
    with tempfile.NamedTemporaryFile(prefix="command-") as output:
        process = fork(module, arguments, cwd=cwd, environment=environment, output=Path(output.name))
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired([module, *arguments], timeout_s)
        return process.exitcode, output.read().decode()


def fork(
    module: str, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], output: Path
) -> BaseProcess:
    """Start `python -m MODULE` in its own session; its output is appended to a file."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_begin, args=(module, list(arguments), cwd, dict(environment), output))
    process.start()
    return process


def _begin(module: str, arguments: list[str], cwd: Path, environment: dict[str, str], output: Path) -> None:
    from runner.launchers import worker
    from runner.launchers.forked import Forked, as_a_command

    os.chdir(cwd)
    sys.argv = [module, *arguments]
    sys.path[0] = str(cwd)
    # Its workers are forked from the same process, even a single one; that one has no log and shares this output.
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    worker.FORKED_FROM = 1

    def fork_worker(options: Sequence[str], *, environment: Mapping[str, str], log: Path | None) -> Forked:
        return Forked(options, environment=environment, log=log or output)

    worker.Forked = fork_worker  # type: ignore[misc, assignment]
    as_a_command(partial(_run_module, module), environment, output)


def _run_module(module: str) -> int:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
