"""What a plan says about unfinished jobs that it does not continue."""

from __future__ import annotations

from typing import Any

import pytest

from runner.jobs.job import Job, State, make_job, register, update_manifest
from runner.jobs.lock import lock
from runner.launch.left_behind import left_behind
from runner.paths import outputs_dir, step_name
from runner.plan import Plan, Predictor, make_plan
from runner.schema import Experiment
from runner.system.machine import Device, Machine

HERE = Machine((Device("cpu", "here", memory_gb=None),), cores=1)


def job(**settings: Any) -> Job:
    return make_job(Experiment.model_validate(settings), model="m", dataset="d", outputs=outputs_dir())


def stopped(state: State = State.INTERRUPTED, *, step: int = 40, **settings: Any) -> Job:
    made = job(**settings)
    register(made, State.PENDING)
    update_manifest(made.folder, state=state)
    if step:
        (made.paths.checkpoints / step_name(step)).mkdir(parents=True)
    return made


def plan(*jobs: Job, expected: int = 0) -> Plan:
    launcher = jobs[0].settings.launcher
    return make_plan(jobs, {}, launcher, machine=HERE, costs=Predictor(), expected=expected)


def test_a_job_that_was_changed_a_little_is_told_not_to_continue() -> None:
    old = stopped(steps=100, validation={"prompts": ["a house"]})
    (line,) = left_behind(plan(job(steps=120, validation={"prompts": ["a red house"]})))
    said = f"  not continued: {old.id} (stopped after step 40) differs in steps, validation.prompts; "
    assert line.startswith(said)
    assert left_behind(plan(old)) == [], "it is continued"
    assert left_behind(plan(job(steps=120, name="another"))) == []


@pytest.mark.parametrize(
    ("state", "settings"),
    [
        (State.COMPLETED, {}),
        (State.PRUNED, {}),
        (State.INTERRUPTED, {"step": 0}),
        (State.FAILED, {"seed": 3, "steps": 7, "lora": {"rank": 2}, "resolution": 32}),
    ],
)
def test_what_was_not_meant_is_not_told(state: State, settings: dict[str, Any]) -> None:
    stopped(state, **settings)
    assert left_behind(plan(job(batch_size=2))) == []


def test_what_somebody_works_on_or_a_search_takes_up_is_not_told() -> None:
    old = stopped(seed=1)
    assert left_behind(plan(job(seed=2), expected=5)) == []
    with lock(old.folder):
        assert left_behind(plan(job(seed=2))) == []
    assert len(left_behind(plan(job(seed=2)))) == 1


def test_of_many_the_first_are_named() -> None:
    for seed in range(9):
        stopped(seed=seed)
    *named, last = left_behind(plan(job(seed=20)))
    assert (len(named), last) == (3, "  not continued: 6 others that differ as little")
