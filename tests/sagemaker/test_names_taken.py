"""A training job of the same name is taken up if its results are available, and is in nobody's way otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.aws.account import Account
from runner.jobs.job import make_job, register
from runner.jobs.queue import Queue
from runner.launchers.cluster import Order
from runner.launchers.sagemaker.training_jobs import SageMakerCluster
from runner.schema import Experiment, SageMakerLauncher
from tests.sagemaker.stand_in import Image, StandIn

WORKS = "mkdir -p /opt/ml/checkpoints/jobs/x && touch /opt/ml/checkpoints/jobs/x/log.txt"


def submitted(aws: StandIn, folder: Path, **settings: Any) -> str:
    """The name of the training job that a command in its own folder has submitted or taken up."""
    place = {"image": settings.pop("image"), "role": aws.role, "bucket": aws.bucket, "instance": "ml.m5.xlarge"}
    launcher = {"name": "sagemaker", "poll_s": 0.1, **place, **settings}
    experiment = Experiment.model_validate({"launcher": launcher})
    job = make_job(experiment, model="m", dataset="d", outputs=folder)
    register(job)
    queue = Queue(folder / "queue-0123.json")
    queue.write([job.folder], is_open=False)
    known = SageMakerLauncher.model_validate(launcher)
    order = Order(title="dev", queue=queue.file, at_once=1, processes=1, device="cpu")
    return SageMakerCluster(known, Account(known), image=known.image or "").submit(order, after=None)


def test_one_that_runs_for_another_prefix_is_left_alone(aws: StandIn, tmp_path: Path) -> None:
    image = aws.add_image("lora:1", Image(("sh", "-c", "sleep 60")))
    assert submitted(aws, tmp_path / "a", image=image, prefix="team/a") == "dev-0123"
    assert submitted(aws, tmp_path / "b", image=image, prefix="team/b") == "dev-0123-2"
    assert submitted(aws, tmp_path / "c", image=image, prefix="team/a") == "dev-0123", "of the same place: taken up"
    assert sorted(aws.jobs) == ["dev-0123", "dev-0123-2"]


@pytest.mark.parametrize(("does", "name"), [("exit 1", "dev-0123-2"), (WORKS, "dev-0123")], ids=["nothing", "results"])
def test_one_that_has_ended_is_taken_up_if_there_is_anything_of_it(
    does: str, name: str, aws: StandIn, tmp_path: Path
) -> None:
    image = aws.add_image("lora:1", Image(("sh", "-c", does)))
    assert submitted(aws, tmp_path / "a", image=image) == "dev-0123"
    aws.wait("dev-0123")
    assert submitted(aws, tmp_path / "b", image=image) == name
