"""launcher=sagemaker from the command line to weights in the run folder: real requests, processes and trainings."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.command_line import command, runner, trained
from tests.conftest import MakeOnce
from tests.launchers.running import Running, assert_bitwise_equal, manifests, only_folder, outputs, weights
from tests.measures.networks import save_clip, save_inception
from tests.sagemaker.stand_in import Image, StandIn

IMAGE = Image((sys.executable, "-m", "runner.container"), {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})


def job_settings(model: Path, steps: int = 50) -> list[str]:
    """A small job."""
    # With the usual eps of 1e-8, Adam makes full steps out of rounding errors, which differ between several processes.
    return [
        *(f"model.path={model}", "logger=none", "validation.prompts=[]", "optimizer.eps=1e-3"),
        *(f"steps={steps}", "checkpoint.every=5"),
    ]


def launcher_settings(aws: StandIn) -> list[str]:
    """The settings of where a job runs."""
    image = aws.add_image("lora:1", IMAGE)
    return [
        *("launcher=sagemaker", f"launcher.image={image}", f"launcher.role={aws.role}"),
        *(f"launcher.bucket={aws.bucket}", "launcher.instance=ml.m5.xlarge", "launcher.poll_s=0.2"),
    ]


@pytest.fixture
def settings(aws: StandIn, sdxl_folder: Path) -> list[str]:
    return [*job_settings(sdxl_folder), *launcher_settings(aws)]


@pytest.fixture
def undisturbed(sdxl_folder: Path, made_once: MakeOnce) -> Path:
    """The result of the small job on this machine."""
    folder = made_once("sagemaker", lambda folder: trained(folder, *job_settings(sdxl_folder)))
    (job,) = folder.glob("outputs/dev/*/manifest.json")
    return job.parent


def created(aws: StandIn) -> list[str]:
    return [request["TrainingJobName"] for request in aws.asked("CreateTrainingJob")]


def test_a_job_trains_there_and_gives_the_weights_of_a_local_one(
    aws: StandIn, settings: list[str], undisturbed: Path
) -> None:
    answer = runner(*settings)

    assert answer.code == 0, answer.output
    there = only_folder()
    assert there.name == undisturbed.name, "where it runs is no part of what a job is"
    assert_bitwise_equal(there, undisturbed)
    (manifest,) = manifests().values()
    (name,) = created(aws)
    assert (manifest["state"], manifest["worker"]) == ("completed", name)
    record = json.loads((outputs() / "dev" / "sagemaker" / f"{name}.json").read_text())
    assert record["status"] == "Completed"
    assert record["usd"] == pytest.approx(record["billed_s"] * 0.25 / 3600)
    assert manifest["costs"][name]["usd"] == pytest.approx(record["usd"])
    assert f"{name} | " in answer.output, "what it printed is shown"
    assert "saved and read back" in (outputs() / "dev" / "sagemaker" / f"{name}.log").read_text()
    assert (there / "metrics.jsonl").read_text().count("\n") == (undisturbed / "metrics.jsonl").read_text().count("\n")

    again = runner(*settings)
    assert again.code == 0, again.output
    assert created(aws) == [name], "what is done is not sent again"


def test_a_sweep_is_one_training_job_and_the_next_one_uploads_and_encodes_nothing(
    aws: StandIn, settings: list[str]
) -> None:
    answer = runner("-m", *settings, "seed=1,2,3", "steps=5", "launcher.logs=file")
    assert answer.code == 0, answer.output
    assert {manifest["state"] for manifest in manifests().values()} == {"completed"}
    assert len(created(aws)) == 1
    assert " | " not in answer.output
    before = set(aws.keys())

    answer = runner("-m", *settings, "seed=1,2,3,4", "steps=5", "launcher.logs=file")
    assert answer.code == 0, answer.output
    assert len(created(aws)) == 2
    assert "3 already done" in answer.output
    assert "to S3" not in answer.output
    new = [key for key in set(aws.keys()) - before if "/experiments/" not in key]
    assert new == [], "data, model, code and encodings were there"
    log = (outputs() / "dev" / "sagemaker" / f"{created(aws)[1]}.log").read_text()
    assert "32 images: 32 in the cache, 0 to encode" in log


@pytest.mark.slow
def test_with_quota_and_throttling_a_sweep_waits_and_is_done(aws: StandIn, settings: list[str]) -> None:
    aws.quotas.set("ml.m5.xlarge", training=2, spot=2)
    aws.permissions.throttle("CreateTrainingJob", 3)

    answer = runner("-m", *settings, "seed=1,2,3,4,5,6,7,8", "launcher.concurrency=4", "launcher.logs=file", "steps=2")

    assert answer.code == 0, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == ["completed"] * 8
    assert "has no capacity right now" in answer.output
    assert len({job.name for job in aws.jobs.values()}) == 4, "four lists of two jobs"


@pytest.mark.slow
def test_a_lost_spot_instance_changes_nothing(aws: StandIn, sdxl_folder: Path, undisturbed: Path) -> None:
    running = Running([*job_settings(sdxl_folder), *launcher_settings(aws), "logger.every=1"])
    deadline_s = time.monotonic() + 60
    while not any(key.endswith("metrics.jsonl") for key in list(aws.keys())):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    (name,) = created(aws)
    aws.interrupt(name)
    answer = running.end()

    assert answer.code == 0, answer.output
    assert aws.jobs[name].attempts == 2
    assert_bitwise_equal(only_folder(), undisturbed)


def test_without_waiting_status_collects_and_a_killed_command_is_taken_up(
    aws: StandIn, settings: list[str], undisturbed: Path
) -> None:
    left = runner(*settings, "launcher.wait=false")
    assert left.code == 0, left.output
    (name,) = created(aws)
    assert "go on without this command" in left.output
    local = runner(*(text for text in settings if not text.startswith("launcher")))
    assert local.code == 2, local.output
    assert "was submitted to sagemaker" in local.output

    killed = Running(settings)
    killed.wait_for_line("already submitted")
    killed.kill()
    aws.wait(name)
    looked = command("status", "--once")

    assert looked.code == 0, looked.output
    assert "1 completed" in looked.output
    assert_bitwise_equal(only_folder(), undisturbed)
    assert (outputs() / "dev" / "report.html").is_file()
    assert created(aws) == [name]


@pytest.mark.slow
def test_who_asks_about_one_job_loses_nothing_of_those_that_were_sent_with_it(
    aws: StandIn, settings: list[str]
) -> None:
    sweep = ["-m", *settings, "seed=1,2", "steps=2", "launcher.wait=false"]
    assert runner(*sweep).code == 0
    (name,) = created(aws)
    assert aws.wait(name).status == "Completed"
    looked = command("status", "--once", str(next((outputs() / "dev").glob("*/manifest.json")).parent))
    assert "1 job: 1 completed" in looked.output

    answer = runner(*sweep)
    assert answer.code == 0, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == ["completed", "completed"]
    assert created(aws) == [name], "what is done is not done again"


def test_stop_saves_and_the_same_command_continues(aws: StandIn, sdxl_folder: Path) -> None:
    settings = [*job_settings(sdxl_folder, steps=400), *launcher_settings(aws), "logger.every=1"]
    running = Running(settings)
    running.wait_for("dev/*/metrics.jsonl")
    stopped = command("stop", str(outputs() / "dev"))
    answer = running.end()

    assert stopped.code == 0, stopped.output
    assert "asked to save and stop: sagemaker" in stopped.output
    assert answer.code == 130, answer.output
    (manifest,) = manifests().values()
    assert manifest["state"] == "cancelled"
    assert 0 < manifest["steps_done"] < 400
    assert any((only_folder() / "checkpoints").iterdir())

    left = runner(*settings, "launcher.wait=false")
    assert left.code == 0, left.output
    name = created(aws)[-1]
    aws.wait(name, "Training")
    sent = aws.keys(f"lora-runner/experiments/dev/{name}/checkpoints/")
    assert any("/checkpoints/step-" in key for key in sent), "it goes on from there"


@pytest.mark.slow
def test_eight_jobs_on_an_instance_with_four_gpus_are_one_training_job(aws: StandIn, settings: list[str]) -> None:
    gpus = [text for text in settings if not text.startswith("launcher.instance")]
    sweep = ["-m", *gpus, "launcher.instance=ml.g5.12xlarge", "seed=1,2,3,4,5,6,7,8", "steps=2"]
    planned = runner(*sweep, "launcher.dry_run=true")
    assert planned.code == 0, planned.output
    assert "8 jobs, 2 at once per worker" in planned.output
    assert "with a training job for each job" in planned.output
    assert planned.output.count('"TrainingJobName"') == 1
    assert "preflight: good" in planned.output
    assert created(aws) == []

    answer = runner(*sweep)
    assert answer.code == 0, answer.output
    (name,) = created(aws)
    assert [manifest["state"] for manifest in manifests().values()] == ["completed"] * 8
    assert f"{name} |   pack 1: " in answer.output
    for place in range(4):
        assert f"{name} | [{place}] " in answer.output, "each GPU has a worker of its own"


@pytest.mark.slow
def test_two_instances_share_every_batch(aws: StandIn, settings: list[str], undisturbed: Path) -> None:
    answer = runner(*settings, "launcher.instances=2", "launcher.processes=4")
    assert answer.code == 0, answer.output
    (manifest,) = manifests().values()
    assert manifest["device"].startswith("4 x ")
    (name,) = created(aws)
    assert json.loads((outputs() / "dev" / "sagemaker" / f"{name}.json").read_text())["instances"] == 2
    one, other = weights(only_folder()), weights(undisturbed)
    for key in one:
        assert torch.allclose(one[key], other[key], rtol=0, atol=1e-5 * float(other[key].abs().max())), key


def test_a_job_that_fails_says_why(aws: StandIn, settings: list[str]) -> None:
    answer = runner("-m", *settings, "optimizer.lr=1e-3,1e30", "launcher.logs=file")
    assert answer.code == 1, answer.output
    states = sorted(manifest["state"] for manifest in manifests().values())
    assert states == ["completed", "failed"], answer.output
    assert "the loss is nan at step" in answer.output
    (job,) = aws.jobs.values()
    assert job.status == "Failed"
    assert job.failure_reason is not None and "the loss is nan" in job.failure_reason


def test_an_image_that_cannot_start_fails_all_its_jobs_with_the_reason(aws: StandIn, settings: list[str]) -> None:
    broken = aws.add_image("lora:broken", Image(("sh", "-c", "echo no such program; exit 127"), {}))
    other = [f"launcher.image={broken}" if text.startswith("launcher.image") else text for text in settings]
    answer = runner("-m", *other, "seed=1,2")
    assert answer.code == 1, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == ["failed", "failed"]
    assert "exit code: 127" in answer.output
    assert len(created(aws)) == 1, "it is not tried again by itself"


def test_a_task_runs_there_with_what_its_settings_name_and_draws_as_here(aws: StandIn, undisturbed: Path) -> None:
    drawing = [
        *("-m", "task=generate", f"adapter={undisturbed}", "adapter_weight=0.5,1.0", "prompts='a red house'"),
        *("inference_steps=2", "logger=none"),
    ]

    here, there = runner(*drawing, "name=here"), runner(*drawing, "name=there", *launcher_settings(aws))

    assert here.code == there.code == 0, here.output + there.output
    assert len(created(aws)) == 1
    pictures = [
        {file.parents[2].name: file.read_bytes() for file in outputs().glob(f"{name}/*/samples/*/*.png")}
        for name in ("here", "there")
    ]
    assert len(pictures[0]) == 2
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_a_measurement_there_gives_the_figures_of_one_here(
    aws: StandIn, sdxl_folder: Path, undisturbed: Path, photos: Path, tmp_path: Path
) -> None:
    """Networks and real images are sent along, including linked ones."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "photos").symlink_to(photos)
    networks = {"clip": save_clip(tmp_path / "clip"), "inception": save_inception(tmp_path / "inception.pt")}
    measured = [
        *("task=evaluate", f"model.path={sdxl_folder}", f"adapter={undisturbed}", f"real={real}", "prompts=[a star]"),
        *("inference_steps=1", "seeds=[0,1]", "metrics=[fid,clip_text,base_drift]", "logger=none"),
        *(f"features.{name}={path}" for name, path in networks.items()),
    ]

    here, there = runner(*measured, "name=here"), runner(*measured, "name=there", *launcher_settings(aws))

    assert here.code == there.code == 0, here.output + there.output
    one, other = (
        json.loads(file.read_text())["figures"]
        for name in ("here", "there")
        for file in outputs().glob(f"{name}/*/manifest.json")
    )
    assert len(one) == 3 and one == other
