"""A base in 8 or 4 bits follows its format; training on it equals training on the numbers that it represents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runner.plan import pack_key
from runner.schema import LoraSettings
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.adapters.packed import PackedAdapters
from runner.train.adapters.quantized import NF4_LEVELS, QuantizedLinear, quantize
from tests.train.bench import CPU, Bench, difference, pipeline_of, records, weights

KINDS = ["int8", "nf4"]


def quantized(layer: nn.Linear, kind: str) -> QuantizedLinear:
    root = nn.ModuleDict({"layer": layer.requires_grad_(False)})
    quantize(root, kind, CPU.device)
    found = root["layer"]
    assert isinstance(found, QuantizedLinear)
    return found


def linear(inputs: int = 50, outputs: int = 7, *, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, dtype=dtype)


def test_int8_is_within_half_a_step_of_every_channel() -> None:
    layer = linear()
    layer.weight.data[2] = 0.0
    layer.weight.data[3] *= 1000
    whole = quantized(layer, "int8").weight
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert bool(((whole - layer.weight).abs() <= step * 0.5001).all())
    assert not whole[2].any()


@pytest.mark.parametrize("shape", [(64, 3), (50, 7), (5, 2)], ids=["whole blocks", "a broken one", "less than one"])
def test_nf4_takes_the_nearest_level_of_every_block(shape: tuple[int, int]) -> None:
    layer = linear(*shape)
    whole, flat = quantized(layer, "nf4").weight, layer.weight.detach().flatten()
    assert whole.shape == layer.weight.shape
    levels = torch.tensor(NF4_LEVELS)
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        scale = block.abs().max()
        nearest = (block[:, None] / scale - levels).abs().argmin(1)
        torch.testing.assert_close(whole.flatten()[start : start + 64], levels[nearest] * scale)


def test_nf4_is_that_of_bitsandbytes() -> None:
    functional: Any = pytest.importorskip("bitsandbytes.functional")
    layer = linear(256, 64)
    packed, state = functional.quantize_4bit(layer.weight.data, blocksize=64, quant_type="nf4")
    torch.testing.assert_close(quantized(layer, "nf4").weight, functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 32 / 512), ("nf4", 4 + 32 / 64)])
def test_it_takes_the_room_it_promises(kind: str, bits: float) -> None:
    layer = quantized(linear(512, 640, dtype=torch.bfloat16), kind)
    kept = sum(each.nbytes for name, each in layer.named_buffers() if name != "table")
    assert kept * 8 == bits * 512 * 640
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapted", [False, True], ids=["frozen", "adapted"])
def test_nothing_of_a_whole_weight_is_kept_for_the_backward_pass(kind: str, adapted: bool) -> None:
    parts = {"unet": nn.ModuleDict({"layer": linear(48, 40)})}
    quantize(parts["unet"], kind, CPU.device)
    layer = parts["unet"]["layer"]
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(3, 5, 48, requires_grad=True)
    slope = torch.randn(3, 5, 40)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if adapted:
            settings = LoraSettings(rank=2, targets="layer")
            adapter = Adapter(settings, find_sites(settings, parts), seed=0, device=CPU.device)
            pack = PackedAdapters(parts, [adapter], dtype=torch.float32)
            with pack.using([(0, 3)]):
                output = layer(x)
        else:
            output = layer(x)
    assert not [tensor.shape for tensor in kept if tensor.numel() >= 40 * 48]
    (gradient,) = torch.autograd.grad(output, x, slope)
    torch.testing.assert_close(gradient, slope @ layer.weight)


def rounded(model: Path, kind: str, folder: Path) -> Path:
    """The model in full precision, with exactly the numbers that a quantized one represents."""
    pipeline = pipeline_of(model)
    denoiser = pipeline.components.get("transformer") or pipeline.unet
    for each in [each for each in denoiser.modules() if isinstance(each, nn.Linear)]:
        each.weight.data = quantized(each, kind).weight
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "kind", "targets", "dora"),
    [
        ("sd15", "nf4", "linear_conv", True),
        ("sdxl", "int8", "linear_conv", True),
        ("sdxl", "nf4", "linear_conv", False),
        ("sd3", "int8", "linear", False),
        ("flux", "int8", "linear", True),
        ("flux", "nf4", "linear", False),
    ],
)
def test_training_beside_it_is_training_beside_the_numbers_it_stands_for(
    bench: Bench, tmp_path: Path, request: pytest.FixtureRequest, model: str, kind: str, targets: str, dora: bool
) -> None:
    """And diffusers loads the result onto such a base; otherwise the job would not complete."""
    folder: Path = request.getfixturevalue(f"{model}_folder")
    lora = {"rank": 3, "targets": targets, "dora": dora, "dropout": 0.2}
    plain = bench.job(rounded(folder, kind, tmp_path / model), lora=lora)
    small = bench.job(folder, lora=lora, model={"quantization": kind})
    assert bench.train(plain)
    assert bench.train(small)
    assert difference(weights(small), weights(plain)) < 1e-5
    assert records(small, "validation/loss") == pytest.approx(records(plain, "validation/loss"), rel=1e-5)


def test_jobs_beside_other_bases_are_other_jobs_and_share_no_pack(bench: Bench, sdxl_folder: Path) -> None:
    jobs = [bench.job(sdxl_folder, model={"quantization": kind}) for kind in ("none", *KINDS)]
    assert len({job.id for job in jobs}) == len({pack_key(job) for job in jobs}) == 3
    assert bench.job(sdxl_folder).id == jobs[0].id
