"""A masked loss: white areas count, cut and mirrored like the image, whatever else is in the pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runner.data import Crop, crops_for, read_dataset
from runner.data.views import View, shape_of
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.schema import DatasetSettings
from runner.train.inputs.masks import masks_of
from runner.train.loss import masked_mean
from tests.train.bench import CPU, SIZES, Bench, difference, records, weights, write_images

MASKED: dict[str, Any] = {"dataset": {"masks": True}, "loss": {"masked": True}}
CUT: dict[str, Any] = {"masks": True, "crop": "random", "flip": True, "buckets": True, "bucket_step": 8}
OF_BASE = {"name": "dreambooth", "prior": "base", "class_prompt": "a circle"}


def with_masks(folder: Path, *, white: bool = False) -> Path:
    """The bench's images; all but the last have a mask, either of noise or all white."""
    write_images(folder)
    draw = np.random.default_rng(5)
    for index, size in enumerate(SIZES[:-1]):
        pixels = np.full(size, 255, np.uint8) if white else draw.integers(0, 256, size, dtype=np.uint8)
        pixels[: 20 * (not white)] = 0
        Image.fromarray(pixels).save(folder / f"{index}.mask.png")
    return folder


@pytest.fixture(scope="module")
def masked_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_masks(tmp_path_factory.mktemp("masked") / "images")


def by_hand(mask: Path, crop: Any, latent: tuple[int, int]) -> torch.Tensor:
    """The mask of a crop, by its definition: resized, cut, mirrored, and the mean over each latent pixel's area."""
    resized = Image.open(mask).resize((crop.resized_w, crop.resized_h), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized)[crop.top : crop.top + crop.height_px, crop.left : crop.left + crop.width_px]
    pixels = pixels[:, ::-1] if crop.flip else pixels
    rows, columns = crop.height_px // latent[0], crop.width_px // latent[1]
    return torch.from_numpy(pixels.reshape(latent[0], rows, latent[1], columns).mean((1, 3)) / 255).float()


def test_the_mask_of_a_sample_is_that_of_its_crop(bench: Bench, sdxl_folder: Path, masked_images: Path) -> None:
    job = bench.job(sdxl_folder, images=masked_images, dataset=CUT, loss={"masked": True}, batch_size=2)
    samples = bench.materials(job, bench.base(job)).samples
    seen = set()
    for step in range(40):
        batch = samples.batch(step, range(2))
        assert batch.masks is not None
        assert batch.masks.shape == (2, 1, *batch.latents.shape[2:])
        for sample, mask, sizes in zip(batch.sample_ids, batch.masks[:, 0], batch.time_ids, strict=True):
            item = samples.items[samples.schedule.image(sample)]
            seen.add(item.file)
            if item.mask is None:
                assert (mask == 1).all()
                continue
            crops = crops_for(item, shape=shape_of(item, job.experiment), mode="random", variants=4, flip=True)
            possible = [crop for crop in crops if crop.time_ids(item) == tuple(sizes.tolist())]
            wanted = [by_hand(masked_images / item.mask.file, crop, tuple(mask.shape)) for crop in possible]
            assert any(torch.allclose(mask, each, atol=1e-6) for each in wanted)
    assert len(seen) == len(SIZES)
    assert bench.materials(job, bench.base(job)).dataset.report.counts["unmasked"] == 1


def test_the_error_is_averaged_over_what_counts() -> None:
    draw = torch.Generator().manual_seed(0)
    error, mask = torch.rand(3, 4, 5, 6, generator=draw), torch.rand(3, 1, 5, 6, generator=draw)
    mask[2] = 0
    wanted = [
        sum(float(error[b, :, y, x].mean() * mask[b, 0, y, x]) for y in range(5) for x in range(6))
        / float(mask[b].sum())
        for b in range(2)
    ]
    assert masked_mean(error, mask).tolist() == pytest.approx([*wanted, 0.0], rel=1e-5)
    assert torch.equal(masked_mean(error, torch.ones(3, 1, 5, 6)), error.flatten(1).mean(1))


def test_what_does_not_count_has_no_gradient() -> None:
    predicted = torch.rand(1, 4, 5, 6, requires_grad=True)
    mask = torch.ones(1, 1, 5, 6)
    mask[..., :3] = 0
    masked_mean(predicted.square(), mask).sum().backward()
    assert predicted.grad is not None
    assert not predicted.grad[..., :3].any()
    assert predicted.grad[..., 3:].all()


def test_what_keeps_the_class_is_not_masked(bench: Bench, sdxl_folder: Path, masked_images: Path) -> None:
    job = bench.job(sdxl_folder, images=masked_images, method=OF_BASE, **MASKED)
    batch = bench.materials(job, bench.base(job)).samples.batch(0, range(2))
    assert batch.masks is not None
    assert (batch.masks[2:] == 1).all()
    assert not (batch.masks[:2] == 1).all()


def test_white_masks_change_nothing(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    white = bench.job(sdxl_folder, images=with_masks(tmp_path / "white", white=True), **MASKED)
    plain = bench.job(sdxl_folder)
    for job in (white, plain):
        assert bench.train_only(job)
    assert difference(weights(white), weights(plain)) == 0.0
    assert records(white, "train/loss") == records(plain, "train/loss")


@pytest.fixture(scope="module")
def settings(masked_images: Path) -> list[dict[str, Any]]:
    return [
        {**MASKED, "images": masked_images, "batch_size": 3},
        {"seed": 2},
        {"images": masked_images, "dataset": CUT, "loss": {"masked": True, "snr_gamma": 5.0}, "seed": 3},
        {**MASKED, "images": masked_images, "method": OF_BASE, "loss": {"masked": True, "name": "huber"}, "seed": 4},
    ]


def test_a_masked_job_among_others_gives_what_it_gives_alone(
    bench: Bench, sdxl_folder: Path, settings: list[dict[str, Any]]
) -> None:
    packed: list[Job] = [bench.job(sdxl_folder, **each) for each in settings]
    assert bench.train_only(*packed)
    for job, each in zip(packed, settings, strict=True):
        alone = bench.job(sdxl_folder, **each)
        assert bench.train_only(alone)
        assert difference(weights(job), weights(alone)) < 1e-5
        assert records(job, "train/loss") == pytest.approx(records(alone, "train/loss"), rel=1e-5)
    plain = bench.job(sdxl_folder, batch_size=3)
    assert bench.train_only(plain)
    assert difference(weights(packed[0]), weights(plain)) > 1e-2, "the masks had no effect"


def test_a_black_mask_is_refused_by_name(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    images = with_masks(tmp_path / "images")
    Image.new("L", (64, 64)).save(images / "1.mask.png")
    job = bench.job(sdxl_folder, images=images, **MASKED)
    assert not bench.train_only(job)
    assert state_of(job.folder) is State.FAILED
    assert "1.mask.png: the mask of 1.png is black wherever" in read_manifest(job.folder)["error"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_mask_that_is_black_in_one_of_several_crops_is_none_to_be_refused(tmp_path: Path, order: int) -> None:
    pixels = np.zeros((64, 128), np.uint8)
    Image.fromarray(pixels + 99).save(tmp_path / "0.png")
    pixels[:, :64] = 255
    Image.fromarray(pixels).save(tmp_path / "0.mask.png")
    (item,) = read_dataset(DatasetSettings(path=str(tmp_path), masks=True, instance_prompt="a star")).items
    assert item.mask is not None
    views = [View(item, Crop(64, 128, 0, left, 64, 64)) for left in (0, 64)][::order]
    latents = {view.key: (torch.zeros(4, 8, 8), torch.zeros(4, 8, 8)) for view in views}
    masks = masks_of(views, latents, CPU)
    assert [float(masks[item.mask.id, view.crop].mean()) for view in views] == [1.0, 0.0][::order]


def test_a_mask_for_latents_of_another_size_is_another_entry(tmp_path: Path) -> None:
    """With another VAE, the first one's cache entry would not fit."""
    folder = with_masks(tmp_path)
    item = read_dataset(DatasetSettings(path=str(folder), masks=True, instance_prompt="a star")).items[0]
    assert item.mask is not None
    view = View(item, Crop(64, 64, 0, 0, 64, 64))
    for side in (8, 16):
        masks = masks_of([view], {view.key: (torch.zeros(4, side, side), torch.zeros(4, side, side))}, CPU)
        assert masks[item.mask.id, view.crop].shape == (1, side, side)
