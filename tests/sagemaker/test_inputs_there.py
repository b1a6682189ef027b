"""What a method needs besides its images is sent along: class images, and an adapter to start from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from runner.aws.names import Places
from runner.aws.sent import send_folder
from runner.aws.storage import Storage
from runner.container.settings import sent_jobs
from runner.jobs.job import Job, make_job, register
from runner.launchers.cluster import Order
from runner.launchers.sagemaker.channels import cache_indexes, planned_channels
from runner.launchers.sagemaker.inputs import Inputs
from runner.parcel import CACHE, CONFIG, Parcel
from runner.s3 import Location
from runner.schema import Experiment
from runner.train.inputs.materials import Materials
from tests.command_line import runner
from tests.launchers.running import assert_bitwise_equal, manifests, outputs
from tests.sagemaker.stand_in import StandIn
from tests.sagemaker.test_launch import launcher_settings
from tests.train.bench import Bench, bench, write_images

__all__ = ["bench"]


@pytest.mark.slow
def test_a_class_and_a_start_travel_along(
    aws: StandIn, bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, of_class = write_images(tmp_path / "subject"), write_images(tmp_path / "class", seed=5)
    first = bench.job(sdxl_folder, images=subject, lora={"rank": 2}, steps=2)
    assert bench.train(first)

    second = [
        *(f"model.path={sdxl_folder}", "dataset=folder", f"dataset.path={subject}", "logger=none"),
        *("validation.prompts=[]", "lora.rank=2", "batch_size=1", "steps=3"),
        *(f"lora.init_from={first.folder}", "method=dreambooth"),
        *("method.class_prompt='a photo of a cat'", f"method.class_data_dir={of_class}"),
        *("method.num_class_images=8", "method.class_inference_steps=1"),
    ]
    # The last digits of encodings depend on what is encoded together, so both start with nothing.
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "fresh"))
    here = runner(*second, "name=here")
    assert here.code == 0, here.output
    there = runner(*second, "name=there", *launcher_settings(aws))
    assert there.code == 0, there.output

    (found_here,), (found_there,) = manifests("here"), manifests("there")
    assert found_here == found_there, "where it runs is no part of what a job is"
    assert_bitwise_equal(outputs() / "here" / found_here, outputs() / "there" / found_there)
    about = manifests("there")[found_there]["dataset"]
    assert about["class_images"] == 8, "seven that were sent, and one that was drawn there"
    assert "kept_of_earlier" in manifests("here")[found_here]


def test_each_subject_has_its_own_class_there(
    aws: StandIn, bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent, read as in a container, gives the same pairs to the last bit, with nothing encoded before."""
    dog, cat, toy, cats = (write_images(tmp_path / name, seed=seed) for seed, name in enumerate("dctk"))
    Image.new("L", (64, 80), 255).save(dog / "0.mask.png")  # the other class has no masks at all
    sources = [
        {"path": str(dog), "class_prompt": "a dog"},
        {"path": str(cat), "class_prompt": "a cat", "class_data_dir": str(cats), "repeats": 2},
        {"path": str(toy), "class_prompt": "a dog"},
    ]
    here = bench.job(
        sdxl_folder,
        dataset={"path": None, "sources": sources, "masks": True},
        loss={"masked": True},
        method={"name": "dreambooth", "num_class_images": 7, "class_inference_steps": 1},
        launcher={"name": "sagemaker", "image": "i", "role": "r", "bucket": aws.bucket, "instance": "ml.m5.xlarge"},
    )
    storage, places = Storage(aws.s3), Places(aws.bucket, "p")
    place = places.training_job("e", "n")
    inputs = Inputs(here.experiment.launcher, storage, places, "eu-central-1")  # type: ignore[arg-type]

    order = Order(title="e", queue=tmp_path / "queue", at_once=1, processes=1, device="cpu")
    channels = inputs.bring([here], order, place)

    assert channels == planned_channels([here], places, place)
    data = tmp_path / "data"
    for channel in channels:
        source = Location.parse(channel.uri)
        storage.download(source, storage.listing(source), data / channel.name)
    parcel = Parcel.read(data / CONFIG)
    (there,) = sent_jobs(parcel, data / CONFIG, data, tmp_path / "jobs", {}, models=tmp_path / "models")
    assert len(there.experiment.dataset.sources) == 2, "as many as there are classes"

    def encoded(job: Job, cache: str) -> Materials:
        monkeypatch.setattr(bench, "cache", tmp_path / cache)
        return bench.materials(job, bench.base(job))

    left, right = encoded(here, "cache here"), encoded(there, "cache there")
    assert left.class_images == right.class_images == 14, "seven that were sent, and seven that were drawn there"
    for step in range(14):
        one, other = (each.samples.batch(step, range(2)) for each in (left, right))
        assert one.captions == other.captions
        assert torch.equal(one.latents, other.latents) and torch.equal(one.time_ids, other.time_ids)
        assert one.masks is not None and other.masks is not None and torch.equal(one.masks, other.masks)


def test_parts_of_a_model_that_are_links_travel_along(aws: StandIn, tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model, elsewhere):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (model / "unet").symlink_to(elsewhere)
    (elsewhere / "above").symlink_to(model)
    storage, place = Storage(aws.s3), Places(aws.bucket, "p").model("m" * 40)
    send_folder(model, place, storage, what="a model")
    assert sorted(storage.listing(place)) == ["config.json", "unet/config.json"]


def test_what_was_encoded_and_is_gone_is_in_no_training_job(aws: StandIn, tmp_path: Path) -> None:
    """A lifecycle rule removes encodings, but not their list, which is rewritten with each new one."""
    launcher = {"name": "sagemaker", "image": "i", "role": "r", "bucket": aws.bucket, "instance": "ml.m5.xlarge"}
    job = make_job(Experiment.model_validate({"launcher": launcher}), model="m", dataset="d", outputs=tmp_path / "out")
    register(job)
    storage, places = Storage(aws.s3), Places(aws.bucket, "p")
    (index,) = cache_indexes([job], places)
    storage.write(index, json.dumps(["latents/gone.safetensors", "latents/here.safetensors"]).encode())
    storage.write(places.cache / "latents/here.safetensors", b"x")

    def cached(name: str) -> list[Location]:
        """What is cached, as seen by a new command, which looks only once."""
        inputs = Inputs(job.experiment.launcher, storage, places, "eu-central-1")  # type: ignore[arg-type]
        order = Order(title="e", queue=tmp_path / "queue", at_once=1, processes=1, device="cpu")
        channels = inputs.bring([job], order, places.training_job("e", name))
        return [Location.parse(channel.uri) for channel in channels if channel.name == CACHE]

    (manifest,) = cached("one")
    assert json.loads(storage.read(manifest)) == [{"prefix": places.cache.uri}, "latents/here.safetensors"]
    here = places.cache / "latents/here.safetensors"
    aws.s3.delete_object(Bucket=here.bucket, Key=here.key)
    assert cached("two") == [], "an empty list is none that SageMaker takes"
