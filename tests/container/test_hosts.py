"""A job spread over two containers without a shared disk gives what one process gives; only the first one writes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from runner.jobs.job import read_manifest
from tests.container.opt_ml import Entry, OptMl
from tests.train.bench import Bench, difference, records, weights

HOSTS = ("localhost", "127.0.0.1")
"""Not in order: the first host is 127.0.0.1."""


@pytest.fixture
def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def trees(tmp_path: Path) -> tuple[OptMl, OptMl]:
    first, second = (OptMl(tmp_path / host, host=host, hosts=HOSTS) for host in sorted(HOSTS))
    return first, second


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_two_hosts_stop_together_and_go_on_from_the_first_ones_checkpoint(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, port: str
) -> None:
    settings = {"batch_size": 5, "accumulation": 2, "steps": 30, "seed": 51, "checkpoint": {"every": 2}}
    begun, fresh = bench.job(sdxl_folder, **settings), bench.job(sdxl_folder, steps=3, seed=52)
    stopped = [tree.send(begun, processes=2) for tree in trees(tmp_path / "stopped")]
    entries = [tree.start({"RUNNER_MEETING_PORT": port}) for tree in stopped]
    entries[0].wait_for("checkpoints/jobs/*/checkpoints/step-*")
    entries[1].process.send_signal(signal.SIGTERM)  # one of them gets it first
    answers = [entry.end() for entry in entries]
    steps_done = read_manifest(stopped[0].jobs / begun.id)["steps_done"]

    assert [answer.code for answer in answers] == [0, 0], "\n".join(answer.output for answer in answers)
    assert stopped[0].state(begun) == "interrupted"
    assert 2 <= steps_done < 30
    assert not any("Traceback" in answer.output for answer in answers)

    hosts = [tree.send(begun, fresh, processes=2) for tree in trees(tmp_path / "after")]
    for tree in hosts:
        # SageMaker restores checkpoints on every host.
        shutil.copytree(stopped[0].root / "checkpoints", tree.root / "checkpoints")
    # One host has encodings that the other one lacks.
    shutil.rmtree(hosts[0].root / "checkpoints" / "cache" / "captions")
    restored = contents(hosts[1].root / "checkpoints")
    entries = [tree.start({"RUNNER_MEETING_PORT": port}) for tree in hosts]
    answers = [entry.end() for entry in entries]

    assert [answer.code for answer in answers] == [0, 0], "\n".join(answer.output for answer in answers)
    assert f"continues after step {steps_done}" in answers[0].output
    for job, alone in ((begun, bench.job(sdxl_folder, **settings)), (fresh, fresh)):
        assert bench.train(alone)
        there = hosts[0].trained(job)
        assert hosts[0].state(job) == "completed"
        assert difference(weights(there), weights(alone)) < 1e-5
        assert records(there, "train/loss") == pytest.approx(records(alone, "train/loss"), rel=1e-5)
    assert contents(hosts[1].root / "checkpoints") == restored
    assert list((hosts[1].root / "model").iterdir()) == []
    assert len(list((hosts[0].root / "checkpoints" / "cache").glob("captions/*/*.safetensors"))) == 8


def test_a_host_that_dies_is_named_and_the_other_ends(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, port: str
) -> None:
    job = bench.job(sdxl_folder, steps=3000, seed=53, checkpoint={"every": 2})
    hosts = [tree.send(job, processes=2) for tree in trees(tmp_path)]
    entries = [tree.start({"RUNNER_MEETING_PORT": port}) for tree in hosts]
    entries[0].wait_for("checkpoints/jobs/*/checkpoints/step-*")
    for pid in training_processes(entries[1]):
        os.kill(pid, signal.SIGKILL)
    answers = [entry.end() for entry in entries]

    assert [answer.code for answer in answers] == [1, 1]
    assert (
        hosts[1]
        .failure.read_text()
        .startswith("on localhost the process was killed by signal 9 (often: out of memory)")
    )
    assert hosts[0].failure.read_text().startswith(f"{job.id}: ")
    assert hosts[0].state(job) == "failed"


def training_processes(entry: Entry) -> list[int]:
    """The training processes of an entry point: its grandchildren."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [pid for child in children(entry.process.pid) for pid in children(child)]
        if found:
            return found
    raise AssertionError("it has started none")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
