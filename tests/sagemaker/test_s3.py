"""Data and models in S3: copied for jobs that train here, read in place by those that train there."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from runner.check import Checker
from runner.container.models import with_open_models
from runner.data import read_dataset
from runner.errors import ModelError
from runner.families.files import (
    check_fetched,
    check_model,
    fingerprint,
    folder_hash,
    planning_folder,
    snapshot,
)
from runner.families.stored import laid_out, source_of
from runner.s3 import Location
from runner.s3.mirror import Mirror
from runner.schema import DatasetSettings, ModelSettings
from tests.command_line import Answer, runner
from tests.launch.running import assert_bitwise_equal, only_folder
from tests.sagemaker.stand_in import Image, StandIn

IMAGE = Image((sys.executable, "-m", "runner.container"), {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
SMALL = ["logger=none", "validation.prompts=[]", "steps=3"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six pictures, captions beside them, some below."""
    folder = tmp_path / "photos"
    random = np.random.default_rng(0)
    for number in range(6):
        file = folder / ("more" if number > 3 else "") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(random.integers(0, 255, (80, 64 + number, 3), dtype=np.uint8)).save(file)
        file.with_suffix(".txt").write_text(f"picture {number}")
    return folder


def put(aws: StandIn, folder: Path, prefix: str) -> str:
    """Copy a folder to S3, as people do; its address."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            aws.s3.put_object(
                Bucket=aws.bucket, Key=prefix + file.relative_to(folder).as_posix(), Body=file.read_bytes()
            )
    return f"s3://{aws.bucket}/{prefix}"


def packed(folder: Path, archive: Path, top: str = "") -> Path:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=top or ".")
    return archive


def fetched(aws: StandIn, caller: str = "") -> list[str]:
    """Keys that were read by the person who submits, or by a role."""
    return [
        call.parameters["Key"]
        for call in aws.requests
        if call.service == "s3" and call.operation == "GetObject" and call.caller == caller
    ]


def sent(aws: StandIn) -> list[str]:
    """Keys that the person who submits has written."""
    operations = ("PutObject", "CopyObject", "CreateMultipartUpload")
    return [
        call.parameters["Key"]
        for call in aws.requests
        if call.service == "s3" and call.operation in operations and not call.caller
    ]


def there(aws: StandIn) -> list[str]:
    """Settings of a job that trains as a training job."""
    image = aws.add_image("lora:1", IMAGE)
    return [
        *("launcher=sagemaker", f"launcher.image={image}", f"launcher.role={aws.role}"),
        *(f"launcher.bucket={aws.bucket}", "launcher.instance=ml.m5.xlarge", "launcher.poll_s=0.5"),
    ]


def good(answer: Answer) -> Answer:
    assert answer.code == 0, answer.output
    return answer


class Mirrored:
    """A mirror of a prefix."""

    def __init__(self, aws: StandIn, uri: str) -> None:
        self.aws, self.mirror = aws, Mirror(Location.of_input(uri, files=(".parquet",)))

    def bring(self) -> tuple[dict[str, str], list[str]]:
        """Its files, and the keys that travelled."""
        self.aws.requests.clear()
        path = self.mirror.bring()
        files = {file.relative_to(path).as_posix(): file.read_text() for file in path.rglob("*") if file.is_file()}
        return files, sorted(fetched(self.aws))


def write(aws: StandIn, key: str, text: str) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key=key, Body=text.encode())


# --- the copy ---


def test_only_what_changed_travels_and_what_is_gone_disappears(aws: StandIn) -> None:
    for name in ("a.txt", "b/c.txt", "b/d.txt", ".hidden", "e/"):
        write(aws, f"data/{name}", f"first {name}" if not name.endswith("/") else "")
    write(aws, "data2/x.txt", "a neighbour")
    copy = Mirrored(aws, f"s3://{aws.bucket}/data")
    files, travelled = copy.bring()
    assert files == {name: f"first {name}" for name in ("a.txt", "b/c.txt", "b/d.txt")}
    assert travelled == ["data/a.txt", "data/b/c.txt", "data/b/d.txt"]

    assert copy.bring() == (files, [])

    write(aws, "data/a.txt", "other a.txt")
    aws.s3.delete_object(Bucket=aws.bucket, Key="data/b/c.txt")
    (copy.mirror.path / "b" / "stray.txt").write_text("nobody's")
    assert copy.bring() == ({"a.txt": "other a.txt", "b/d.txt": "first b/d.txt"}, ["data/a.txt"])
    assert copy.mirror.is_complete

    # A folder becomes an object, and a copy is damaged.
    aws.s3.delete_object(Bucket=aws.bucket, Key="data/b/d.txt")
    write(aws, "data/b", "b")
    (copy.mirror.path / "a.txt").write_text("OTHER a.txt")
    assert not copy.mirror.is_complete
    assert copy.bring() == ({"a.txt": "other a.txt", "b": "b"}, ["data/a.txt", "data/b"])


def test_many_at_once_copy_each_file_once(aws: StandIn) -> None:
    for number in range(20):
        write(aws, f"data/{number}.txt", str(number))
    copies = [Mirror(Location(aws.bucket, "data/")) for _ in range(6)]
    threads = [threading.Thread(target=copy.bring) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(copy.is_complete for copy in copies)
    assert sorted(fetched(aws)) == sorted(f"data/{number}.txt" for number in range(20))


# --- from the command line ---


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

    # As a training job: the data were read once to know them, the model was not.
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

    # Here, and beside it from folders.
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
    # The data were here already; the weights came with the worker.
    keys = fetched(aws)
    assert not [key for key in keys if key.startswith("data/")]
    assert "models/vae.tar.gz" in keys and "models/sdxl/unet/diffusion_pytorch_model.safetensors" in keys
    # The model of a folder has another name, and so has its job; the data are the same data.
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


# --- models ---


def settings_of(path: Path | str, **more: str) -> ModelSettings:
    return ModelSettings(path=str(path), **more)


def test_an_archive_in_s3_is_fetched_once_and_known_by_its_listing(
    aws: StandIn, sdxl_folder: Path, tmp_path: Path
) -> None:
    archive = packed(sdxl_folder, tmp_path / "model.tar.gz", top="./sdxl")
    aws.s3.put_object(Bucket=aws.bucket, Key="models/model.tar.gz", Body=archive.read_bytes())
    settings = settings_of(f"s3://{aws.bucket}/models/model.tar.gz")
    assert check_model(settings) == []
    planned = fingerprint(settings)
    assert (fetched(aws), planning_folder(settings.path)) == ([], None)
    folder = snapshot(settings.path, revision=None, variant=None)
    check_fetched(settings, planned)
    assert folder_hash(folder) == folder_hash(sdxl_folder)
    # It is not kept twice, and does not travel twice.
    assert not Mirror(source_of(settings.path)).path.exists()
    assert planning_folder(settings.path) == snapshot(settings.path, revision=None, variant=None) == folder
    assert fetched(aws) == ["models/model.tar.gz"]
    # Without a way to S3 the copy is used.
    aws.permissions.deny("s3:*")
    assert snapshot(settings.path, revision=None, variant=None) == folder

    # One on this machine is the folder that was packed.
    assert check_model(settings_of(archive)) == []
    assert fingerprint(settings_of(archive)) == fingerprint(settings_of(sdxl_folder))


def test_an_archive_in_a_channel_is_unpacked_for_the_container(sdxl_folder: Path, tmp_path: Path) -> None:
    archive = packed(sdxl_folder, tmp_path / "model.tar.gz")
    raw = with_open_models({"steps": 3, "model": {"path": str(archive), "vae": "owner/vae"}}, tmp_path / "models")
    assert folder_hash(Path(raw["model"]["path"])) == folder_hash(sdxl_folder)
    assert (raw["steps"], raw["model"]["vae"]) == (3, "owner/vae")
    with pytest.raises(ValueError, match=r"the folder has no model_index\.json"):
        with_open_models(
            {"model": {"path": str(packed(sdxl_folder / "vae", tmp_path / "vae.tar.gz"))}}, tmp_path / "models"
        )


def test_a_changed_object_is_another_model(aws: StandIn, sdxl_folder: Path) -> None:
    settings = settings_of(put(aws, sdxl_folder, "sdxl/"))

    def looked_at() -> str:
        assert check_model(settings) == []
        return fingerprint(settings)

    first = looked_at()
    write(aws, "sdxl/README.md", "says nothing of the model")
    assert looked_at() == first
    snapshot(settings.path, revision=None, variant=None)
    check_fetched(settings, first)
    write(aws, "sdxl/unet/diffusion_pytorch_model.safetensors", "other weights")
    snapshot(settings.path, revision=None, variant=None)
    with pytest.raises(ModelError, match="has changed since the job was planned"):
        check_fetched(settings, first)
    assert looked_at() != first


# --- archives ---


def hostile(kind: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo({"outside": "../x", "absolute": "/tmp/x"}.get(kind, "x"))
    if kind in ("link", "hard link"):
        member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
        member.linkname = "/etc/passwd"
    return member


@pytest.mark.parametrize("kind", ["outside", "absolute", "link", "hard link", "damaged"])
def test_an_archive_that_leads_outside_is_refused(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(hostile(kind), io.BytesIO(b""))
    if kind == "damaged":
        archive.write_bytes(archive.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"holds '.*x', which|is damaged"):
        laid_out(archive)
    assert not list((tmp_path / "cache" / "archives").glob("*[0-9a-f]"))
    (fault,) = check_model(settings_of(archive))
    assert fault.startswith(f"model.path = {str(archive)!r}: model.tar.gz "), fault


# --- what is wrong ---


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://stand-out/data/", r"no bucket 'stand-out', did you mean s3://stand-in/"),
        ("s3://stand-in/dta/", r"nothing in s3://stand-in/dta/, did you mean s3://stand-in/data/\?"),
        ("s3://stand-in/data/train/mnth/", r"did you mean s3://stand-in/data/train/month/\?"),
        (
            "s3://stand-in/data/read.me",
            r"read.me is a single object; give the folder that holds it, s3://stand-in/data/",
        ),
        ("s3://stand-in/data/y.parquet", r"did you mean s3://stand-in/data/x.parquet\?"),
        ("s3://Stand_in/data", r"is no place in S3; write s3://bucket/folder/"),
        ("s3://stand-in/../data", r"has an empty part, '\.' or '\.\.' in it"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(aws: StandIn, path: str, said: str) -> None:
    for key in ("data/read.me", "data/x.parquet", "data/train/month/a.png"):
        write(aws, key, "x")
    with pytest.raises(ValueError, match=said) as caught:
        read_dataset(DatasetSettings(path=path))
    assert f"dataset.path={path!r}" in str(caught.value)


def deny(aws: StandIn) -> None:
    aws.permissions.deny("s3:ListBucket")


def expire(aws: StandIn) -> None:
    aws.permissions.refused = "expired"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (deny, r"AWS permissions: .*; add s3:ListBucket on stand-in and s3:GetObject"),
        (expire, r"AWS credentials: .*expired.*; log in again"),
        (None, r"AWS credentials: there are none; `aws configure`"),
    ],
)
def test_why_s3_cannot_be_asked_is_said_in_one_line(
    aws: StandIn, trouble: Callable[[StandIn], None] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    else:
        trouble(aws)
    (fault,) = check_model(ModelSettings(path="s3://stand-in/model/"))
    assert re.match(rf"model\.path = 's3://stand-in/model/': {said}", fault), fault


def test_without_boto3_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.s3.access.find_spec", lambda name: None)
    (fault,) = check_model(ModelSettings(path="s3://stand-in/model/"))
    assert "pip install 'lora-runner[sagemaker]'" in fault


def test_a_folder_that_is_no_model_is_refused_before_anything_starts(
    aws: StandIn, sd15_folder: Path, photos: Path, tmp_path: Path
) -> None:
    put(aws, sd15_folder, "models/sd15/")
    data = put(aws, photos, "data/")
    write(aws, "odd/a", "x")
    write(aws, "odd/a/b.png", "x")
    raw: dict[str, Any] = {"name": "x", "model": {"path": f"s3://{aws.bucket}/models/", "vae": data}}
    with pytest.raises(ValueError, match="x") as caught:
        Checker(tmp_path).job(raw | {"dataset": {"path": f"s3://{aws.bucket}/odd/"}})
    said = str(caught.value)
    layout = "holds no model_index.json, so it is not in diffusers layout, did you mean s3://stand-in/models/sd15/?"
    assert f"model.path = 's3://stand-in/models/': {layout}" in said
    assert f"model.vae = '{data}': holds no config.json or vae/config.json" in said
    assert "it holds an object named 'a/b.png', and 'a' is an object too; rename it" in said

    faults = check_model(settings_of(f"s3://{aws.bucket}/models/sd15", variant="fp16"))
    assert [fault.partition(";")[2] for fault in faults] == [" set model.family=sd", " set it to null"]
    assert not any(key.endswith((".safetensors", ".bin")) for key in fetched(aws))
