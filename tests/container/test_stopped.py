"""A tuner's job that is told to stop continues in the next container as if undisturbed; its secrets leak nowhere."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from runner.jobs.job import Job, read_job, read_manifest
from tests.command_line import Answer
from tests.container.conftest import REGION, Secrets
from tests.container.opt_ml import OptMl, files_with, same_bits
from tests.train.bench import Bench

PLAIN, IN_JSON = "hf_plain_and_secret_1", "wb_in_json_and_secret_2"
SENT = {"steps": 24, "seed": 31, "checkpoint": {"every": 3}}
CHOSEN = {"lora": {"rank": 3}, "optimizer": {"lr": 2.5e-3}}


@dataclass(frozen=True)
class Stopped:
    """A container that got a signal while training."""

    sent: Job
    tree: OptMl
    own_environment: str
    worker_environment: list[str]
    answer: Answer


@pytest.fixture(scope="module")
def here(bench: Bench, sdxl_folder: Path) -> Job:
    """The job with the tuner's settings, trained on this machine."""
    job = bench.job(sdxl_folder, **SENT, **CHOSEN)
    assert bench.train(job)
    return job


def lay_out(root: Path, job: Job, **more: object) -> OptMl:
    tree = OptMl(root / "ml").send(job, **more).send_package()
    return tree.hyperparameters(
        lora__rank="3", optimizer__lr="2.5e-3", _tuning_objective_metric="validation/loss", sagemaker_region="x"
    )


@pytest.fixture(scope="module")
def stopped(bench: Bench, sdxl_folder: Path, aws_secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    sent = bench.job(sdxl_folder, **SENT)
    secrets = {
        "HF_TOKEN": aws_secrets.put(PLAIN),
        "WANDB_API_KEY": aws_secrets.put(json.dumps({"WANDB_API_KEY": IN_JSON, "OTHER": "x"})),
    }
    tree = lay_out(tmp_path_factory.mktemp("stopped"), sent, secrets=secrets, region=REGION)
    entry = tree.start(aws_secrets.environment)
    job = entry.wait_for("checkpoints/jobs/*/checkpoints/step-000003").parents[1]
    pids = (entry.process.pid, int((job / ".lock").read_text()))
    own, worker = (Path(f"/proc/{pid}/environ").read_bytes().decode() for pid in pids)
    entry.process.send_signal(signal.SIGTERM)
    return Stopped(sent, tree, own, worker.split("\0"), entry.end())


def test_it_saves_what_it_has(stopped: Stopped, here: Job) -> None:
    assert stopped.answer.code == 0, stopped.answer.output
    assert [folder.name for folder in stopped.tree.jobs.iterdir() if folder.is_dir()] == [here.id]
    manifest = read_manifest(stopped.tree.jobs / here.id)
    assert manifest["state"] == "interrupted"
    assert 3 <= manifest["steps_done"] < 24
    assert not stopped.tree.failure.exists()
    # Encodings are kept for later jobs: seven images, and their captions including the empty one.
    cache = stopped.tree.root / "checkpoints" / "cache"
    assert len(list(cache.glob("posteriors/*/*.safetensors"))) == 7
    assert len(list(cache.glob("captions/*/*.safetensors"))) == 8
    assert [file for file in cache.rglob("*") if file.name.startswith(".")] == []


@pytest.mark.parametrize(("name", "value"), [("HF_TOKEN", PLAIN), ("WANDB_API_KEY", IN_JSON)])
def test_its_secrets_were_in_the_environment_of_the_worker_alone(stopped: Stopped, name: str, value: str) -> None:
    assert f"{name}={value}" in stopped.worker_environment
    assert value not in stopped.own_environment
    assert value not in stopped.answer.output
    assert files_with(stopped.tree.root, value) == []


def test_the_next_one_gives_what_the_same_settings_give_here(stopped: Stopped, here: Job, tmp_path: Path) -> None:
    tree = lay_out(tmp_path, stopped.sent)
    shutil.copytree(stopped.tree.root / "checkpoints", tree.root / "checkpoints")
    answer = tree.run()

    assert answer.code == 0, answer.output
    there = tree.trained(here)
    assert same_bits(there, here)
    steps_done = read_manifest(stopped.tree.jobs / here.id)["steps_done"]
    assert f"continues after step {steps_done}" in answer.output
    manifest = read_manifest(there.folder)
    assert (manifest["state"], manifest["attempts"]) == ("completed", 2)
    assert manifest["overrides"] == ["lora.rank=3", "optimizer.lr=2.5e-3"]
    # It ran from the package that was sent, not from this checkout, which has a commit.
    assert manifest["git_commit"] is None
    assert read_job(there.folder).experiment.dataset.path == str(tree.data / "images")
    assert answer.output.splitlines()[-1] == f"validation/loss={manifest['objective']!r}"
    model = tree.root / "model" / here.id
    assert sorted(file.name for file in model.iterdir()) == ["config.yaml", "lora"]
    assert {file.name for file in (model / "lora").iterdir()} == {file.name for file in there.paths.lora.iterdir()}
