"""What a worker's process gets: the user's variables, places and threads of its own, and a log that grows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runner import PACKAGE
from runner.launchers import worker
from runner.system.machine import Device, Machine
from runner.work import LAUNCHER_PID

CPU = Machine((Device("cpu", "a processor", 16.0),), cores=8)
GPUS = Machine((Device("cuda", "NVIDIA L4", 23.0, "0"), Device("cuda", "NVIDIA L4", 23.0, "1")), cores=8)


def told(log: Path, places: list[str], machine: Machine, *, at_most: int = 1) -> dict[str, str]:
    """The variables seen by a worker with these places; the worker prints only them."""
    with pytest.MonkeyPatch.context() as patched:
        shows = "import os; [print(name, value, sep='=') for name, value in os.environ.items()]"
        patched.setattr(worker, "worker_command", lambda *_, **__: [sys.executable, "-c", shows])
        patched.setattr(worker, "FORKED_FROM", 99)
        device = machine.devices[0].kind
        made = worker.Worker(
            log.parent / "q.json", at_once=1, places=places, machine=machine, device=device, log=log, at_most=at_most
        )
        assert made.process.wait(timeout=30) == 0
    return dict(line.split("=", 1) for line in log.read_text().splitlines() if "=" in line)


def test_a_worker_keeps_the_variables_that_the_user_has_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["mine", "", "/opt/theirs", "mine"]))
    found = worker.worker_environment(2)
    assert (found["OMP_NUM_THREADS"], found["TOKENIZERS_PARALLELISM"]) == ("7", "true")
    assert found["PYTHONPATH"].split(os.pathsep) == [str(PACKAGE.parent), str(tmp_path / "mine"), "/opt/theirs"]
    assert found[LAUNCHER_PID] == str(os.getpid())
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert worker.worker_environment(2)["OMP_NUM_THREADS"] == "2"


def test_what_runs_at_the_same_time_shares_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert told(tmp_path / "one", ["0"], CPU)["OMP_NUM_THREADS"] == "7", "one core is left to others"
    assert told(tmp_path / "group", ["0", "0"], CPU, at_most=2)["OMP_NUM_THREADS"] == "2"


def test_a_worker_sees_its_own_gpus_counted_as_the_user_counts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    found = told(tmp_path / "one", ["1"], GPUS)
    assert (found["CUDA_VISIBLE_DEVICES"], found["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
    assert told(tmp_path / "both", ["1", "0"], GPUS)["CUDA_VISIBLE_DEVICES"] == "1,0"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert told(tmp_path / "fastest", ["1"], GPUS)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_a_worker_writes_below_what_an_earlier_one_has_written(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("why the earlier one died\n")
    told(tmp_path / "log.txt", ["0"], CPU)
    assert (tmp_path / "log.txt").read_text().startswith("why the earlier one died\n")
