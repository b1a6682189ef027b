"""Training in aspect-ratio buckets: a job gives the same result alone, packed with other shapes, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Interrupted
from runner.jobs.job import Job, read_manifest
from runner.train.inputs.samples import collate
from tests.train.bench import SIZES, Bench, difference, records, weights

ROUNDING = 1e-5
BUCKETS: dict[str, Any] = {"buckets": True, "bucket_step": 8}
SHAPE_OF = {0: (72, 56), 1: (64, 64), 2: (48, 80), 3: (80, 48), 4: (80, 48), 5: (64, 64), 6: (56, 72)}
"""Sizes of the bench's images: (height, width) in pixels."""

MIXED: list[dict[str, Any]] = [
    {"seed": 1, "dataset": BUCKETS, "steps": 4, "checkpoint": {"every": 2}},
    {"seed": 2, "dataset": BUCKETS | {"crop": "random", "flip": True}, "batch_size": 3, "accumulation": 2, "steps": 5},
    {"seed": 3, "lora": {"rank": 5, "dropout": 0.3}},
    {"seed": 4, "dataset": BUCKETS | {"bucket_max_aspect": 1.3, "caption_dropout": 0.4}, "batch_size": 1, "steps": 5},
]


@pytest.fixture(scope="module")
def packed(bench: Bench, sdxl_folder: Path) -> list[Job]:
    jobs = [bench.job(sdxl_folder, **settings) for settings in MIXED]
    assert bench.train_only(*jobs)
    return jobs


@pytest.mark.parametrize("index", range(len(MIXED)))
def test_a_job_among_jobs_of_other_shapes_gives_what_it_gives_alone(
    packed: list[Job], bench: Bench, sdxl_folder: Path, index: int
) -> None:
    alone = bench.job(sdxl_folder, **MIXED[index])
    assert bench.train_only(alone)
    assert difference(weights(packed[index]), weights(alone)) < ROUNDING
    assert records(packed[index], "train/loss") == pytest.approx(records(alone, "train/loss"), rel=1e-5)
    assert records(packed[index], "validation/loss") == pytest.approx(records(alone, "validation/loss"), rel=1e-4)


def test_the_jobs_of_the_pack_did_differ_in_shape(packed: list[Job], bench: Bench) -> None:
    """Otherwise the test above would show nothing."""
    samples = [bench.materials(job, bench.base(job)).samples for job in packed]
    shapes = [{each.shape(step) for each in samples} for step in range(3)]
    assert [len(each) > 1 for each in shapes] == [True] * 3, shapes
    assert len(set.union(*shapes)) > 2, shapes


def test_a_resumed_job_is_bit_for_bit_the_uninterrupted_one(packed: list[Job], bench: Bench, sdxl_folder: Path) -> None:
    straight, broken = (bench.job(sdxl_folder, **MIXED[0]) for _ in range(2))
    assert bench.train_only(straight)
    rounds = iter(range(100))
    with pytest.raises(Interrupted):
        bench.train_only(broken, stop=lambda: next(rounds) == 3)
    assert bench.train_only(broken)
    assert difference(weights(straight), weights(broken)) == 0.0
    assert records(straight, "train/loss") == records(broken, "train/loss")


def test_every_image_is_trained_in_its_own_shape(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, dataset=BUCKETS, batch_size=2)
    materials = bench.materials(job, bench.base(job))
    scale = 64 // bench_latent_side(bench, sdxl_folder)
    seen = set()
    for step in range(40):
        batch = materials.samples.batch(step, range(2))
        height, width = materials.samples.shape(step)
        assert batch.latents.shape[2:] == (height // scale, width // scale)
        for caption, sizes in zip(batch.captions, batch.time_ids.tolist(), strict=True):
            image = int(str(caption).rpartition(" ")[2])
            seen.add(image)
            assert SHAPE_OF[image] == (height, width) == tuple(map(int, sizes[4:]))
            assert tuple(map(int, sizes[:2])) == SIZES[image]
    assert seen == set(range(len(SIZES)))
    assert sum(row["images"] for row in materials.buckets) == len(SIZES)


def bench_latent_side(bench: Bench, model: Path) -> int:
    job = bench.job(model)
    return int(bench.materials(job, bench.base(job)).samples.batch(0, range(1)).latents.shape[-1])


def test_the_held_out_loss_measures_each_image_in_its_own_shape(bench: Bench, sdxl_folder: Path) -> None:
    """Batched by shape, in any portions, the losses equal those of the samples one by one."""
    job = bench.job(sdxl_folder, dataset=BUCKETS, validation={"timesteps": 2, "max_images": 7})
    base = bench.base(job)
    materials = bench.materials(job, base)
    held_out = materials.held_out_samples
    assert len({sample.latent.shape for sample in held_out.samples}) == 5
    sizes = {str(sample.caption): sample.time_ids[4:] for sample in held_out.samples}
    assert {int(caption.rpartition(" ")[2]): size for caption, size in sizes.items()} == SHAPE_OF

    def no_rows(count: int) -> Any:
        return torch.no_grad()

    by_hand: dict[float, list[float]] = {}
    for sample in held_out.samples:
        batch = collate([0], [sample])
        noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.no_grad():
            text = materials.conditioner.text(batch.captions)
            predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
        by_hand.setdefault(sample.timestep, []).append(float((predicted - batch.noise).square().mean()))
    wanted = {f"validation/loss_t{timestep:04.0f}": sum(losses) / 7 for timestep, losses in by_hand.items()}
    wanted["validation/loss"] = sum(wanted.values()) / 2
    for held_out.chunk in (64, 3, 1):
        assert held_out.loss(base, materials.conditioner, no_rows) == pytest.approx(wanted, rel=1e-5)


def test_the_manifest_says_how_many_images_each_bucket_has(packed: list[Job]) -> None:
    table = read_manifest(packed[0].folder)["dataset"]["buckets"]
    assert {(row["height_px"], row["width_px"]): row["images"] for row in table} == {
        (80, 48): 2, (72, 56): 1, (64, 64): 2, (56, 72): 1, (48, 80): 1,
    }  # fmt: skip
    assert "buckets" not in read_manifest(packed[2].folder)["dataset"]
