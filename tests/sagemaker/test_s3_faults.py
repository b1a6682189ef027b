"""Faults in an S3 address, or in what is there: one line each, before anything starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.check import Checker
from runner.data import read_dataset
from runner.families.files import (
    check_model,
)
from runner.schema import DatasetSettings, ModelSettings
from tests.sagemaker.buckets import fetched, put, settings_of, write
from tests.sagemaker.stand_in import StandIn


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
        ("s3://Stand_in/data", r"is not a place in S3; write s3://bucket/folder/"),
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


def test_a_model_that_is_not_whole_is_refused_by_its_listing(aws: StandIn, sd15_folder: Path) -> None:
    path = put(aws, sd15_folder, "models/sd15/")
    assert check_model(settings_of(path, family="sd")) == []
    aws.s3.delete_object(Bucket=aws.bucket, Key="models/sd15/unet/diffusion_pytorch_model.safetensors")
    aws.s3.delete_object(Bucket=aws.bucket, Key="models/sd15/vae/config.json")

    no_weights, no_config = check_model(settings_of(path, family="sd"))

    assert no_weights.startswith(f"model.path = {path!r}: its unet has no weights (*.safetensors or *.bin)")
    assert no_config.startswith(f"model.path = {path!r}: its vae/config.json is missing; copy or download")
    assert not any(key.endswith(".safetensors") for key in fetched(aws))
