"""What a search does between its jobs: no job that is done, refused or not yet settled ends it. Without workers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from PIL import Image

from runner import HOME
from runner.check import Checker
from runner.command.search import run_search
from runner.command.tuning import run_tuning
from runner.errors import Defect, SettingsError
from runner.jobs.job import Job, State, register, update_manifest
from runner.jobs.lock import lock
from runner.launch import door
from runner.launch.door import launch_search
from runner.paths import ExperimentPaths, outputs_dir
from runner.plan import Plan
from runner.schema import ObjectiveSettings, SearchSettings
from runner.search import Choices, OptunaSearch
from runner.system.machine import Device, Machine
from tests.command.test_composition import raw
from tests.command_line import runner
from tests.weights import weights_of

SEEDS = ("1", "2", "3", "4")
FAILS = 9


@cache
def _plain() -> dict[str, Any]:
    return raw("logger=none")


def composed(*overrides: str) -> dict[str, Any]:
    """What `raw` composes of whole numbers at the top; composing takes most of the time of these tests."""
    numbers = {key: int(value) for key, _, value in (text.partition("=") for text in overrides)}
    assert numbers.keys() <= _plain().keys()
    return {**copy.deepcopy(_plain()), **numbers}


def finish(job: Job) -> None:
    register(job)
    job.paths.weights.parent.mkdir(parents=True, exist_ok=True)
    job.paths.weights.write_bytes(weights_of())
    job.paths.metrics.write_text('{"step": 1, "validation/loss": 0.5}\n')
    update_manifest(job.folder, state=State.COMPLETED, objective=0.5)


def search(*, trials: int, wrong: str = "", seeds: Sequence[str] = SEEDS) -> OptunaSearch:
    def compose(overrides: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        refused = ["accumulation=9"] if overrides[0] == f"seed={wrong}" else []
        return composed(*overrides, *refused), tuple(overrides)

    return OptunaSearch(
        ExperimentPaths(outputs_dir() / "dev"),
        space=[Choices("seed", tuple(seeds))],
        fixed={},
        settings=SearchSettings(n_trials=trials, sampler="random", seed=3),
        objective=ObjectiveSettings(),
        compose=compose,
    )


def command(search_by: Callable[..., None], *given: str, settings: Mapping[str, Any] | None = None) -> None:
    """Search like the sweeper of the command line."""
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(given), run_mode=RunMode.MULTIRUN)
        search_by(loader, master, given, settings or {"n_trials": 5})


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs given to a launcher that completes them at once."""
    found: list[Job] = []

    def run(plan: Plan, settings: object, more: Any) -> None:
        jobs = list(plan.todo)
        while jobs:
            for job in jobs:
                finish(job)
                if job.settings.seed == FAILS:
                    update_manifest(job.folder, state=State.FAILED, error="the loss is nan")
            found.extend(jobs)
            jobs = more(2)

    fake = SimpleNamespace(
        machine=lambda settings: Machine((Device("cpu", "a processor", 16.0),), cores=1),
        collect=lambda jobs, settings: None,
        launch=run,
    )
    monkeypatch.setattr("runner.launch.door.find_launcher", lambda name: fake)
    monkeypatch.setattr("runner.launch.door.conclude", lambda jobs: None)
    return found


def test_a_search_whose_first_trials_are_done_goes_on(launched: list[Job]) -> None:
    done = [Checker(outputs_dir()).job(composed(f"seed={seed}"), (f"seed={seed}",)) for seed in SEEDS[:3]]
    for job in done:
        finish(job)
    launch_search(search(trials=12))
    assert {job.settings.seed for job in launched} == {4}


def test_a_trial_that_another_runner_completes_meanwhile_is_not_done_again(
    launched: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, elsewhere = OptunaSearch.started, set[str]()

    def complete(self: OptunaSearch, overrides: Sequence[str], job: Job, *, again: bool) -> None:
        started(self, overrides, job, again=again)
        if launched and again:
            finish(job)
            elsewhere.add(job.id)

    monkeypatch.setattr(OptunaSearch, "started", complete)
    launch_search(search(trials=30, seeds=tuple(str(seed) for seed in range(10, 1000))))
    assert elsewhere
    assert not elsewhere & {job.id for job in launched}


def test_a_trial_that_another_runner_completes_as_it_is_looked_at_is_learnt_from(
    launched: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = OptunaSearch.started

    def complete_before(self: OptunaSearch, overrides: Sequence[str], job: Job, *, again: bool) -> None:
        assert again
        finish(job)
        started(self, overrides, job, again=again)

    monkeypatch.setattr(OptunaSearch, "started", complete_before)
    launch_search(found := search(trials=1))
    assert launched == []
    assert found.summary()[1].startswith("best: validation/loss 0.5 with")


def test_values_that_are_chosen_twice_are_given_to_a_launcher_once_while_it_is_at_them(
    launched: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[int]] = []

    def run(plan: Plan, settings: object, more: Any) -> None:
        jobs = list(plan.todo)
        while found := more(2):
            jobs += found
        given.append([job.settings.seed for job in jobs])
        for job in jobs:
            finish(job)

    monkeypatch.setattr(door.find_launcher("local"), "launch", run)
    found = search(trials=12)
    launch_search(found)
    assert [sorted(seeds) for seeds in given] == [[1, 2, 3, 4]]
    assert found.summary()[0] == "search: 12 of 12 trials"
    assert "best: " in found.summary()[1]
    assert search(trials=12).left == 0, "all of them are answered"
    assert search(trials=8).left == 0, "more than are asked for now"


def test_a_trial_that_fails_does_not_end_the_search(launched: list[Job]) -> None:
    found = search(trials=8, seeds=("1", "2", str(FAILS)))
    launch_search(found)
    assert found.summary()[0] == "search: 8 of 8 trials"
    assert FAILS in [job.settings.seed for job in launched[:-1]]
    assert "seed=1" in found.summary()[1] or "seed=2" in found.summary()[1]


def test_a_refused_trial_is_not_asked_for_again(launched: list[Job]) -> None:
    for trials in (6, 9):
        found = search(trials=trials, wrong="2")
        launch_search(found)
        assert f"search: {trials} of {trials} trials" in found.summary()
    assert {job.settings.seed for job in launched} < {1, 3, 4, 5}


def test_what_nobody_has_foreseen_is_no_mistake_of_the_configuration(
    launched: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(jobs: Sequence[Job]) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr("runner.launch.door.conclude", break_down)
    with pytest.raises(Defect) as found:
        launch_search(search(trials=1))
    assert isinstance(found.value.__cause__, ValueError)


def test_a_crash_is_learnt_of_only_when_its_jobs_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(trials=1)
    ((config, overrides),) = found.more(1)
    job = Checker(outputs_dir()).job(config, overrides)
    found.started(overrides, job)
    finish(job)
    update_manifest(job.folder, state=State.FAILED, crashed=True)
    found.learn()
    update_manifest(job.folder, state=State.COMPLETED, crashed=False)
    found.learn()
    assert found.summary()[1].startswith("best: validation/loss 0.5 with")


def test_how_a_job_ended_before_is_not_the_answer_while_another_runner_begins_with_it_again() -> None:
    found = search(trials=1)
    ((config, overrides),) = found.more(1)
    job = Checker(outputs_dir()).job(config, overrides)
    finish(job)
    update_manifest(job.folder, state=State.FAILED, error="the disk is full")
    found.started(overrides, job, again=True)
    found.learn()
    update_manifest(job.folder, state=State.COMPLETED, error=None)
    found.learn()
    assert found.summary()[1].startswith("best: validation/loss 0.5 with")


def test_what_is_learnt_of_a_trial_is_its_last_figure_if_it_is_completed() -> None:
    found, best = search(trials=3, seeds=tuple(str(seed) for seed in range(10, 1000))), ""
    ends = {State.COMPLETED: 0.3, State.FAILED: 0.2, State.PRUNED: 0.1}
    for (config, overrides), (state, last) in zip(found.more(3), ends.items(), strict=True):
        job = Checker(outputs_dir()).job(config, overrides)
        found.started(overrides, job)
        finish(job)
        lines = ({"step": step, "validation/loss": value} for step, value in enumerate((0.05, 0.9, last)))
        job.paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        update_manifest(job.folder, state=state)
        best = best or f"{overrides[0]}, in {job.folder}"
    found.learn()
    assert found.summary() == ["search: 3 of 3 trials", f"best: validation/loss 0.3 with {best}"]


def test_a_manifest_that_is_damaged_meanwhile_does_not_end_the_search() -> None:
    found = search(trials=1)
    ((config, overrides),) = found.more(1)
    job = Checker(outputs_dir()).job(config, overrides)
    found.started(overrides, job)
    finish(job)
    text = job.paths.manifest.read_text()
    job.paths.manifest.write_text(text[:20])
    found.learn()
    assert len(found.summary()) == 1
    job.paths.manifest.write_text(text)
    found.learn()
    assert found.summary()[1].startswith("best: validation/loss 0.5 with")


def test_a_failure_of_an_earlier_command_is_not_that_of_the_trial_that_tries_again(launched: list[Job]) -> None:
    """Even if the search is asked again before the launcher has begun, because another trial is already done."""
    seeds = tuple(str(seed) for seed in range(10, 1000))
    first = search(trials=4, seeds=seeds)
    jobs = []
    for config, overrides in first.more(4):
        jobs.append(Checker(outputs_dir()).job(config, overrides))
        first.started(overrides, jobs[-1])
        finish(jobs[-1])
    for job in jobs[:3]:
        update_manifest(job.folder, state=State.FAILED, error="the disk is full")
    update_manifest(jobs[2].folder, state=State.RUNNING)
    first.learn()
    finish(jobs[2])

    again = search(trials=4, seeds=seeds)
    launch_search(again)
    assert [job.id for job in launched] == [job.id for job in jobs[:2]]
    assert again.summary()[0] == "search: 4 of 4 trials"
    assert search(trials=4, seeds=seeds).left == 0, "nothing is to be tried again"


def test_other_images_under_the_same_name_are_another_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results on the earlier images say nothing about the current ones."""
    left: list[int] = []

    def one_trial(found: OptunaSearch) -> None:
        left.append(found.left)
        ((config, overrides),) = found.more(1)
        job = Checker(outputs_dir()).job(config, overrides)
        found.started(overrides, job)
        finish(job)
        found.learn()

    monkeypatch.setattr("runner.command.search.launch_search", one_trial)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(images / f"{number}.png")
    given = ["model=embedded", "dataset=folder", f"dataset.path={images}"]
    given += ["dataset.instance_prompt=a square", "logger=none"]
    for _ in range(3):
        command(run_search, *given, "seed=int(interval(1,9))")
        if len(left) == 2:
            (images / "0.png").unlink()
    assert left == [5, 4, 5]


@pytest.mark.parametrize("search_by", [run_search, run_tuning])
def test_only_trainings_are_searched(search_by: Callable[..., None]) -> None:
    with pytest.raises(SettingsError, match="task = 'evaluate': cannot be searched, only trainings have an objective"):
        command(search_by, "task=evaluate", "adapter_weight=interval(0.1,1.0)")


@pytest.mark.parametrize(
    ("search_by", "given", "keys"),
    [
        (run_search, ["seed=1,2"], ["n_trails = 5: unknown key", "steps = 0", "launcher.wait = false"]),
        (run_search, ["seed=interval(9,1)"], ["n_trails = 5: unknown key", "needs a lower and a higher", "steps = 0"]),
        (run_tuning, ["seed=1,2"], ["n_trails = 5: unknown key", "steps = 0", "set launcher=sagemaker"]),
        (run_tuning, ["name=a,b"], ["n_trails = 5: unknown key", "name changes no result", "set launcher=sagemaker"]),
    ],
)
def test_what_is_wrong_with_a_search_and_with_its_jobs_is_told_together(
    search_by: Callable[..., None], given: list[str], keys: list[str]
) -> None:
    slurm = ["launcher=slurm", "launcher.cluster=local", "launcher.gpus_per_node=0", "launcher.wait=false"]
    with pytest.raises(SettingsError) as raised:
        command(search_by, *given, *slurm, "steps=0", settings={"n_trails": 5})
    assert [key for key in keys if key not in str(raised.value)] == [], str(raised.value)


def test_one_search_at_a_time(tmp_path: Path) -> None:
    asked = ExperimentPaths(outputs_dir() / "dev").multirun
    with lock(asked.parent):
        asked.write_text("what the other one was asked for")
        answer = runner("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "seed=1,2", "logger=none")
    assert answer.code == 2, answer.output
    assert "name = 'dev': another command searches there at this moment" in answer.output
    assert asked.read_text() == "what the other one was asked for"


def test_a_search_cannot_leave_its_jobs_to_a_queue() -> None:
    answer = runner(
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "seed=1,2", "logger=none"),
        *("launcher=slurm", "launcher.cluster=local", "launcher.gpus_per_node=0", "launcher.wait=false"),
    )
    assert answer.code == 2, answer.output
    assert "launcher.wait = false: a search depends on results" in answer.output
    assert not (outputs_dir() / "dev").exists()
