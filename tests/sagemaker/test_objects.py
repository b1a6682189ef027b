"""Objects in S3 beside our own files, and objects that S3 does not hand out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from botocore.stub import Stubber

from runner.aws.names import Places
from runner.aws.storage import Storage
from runner.cache.measured import KEPT_LINES, measurements_file
from runner.errors import AwsError
from runner.jobs.job import State, make_job, read_manifest, register, state_of, update_manifest
from runner.launchers.sagemaker.channels import cache_indexes
from runner.launchers.sagemaker.results import Collector
from runner.s3 import Location
from runner.s3.objects import remove
from runner.schema import Experiment
from tests.sagemaker.buckets import write
from tests.sagemaker.stand_in import StandIn
from tests.weights import weights_of


def test_folders_that_a_console_has_made_keep_no_result_from_arriving(aws: StandIn, tmp_path: Path) -> None:
    job = make_job(Experiment(), model="m", dataset="d", outputs=tmp_path)
    register(job)
    job.paths.lora.mkdir()
    folder = f"run/checkpoints/jobs/{job.id}/"
    for name in ("", "lora/", "samples//a.png", "../outside"):
        write(aws, folder + name, "x")
    write(aws, f"{folder}lora/weights", "w")

    Collector(Storage(aws.s3), Places(aws.bucket, "p")).look([job], Location(aws.bucket, "run/"), everything=True)

    assert [file.name for file in job.paths.lora.iterdir()] == ["weights"]
    assert not job.paths.samples.exists() and not (tmp_path / "dev" / "outside").exists()


def test_a_job_is_completed_here_only_once_its_result_is_here(aws: StandIn, tmp_path: Path) -> None:
    """SageMaker copies files in any order, and files of a completed job are never looked for again."""
    job = make_job(Experiment(), model="m", dataset="d", outputs=tmp_path)
    register(job)
    folder, place = f"run/checkpoints/jobs/{job.id}/", Location(aws.bucket, "run/")
    collector = Collector(Storage(aws.s3), Places(aws.bucket, "p"))
    write(aws, f"{folder}manifest.json", json.dumps({"state": "completed", "steps_done": 9}))
    collector.look([job], place)
    assert state_of(job.folder) is State.PENDING
    write(aws, f"{folder}lora/{job.paths.weights.name}", weights_of().decode())
    collector.look([job], place)
    assert state_of(job.folder) is State.COMPLETED and job.has_result
    # Once nothing more will arrive, its manifest is believed.
    job.paths.weights.unlink()
    update_manifest(job.folder, state=State.PENDING)
    aws.s3.delete_object(Bucket=aws.bucket, Key=f"{folder}lora/{job.paths.weights.name}")
    Collector(Storage(aws.s3), Places(aws.bucket, "p")).look([job], place, everything=True)
    assert state_of(job.folder) is State.COMPLETED


def test_what_is_written_here_stays_and_what_is_gone_there_goes(aws: StandIn, tmp_path: Path) -> None:
    job = make_job(Experiment(), model="m", dataset="d", outputs=tmp_path, overrides=("seed=0",))
    register(job, State.RUNNING)
    update_manifest(job.folder, submission={"ids": ["w1"]})
    (job.paths.checkpoints / "step-000002").mkdir(parents=True)
    before, folder = read_manifest(job.folder), f"run/checkpoints/jobs/{job.id}/"
    collector, place = Collector(Storage(aws.s3), Places(aws.bucket, "p")), Location(aws.bucket, "run/")
    there = {"submission": {"ids": ["none"]}, "overrides": []}
    write(aws, f"{folder}manifest.json", json.dumps({"state": "submitted", "steps_done": 0, **there}))
    collector.look([job], place)
    assert read_manifest(job.folder) == before, "before a worker has taken it, it says nothing new"
    write(aws, f"{folder}manifest.json", json.dumps({"state": "interrupted", "steps_done": 4, **there}))
    write(aws, f"{folder}checkpoints/step-000004/state", "s")
    collector.look([job], place)
    assert read_manifest(job.folder) == before | {"state": "interrupted", "steps_done": 4}
    assert [step.name for step in job.paths.checkpoints.iterdir()] == ["step-000004"]


def test_what_several_training_jobs_have_encoded_is_listed_together(aws: StandIn, tmp_path: Path) -> None:
    job, places = make_job(Experiment(), model="m", dataset="d", outputs=tmp_path), Places(aws.bucket, "p")
    for run in ("one", "two"):
        write(aws, f"{run}/cache/captions/{run}.safetensors", run)
        Collector(Storage(aws.s3), places).keep_cache([job], Location(aws.bucket, f"{run}/"))
    (index,) = cache_indexes([job], places)
    assert json.loads(Storage(aws.s3).read(index)) == ["captions/one.safetensors", "captions/two.safetensors"]
    assert Storage(aws.s3).read(places.cache / "captions/one.safetensors") == b"one"


def test_what_training_jobs_have_measured_comes_to_what_was_measured_here(aws: StandIn, tmp_path: Path) -> None:
    job, places = make_job(Experiment(), model="m", dataset="d", outputs=tmp_path), Places(aws.bucket, "p")
    known = [f"{number}" for number in range(KEPT_LINES - 1)]
    measurements_file().parent.mkdir(parents=True)
    measurements_file().write_bytes(b"\xff torn\n" + "\n".join(known).encode() + b"\n")
    write(aws, "run/cache/measured.jsonl", f"{known[-1]}\nnew\n")
    for _ in range(2):
        Collector(Storage(aws.s3), places).keep_cache([job], Location(aws.bucket, "run/"))
    assert measurements_file().read_text() == "\n".join([*known, "new", ""]), "the oldest is forgotten"


def test_what_s3_does_not_let_go_of_is_not_called_removed(aws: StandIn) -> None:
    write(aws, "run/a", "x")
    answer = {"Errors": [{"Key": "run/a", "Code": "AccessDenied", "Message": "Access Denied"}]}
    with Stubber(client := aws.client("s3")) as stub:
        stub.add_response("list_objects_v2", {"Contents": [{"Key": "run/a", "Size": 1, "ETag": '"e"'}]})
        stub.add_response("delete_objects", answer)
        with pytest.raises(AwsError, match="1 objects in s3://stand-in/run/ could not be removed, such as run/a: Acc"):
            remove(client, Location(aws.bucket, "run/"))
    assert remove(aws.s3, Location(aws.bucket, "run/")) == 1
    assert aws.keys() == []
