"""Which jobs are packed, how many at once and in how many places: a pure function of what is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.cache.encodings import CacheWork
from runner.jobs.job import Job, State, make_job, make_task_job
from runner.plan import Pack, Plan, Prediction, make_plan
from runner.plan.packs import shared_out
from runner.plan.words import plan_data, plan_lines
from runner.schema import Experiment
from runner.schema.tasks.generate import Generate
from runner.system.machine import Device, Machine

CPU = Machine((Device("cpu", "a processor, 2 cores", 16.0),), cores=2)


def gpus(count: int, memory_gb: float = 80.0) -> Machine:
    devices = tuple(Device("cuda", "NVIDIA H100", memory_gb, str(number)) for number in range(count))
    return Machine(devices, cores=16)


class Costs:
    """Known costs, as given."""

    def __init__(self, fitting: int | None = None, prediction: Prediction | None = None) -> None:
        self.fits, self.prediction = fitting, prediction

    def fitting(self, jobs: Sequence[Job], machine: Machine, processes: int) -> tuple[int, str] | None:
        return None if self.fits is None else (self.fits, "as far as the memory holds them")

    def predict(
        self, pack: Pack, machine: Machine, places: int, count: int, steps_done: Mapping[Path, int]
    ) -> Prediction | None:
        return self.prediction


def job(model: str = "base", **settings: Any) -> Job:
    experiment = Experiment.model_validate(settings)
    overrides = tuple(f"{key}={value}" for key, value in settings.items())
    return make_job(experiment, model=model, dataset="images", outputs=Path("outputs"), overrides=overrides)


def seeds(count: int, **settings: Any) -> list[Job]:
    return [job(seed=seed, **settings) for seed in range(count)]


def plan(
    jobs: Sequence[Job],
    machine: Machine = CPU,
    costs: Costs | None = None,
    states: dict[Path, State] | None = None,
    **launcher: Any,
) -> Plan:
    settings = Experiment.model_validate({"launcher": {"name": "local", **launcher}}).launcher
    return make_plan(jobs, states or {}, settings, machine=machine, costs=costs or Costs())


def shapes(found: Plan) -> list[tuple[int, int, int, int]]:
    """(jobs, jobs at once, workers, processes) of each pack."""
    return [(len(pack.jobs), pack.at_once, pack.workers, pack.processes) for pack in found.packs]


@pytest.mark.parametrize(
    ("machine", "count", "launcher", "expected"),
    [
        (CPU, 1, {}, (1, 1, 1, 1)),
        (CPU, 8, {}, (8, 8, 1, 1)),
        (CPU, 20, {}, (20, 8, 1, 1)),
        (CPU, 8, {"pack": 1}, (8, 1, 1, 1)),
        (CPU, 8, {"pack": 3}, (8, 3, 1, 1)),
        (CPU, 8, {"pack": 1, "concurrency": 2}, (8, 1, 2, 1)),
        (CPU, 8, {"concurrency": 2}, (8, 4, 2, 1)),
        (CPU, 1, {"processes": 2}, (1, 1, 1, 2)),
        (gpus(1), 40, {}, (40, 16, 1, 1)),
        (gpus(4), 40, {}, (40, 10, 4, 1)),
        (gpus(8), 8, {}, (8, 1, 8, 1)),
        (gpus(4), 1, {}, (1, 1, 1, 4)),
        (gpus(8), 2, {}, (2, 1, 2, 4)),
        (gpus(4), 8, {"processes": 2}, (8, 4, 2, 2)),
        (gpus(4), 8, {"concurrency": 2}, (8, 4, 2, 1)),
        (gpus(4), 8, {"processes": 2, "concurrency": 2}, (8, 4, 2, 2)),
        (gpus(4), 8, {"processes": 2, "concurrency": 1}, (8, 8, 1, 2)),
        (gpus(4), 8, {"processes": 2, "concurrency": 4}, (8, 4, 2, 2)),
    ],
)
def test_jobs_are_spread_over_the_places(
    machine: Machine, count: int, launcher: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert shapes(plan(seeds(count), machine, **launcher)) == [expected]


class CostsByMemory(Costs):
    """Jobs that need 1 GB each, over a base of 2 GB."""

    def fitting(self, jobs: Sequence[Job], machine: Machine, processes: int) -> tuple[int, str] | None:
        memory_gb = machine.devices[0].memory_gb
        assert memory_gb is not None
        return int(memory_gb - 2), "as far as the memory holds them"


@pytest.mark.parametrize(
    ("count", "cores", "memory_gb", "launcher", "expected"),
    [
        (7, 2, 64, {}, (7, 7, 1, 1)),
        (8, 2, 64, {}, (8, 4, 2, 1)),
        (20, 2, 64, {}, (20, 8, 2, 1)),
        (20, 16, 64, {}, (20, 4, 5, 1)),
        (20, 16, 64, {"processes": 4}, (20, 5, 4, 4)),
        (20, 16, 64, {"concurrency": 1}, (20, 8, 1, 1)),
        (20, 16, 24, {}, (20, 4, 4, 1)),
        (20, 16, 11, {}, (20, 8, 1, 1)),
        (20, 16, 11, {"concurrency": 2}, (20, 3, 2, 1)),
        (20, 16, 24, {"pack": 8}, (20, 8, 2, 1)),
        (20, 16, 24, {"pack": 2}, (20, 2, 5, 1)),
    ],
)
def test_a_cpu_has_a_worker_for_every_four_jobs_as_far_as_cores_and_memory_allow(
    count: int, cores: int, memory_gb: float, launcher: dict[str, Any], expected: tuple[int, ...]
) -> None:
    machine = Machine((Device("cpu", "a processor", memory_gb),), cores=cores)
    assert shapes(plan(seeds(count), machine, CostsByMemory(), **launcher)) == [expected]


def test_a_cpu_is_not_shared_where_its_memory_is_unknown_or_its_threads_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shapes(plan(seeds(8), CPU, Costs())) == [(8, 8, 1, 1)]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert shapes(plan(seeds(8), CPU, Costs(fitting=8))) == [(8, 8, 1, 1)]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert shapes(plan(seeds(8), CPU, Costs(fitting=8))) == [(8, 4, 2, 1)]


def test_a_search_has_as_many_workers_as_its_trials_are_worth() -> None:
    machine = Machine((Device("cpu", "a processor", 24.0),), cores=16)
    settings = Experiment.model_validate({}).launcher
    found = make_plan(seeds(1), {}, settings, machine=machine, costs=CostsByMemory(), expected=40)
    assert shapes(found) == [(1, 4, 4, 1)]
    # The other GPUs are kept for the trials to come: none helps with the first two.
    found = make_plan(seeds(2), {}, settings, machine=gpus(8), costs=Costs(), expected=40)
    assert shapes(found) == [(2, 5, 8, 1)]


def test_packs_beside_each_other_share_the_memory() -> None:
    machine = Machine((Device("cpu", "a processor", 16.0),), cores=2)
    found = plan([*seeds(7), *seeds(7, resolution=128)], machine, CostsByMemory())
    assert shapes(found) == [(7, 6, 1, 1), (7, 6, 1, 1)]


class CostsOfSmallOnes(CostsByMemory):
    """Nothing is known about images of 128 px."""

    def fitting(self, jobs: Sequence[Job], machine: Machine, processes: int) -> tuple[int, str] | None:
        return super().fitting(jobs, machine, processes) if jobs[0].experiment.resolution < 128 else None


def test_a_cpu_is_shared_only_where_that_is_right_for_every_pack() -> None:
    assert plan(seeds(8), CPU, CostsOfSmallOnes()).places == 2
    assert plan([*seeds(8), *seeds(8, resolution=128)], CPU, CostsOfSmallOnes()).places == 1


def test_workers_of_a_queue_have_a_cpu_each() -> None:
    machine = Machine((Device("cpu", "a node", 16.0),), cores=2)
    slurm = {"name": "slurm", "gpus_per_node": 0, "concurrency": 4}
    assert shapes(plan(seeds(32), machine, CostsByMemory(), **slurm)) == [(32, 8, 4, 1)]
    assert shapes(plan(seeds(32), machine, CostsByMemory(), **{**slurm, "concurrency": None})) == [(32, 8, 1, 1)]


def test_small_packs_train_side_by_side_on_a_cpu() -> None:
    found = plan([*seeds(5), *seeds(5, resolution=128)], CPU, Costs(fitting=8))
    assert shapes(found) == [(5, 5, 1, 1), (5, 5, 1, 1)]
    assert found.places == 2
    machine = Machine((Device("cpu", "a processor", 64.0),), cores=16)
    many = [each for resolution in (64, 128, 256) for each in seeds(7, resolution=resolution)]
    assert plan(many, machine, CostsByMemory()).places == 3, "no core is kept for a worker that there is not"


def test_workers_of_a_queue_are_spread_over_their_own_gpus_only() -> None:
    settings = {"name": "sagemaker", "instance": "ml.g5.12xlarge", "concurrency": 3}
    assert shapes(plan([job(batch_size=12)], gpus(12), **settings)) == [(1, 1, 1, 4)]
    assert shapes(plan(seeds(2, batch_size=12), gpus(12), **settings)) == [(2, 1, 2, 4)]
    assert shapes(plan(seeds(1, batch_size=4), gpus(4), **{**settings, "concurrency": 4})) == [(1, 1, 1, 1)]
    assert shapes(plan([job(batch_size=12)], gpus(4), **{**settings, "concurrency": None})) == [(1, 1, 1, 4)]
    assert shapes(plan([job(batch_size=2)], gpus(4), **{**settings, "concurrency": None})) == [(1, 1, 1, 2)]


def test_a_job_is_spread_over_no_more_gpus_than_it_has_images() -> None:
    assert shapes(plan([job(batch_size=2)], gpus(8))) == [(1, 1, 1, 2)]
    assert shapes(plan([job(batch_size=1)], gpus(8))) == [(1, 1, 1, 1)]
    assert shapes(plan([job(batch_size=4), job(batch_size=2)], gpus(8))) == [(2, 1, 2, 2)]


def test_memory_limits_the_pack_and_the_plan_says_so() -> None:
    found = plan(seeds(9), gpus(1), Costs(fitting=4))
    assert shapes(found) == [(9, 4, 1, 1)]
    assert found.packs[0].why == "as far as the memory holds them"
    assert shapes(plan(seeds(9), gpus(1), Costs(fitting=0))) == [(9, 1, 1, 1)]
    assert shapes(plan(seeds(9), gpus(1), Costs(fitting=4), pack=6)) == [(9, 6, 1, 1)], "the user's word counts"


def test_the_plan_says_why_so_many_train_together() -> None:
    def why(count: int, costs: Costs | None = None, **launcher: Any) -> str:
        (pack,) = plan(seeds(count), CPU, costs, **launcher).packs
        return pack.why

    assert why(1) == ""
    assert why(3) == "all together"
    assert why(20) == "at most 8 on a CPU"
    assert why(3, pack=2) == "launcher.pack=2"
    assert why(8, Costs(fitting=8)) == "shared among 2 workers"


def test_other_tasks_than_training_are_worked_through_one_by_one_on_every_place() -> None:
    def drawing(number: int, **settings: Any) -> Job:
        generate = Generate.model_validate({"task": {"name": "generate"}, "prompts": [f"a {number}"], **settings})
        return make_task_job(generate, {"model": "base"}, outputs=Path("outputs"))

    several = [drawing(number) for number in range(5)]
    assert shapes(plan(several, gpus(1))) == [(5, 1, 1, 1)]
    assert shapes(plan(several, gpus(4))) == [(5, 1, 4, 1)]
    assert shapes(plan(several[:2], gpus(4))) == [(2, 1, 2, 1)]
    assert shapes(plan([drawing(number) for number in range(8)], CPU, Costs(fitting=8))) == [(8, 1, 1, 1)]
    assert plan(several, gpus(1)).packs[0].why == "one after the other over one loaded base"
    assert shapes(plan([*several, drawing(9, precision="bf16"), job()], gpus(4))) == [
        (5, 1, 4, 1),
        (1, 1, 1, 1),
        (1, 1, 1, 1),
    ]


def test_jobs_that_are_shared_out_are_as_much_to_do_for_each() -> None:
    jobs = [job(steps=steps) for steps in (200, 100, 1000, 400)]
    shares = shared_out(jobs, 2)
    assert [[each.experiment.steps for each in share] for share in shares] == [[1000], [400, 200, 100]]
    alike = seeds(5)
    assert shared_out(alike, 2) == [alike[::2], alike[1::2]]


def test_jobs_that_share_no_forward_pass_are_in_packs_of_their_own() -> None:
    jobs = [
        job(seed=1),
        job(seed=2, lora={"rank": 4}, optimizer={"name": "prodigy"}, steps=7, batch_size=1, loss={"snr_gamma": 5}),
        job(model="another base"),
        job(resolution=128),
        job(precision="bf16"),
        job(lora={"text_encoder": True}),
        job(model="base", seed=3),
    ]
    assert [len(pack.jobs) for pack in plan(jobs).packs] == [3, 1, 1, 1, 1]


def beginnings(found: Plan, key: str) -> list[list[Any]]:
    """The jobs that each worker of the only pack takes first, followed by the remaining ones."""
    (pack,) = found.packs
    values = [getattr(job.experiment, key) for job in pack.jobs]
    hands = [values[hand * pack.at_once : (hand + 1) * pack.at_once] for hand in range(pack.workers)]
    return [*hands, values[pack.workers * pack.at_once :]]


def test_long_jobs_begin_first_and_every_worker_has_as_much_to_do() -> None:
    jobs = [job(steps=steps, seed=seed) for steps in (100, 200, 400, 1000) for seed in range(2)]
    assert beginnings(plan(jobs, gpus(1), pack=3), "steps") == [[1000, 1000, 400], [400, 200, 200, 100, 100]]
    both = [1000, 400, 200, 100]
    assert beginnings(plan(jobs, CPU, Costs(fitting=8)), "steps") == [both, both, []]
    assert beginnings(plan(jobs[1:], gpus(2)), "steps") == [both, [1000, 400, 200], []]
    assert beginnings(plan([*jobs[2:4], *jobs[6:]], gpus(3)), "steps") == [[1000, 200], [1000, 200], [], []]
    assert beginnings(plan([*jobs[2:5], *jobs[6:]], gpus(3)), "steps") == [[1000, 200], [1000, 200], [400], []]
    assert beginnings(plan(jobs, gpus(2), pack=2), "steps") == [[1000, 400], [1000, 400], [200, 200, 100, 100]]


def test_larger_batches_and_adapters_are_more_to_do() -> None:
    jobs = [job(seed=seed, lora={"rank": rank}) for rank in (4, 8, 16, 32) for seed in range(2)]
    found = plan(jobs, CPU, Costs(fitting=8))
    assert [each.experiment.lora.rank for each in found.todo] == [32, 32, 16, 16, 8, 8, 4, 4]  # padded to 32, and to 8
    longer = plan([*jobs, job(seed=9, steps=2000, lora={"rank": 4})], CPU, Costs(fitting=8))
    assert [each.experiment.lora.rank for each in longer.todo] == [4, 8, 8, 4, 4, 32, 32, 16, 16]
    assert beginnings(plan([job(batch_size=size) for size in (1, 4, 2)], gpus(1), pack=1), "batch_size") == [
        [4],
        [2, 1],
    ]


def test_jobs_with_as_much_to_do_begin_in_the_order_of_the_command() -> None:
    jobs = [job(seed=seed, optimizer={"name": "adamw", "lr": lr}) for lr in (3e-4, 1e-4) for seed in (5, 2, 9, 1)]
    assert plan(jobs, CPU, Costs(fitting=8)).todo == tuple(jobs)


def test_done_and_repeated_and_held_jobs_are_not_run() -> None:
    one, two, three = seeds(3)
    states = {one.folder: State.COMPLETED, two.folder: State.FAILED}
    settings = Experiment.model_validate({}).launcher
    found = make_plan(
        [one, two, two, three], states, settings, machine=CPU, costs=Costs(), elsewhere={three.folder, one.folder}
    )
    assert (found.todo, found.done, found.elsewhere, found.repeated) == ((two,), (one,), (three,), 1)


def test_a_pruned_job_is_done_for_a_command_that_prunes_and_open_for_one_that_does_not() -> None:
    pruning, plain = job(pruning={"name": "asha"}), job()
    assert pruning.folder == plain.folder
    assert plan([pruning], states={pruning.folder: State.PRUNED}).done == (pruning,)
    assert plan([plain], states={plain.folder: State.PRUNED}).todo == (plain,)


def test_the_plan_in_words_says_what_why_and_how_long() -> None:
    prediction = Prediction(seconds=600, alone_s=3600, memory_gb=31.4, measured=False)
    found = plan(
        [*seeds(20, name="trial"), job(name="trial", resolution=128)], gpus(1), Costs(fitting=4, prediction=prediction)
    )
    text = "\n".join(plan_lines(found, CacheWork(32, 3, 5, 0)))
    assert "21 jobs to run in 2 packs" in text
    assert "on NVIDIA H100, 80 GB" in text
    assert "embedded, 64 px, fp32; 20 jobs, 4 at once (as far as the memory holds them)" in text
    assert "about 10 min and 31.4 GB, or 60 min one after the other (estimated; not measured here yet)" in text
    assert "cache: 32 crops, 3 of them to encode; 5 captions, 0 to encode" in text
    assert all(f"seed={seed} " in text for seed in range(20))


def test_the_plan_says_what_reading_the_captions_takes_where_that_is_more_and_is_to_be_done() -> None:
    prediction = Prediction(seconds=600, alone_s=600, memory_gb=9.6, measured=False, encoding_gb=22.3)
    found = plan(seeds(1), gpus(1), Costs(prediction=prediction))
    said = "about 10 min and 9.6 GB (22.3 GB before, while captions are encoded) (estimated; not measured here yet)"
    for work in (CacheWork(4, 0, 5, 2), None):
        assert said in "\n".join(plan_lines(found, work))
    assert "22.3 GB" not in "\n".join(plan_lines(found, CacheWork(4, 0, 5, 0)))
    alike = plan(seeds(1), gpus(1), Costs(prediction=dataclasses.replace(prediction, encoding_gb=9.62)))
    assert "GB before" not in "\n".join(plan_lines(alike, None)), "it would be read as the same number twice"


@pytest.mark.parametrize(
    ("memory_gb", "encoding_gb", "settings", "said"),
    [
        (15.9, 15.9, {}, None),
        (
            29.0,
            3.9,
            {},
            "and the system may kill it: a higher accumulation or launcher.gradient_checkpointing=true needs",
        ),
        (
            29.0,
            3.9,
            {"batch_size": 1, "launcher": {"name": "local", "gradient_checkpointing": True}},
            "a lower resolution needs less memory",
        ),
        (10.0, 90.0, {}, "captions need more than the 16 GB of this machine: provide a RUNNER_CACHE"),
    ],
)
def test_a_plan_that_the_memory_is_unlikely_to_hold_says_so(
    memory_gb: float, encoding_gb: float, settings: dict[str, Any], said: str | None
) -> None:
    costs = Costs(prediction=Prediction(600, 600, memory_gb, measured=False, encoding_gb=encoding_gb))
    text = "\n".join(plan_lines(plan([job(**settings)], CPU, costs), None))
    assert ("more than the 16 GB of this machine" in text) == (said is not None)
    assert said is None or said in text
    on_gpu = "\n".join(plan_lines(plan([job(**settings)], gpus(1), Costs(prediction=costs.prediction)), None))
    assert ("the CPU encodes them" in on_gpu) == (encoding_gb > 80)


@pytest.mark.parametrize(("precision", "is_slow"), [("fp32", False), ("bf16", True), ("fp16", False)])
def test_a_precision_that_the_processor_computes_in_software_is_told(precision: str, is_slow: bool) -> None:
    machine = Machine((Device("cpu", "an old CPU", 16.0, in_software=("bf16",)),), cores=2)
    text = "\n".join(plan_lines(plan([job(precision=precision)], machine), None))
    assert ("no instructions for bf16: with precision=fp32 it is many times faster" in text) == is_slow


def test_the_plan_of_a_search_says_what_its_time_supposes() -> None:
    prediction = Prediction(seconds=600, alone_s=3600, memory_gb=31.4, measured=True)
    settings = Experiment.model_validate({}).launcher
    found = make_plan(seeds(1), {}, settings, machine=gpus(1), costs=Costs(prediction=prediction), expected=40)
    text = "\n".join(plan_lines(found, None))
    assert "up to 40 in all, 16 at once" in text
    assert (
        "about 10 min and 31.4 GB, or 60 min one after the other (from steps measured here), "
        "if every trial takes as long and none is pruned" in text
    )


def test_the_plan_as_data_is_json() -> None:
    prediction = Prediction(seconds=600, alone_s=3600, memory_gb=31.4, measured=True)
    found = plan(seeds(3), costs=Costs(prediction=prediction))
    data = json.loads(json.dumps(plan_data(found, CacheWork(32, 3, 5, 0))))
    (pack,) = data["packs"]
    assert [each["id"] for each in pack["jobs"]] == [each.id for each in found.todo]
    assert (pack["at_once"], pack["workers"], pack["prediction"]["alone_s"]) == (3, 1, 3600)
    assert data["machine"]["devices"][0]["memory_gb"] == 16.0
    assert data["cache"]["images_missing"] == 3
