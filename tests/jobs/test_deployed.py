"""What manifests say about endpoints: whose they are, until they are gone or belong to another job."""

from __future__ import annotations

from pathlib import Path

from runner.jobs.deployed import deployments, take_back
from runner.jobs.job import Job, State, make_job, read_manifest, register, update_manifest
from runner.schema import Experiment


def deployed(outputs: Path, seed: int, *, name: str, region: str) -> Job:
    """A job that recorded making an endpoint; what else it did does not matter here."""
    job = make_job(Experiment.model_validate({"seed": seed}), model="m", dataset="d", outputs=outputs)
    register(job)
    update_manifest(job.folder, state=State.COMPLETED, endpoint={"name": name, "region": region})
    return job


def test_only_the_endpoint_that_is_another_jobs_now_is_taken_back(tmp_path: Path) -> None:
    """An endpoint that no manifest claims would keep costing money unnoticed."""
    earlier, now, elsewhere, other = (
        deployed(tmp_path, seed, name=name, region=region)
        for seed, (name, region) in enumerate(
            [("dogs", "eu-west-1"), ("dogs", "eu-west-1"), ("dogs", "us-east-1"), ("cats", "eu-west-1")]
        )
    )
    take_back(tmp_path, "dogs", "eu-west-1", why="another job has it", but=now.folder)
    left = {folder for folder, _ in deployments(tmp_path)}
    assert left == {now.folder, elsewhere.folder, other.folder}
    manifest = read_manifest(earlier.folder)
    assert (manifest["state"], manifest["error"]) == (State.CANCELLED, "another job has it")
    assert read_manifest(now.folder)["state"] == State.COMPLETED
