"""Class images drawn by the base: once, the same for every job, each by one process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from runner.cache.encodings import class_images_folder
from runner.jobs.job import read_manifest
from runner.schema import Experiment
from runner.system.exclusive import alone
from runner.train.inputs.class_images import IMAGES_PER_TURN, TURN_FILES, turn_file
from tests.train.bench import Bench


def test_images_of_the_class_are_drawn_once_and_added_to(bench: Bench, sdxl_folder: Path) -> None:
    method = {"name": "dreambooth", "class_prompt": "a red star", "num_class_images": 2, "class_inference_steps": 2}
    first = bench.job(sdxl_folder, steps=1, method=method)
    assert bench.train_only(first)
    with bench.own_cache():
        folder = class_images_folder(first.experiment, "a red star", model=first.identity["model"])
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix == ".png"}
    assert sorted(written) == ["00000.png", "00001.png"]

    more = bench.job(sdxl_folder, steps=1, seed=5, method={**method, "num_class_images": 3})
    assert bench.train_only(more)
    assert {name: (folder / name).stat().st_mtime_ns for name in written} == written
    assert read_manifest(more.folder)["dataset"]["class_images"] == 3
    batch = bench.materials(more, bench.base(more)).samples.batch(0, range(2))
    assert batch.captions[2:] == ("a red star", "a red star")

    # Image i is what the pipeline draws from seed i.
    pipeline = DiffusionPipeline.from_pretrained(sdxl_folder)
    drawn = pipeline(
        "a red star", height=64, width=64, num_inference_steps=2, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(2), output_type="pt",
    ).images[0]  # fmt: skip
    saved = torch.from_numpy(np.array(Image.open(folder / "00002.png"))).permute(2, 0, 1) / 255
    assert float((drawn - saved).abs().max()) < 2 / 255


def test_images_of_the_class_are_not_those_of_other_samplers_or_another_base() -> None:
    method = {"name": "dreambooth", "class_prompt": "a red star", "num_class_images": 2}

    def folder(*, prompt: str = "a red star", base: str = "m", **changes: Any) -> Path:
        return class_images_folder(Experiment.model_validate({"method": method, **changes}), prompt, model=base)

    others = (
        {"scheduler": {"name": "ddim"}},
        {"scheduler": {"name": "ddim", "eta": 1.0}},
        {"model": {"quantization": "nf4"}},
        {"model": {"prediction_type": "v_prediction"}},
        {"method": {**method, "class_guidance_scale": 2.0}},
        {"method": {**method, "class_inference_steps": 9}},
        {"precision": "bf16"},
        {"resolution": 128},
    )
    different = {folder(), folder(prompt="a blue star"), folder(base="other")}
    assert len({*different, *(folder(**changes) for changes in others)}) == 3 + len(others)
    assert folder(seed=3, method={**method, "num_class_images": 9}) == folder()


def test_images_of_the_class_know_nothing_of_text_encoders_that_are_trained(bench: Bench, sdxl_folder: Path) -> None:
    method = {"name": "dreambooth", "class_prompt": "a pink star", "num_class_images": 1, "class_inference_steps": 2}
    common = {"steps": 1, "method": method, "precision": "bf16"}
    frozen = bench.job(sdxl_folder, **common)
    assert bench.train_only(frozen)
    with bench.own_cache():
        folder = class_images_folder(frozen.experiment, "a pink star", model=frozen.identity["model"])
    (image,) = folder.glob("*.png")
    drawn = image.read_bytes()
    image.unlink()
    assert bench.train_only(bench.job(sdxl_folder, lora={"text_encoder": True}, **common))
    assert image.read_bytes() == drawn


def test_images_of_the_class_that_another_pack_draws_are_waited_for(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = {"name": "dreambooth", "class_prompt": "a blue star", "num_class_images": 2, "class_inference_steps": 1}
    assert bench.train_only(bench.job(sdxl_folder, steps=1, method=method))
    job = bench.job(sdxl_folder, steps=1, seed=5, method=method)
    with bench.own_cache():
        folder = class_images_folder(job.experiment, "a blue star", model=job.identity["model"])
    drawn = sorted(folder.glob("*.png"))
    written = [file.stat().st_mtime_ns for file in drawn]
    with ThreadPoolExecutor(1) as other, caplog.at_level("INFO"):
        with alone(turn_file(folder, 0), doing="drawing"):
            for file in drawn:
                file.rename(tmp_path / file.name)
            training = other.submit(bench.train, job)
            while "waiting for another process" not in caplog.text:
                assert not training.done(), training.result()
                time.sleep(0.01)
            for file in drawn:
                (tmp_path / file.name).rename(file)
        assert training.result()
    assert [file.stat().st_mtime_ns for file in drawn] == written


def test_workers_draw_images_of_the_class_at_the_same_time(tmp_path: Path) -> None:
    begins = range(0, IMAGES_PER_TURN * TURN_FILES, IMAGES_PER_TURN)
    assert len({turn_file(tmp_path / "a star", first) for first in begins}) == TURN_FILES
    assert turn_file(tmp_path / "a star", IMAGES_PER_TURN * TURN_FILES) == turn_file(tmp_path / "a star", 0), (
        "they stay"
    )
    assert turn_file(tmp_path / "a star", 0) != turn_file(tmp_path / "a circle", 0)
