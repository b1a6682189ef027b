"""The disk space that a plan predicts, compared with what is really used."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from runner.cache.encodings import Need, cache_work
from runner.data import read_dataset
from runner.plan.disk import Disk, results_gb, too_full
from runner.plan.words import plan_lines
from runner.system.machine import disk_of
from tests.plan.test_packs import plan, seeds
from tests.train.bench import SIZES, Bench


@pytest.mark.parametrize(
    ("optimizer", "lora", "every"),
    [("adamw", {"ema": 0.9}, 1), ("adafactor", {"targets": "linear"}, 3)],
    ids=["as many checkpoints as are kept", "fewer"],
)
def test_results_take_what_is_predicted(
    optimizer: str, lora: dict[str, Any], every: int, bench: Bench, sdxl_folder: Path
) -> None:
    job = bench.job(
        sdxl_folder,
        steps=5,
        lora={"rank": 16} | lora,
        optimizer={"name": optimizer, "lr": 1e-3},
        checkpoint={"every": every, "keep": 2},
    )
    assert bench.train(job)
    written = sum(file.stat().st_size for kind in ("lora", "checkpoints") for file in (job.folder / kind).rglob("*.*"))
    # Everything but the weights themselves: names, the model card, and the optimizer's other numbers.
    predicted_gb = results_gb(job.experiment, None, pictures=0)
    assert predicted_gb == pytest.approx(written / 1e9, rel=0.15)
    drawn = 1000 * job.experiment.resolution**2
    # A picture like a photograph takes more than one byte per pixel, and no more than its three colours.
    assert drawn / 1e9 < results_gb(job.experiment, None, pictures=1000) - predicted_gb < 3 * drawn / 1e9


@pytest.mark.parametrize(
    ("model", "caption_bytes", "crop_bytes"),
    [
        # Sizes of the real models, not of their miniatures: two encoders' states side by side and a pooled vector;
        # mean and deviation of 4 or 16 channels at an eighth of 1024 px.
        ("sdxl_folder", 4 * (77 * (768 + 1280) + 1280), 4 * 2 * 4 * 128**2),
        ("flux_folder", 4 * (512 * 4096 + 768), 4 * 2 * 16 * 128**2),
    ],
)
def test_encodings_that_are_missing_are_counted_in_bytes(
    model: str, caption_bytes: int, crop_bytes: int, bench: Bench, request: pytest.FixtureRequest
) -> None:
    with bench.own_cache():
        job = bench.job(request.getfixturevalue(model), resolution=1024)
        work = cache_work([Need(job, read_dataset(job.experiment.dataset).items)] * 2)
    assert work is not None and work.images_missing == len(SIZES)
    assert work.missing_gb * 1e9 == pytest.approx(work.captions_missing * caption_bytes + len(SIZES) * crop_bytes)


def test_folders_of_one_file_system_share_its_room() -> None:
    results, encodings = Disk("results", 6.0, 10.0, 1), Disk("encodings", 5.0, 10.0, 1)
    assert too_full([results, encodings])
    apart = dataclasses.replace(encodings, filesystem=2)
    assert not too_full([results, apart])
    assert too_full([dataclasses.replace(results, gb=11.0), apart])
    assert not too_full([results, dataclasses.replace(encodings, gb=3.9)])


@pytest.mark.parametrize(("gb", "said"), [(0.2, None), (40.0, "up to 40.0 GB"), (90.0, "not enough space")])
def test_a_plan_says_what_is_written_where_that_is_much_or_more_than_there_is_room_for(
    gb: float, said: str | None
) -> None:
    text = "\n".join(plan_lines(plan(seeds(2)), None, [Disk("results", gb, 80.0, 1)]))
    assert ("on disk" in text) == (said is not None)
    assert said is None or said in text


def test_a_full_disk_is_told_with_what_little_would_be_written() -> None:
    text = "\n".join(plan_lines(plan(seeds(2)), None, [Disk("results", 0.004, 0.0, 1)]))
    assert "on disk: up to 4 MB of results (0 MB free)" in text


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_what_will_hold_it(tmp_path: Path) -> None:
    free_gb, number = disk_of(tmp_path / "outputs" / "dev")
    assert number == tmp_path.stat().st_dev
    assert free_gb > 0
