"""What a job trains on is a function of its seed and a count: every image once per epoch, whoever asks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.data import crops_for
from runner.train.inputs.samples import Batch, Samples, join
from runner.train.place import Place
from runner.train.randomness import generator, permutation
from tests.train.bench import SIZES, Bench, write_images

COUNT = len(SIZES)


def samples_of(bench: Bench, model: Path, **settings: Any) -> Samples:
    job = bench.job(model, **settings)
    return bench.materials(job, bench.base(job)).samples


def images(samples: Samples, first: int, count: int) -> list[str]:
    """The images of the samples `first` ..., identified by their captions."""
    return [
        str(samples.batch(0, range(index, index + 1)).captions[0]).rpartition(" ")[2]
        for index in range(first, first + count)
    ]


def equal(left: Batch, right: Batch) -> bool:
    names = ("latents", "noise", "timesteps", "time_ids")
    return left.captions == right.captions and all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in names
    )


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own(bench: Bench, sdxl_folder: Path) -> None:
    samples = samples_of(bench, sdxl_folder)
    epochs = [images(samples, epoch * COUNT, COUNT) for epoch in range(4)]
    assert all(sorted(epoch) == [str(index) for index in range(COUNT)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_batches_run_on_across_epochs(bench: Bench, sdxl_folder: Path) -> None:
    samples = samples_of(bench, sdxl_folder, batch_size=5)
    seen = [caption for step in range(7) for caption in samples.batch(step, range(5)).captions]
    assert len(seen) == 5 * COUNT
    assert all(seen.count(caption) == 5 for caption in seen)


def test_a_sample_is_the_same_whoever_asks_and_when(bench: Bench, sdxl_folder: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 6, "dataset": {"crop": "random", "flip": True, "caption_dropout": 0.5}}
    whole = samples_of(bench, sdxl_folder, **settings).batch(3, range(6))
    again = samples_of(bench, sdxl_folder, **settings)
    again.batch(9, range(2))
    parts = [again.batch(3, range(4, 6)), again.batch(3, range(4))]
    assert equal(whole, join([parts[1], parts[0]]))


def test_an_option_does_not_shift_what_others_draw(bench: Bench, sdxl_folder: Path) -> None:
    plain = samples_of(bench, sdxl_folder).batch(0, range(2))
    dropped = samples_of(bench, sdxl_folder, dataset={"caption_dropout": 1.0}).batch(0, range(2))
    assert dropped.captions == (None, None)
    assert torch.equal(plain.latents, dropped.latents)
    assert torch.equal(plain.noise, dropped.noise)
    offset = samples_of(bench, sdxl_folder, loss={"noise_offset": 0.1}).batch(0, range(2))
    assert torch.equal(plain.latents, offset.latents)
    shift = offset.noise - plain.noise
    assert torch.allclose(shift, shift.mean((2, 3), keepdim=True), atol=1e-6), "one shift for each channel"
    assert 0.01 < float(shift.std()) < 0.3


def test_a_latent_is_drawn_anew_each_time(bench: Bench, sdxl_folder: Path) -> None:
    samples = samples_of(bench, sdxl_folder, batch_size=1)
    steps = [step for step in range(3 * COUNT) if str(samples.batch(step, range(1)).captions[0]).endswith(" 3")]
    first, second, third = (samples.batch(step, range(1)) for step in steps)
    assert not torch.equal(first.latents, second.latents)
    assert not torch.equal(second.noise, third.noise)


def test_every_crop_comes_as_often_and_latents_are_spread_as_the_vae_says(bench: Bench, sdxl_folder: Path) -> None:
    dataset = {"crop": "random", "variants": 4, "flip": True}
    samples = samples_of(bench, sdxl_folder, batch_size=200 * COUNT, dataset=dataset)
    scale = float(str(samples.vae_config["scaling_factor"]))
    batch = samples.batch(0, range(200 * COUNT))
    crops = {item.id: crops_for(item, shape=(64, 64), mode="random", variants=4, flip=True) for item in samples.items}
    expected = Counter((item.id, crop) for item in samples.items for crop in crops[item.id])
    counts: Counter[Any] = Counter()
    off = []
    for sample, latent in zip(batch.sample_ids, batch.latents, strict=True):
        image = samples.items[samples.schedule.image(sample)].id
        posteriors = {(image, crop): samples.posteriors[image, crop] for crop in crops[image]}
        deviations = {key: (latent / scale - mean) / std for key, (mean, std) in posteriors.items()}
        key = min(deviations, key=lambda each: float(deviations[each].norm()))
        counts[key] += 1
        off.append(deviations[key])
    assert len(expected) > 3 * COUNT
    assert all(abs(counts[key] - 50 * number) < 30 for key, number in expected.items())
    deviation = torch.stack(off)
    assert float(deviation.mean()) == pytest.approx(0, abs=0.01)
    assert float(deviation.std()) == pytest.approx(1, abs=0.01)
    assert float((deviation * batch.noise).mean()) == pytest.approx(0, abs=0.01), "drawn apart from the noise"


def test_seeds_differ_and_streams_do_not_meet() -> None:
    draws = {
        generator(seed, what, index).random() for seed in (0, 1) for what in ("sample", "init") for index in (0, 1)
    }
    assert len(draws) == 8
    assert not all((permutation(0, 0, 9) == permutation(1, 0, 9)).tolist())


def test_timesteps_are_uniform(bench: Bench, sdxl_folder: Path) -> None:
    timesteps = samples_of(bench, sdxl_folder, batch_size=2000).batch(0, range(2000)).timesteps.float()
    assert 0 <= int(timesteps.min()) < 5
    assert 995 < int(timesteps.max()) <= 999
    assert float(timesteps.mean()) == pytest.approx(499.5, abs=25)


def test_captions_crops_and_timesteps_are_drawn_apart_from_each_other(bench: Bench, sdxl_folder: Path) -> None:
    """Otherwise, for example, only the noisiest samples would be trained without their captions."""
    dataset = {"caption_dropout": 0.5, "crop": "random", "variants": 2}
    samples = samples_of(bench, sdxl_folder, batch_size=2000, dataset=dataset)
    batch = samples.batch(0, range(2000))
    drawn = []
    for sample, caption, timestep, sizes in zip(
        batch.sample_ids, batch.captions, batch.timesteps.tolist(), batch.time_ids.tolist(), strict=True
    ):
        item = samples.items[samples.schedule.image(sample)]
        first, second = (
            crop.time_ids(item) for crop in crops_for(item, shape=(64, 64), mode="random", variants=2, flip=False)
        )
        if first != second:
            drawn.append([caption is None, tuple(sizes) == first, timestep])
    assert len(drawn) > 1000
    assert np.abs(np.corrcoef(np.array(drawn, dtype=float).T) - np.eye(3)).max() < 0.12


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 8])
def test_shares_cover_every_position_once(world: int, count: int) -> None:
    shares = [Place(torch.device("cpu"), rank, world).share(count) for rank in range(world)]
    assert [position for share in shares for position in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_image_of_a_source_with_repeats_comes_so_often_per_epoch(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    own = write_images(tmp_path / "own", seed=3)
    for name in ("3", "4", "5", "6"):
        (own / f"{name}.png").unlink()
        (own / f"{name}.txt").unlink()
    sources = [{"path": str(own), "repeats": 3, "instance_prompt": None}, str(bench.images)]
    samples = samples_of(bench, sdxl_folder, dataset={"path": None, "sources": sources}, validation={"held_out": 0})
    count = 3 * 3 + COUNT
    for epoch in range(2):
        seen = Counter(samples.items[samples.schedule.image(epoch * count + index)].file for index in range(count))
        assert sorted(seen.values()) == [1] * COUNT + [3] * 3
        assert {file for file, times in seen.items() if times == 3} == {f"sources.0/{index}.png" for index in range(3)}
    first, second = (samples.batch(0, range(2)) for _ in range(2))
    assert equal(first, second)
