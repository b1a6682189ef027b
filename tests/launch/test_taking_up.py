"""What a command makes of jobs that an earlier one has submitted, before it has asked anybody how they are."""

from __future__ import annotations

from typing import Any

import pytest

from runner.job import Job, State, make_job, read_manifest, register, state_of, update_manifest
from runner.launch import _take_up
from runner.paths import outputs_dir
from runner.schema import Experiment

SLURM: dict[str, Any] = {"name": "slurm", "gpus_per_node": 0}


def submitted(state: State, ids: list[str]) -> Job:
    job = make_job(Experiment.model_validate({}), model="m", dataset="d", outputs=outputs_dir(), overrides=())
    register(job)
    update_manifest(job.folder, state=state, submission={"cluster": "slurm", "queue": "q", "ids": ids}, error="why")
    return job


@pytest.mark.parametrize(
    ("state", "ids", "launcher", "expected"),
    [
        (State.SUBMITTED, ["7"], SLURM, State.SUBMITTED),
        (State.RUNNING, ["7"], SLURM, State.RUNNING),
        (State.INTERRUPTED, ["7"], SLURM, State.INTERRUPTED),
        (State.FAILED, ["7"], SLURM, State.PENDING),
        (State.SUBMITTED, [], SLURM, State.PENDING),
        (State.RUNNING, ["7"], {"name": "local"}, State.PENDING),
    ],
)
def test_what_has_workers_in_a_queue_stays_to_be_found(
    state: State, ids: list[str], launcher: dict[str, Any], expected: State
) -> None:
    job = submitted(state, ids)
    _take_up(job, Experiment.model_validate({"launcher": launcher}).launcher)
    assert state_of(job.folder) is expected
    assert read_manifest(job.folder)["submission"]["ids"] == ids
