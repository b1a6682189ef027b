"""What sbatch gets, letter by letter; what the plan knows about nodes; and everything that is refused beforehand."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.errors import SettingsError
from runner.jobs.job import Job, make_job
from runner.launchers import find_launcher
from runner.launchers.slurm import check, machine, preview
from runner.launchers.slurm.preflight import _partitions
from runner.plan import Plan, Predictor, make_plan
from runner.schema import Experiment, SlurmLauncher
from runner.status.experiment import Watch
from tests.command_line import ROOT, runner
from tests.slurm.conftest import Slurm

GOLDEN = Path(__file__).parent / "golden"

FULL: dict[str, Any] = {
    "partition": "long,short",
    "account": "lab",
    "qos": "normal",
    "constraint": "a100|h100",
    "time_limit_min": 90,
    "gpus_per_node": 2,
    "cpus_per_task": 16,
    "mem_gb": 64,
    "gpu_name": "NVIDIA A100-SXM4-40GB",
    "gpu_memory_gb": 42.9,
    "setup": ["module load cuda", "source 'my environment'/bin/activate"],
    "sbatch": {"reservation": "course", "exclusive": True, "nice": 100},
}


def launcher(**settings: Any) -> SlurmLauncher:
    return SlurmLauncher.model_validate({"name": "slurm", **settings})


def plan(count: int, **settings: Any) -> Plan:
    jobs: list[Job] = []
    for seed in range(count):
        raw = {"name": "a name", "seed": seed, "launcher": {"name": "slurm", **settings}} | {"name": "trial"}
        jobs.append(
            make_job(Experiment.model_validate(raw), model="m", dataset="d", outputs=Path("/shared/my outputs"))
        )
    place = machine(launcher(**settings))
    return make_plan(jobs, {}, jobs[0].settings.launcher, machine=place, costs=Predictor())


def text(count: int, **settings: Any) -> str:
    os.environ.pop("PYTHONPATH", None)
    lines = preview(plan(count, **settings), launcher(**settings))
    said = "\n".join(lines) + "\n"
    return (
        said.replace(sys.executable, "PYTHON")
        .replace(str(ROOT), "CHECKOUT")
        .replace(os.environ["RUNNER_CACHE"], "CACHE")
    )


@pytest.mark.parametrize(
    ("name", "count", "settings"),
    [
        ("plain", 1, {}),
        ("full", 8, FULL | {"concurrency": 3}),
        ("two_nodes", 1, {"nodes": 2, "gpus_per_node": 2, "cpus_per_task": 8}),
        ("other_gpus", 4, {"gpus_per_node": 1, "sbatch": {"gres": "gpu:l4:1"}, "pack": 2}),
    ],
)
def test_the_file_for_sbatch(name: str, count: int, settings: dict[str, Any]) -> None:
    assert text(count, **settings) == (GOLDEN / f"{name}.txt").read_text(), "if this is meant, copy it there"


def test_slurm_starts_a_worker_again_only_where_somebody_asks_for_it() -> None:
    assert "#SBATCH --no-requeue\n" in text(1)
    asked = text(1, sbatch={"requeue": True})
    assert "#SBATCH --requeue\n" in asked and "no-requeue" not in asked


def test_nothing_is_shown_where_nothing_goes_to_sbatch() -> None:
    settings = {"cluster": "local", "gpus_per_node": 0}
    assert preview(plan(1, **settings), launcher(**settings)) == []
    assert find_launcher("local").preview(plan(1), None) == []


@pytest.mark.parametrize(
    ("count", "settings", "expected"),
    [
        (1, {}, (1, 1, 1)),
        (40, {}, (16, 1, 1)),
        (40, {"concurrency": 4}, (10, 4, 1)),
        (3, {"concurrency": 8}, (1, 3, 1)),
        (8, {"gpus_per_node": 2, "concurrency": 2}, (4, 2, 2)),
        (8, {"gpus_per_node": 2, "nodes": 2, "pack": 2}, (2, 1, 4)),
        (8, {"gpus_per_node": 0}, (8, 1, 1)),
        (8, {"gpus_per_node": 0, "processes": 2, "concurrency": 2}, (4, 2, 2)),
    ],
)
def test_a_worker_has_all_gpus_of_its_nodes(count: int, settings: dict[str, Any], expected: tuple[int, ...]) -> None:
    (pack,) = plan(count, **settings).packs
    assert (pack.at_once, pack.workers, pack.processes) == expected


def test_the_plan_knows_of_the_nodes_what_the_settings_say() -> None:
    known = machine(launcher(**FULL))
    assert known.line() == "2 x NVIDIA A100-SXM4-40GB, 43 GB each"
    assert machine(launcher()).line() == "a GPU that launcher.gpu_name does not name"
    assert machine(launcher(gpus_per_node=0, cpus_per_task=8, mem_gb=32)).line() == "a node, 8 cores, 32 GB"
    assert plan(1, gpus_per_node=0, cpus_per_task=8).packs[0].prediction is not None
    assert plan(1, gpus_per_node=0).packs[0].prediction is not None


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"gpu_name": "L4", "gpus_per_node": 0},
            "launcher.gpu_name = 'L4': has no effect with launcher.gpus_per_node=0",
        ),
        ({"device": "cpu"}, "launcher.device = 'cpu': contradicts launcher.gpus_per_node = 1"),
        (
            {"device": "cuda", "gpus_per_node": 0},
            "launcher.device = 'cuda': contradicts launcher.gpus_per_node = 0",
        ),
        ({"processes": 2}, "launcher.processes = 2: each GPU has one process, 1 for each worker here"),
        (
            {"gpus_per_node": 0, "nodes": 2, "processes": 3},
            "launcher.processes = 3: cannot be spread evenly over 2 nodes",
        ),
        ({"time_limit_min": 2}, "launcher.save_before_s = 120: nothing is left of launcher.time_limit_min = 2"),
        ({"cluster": "local", "qos": "x"}, "launcher.qos = 'x': has no effect with launcher.cluster=local"),
        (
            {"cluster": "local", "concurrency": 2},
            "launcher.concurrency = 2: with launcher.cluster=local all workers use",
        ),
        ({"wait": False, "resubmissions": 3}, "launcher.resubmissions = 3: has no effect with launcher.wait=false"),
        ({"gpus_per_node": 8}, "launcher.gpus_per_node = 8: batch_size = 4 leaves 4 of 8 processes without work"),
        ({"gpus_per_node": 0, "nodes": 8}, "launcher.nodes = 8: batch_size = 4 leaves 4 of 8 processes without work"),
        ({"sbatch": {"partition": "x"}}, "launcher.sbatch.partition: has a setting of its own; use launcher.partition"),
        ({"sbatch": {"cpus-per-task": 4}}, "cpus-per-task: has a setting of its own; use launcher.cpus_per_task"),
        ({"sbatch": {"output": "x"}}, "output: is set by the launcher itself; remove it"),
        (
            {"sbatch": {"--nice": 3}},
            "--nice: is not a parameter of sbatch; write its long name, without dashes in front",
        ),
        ({"sbatch": {"nice": [1]}}, "nice = [1]: should be a text, a number or true"),
        ({"partitio": "x"}, "launcher.partitio = 'x': unknown key, did you mean launcher.partition?"),
    ],
)
def test_what_cannot_take_effect_is_refused(settings: dict[str, Any], fault: str) -> None:
    from pydantic import ValidationError

    from runner.schema.messages import explain

    raw = {"launcher": {"name": "slurm", **settings}}
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate(raw)
    assert fault in "\n".join(explain(caught.value, raw))


def test_settings_of_slurm_have_no_effect_on_this_machine() -> None:
    answer = runner("launcher.partition=long", "launcher.dry_run=true")
    assert answer.code == 2
    assert "launcher.partition = 'long': has no effect with launcher=local, only with slurm; remove it" in answer.output


def test_parameters_of_sbatch_come_from_the_command_line_in_both_ways() -> None:
    answer = runner("launcher=slurm", "launcher.sbatch={nice: 5}", "+launcher.sbatch.exclusive=true", "--cfg", "job")
    assert answer.code == 0, answer.output
    assert "  sbatch:\n    nice: 5\n    exclusive: true\n" in answer.output


def test_all_that_is_wrong_with_the_place_is_said_at_once(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    _partitions.cache_clear()
    assert check(launcher(partition="long,short")) == []
    monkeypatch.setattr("runner.launchers.slurm.preflight.find_spec", lambda name: None)

    faults = check(launcher(partition="longer"))

    assert len(faults) == 2
    assert "launcher = 'slurm': needs the package submitit" in faults[0] and "pip install" in faults[0]
    assert "launcher.partition = 'longer': the cluster has no such partition, did you mean long?" in faults[1]
    assert "there are: long, short" in faults[1]


def test_without_slurm_nothing_is_submitted_but_a_dry_run_is_possible() -> None:
    (fault,) = check(launcher())
    assert fault.startswith("launcher.cluster = 'slurm': there is no sbatch, no srun, no squeue here; run this on")
    assert check(launcher(dry_run=True)) == []
    answer = runner("launcher=slurm")
    assert answer.code == 2
    assert "there is no sbatch" in answer.output
    assert Watch(list).look() == [], "nothing was started"


def test_a_machine_without_the_gpus_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.launchers.slurm.preflight.find_gpus", tuple)
    assert check(launcher(cluster="local")) == ["launcher.gpus_per_node = 1: this machine has 0 GPUs; lower it"]
    assert check(launcher(cluster="local", gpus_per_node=0)) == []


def test_a_search_has_to_wait() -> None:
    with pytest.raises(SettingsError, match="has to wait"):
        find_launcher("slurm").launch(plan(1, wait=False), launcher(wait=False), lambda count: [])
