"""The image itself: its entry point is the container's first process, trains what is sent and saves when it is told to.

Only where an image was built for it: make test-container.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from runner.embedded import MODEL_DIR
from runner.job import read_manifest
from tests.container.opt_ml import DEADLINE_S, OptMl
from tests.train.bench import Bench, difference, weights

IMAGE, ENGINE = os.environ.get("RUNNER_TEST_IMAGE", ""), os.environ.get("RUNNER_TEST_ENGINE", "podman")

pytestmark = pytest.mark.skipif(not IMAGE, reason="needs an image: make test-container")


class Container:
    """A container of that image, with a tree of files on /opt/ml, as SageMaker runs it."""

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
