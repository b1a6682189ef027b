"""A container that is told to stop saves, and the next one goes on; meanwhile its secrets have gone nowhere."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from runner.job import Job, read_manifest
from tests.command_line import Answer
from tests.container.conftest import REGION, Secrets
from tests.container.opt_ml import OptMl, files_with, same_bits
from tests.train.bench import Bench

STEPS = 24
PLAIN, IN_JSON = "hf_plain_and_secret_1", "wb_in_json_and_secret_2"


@dataclass(frozen=True)
class Stopped:
    """A container that got a signal while it trained."""

    job: Job
    tree: OptMl
    own_environment: str
    worker_environment: list[str]
    answer: Answer


@pytest.fixture(scope="module")
def stopped(bench: Bench, sdxl_folder: Path, aws_secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    job = bench.job(sdxl_folder, steps=STEPS, seed=31, checkpoint={"every": 3})
    secrets = {
        "HF_TOKEN": aws_secrets.put(PLAIN),
        "WANDB_API_KEY": aws_secrets.put(json.dumps({"WANDB_API_KEY": IN_JSON, "OTHER": "x"})),
    }
    tree = OptMl(tmp_path_factory.mktemp("stopped") / "ml").send(job, secrets=secrets, region=REGION)
    entry = tree.start(aws_secrets.environment)
    entry.wait_for("checkpoints/jobs/*/checkpoints/step-000003")
    worker = int((tree.jobs / job.id / ".lock").read_text())
    environments = [Path(f"/proc/{pid}/environ").read_bytes().decode() for pid in (entry.process.pid, worker)]
    entry.process.send_signal(signal.SIGTERM)
    return Stopped(job, tree, environments[0], environments[1].split("\0"), entry.end())


def test_it_saves_what_it_has(stopped: Stopped) -> None:
    assert stopped.answer.code == 0, stopped.answer.output
    assert stopped.tree.state(stopped.job) == "interrupted"
    assert 3 <= read_manifest(stopped.tree.jobs / stopped.job.id)["steps_done"] < STEPS
    assert list((stopped.tree.root / "checkpoints" / "cache").rglob("*.safetensors")) != []
    assert not stopped.tree.failure.exists()


@pytest.mark.parametrize(("name", "value"), [("HF_TOKEN", PLAIN), ("WANDB_API_KEY", IN_JSON)])
def test_its_secrets_were_in_the_environment_of_the_worker_alone(stopped: Stopped, name: str, value: str) -> None:
    assert f"{name}={value}" in stopped.worker_environment
    assert value not in stopped.own_environment
    assert value not in stopped.answer.output
    assert files_with(stopped.tree.root, value) == []


def test_the_next_one_goes_on_as_if_nothing_had_been(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, stopped: Stopped
) -> None:
    here, done, failed = stopped.job, *(bench.job(sdxl_folder, seed=seed) for seed in (32, 33))
    tree = OptMl(tmp_path / "ml").send(here, done, failed)
    shutil.copytree(stopped.tree.root / "checkpoints", tree.root / "checkpoints")
    for job, state in ((done, "completed"), (failed, "failed")):
        shutil.copytree(tree.data / "config" / job.id, tree.jobs / job.id)
        manifest = json.loads((tree.jobs / job.id / "manifest.json").read_text())
        (tree.jobs / job.id / "manifest.json").write_text(json.dumps(manifest | {"state": state, "error": "no luck"}))
        (tree.jobs / job.id / "lora").mkdir()
        (tree.jobs / job.id / "lora" / "pytorch_lora_weights.safetensors").write_text("of an earlier container")
    answer = tree.run()
    assert bench.train(here)

    assert answer.code == 1, answer.output
    steps_done = read_manifest(stopped.tree.jobs / here.id)["steps_done"]
    assert f"continues after step {steps_done}" in answer.output
    assert tree.failure.read_text() == f"1 of 3 jobs failed\n{failed.id}: no luck"
    assert read_manifest(tree.jobs / here.id)["attempts"] == 2
    assert same_bits(tree.trained(here), here)
    weights = tree.root / "model" / done.id / "lora" / "pytorch_lora_weights.safetensors"
    assert weights.read_text() == "of an earlier container"
