"""hydra/sweeper=sagemaker_tuning from the command line to a report: a real tuning job, real trials."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.jobs.job import read_job
from runner.paths import ExperimentPaths
from tests.command_line import ROOT, command, environment, runner
from tests.launchers.running import Running, manifests, outputs
from tests.sagemaker.stand_in import Image, StandIn

# Like the real entry point, except that for one choice it fails as a container does.
SCRIPT = """
if grep -q '"optimizer.lr": "0.5"' ${SM_ML_ROOT:-/opt/ml}/input/config/hyperparameters.json; then
  mkdir -p ${SM_ML_ROOT:-/opt/ml}/output; printf 'GpuBroken: fell off' > ${SM_ML_ROOT:-/opt/ml}/output/failure; exit 1
fi
exec "$0" -m runner.container
"""
VARIABLES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
IMAGE = Image(("sh", "-c", SCRIPT, sys.executable), VARIABLES)
SEARCH = ["-m", "hydra/sweeper=sagemaker_tuning", "hydra.sweeper.seed=3"]
SPACE = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "lora=attention,linear", "lora.rank=int(interval(1,9))"]


def settings_of(aws: StandIn, model: Path, image: Image = IMAGE) -> list[str]:
    return [
        *(f"model.path={model}", "logger=none", "validation.prompts=[]", "validation.timesteps=2", "steps=3"),
        *("launcher=sagemaker", f"launcher.image={aws.add_image('lora:1', image)}", f"launcher.role={aws.role}"),
        *(f"launcher.bucket={aws.bucket}", "launcher.instance=ml.m5.xlarge", "launcher.poll_s=0.2"),
        "launcher.logs=file",
    ]


@pytest.fixture
def settings(aws: StandIn, sdxl_folder: Path) -> list[str]:
    return settings_of(aws, sdxl_folder)


def look() -> str:
    command = [sys.executable, "-m", "runner.status", "--once", str(outputs() / "dev")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def tuned(aws: StandIn) -> dict[str, dict[str, str]]:
    """The values given to each trial, by the name of its training job."""
    (search,) = aws.tuning.jobs.values()
    return {job.name: values for job, values in search.tried}


def tuning_record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outputs() / "dev" / "sagemaker" / f"{name}.json").read_text())
    return found


@pytest.mark.slow
def test_trials_go_on_without_their_command_and_become_jobs(aws: StandIn, settings: list[str]) -> None:
    command = [*SEARCH, *settings, *SPACE, "hydra.sweeper.n_trials=4", "hydra.sweeper.parallel=2"]
    killed = Running(command)
    killed.wait_for("dev/*/metrics.jsonl")
    killed.kill()
    aws.wait(next(name for name in aws.jobs if name in str(manifests())), within_s=90)
    said = look()
    assert "completed" in said, said  # known results are collected without the command
    answer = runner(*command)

    assert answer.code == 0, answer.output
    assert "already submitted: tuning job" in answer.output
    (request,) = aws.asked("CreateHyperParameterTuningJob")
    name = request["HyperParameterTuningJobName"]
    found, trials = manifests(), tuned(aws)
    assert len(trials) == len(found) == 4
    assert {manifest["state"] for manifest in found.values()} == {"completed"}
    for training_job, values in trials.items():
        (manifest,) = [each for each in found.values() if training_job in each["costs"]]
        assert manifest["worker"] == training_job
        assert manifest["submission"] == {"cluster": "sagemaker", "tuning": name, "ids": [training_job]}
        chosen = [f"optimizer.lr={float(values['optimizer.lr'])!r}", f"lora={values['lora.targets']}"]
        assert manifest["overrides"][-3:] == [*chosen, f"lora.rank={values['lora.rank']}"]
        job = read_job(outputs() / "dev" / manifest["id"])
        assert job.experiment.lora.rank == int(values["lora.rank"])
        assert job.paths.weights.is_file()
        assert manifest["costs"][training_job]["usd"] > 0
        assert aws.jobs[training_job].metrics.value("validation/loss") == manifest["objective"]
    best = min(found.values(), key=lambda manifest: float(manifest["objective"]))
    (line,) = [line for line in answer.output.splitlines() if line.startswith("best: ")]
    assert line.startswith(f"best: validation/loss {best['objective']:.4g} with optimizer.lr=")
    assert line.endswith(f", in {outputs() / 'dev' / best['id']}")
    assert (outputs() / "dev" / "report.html").is_file()
    record = tuning_record(name)
    assert (record["status"], sorted(record["jobs"])) == ("Completed", sorted(found))
    plan = json.loads(aws.s3.get_object(Bucket=aws.bucket, Key=_key(aws, f"{name}/config/plan.json"))["Body"].read())
    assert len(plan["jobs"]) == 1

    again = runner(*command)
    assert again.code == 0, again.output
    assert f"tuning job {name} has ended, and its results are here" in again.output
    assert len(aws.asked("CreateHyperParameterTuningJob")) == 1


def test_somebody_elses_search_of_the_same_name_is_left_alone(aws: StandIn, sdxl_folder: Path, tmp_path: Path) -> None:
    waits = settings_of(aws, sdxl_folder, Image(("sh", "-c", "sleep 60")))
    command = [*SEARCH, *waits, *SPACE, "hydra.sweeper.n_trials=1", "launcher.wait=false"]
    assert runner(*command).code == 0
    (search,) = aws.tuning.jobs
    assert [note.stem for note in ExperimentPaths(outputs() / "dev").searches] == [search], "for `runner.stop`"
    other, elsewhere = {"RUNNER_OUTPUTS": str(tmp_path / "other")}, ExperimentPaths(tmp_path / "other" / "dev")

    answer = runner(*command, "launcher.prefix=team/b", extra=other)
    assert answer.code == 2, answer.output
    assert elsewhere.searches == [], "it is not this one's to stop"
    assert "is there already, and its results come to s3://stand-in/lora-runner/" in answer.output
    assert "launcher.prefix as it has them, or give this search another name" in answer.output

    assert runner(*command, extra=other).code == 0, "of the same place: taken up"
    assert [note.stem for note in elsewhere.searches] == [search]


def test_a_search_that_may_not_be_started_is_refused_before_anything_is_sent(aws: StandIn, settings: list[str]) -> None:
    aws.permissions.deny("sagemaker:CreateHyperParameterTuningJob")

    answer = runner(*SEARCH, *settings, *SPACE)

    assert answer.code == 2, answer.output
    assert "may not sagemaker:CreateHyperParameterTuningJob on arn:" in answer.output
    assert aws.keys("") == []


def _key(aws: StandIn, end: str) -> str:
    (key,) = [key for key in aws.keys("") if key.endswith(end)]
    return str(key)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Each training job of a search has its own checkpoint folder."""
    with StandIn(tmp_path / "instances", grace_s=5, tuning_checkpoints="apart") as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        yield aws
    assert aws.faults == [], "\n".join(aws.faults)


def test_a_trial_that_fails_is_a_job_that_failed(apart: StandIn, sdxl_folder: Path) -> None:
    space = ["optimizer.lr=1e-3,0.5", "hydra.sweeper.n_trials=2", "hydra.sweeper.seed=4"]
    answer = runner(*SEARCH, *settings_of(apart, sdxl_folder), *space)

    assert answer.code == 1, "as in any sweep with a job that failed"
    assert [values["optimizer.lr"] for values in tuned(apart).values()] == ["0.001", "0.5"]
    states = {manifest["overrides"][-1]: manifest["state"] for manifest in manifests().values()}
    assert states == {"optimizer.lr=0.001": "completed", "optimizer.lr=0.5": "failed"}
    assert "GpuBroken: fell off" in answer.output, "SageMaker's reason is in the table"
    assert "best: validation/loss" in answer.output


@pytest.mark.slow
def test_a_search_in_which_all_fail_fails_and_the_next_command_tries_anew(aws: StandIn, sdxl_folder: Path) -> None:
    command = [*SEARCH, *settings_of(aws, sdxl_folder, Image(("sh", "-c", "exit 3"))), *SPACE]
    command += ["hydra.sweeper.n_trials=2", "launcher.wait=false"]
    left = runner(*command)
    assert left.code == 0, left.output
    (name,) = aws.tuning.jobs
    assert f"tuning job {name} goes on without this command" in left.output
    aws.tuning.jobs[name].thread.join(timeout=60)

    answer = runner(*command)
    assert answer.code == 1, answer.output
    assert "2 of 2 jobs failed" in answer.output
    assert tuning_record(name)["failure_reason"] == "All training jobs failed."
    assert len(aws.asked("CreateHyperParameterTuningJob")) == 1

    runner(*command)
    _, other = aws.asked("CreateHyperParameterTuningJob")
    assert other["HyperParameterTuningJobName"] == f"{name}-2"
    assert other["HyperParameterTuningJobConfig"]["RandomSeed"] == 4


@pytest.mark.slow
def test_stop_ends_the_search_and_its_trials(aws: StandIn, settings: list[str]) -> None:
    running = Running(
        [*SEARCH, "hydra.sweeper.n_trials=4", "hydra.sweeper.parallel=1", *settings, SPACE[0], "steps=4000"]
    )
    running.wait_for("dev/*/metrics.jsonl")
    stopped = command("stop", str(outputs() / "dev"))
    answer = running.end()

    assert stopped.code == 0, stopped.output
    (search,) = aws.tuning.jobs
    assert f"asked to save and stop: sagemaker {search}" in stopped.output
    assert answer.code == 130, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == ["cancelled"]
    assert len(aws.jobs) == 1, "no further trial was begun"
