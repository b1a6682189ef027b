"""The image itself: its entry point is the container's first process, trains what is sent and saves when told to.

Runs only if an image was built for it: make test-container.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from safetensors.torch import load_file

from runner.embedded import MODEL_DIR
from runner.jobs.job import read_manifest
from tests.command_line import command, runner
from tests.container.opt_ml import DEADLINE_S, OptMl
from tests.train.bench import Bench, difference, weights

IMAGE, ENGINE = os.environ.get("RUNNER_TEST_IMAGE", ""), os.environ.get("RUNNER_TEST_ENGINE", "podman")

USER_ID = 10001
"""The image's unprivileged user (container/Dockerfile)."""

pytestmark = pytest.mark.skipif(not IMAGE, reason="needs an image: make test-container")


class Container:
    """A container of that image, with a file tree on /opt/ml, run as SageMaker does."""

    def __init__(self, tree: OptMl) -> None:
        self.tree, self.name = tree, f"runner-test-{uuid.uuid4().hex[:8]}"
        command = [ENGINE, "run", "--rm", "--name", self.name, "--network", "none", "-v", f"{tree.root}:/opt/ml"]
        self.process = subprocess.Popen(
            [*command, "-e", "OMP_NUM_THREADS=1", IMAGE, "train"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def terminate(self) -> None:
        subprocess.run([ENGINE, "kill", "--signal", "TERM", self.name], check=True, capture_output=True)

    def end(self) -> tuple[int, str]:
        output = self.process.communicate(timeout=DEADLINE_S)[0]
        return self.process.returncode, output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature that comes with the package, under a name that says what it is."""
    named = tmp_path_factory.mktemp("models") / "sdxl"
    named.symlink_to(MODEL_DIR)
    return named


def test_a_training_in_the_image(bench: Bench, model: Path, tmp_path: Path) -> None:
    job = bench.job(model, steps=4, seed=81)
    tree = OptMl(tmp_path / "ml").send(job)
    code, output = Container(tree).end()
    assert bench.train(job)

    assert code == 0, output
    assert difference(weights(tree.trained(job)), weights(job)) < 1e-5
    assert read_manifest(tree.jobs / job.id)["state"] == "completed"
    assert {path.stat().st_uid for path in (tree.jobs / job.id).rglob("*")} == {USER_ID}, "no file of root's"
    assert f"validation/loss={read_manifest(tree.jobs / job.id)['objective']!r}" in output.splitlines()


def test_a_signal_to_the_container_makes_it_save(bench: Bench, model: Path, tmp_path: Path) -> None:
    job = bench.job(model, steps=5000, seed=82, checkpoint={"every": 2})
    container = Container(OptMl(tmp_path / "ml").send(job))
    deadline = time.monotonic() + DEADLINE_S
    while not list(container.tree.jobs.glob("*/checkpoints/step-*")) and time.monotonic() < deadline:
        assert container.process.poll() is None, container.end()[1]
        time.sleep(0.1)
    container.terminate()
    code, output = container.end()

    assert code == 0, output
    assert container.tree.state(job) == "interrupted"


def test_what_is_missing_is_said_by_the_image(tmp_path: Path) -> None:
    tree = OptMl(tmp_path / "ml")
    code, output = Container(tree).end()

    assert code == 1
    assert "plan.json cannot be read" in output
    assert "plan.json cannot be read" in tree.failure.read_text()


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_launcher_runs_it_here_and_gives_the_weights_of_a_local_run(
    hosts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ["logger=none", "validation.prompts=[]", "steps=12", "optimizer.eps=1e-3"]
    own = runner(*job, extra={"RUNNER_OUTPUTS": str(tmp_path / "own")})
    assert own.code == 0, own.output
    place = ["launcher=sagemaker", "launcher.local=true", f"launcher.image={IMAGE}", f"launcher.instances={hosts}"]
    place += [f"launcher.processes={hosts}"] if hosts > 1 else []
    contained = runner(*job, *place, extra={"RUNNER_OUTPUTS": str(tmp_path / "contained")})

    assert contained.code == 0, contained.output
    (one,), (other,) = ((tmp_path / name / "dev").glob("*/manifest.json") for name in ("own", "contained"))
    assert one.parent.name == other.parent.name
    assert json.loads(other.read_text())["state"] == "completed"
    files = [file.parent / "lora" / "pytorch_lora_weights.safetensors" for file in (one, other)]
    assert difference(load_file(files[1]), load_file(files[0])) < 1e-5
    left = subprocess.run([ENGINE, "ps", "--all", "--quiet"], capture_output=True, text=True, check=True)
    assert left.stdout == "", "no container is left behind"


def test_what_runs_in_a_container_can_be_left_and_stopped(tmp_path: Path) -> None:
    extra = {"RUNNER_OUTPUTS": str(tmp_path / "outputs"), "RUNNER_CACHE": str(tmp_path / "cache")}
    job = ["logger=none", "validation.prompts=[]", "steps=4000", "checkpoint.every=2", "logger.every=1"]
    left = runner(
        *(*job, "launcher=sagemaker", "launcher.local=true", f"launcher.image={IMAGE}", "launcher.wait=false"),
        extra=extra,
    )
    assert left.code == 0, left.output
    deadline = time.monotonic() + DEADLINE_S
    while not list((tmp_path / "cache").rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    assert command("stop", str(tmp_path / "outputs" / "dev"), extra=extra).code == 0
    while (looked := command("status", "--once", extra=extra)).output.count("cancelled") == 0:
        assert time.monotonic() < deadline, looked.output
    (file,) = (tmp_path / "outputs" / "dev").glob("*/manifest.json")
    assert json.loads(file.read_text())["steps_done"] > 0
    assert list(file.parent.glob("checkpoints/step-*"))
