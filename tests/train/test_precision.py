"""Low precision computes faster and loses nothing: master weights stay fp32, sizes stay exact, fp16 is scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runner.families import find_family
from runner.jobs.job import State, state_of
from runner.train.checkpoint import load_checkpoint
from runner.train.place import Place
from tests.train.bench import Bench, difference, records, weights


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_a_training_in_low_precision_goes_where_fp32_goes(
    bench: Bench, sdxl_folder: Path, precision: str, tolerance: float
) -> None:
    full = bench.job(sdxl_folder, optimizer={"lr": 1e-3})
    low = bench.job(sdxl_folder, optimizer={"lr": 1e-3}, precision=precision)
    assert bench.train(full)
    assert bench.train(low)
    assert all(tensor.dtype == torch.float32 for tensor in weights(low).values())
    assert records(low, "train/loss") == pytest.approx(records(full, "train/loss"), rel=1e-2)
    assert records(low, "train/grad_norm") == pytest.approx(records(full, "train/grad_norm"), rel=2e-2)
    assert difference(weights(full), weights(low)) < tolerance


def test_a_small_learning_rate_moves_every_weight_in_bf16(bench: Bench, sdxl_folder: Path) -> None:
    # Weights in bf16 have three digits: a step of 1e-4 on a weight of 0.5 would be lost (measured by others: only a
    # tenth of the weights at rank 4 ever moved).
    settings: dict[str, Any] = {"precision": "bf16", "optimizer": {"lr": 1e-4, "weight_decay": 0.0, "eps": 1e-12}}
    job = bench.job(sdxl_folder, steps=3, checkpoint={"every": 1, "keep": 5}, **settings)
    assert bench.train(job)
    first, last = (load_file(job.paths.checkpoint_at(step) / "adapter.safetensors") for step in (1, 2))
    moved = [float((first[key] != last[key]).float().mean()) for key in first]
    assert min(moved) > 0.95


def test_a_diverging_step_in_fp16_is_left_out_and_the_scale_lowered(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, precision="fp16", steps=3, checkpoint={"every": 2})
    assert bench.train(job)
    found = load_checkpoint(job)
    assert found is not None
    scaler = found[2]["scaler"]
    skipped = 2 - scaler["_growth_tracker"]
    assert scaler["scale"] == 65536.0 * 0.5**skipped
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(job).values())


def test_a_first_step_that_is_left_out_in_fp16_is_no_mistake_in_the_schedule(bench: Bench, sdxl_folder: Path) -> None:
    """torch takes it for a mistake and warns, and a warning is an error here."""
    job = bench.job(
        sdxl_folder,
        precision="fp16",
        steps=2,
        batch_size=1,
        # Gradients too large for the first scale, while the update is still zero.
        lora={"alpha": 2e3},
        optimizer={"name": "adafactor", "lr": 1e-9},
        lr_scheduler={"name": "linear"},
    )
    assert bench.train(job, save=lambda *_: None)
    assert records(job, "train/grad_norm")[1] == math.inf
    assert records(job, "train/lr") == pytest.approx({1: 1e-9, 2: 5e-10})


def test_sizes_of_images_stay_exact_in_bf16(sdxl_folder: Path) -> None:
    family = find_family("sdxl")
    denoiser = family.load_denoiser(sdxl_folder, None, torch.bfloat16)
    seen: list[Tensor] = []
    denoiser.add_time_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # type: ignore[union-attr,operator]
    text = {"embeds": torch.zeros(1, 77, 48), "pooled": torch.zeros(1, 32)}
    sizes = torch.tensor([[1365.0, 1443.0, 257.0, 511.0, 1024.0, 3000.0]])
    with torch.no_grad():
        family.predict(denoiser, torch.zeros(1, 4, 16, 16), torch.tensor([5]), text, sizes)
    assert seen[0].dtype == torch.float32
    assert seen[0].tolist() == sizes.flatten().tolist()


def test_training_sees_the_sizes_of_the_files(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, dataset={"flip": True}, batch_size=14, precision="bf16")
    batch = bench.materials(job, bench.base(job)).samples.batch(0, range(14))
    assert batch.time_ids.dtype == torch.float32
    by_caption = dict(zip(batch.captions, batch.time_ids.tolist(), strict=True))
    # 130 x 90 px become 64 x 92 px, cropped to the middle 64.
    assert by_caption["a red circle 6"] == [90.0, 130.0, 0.0, 14.0, 64.0, 64.0]
    # 64 x 80 px: height first.
    assert by_caption["a red circle 0"] == [80.0, 64.0, 8.0, 0.0, 64.0, 64.0]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_learning_rate_is_stepped_once_per_optimizer_step(
    bench: Bench, sdxl_folder: Path, accumulation: int
) -> None:
    job = bench.job(
        sdxl_folder,
        steps=4,
        batch_size=4,
        accumulation=accumulation,
        optimizer={"lr": 1e-2},
        lr_scheduler={"name": "cosine", "warmup_steps": 1},
    )
    assert bench.train(job)
    assert state_of(job.folder) is State.COMPLETED
    wanted = {1: 0.0, 2: 1e-2, 3: 7.5e-3, 4: 2.5e-3}  # warm-up, peak, and the cosine down from it
    assert records(job, "train/lr") == pytest.approx(wanted, abs=1e-9)


class RoundedConvolutions(TorchDispatchMode):
    """Convolutions in fp32 as cuDNN computes them if allowed: with 10 mantissa bits of both factors."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__.startswith("convolution") and torch.backends.cudnn.allow_tf32:
            args = tuple(_rounded(each) if isinstance(each, Tensor) else each for each in args)
        return func(*args, **(kwargs or {}))


def _rounded(values: Tensor) -> Tensor:
    return ((values.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


def test_a_training_in_fp32_convolves_in_fp32(bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, on a GPU, the saved file would differ from what was trained, and the job would fail."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    job = bench.job(sdxl_folder, steps=20, lora={"rank": 8, "targets": "linear_conv"})
    place = Place.here("cpu")
    with RoundedConvolutions():
        assert bench.train(job, place=place)
