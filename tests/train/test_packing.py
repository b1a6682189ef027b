"""A job's result does not depend on which jobs it is trained with."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.cache.store import TensorCache
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.paths import write_over, write_text
from runner.schema import LoraSettings
from runner.track import MetricsFile
from runner.train.adapters.adapter import Adapter, Site, find_sites
from runner.train.adapters.packed import PackedAdapters
from runner.train.checkpoint import save_checkpoint
from tests.train.bench import CPU, SIZES, Bench, difference, pairs, records, weights, write_images

# The same sums in another order. Measured 1e-6 with AdamW as near-plain gradient descent (eps 1e-3), 5e-6 with
# Adafactor and Prodigy. With AdamW's usual eps of 1e-8, which turns rounding into steps, it would be up to 1.4e-4.
ROUNDING = 1e-5

CONVOLUTIONS_TOO = r".*(resnets\.0\.conv1|conv_shortcut|attn2\.to_k|time_emb_proj)"
MIXED: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": 2, "lora": {"rank": 5, "alpha": 3.0, "ema": 0.9}, "optimizer": {"lr": 2e-2}, "steps": 2},
    {"seed": 3, "batch_size": 3, "accumulation": 2, "lr_scheduler": {"name": "cosine", "warmup_steps": 1}},
    {
        "seed": 4,
        "lora": {"rank": 3, "dropout": 0.3, "module_dropout": 0.2},
        "dataset": {"caption_dropout": 0.6},
        "batch_size": 1,
        "steps": 5,
    },
    {"seed": 5, "loss": {"snr_gamma": 5.0, "noise_offset": 0.1}, "dataset": {"crop": "random", "flip": True}},
    {"seed": 6, "lora": {"targets": CONVOLUTIONS_TOO, "alpha": 8.0}},
    {"seed": 7, "optimizer": {"name": "prodigy", "lr": 1.0}, "batch_size": 4, "accumulation": 3},
    {
        "seed": 9,
        "loss": {"name": "huber", "debiased": True, "multires_levels": 6, "input_perturbation": 0.1},
        "steps": 4,
    },
    {"seed": 10, "loss": {"name": "huber", "huber_schedule": "snr", "timestep_bias": "later"}},
    {"seed": 8, "optimizer": {"name": "adafactor"}, "lora": {"init": "kaiming"}, "lr_scheduler": {"name": "linear"}},
    {
        "seed": 9,
        "lora": {
            "rslora": True,
            "rank": 4,
            "rank_pattern": {"attn2.to_k": 7, "to_out.0": 1},
            "alpha_pattern": {"to_q": 2},
        },
    },
    {
        "seed": 10,
        "lora": {"targets": "linear", "blocks": ["mid_block"], "rank_dropout": 0.4},
        "optimizer": {"lora_plus_ratio": 8.0},
    },
    {"seed": 11, "lora": {"dora": True, "rank": 3, "alpha": 6.0, "targets": CONVOLUTIONS_TOO, "ema": 0.5}},
]


@pytest.fixture(scope="module")
def packed(bench: Bench, sdxl_folder: Path) -> list[Job]:
    jobs = [bench.job(sdxl_folder, **settings) for settings in MIXED]
    assert bench.train(*jobs)
    return jobs


@pytest.mark.parametrize("index", range(len(MIXED)))
def test_a_job_among_others_gives_what_it_gives_alone(
    packed: list[Job], bench: Bench, sdxl_folder: Path, index: int
) -> None:
    alone = bench.job(sdxl_folder, **MIXED[index])
    assert bench.train_only(alone)
    assert difference(weights(packed[index]), weights(alone)) < ROUNDING
    assert records(packed[index], "train/loss") == pytest.approx(records(alone, "train/loss"), rel=1e-5)
    assert records(packed[index], "train/grad_norm") == pytest.approx(records(alone, "train/grad_norm"), rel=1e-4)


OF_TRANSFORMERS: list[dict[str, Any]] = [
    {"seed": 1, "flow": {"timesteps": "mode", "mode_scale": 0.5}},
    {"seed": 2, "lora": {"rank": 5, "alpha": 3.0, "targets": "linear"}, "batch_size": 3, "accumulation": 2},
    {"seed": 3, "lora": {"dropout": 0.3}, "flow": {"shift": 1.0}, "dataset": {"caption_dropout": 0.6}, "steps": 2},
    {
        "seed": 4,
        "steps": 2,
        "method": {"name": "dreambooth", "prior": "base", "class_prompt": "a circle"},
        "loss": {"name": "huber"},
    },
]


@pytest.mark.parametrize("model", ["sd3_folder", "sd35_folder", "flux_folder"])
def test_transformers_pack_as_unets_do(bench: Bench, model: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(model)
    together = [bench.job(folder, **settings) for settings in OF_TRANSFORMERS]
    assert bench.train(*together)
    for job, settings in zip(together, OF_TRANSFORMERS, strict=True):
        alone = bench.job(folder, **settings)
        assert bench.train_only(alone)
        assert difference(weights(job), weights(alone)) < ROUNDING
        assert records(job, "train/loss") == pytest.approx(records(alone, "train/loss"), rel=1e-5)


def test_each_job_ends_after_its_own_steps(packed: list[Job]) -> None:
    assert [read_manifest(job.folder)["steps_done"] for job in packed] == [3, 2, 3, 5, 3, 3, 3, 4, 3, 3, 3, 3, 3]
    assert {state_of(job.folder) for job in packed} == {State.COMPLETED}


def test_a_job_that_diverges_fails_alone(bench: Bench, sdxl_folder: Path) -> None:
    settings: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "optimizer": {"lr": 1e30}}, {"seed": 3, "steps": 4}]
    settings.append({"seed": 4, "lora": {"alpha": 1e25}})
    jobs = [bench.job(sdxl_folder, **each) for each in settings]
    assert not bench.train_only(*jobs)
    assert [state_of(job.folder) for job in jobs] == [
        State.COMPLETED,
        State.FAILED,
        State.COMPLETED,
        State.FAILED,
    ]
    assert "the gradient has the norm inf at step 1; try a lower lora.alpha" in read_manifest(jobs[3].folder)["error"]
    assert "lower optimizer.lr" in read_manifest(jobs[1].folder)["error"]
    alone = bench.job(sdxl_folder, **settings[2])
    assert bench.train_only(alone)
    assert difference(weights(jobs[2]), weights(alone)) < ROUNDING


def test_a_job_whose_settings_do_not_fit_the_model_fails_alone(bench: Bench, sdxl_folder: Path) -> None:
    good, bad = bench.job(sdxl_folder, steps=1), bench.job(sdxl_folder, lora={"targets": "nothing_like_it"})
    assert not bench.train_only(bad, good)
    assert state_of(good.folder) is State.COMPLETED
    assert "lora.targets = 'nothing_like_it'" in read_manifest(bad.folder)["error"]


def test_a_job_that_cannot_write_its_files_fails_alone(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even if its failure cannot be written either: the launcher learns of it from the lock."""
    jobs = [bench.job(sdxl_folder, seed=seed, steps=2, checkpoint={"every": 1}) for seed in (1, 2, 3, 4)]
    no_record, no_checkpoint, nothing, _ = (job.folder for job in jobs)

    def refused(what: str, really: Callable[..., Any], *folders: Path) -> None:
        def act(place: Any, *arguments: Any) -> Any:
            path = getattr(place, "path", None) or getattr(place, "folder", place)
            if any(path.is_relative_to(folder) for folder in folders):
                raise OSError(errno.ENOSPC, "No space left on device")
            return really(place, *arguments)

        monkeypatch.setattr(what, act)

    refused("runner.track.MetricsFile.truncate_after", MetricsFile.truncate_after, no_record)
    refused("runner.train.job_run.save_checkpoint", save_checkpoint, no_checkpoint)
    refused("runner.jobs.job.write_text", write_text, nothing)
    refused("runner.jobs.job.write_over", write_over, nothing)
    assert not bench.train(*jobs, save=lambda *_: None)
    assert [state_of(job.folder) for job in jobs] == [State.FAILED, State.FAILED, State.PENDING, State.COMPLETED]
    assert all("No space left" in read_manifest(folder)["error"] for folder in (no_record, no_checkpoint))
    assert f"{nothing / 'manifest.json'} cannot be written: [Errno 28]" in caplog.text
    assert len(records(jobs[3], "train/loss")) == 2


def test_adapters_of_text_encoders_among_others_give_what_they_give_alone(bench: Bench, sdxl_folder: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"seed": 1, "lora": {"text_encoder": True, "alpha": 1.0}, "dataset": {"caption_dropout": 0.5}},
        {
            "seed": 2,
            "lora": {"text_encoder": True, "rank": 4, "alpha": 12.0, "dropout": 0.2, "dora": True},
            "optimizer": {"text_encoder_lr": 1e-3},
        },
    ]
    jobs = [bench.job(sdxl_folder, **each) for each in settings]
    assert bench.train(*jobs)
    for job, each in zip(jobs, settings, strict=True):
        alone = bench.job(sdxl_folder, **each)
        assert bench.train_only(alone)
        assert any(key.startswith("text_encoder_2.") for key in weights(job))
        assert difference(weights(job), weights(alone)) < ROUNDING


def test_padding_to_the_largest_rank_stays_zero(bench: Bench, sdxl_folder: Path) -> None:
    jobs = [bench.job(sdxl_folder, lora={"rank": rank}) for rank in (2, 5)]
    base = bench.base(jobs[0])
    adapters = []
    for job in jobs:
        sites = find_sites(job.experiment.lora, base.components())
        adapters.append(Adapter(job.experiment.lora, sites, seed=0, device=CPU.device))
    pack = PackedAdapters(base.components(), adapters, dtype=torch.float32)
    assert pack.weights.count_nonzero() == sum(adapter.weights.count_nonzero() for adapter in adapters)
    pack.gradient.fill_(1.0)
    pack.collect()
    assert [float(adapter.gradient.sum()) for adapter in adapters] == [len(adapter) for adapter in adapters]
    assert not pack.gradient.any()
    pack.forget()
    assert not any(adapter.gradient.any() for adapter in adapters), "of a step that starts over nothing is left"
    pack.detach()
    assert not any("forward" in vars(module) for module in base.denoiser.modules())


def test_dropout_falls_anew_on_each_sample_and_on_none_while_validating() -> None:
    layer = torch.nn.Linear(6, 3, bias=False).requires_grad_(False)
    base = torch.nn.Sequential(layer)
    settings = LoraSettings(rank=2, alpha=6.0, dropout=0.25)
    adapter = Adapter(settings, [Site("unet", "0", (6,), 3)], seed=0, device=CPU.device)
    adapter.weights.normal_(generator=torch.Generator().manual_seed(0))
    pack = PackedAdapters({"unet": base}, [adapter], dtype=torch.float32)
    ((_, down, up),) = pairs(adapter, adapter.weights)
    same = torch.ones(4000, 6)
    with pack.using([(0, len(same))], [range(len(same))]), torch.no_grad():
        dropped, again = base(same), base(same)
    with pack.using([(0, len(same))]), torch.no_grad():
        kept = base(same)
    assert torch.equal(dropped, again), "the same sample is always dropped alike"
    assert len(dropped.unique(dim=0)) > 30
    assert torch.allclose(kept[0], layer(same[0]) + 3.0 * up @ down @ same[0], atol=1e-5)
    assert torch.allclose(dropped.mean(0), kept[0], atol=0.3), "what is kept is scaled up for what is not"


def outputs_of(
    settings: LoraSettings, rows: int, *, among: LoraSettings | None = None
) -> tuple[Tensor, Tensor, Adapter]:
    """(outputs of one layer in training, its output without dropout, the adapter); every row has the same input."""
    layer = torch.nn.Linear(6, 3, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.linspace(-1, 1, 18).view(3, 6))
    adapters = [
        Adapter(each, [Site("unet", "0", (6,), 3)], seed=0, device=CPU.device) for each in (settings, among) if each
    ]
    adapters[0].weights.normal_(generator=torch.Generator().manual_seed(0))
    pack = PackedAdapters({"unet": torch.nn.Sequential(layer)}, adapters, dtype=torch.float32)
    same = torch.ones(rows, 6)
    with pack.using([(0, rows)], [range(rows)]), torch.no_grad():
        dropped, again = layer(same), layer(same)
    with pack.using([(0, rows)]), torch.no_grad():
        kept = layer(same)
    assert torch.equal(dropped, again), "the same sample is always dropped alike"
    assert torch.equal(kept, kept[:1].expand_as(kept)), "nothing is dropped while validating"
    return dropped, kept[0], adapters[0]


def test_rank_dropout_leaves_out_ranks_and_scales_up_the_others() -> None:
    dropped, kept, adapter = outputs_of(LoraSettings(rank=2, alpha=6.0, rank_dropout=0.25), 4000)
    ((_, down, up),) = pairs(adapter, adapter.weights)
    base = torch.linspace(-1, 1, 18).view(3, 6).sum(1)
    updates = 3.0 * up * down.sum(1) / 0.75  # per rank, for an input of ones
    possible = base + torch.stack([torch.zeros(3), updates[:, 0], updates[:, 1], updates.sum(1)])
    nearest = (dropped[:, None] - possible).norm(dim=2).min(1)
    assert float(nearest.values.max()) < 1e-4
    shares = nearest.indices.bincount() / 4000
    assert shares.tolist() == pytest.approx([1 / 16, 3 / 16, 3 / 16, 9 / 16], abs=0.03)
    assert torch.allclose(dropped.mean(0), kept, atol=0.3), "what is kept is scaled up for what is not"


def test_module_dropout_leaves_out_the_whole_layer() -> None:
    dropped, kept, _ = outputs_of(LoraSettings(rank=2, alpha=6.0, module_dropout=0.25), 4000)
    base = torch.linspace(-1, 1, 18).view(3, 6).sum(1)
    nearest = (dropped[:, None] - torch.stack([base, kept])).norm(dim=2).min(1)
    assert float(nearest.values.max()) < 1e-4, "what is left is as it would be without dropout"
    assert float((nearest.indices == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_which_ranks_fall_out_does_not_depend_on_the_ranks_of_others() -> None:
    settings = LoraSettings(rank=3, rank_dropout=0.4, module_dropout=0.2)
    alone, _, _ = outputs_of(settings, 50)
    among, _, _ = outputs_of(settings, 50, among=LoraSettings(rank=8))
    assert torch.allclose(alone, among, atol=1e-5)


def test_jobs_that_follow_each_other_read_what_they_share_once_and_nothing_else_stays(
    bench: Bench, sd15_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(seed: int, images: Path = bench.images) -> Job:
        return bench.job(sd15_folder, images=images, steps=1, seed=seed)

    others = write_images(tmp_path / "others", seed=7)
    bench.train_only(job(0), job(0, others))  # encodes all of them
    read: Counter[str] = Counter()
    get = TensorCache.get

    def counting(cache: TensorCache, key: str) -> Any:
        read[key] += cache.folder.name == "posteriors"
        return get(cache, key)

    monkeypatch.setattr(TensorCache, "get", counting)
    bench.train_only(*map(job, range(1, 5)), at_once=2)
    assert sorted(read.values()) == [0] * (len(read) - len(SIZES)) + [1] * len(SIZES)
    read.clear()
    bench.train_only(job(5), job(6, others), job(7), at_once=1)
    assert sorted((+read).values()) == [1] * len(SIZES) + [2] * len(SIZES)


@pytest.mark.parametrize("model", ["sdxl_folder", "sd35_folder", "flux_folder"])
def test_gradient_checkpointing_changes_nothing(bench: Bench, model: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(model)
    lora = {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2}
    settings: list[dict[str, Any]] = [{"seed": 1, "lora": lora}, {"seed": 2, "batch_size": 3}]
    plain = [bench.job(folder, **each) for each in settings]
    thrifty = [bench.job(folder, **each, launcher={"gradient_checkpointing": True}) for each in settings]
    assert bench.train_only(*plain)
    assert bench.train_only(*thrifty)
    for left, right in zip(plain, thrifty, strict=True):
        assert difference(weights(left), weights(right)) < ROUNDING
