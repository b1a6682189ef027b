"""Data and models in S3: read in place by training jobs, copied for jobs that train here, with the same results."""

from __future__ import annotations

import io
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from PIL import Image as Picture

from runner.aws.names import Places
from runner.aws.storage import Storage
from runner.data import read_dataset
from runner.jobs.job import Job, make_job, register
from runner.launchers.cluster import Order
from runner.launchers.sagemaker.channels import has_embedded_data
from runner.launchers.sagemaker.in_place import data_in_place, in_other_regions
from runner.launchers.sagemaker.inputs import Inputs
from runner.schema import DatasetSettings, Experiment
from tests.command_line import Answer, runner
from tests.launchers.running import assert_bitwise_equal, only_folder
from tests.sagemaker.buckets import fetched, packed, put, sent
from tests.sagemaker.stand_in import Image, StandIn

IMAGE = Image((sys.executable, "-m", "runner.container"), {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
SMALL = ["logger=none", "validation.prompts=[]", "steps=3"]


def there(aws: StandIn) -> list[str]:
    """Settings of a job that runs as a training job."""
    image = aws.add_image("lora:1", IMAGE)
    return [
        *("launcher=sagemaker", f"launcher.image={image}", f"launcher.role={aws.role}"),
        *(f"launcher.bucket={aws.bucket}", "launcher.instance=ml.m5.xlarge", "launcher.poll_s=0.5"),
    ]


def good(answer: Answer) -> Answer:
    assert answer.code == 0, answer.output
    return answer


def test_data_and_models_in_s3_train_here_and_in_place_as_local_ones_do(
    aws: StandIn, photos: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    """The VAE is an archive: one command shows all three forms."""
    data, model = put(aws, photos, "data/"), put(aws, sdxl_folder, "models/sdxl/")
    put(aws, photos, "data2/")
    vae = packed(sdxl_folder / "vae", tmp_path / "vae.tar.gz", top="vae")
    aws.s3.put_object(Bucket=aws.bucket, Key="models/vae.tar.gz", Body=vae.read_bytes())
    settings = [*SMALL, "dataset=folder", f"dataset.path={data.rstrip('/')}", f"model.path={model.rstrip('/')}"]
    settings += [f"model.vae=s3://{aws.bucket}/models/vae.tar.gz"]

    # As a training job: the data were read once to examine them, the model was not.
    answer = good(runner(*settings, *there(aws)))
    assert "from S3: 12 of 12 files of s3://stand-in/data/" in answer.output
    folder = only_folder()
    assert {Path(key).suffix for key in fetched(aws) if key.startswith("models/")} == {".json"}
    assert not [key for key in sent(aws) if not re.match("lora-runner/(experiments|code|cache)/", key)]
    (request,) = aws.asked("CreateTrainingJob")
    uris = {each["DataSource"]["S3DataSource"]["S3Uri"] for each in request["InputDataConfig"]}
    assert {data, model, f"s3://{aws.bucket}/models/vae.tar.gz"} <= uris
    assert {each["InputMode"] for each in request["InputDataConfig"]} == {"File"}
    aws.requests.clear()

    # Here, compared with folders.
    here, local = tmp_path / "here", tmp_path / "local"
    folders = [*SMALL, "dataset=folder", f"model.path={sdxl_folder}", f"model.vae={vae}"]
    with ThreadPoolExecutor() as pool:
        one = pool.submit(runner, *settings, extra={"RUNNER_OUTPUTS": str(here)})
        other = pool.submit(runner, *folders, f"dataset.path={photos}", extra={"RUNNER_OUTPUTS": str(local)})
        good(one.result())
        good(other.result())
    assert_bitwise_equal(here / "dev" / folder.name, folder)
    (result,) = (local / "dev").glob("*/manifest.json")
    assert_bitwise_equal(result.parent, folder)
    # The data were already here; the weights came with the worker.
    keys = fetched(aws)
    assert not [key for key in keys if key.startswith("data/")]
    assert "models/vae.tar.gz" in keys and "models/sdxl/unet/diffusion_pytorch_model.safetensors" in keys
    # The model from a folder has another name, so its job does too; the data are the same.
    assert result.parent.name != folder.name
    (pack,) = plan(*folders, f"dataset.path={data}")["packs"]
    assert [job["id"] for job in pack["jobs"]] == [result.parent.name]


def plan(*settings: str) -> dict[str, Any]:
    answer = good(runner(*settings, "launcher.dry_run=json"))
    found: dict[str, Any] = json.loads(answer.output[answer.output.index("{\n") :])
    return found


def test_a_large_table_in_s3_is_streamed_where_it_is(aws: StandIn, photos: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"picture": {"bytes": file.read_bytes(), "path": None}, "words": file.stem} for file in photos.glob("*.png")
    ]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    aws.s3.put_object(Bucket=aws.bucket, Key="tables/x.parquet", Body=stream.getvalue())
    table = f"s3://{aws.bucket}/tables/x.parquet"
    settings = ["dataset=table", f"dataset.path={table}", "dataset.image_column=picture"]
    settings += ["dataset.caption_column=words", "launcher.fast_file_over_gb=0"]
    preview = plan(*SMALL, *settings, *there(aws))["preview"]
    request = next(json.loads(text) for text in preview if text.startswith("{"))
    found = {each["DataSource"]["S3DataSource"]["S3Uri"]: each["InputMode"] for each in request["InputDataConfig"]}
    assert found[table] == "FastFile"


def test_data_in_another_region_are_refused_before_anything_is_sent(aws: StandIn, tmp_path: Path) -> None:
    far = {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
    aws.s3.create_bucket(Bucket="far-away", **far)
    raw = {"dataset": {"path": f"s3://{aws.bucket}/data/"}, "model": {"path": "s3://far-away/sdxl/"}}
    job = Job("x", Experiment.model_validate({"name": "x", **raw}), {}, tmp_path)
    (fault,) = in_other_regions([job], aws.client("s3"), "us-east-1")
    assert fault.startswith("model.path = 's3://far-away/sdxl/': is in eu-west-1, and training jobs run in us-east-1; ")


def test_a_source_among_several_may_lie_in_s3(aws: StandIn, photos: Path, tmp_path: Path) -> None:
    """They are the same data set as their folders; a training job gets them as one, since no place has them all."""
    (tmp_path / "others").mkdir()
    (photos / "0.png").rename(tmp_path / "others" / "0.png")
    there = [{"path": put(aws, photos, "data/"), "repeats": 2}, str(tmp_path / "others")]
    here = [{"path": str(photos), "repeats": 2}, str(tmp_path / "others")]

    sets = [
        read_dataset(DatasetSettings(path=None, sources=each, instance_prompt="a picture")) for each in (there, here)
    ]

    assert sets[0].fingerprint == sets[1].fingerprint
    assert sorted(item.repeats for item in sets[0].items) == [1, 2, 2, 2, 2, 2]
    launcher = {"name": "sagemaker", "image": "i", "role": "r", "bucket": aws.bucket, "instance": "ml.m5.xlarge"}
    experiment = Experiment.model_validate({"dataset": {"path": None, "sources": there}, "launcher": launcher})
    job = Job("j", experiment, {"model": "m", "dataset": "d"}, tmp_path / "j")
    assert data_in_place(job) is None
    assert not has_embedded_data(job)
    assert in_other_regions([job], aws.s3, "eu-central-1") == []


def test_several_sources_captions_and_masks_are_the_same_data_set_there(
    aws: StandIn, photos: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    """What is sent and its settings, read as in a container, give what the plan was made with."""
    Picture.new("L", (64, 80), 255).save(photos / "0.mask.png")
    (photos / "1.txt").write_text("picture 1\nanother")
    (tmp_path / "others").mkdir()
    (photos / "more" / "5.png").rename(tmp_path / "others" / "5.png")
    (photos / "more" / "5.txt").unlink()
    sources = [
        {"path": str(photos), "repeats": 3, "captions_per_line": True},
        {"path": str(tmp_path / "others"), "instance_prompt": "any"},
    ]
    options = {"masks": True, "caption_prefix": "oil,", "buckets": True, "bucket_step": 8}
    launcher = {"name": "sagemaker", "image": "i", "role": "r", "bucket": aws.bucket, "instance": "ml.m5.xlarge"}
    experiment = Experiment.model_validate(
        {
            "model": {"path": str(sdxl_folder)},
            "dataset": {"path": None, "sources": sources, **options},
            "loss": {"masked": True},
            "launcher": launcher,
        }
    )
    here = read_dataset(experiment.dataset)
    job = make_job(experiment, model="m", dataset=here.fingerprint, outputs=tmp_path / "out")
    register(job)
    places = Places(aws.bucket, "p")
    inputs = Inputs(experiment.launcher, Storage(aws.s3), places, "eu-central-1")  # type: ignore[arg-type]
    place = places.training_job("e", "n")

    inputs.bring([job], Order(title="e", queue=tmp_path / "queue", at_once=1, processes=1, device="cpu"), place)

    body = aws.s3.get_object(Bucket=aws.bucket, Key=(place / f"config/{job.id}/config.yaml").key)["Body"].read()
    there = Experiment.model_validate(yaml.safe_load(body))
    assert there.dataset.model_dump() == here_with(there.dataset.path, options)
    local = tmp_path / "channel"
    local.mkdir()
    names = list(Storage(aws.s3).listing(places.dataset(here.fingerprint)))
    Storage(aws.s3).download(places.dataset(here.fingerprint), names, local)
    sent_set = read_dataset(there.dataset.model_copy(update={"path": str(local)}))
    assert sent_set.fingerprint == here.fingerprint
    assert [(item.id, item.captions, item.repeats) for item in sent_set.items] == [
        (item.id, item.captions, item.repeats) for item in here.items
    ]
    assert sum(item.mask is not None for item in sent_set.items) == 1


def here_with(path: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The settings of a data set in a container: only where it is and how it is processed."""
    return DatasetSettings(path=path, min_side_px=1, **options).model_dump()
