"""Predictions for SD3 and FLUX.1: arithmetic that agrees with torch's own counters, and plans that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from runner.families import find_family
from runner.families.known import FAMILIES
from runner.families.shapes import FLUX_TRANSFORMER, SD3_TRANSFORMER
from runner.job import make_job
from runner.machine import Device, Machine
from runner.plan import Pack, Predictor, make_plan
from runner.schema import Experiment, LoraSettings
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.adapters.packed import PackedAdapters
from tests.train.bench import CPU, family_of

RANK, SIDE = 16, 128
KINDS = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}
TOKENS = {"sd3": 333, "flux": 512}
SD35 = {"dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}
# Of the true widths, with fewer blocks: all blocks of a kind are alike.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd3": ("sd3", SD3_TRANSFORMER | {"num_layers": 4}),
    "sd3.5": ("sd3", SD3_TRANSFORMER | {"num_layers": 4} | SD35),
    "flux": ("flux", FLUX_TRANSFORMER | {"num_layers": 2, "num_single_layers": 4}),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_arithmetic_agrees_with_what_torch_counts(name: str) -> None:
    family_name, config = SHAPES[name]
    family, kept = find_family(family_name), dict[int, int]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        denoiser = KINDS[family_name].from_config(config).requires_grad_(False).eval()
        settings = LoraSettings(rank=RANK)
        sites = find_sites(settings, {"transformer": denoiser}, family.target_presets)
        adapter = Adapter(settings, sites, seed=0, device=CPU.device)
        pack = PackedAdapters({"transformer": denoiser}, [adapter], dtype=torch.float32)
        text = {
            "embeds": torch.randn(1, TOKENS[family_name], config["joint_attention_dim"]),
            "pooled": torch.randn(1, config["pooled_projection_dim"]),
        }
        weights = {each.untyped_storage()._cdata for each in denoiser.parameters()}
        weights |= {pack.weights.untyped_storage()._cdata}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            pack.using([(0, 1)], [[0]]),
            forward,
        ):
            noisy, sizes = torch.randn(1, 16, SIDE, SIDE), torch.zeros(1, 6)
            output = family.predict(denoiser, noisy, torch.zeros(1), text, sizes)
        numbers = sum(kept.values()) / 4
        with backward, pack.using([(0, 1)], [[0]]):
            output.square().mean().backward()
        parameters = sum(each.numel() for each in denoiser.parameters())

    work = FAMILIES[family_name].count(config, latent_side=SIDE)
    # On the CPU torch does not count its attention kernel. Not counted here: adapters, and that the backward pass ends
    # at the first of them.
    assert work.products == pytest.approx(forward.get_total_flops(), rel=0.01)
    assert work.training_flop(checkpointing=False) - work.products - 3 * work.attention == pytest.approx(
        backward.get_total_flops(), rel=0.12
    )
    assert work.kept == pytest.approx(numbers, rel=0.06)
    assert work.parameters == pytest.approx(parameters, rel=0.01)


def test_attention_grows_with_the_square_of_the_tokens() -> None:
    work = FAMILIES["flux"].count(FLUX_TRANSFORMER, latent_side=128)
    assert work.parameters == pytest.approx(11.9e9, rel=0.01)
    assert work.attention == 57 * 4 * (4096 + 512) ** 2 * 3072


GPU = Machine((Device("cuda", "NVIDIA H100 80GB HBM3", 85.0, "0"),), cores=16)


def packed(path: str, family: str, resolution: int) -> Pack:
    settings: dict[str, Any] = {
        "model": {"path": path, "family": family},
        "resolution": resolution,
        "precision": "bf16",
        "batch_size": 1,
        "launcher": {"name": "local", "gradient_checkpointing": True},
    }
    jobs = [
        make_job(Experiment.model_validate(settings | {"seed": seed}), model="m", dataset="d", outputs=Path("outputs"))
        for seed in range(2)
    ]
    plan = make_plan(jobs, {}, jobs[0].settings.launcher, machine=GPU, costs=Predictor())
    (pack,) = plan.packs
    return pack


@pytest.mark.parametrize(("family", "billions"), [("sd3", 2.0), ("flux", 11.9)])
def test_plans_predict_packs_of_transformers(family: str, billions: float) -> None:
    pack = packed(f"somebody/{family}", family, 1024)
    assert pack.prediction is not None and not pack.prediction.measured
    assert pack.prediction.seconds > 60
    assert 2 * billions < pack.prediction.memory_gb < 85


@pytest.mark.parametrize("model", ["sd3_folder", "sd35_folder", "flux_folder"])
def test_plans_predict_what_a_folder_holds(model: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(model)
    prediction = packed(str(folder), family_of(folder), 64).prediction
    assert prediction is not None and prediction.memory_gb < 0.1
