"""Predictions for SD3 and FLUX.1: arithmetic that agrees with torch's own counters, and plans that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from runner.families import find_family
from runner.families.known import FAMILIES
from runner.families.shapes import FLUX_TRANSFORMER, SD3_TRANSFORMER
from runner.jobs.job import make_job
from runner.plan import Pack, Predictor, make_plan
from runner.schema import Experiment
from runner.system.machine import Device, Machine
from tests.plan.counted import counted
from tests.train.bench import family_of

RANK, SIDE = 16, 128
KINDS = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}
TOKENS = {"sd3": 333, "flux": 512}
SD35 = {"dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}
# The real widths with fewer blocks: all blocks of a kind are alike.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd3": ("sd3", SD3_TRANSFORMER | {"num_layers": 4}),
    "sd3.5": ("sd3", SD3_TRANSFORMER | {"num_layers": 4} | SD35),
    "flux": ("flux", FLUX_TRANSFORMER | {"num_layers": 2, "num_single_layers": 4}),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_arithmetic_agrees_with_what_torch_counts(name: str) -> None:
    family_name, config = SHAPES[name]
    family = find_family(family_name)

    def predict(denoiser: Any) -> torch.Tensor:
        text = {
            "embeds": torch.randn(1, TOKENS[family_name], config["joint_attention_dim"]),
            "pooled": torch.randn(1, config["pooled_projection_dim"]),
        }
        return family.predict(denoiser, torch.randn(1, 16, SIDE, SIDE), torch.zeros(1), text, torch.zeros(1, 6))

    found = counted("transformer", lambda: KINDS[family_name].from_config(config), family.target_presets, predict)
    work = FAMILIES[family_name].count(config, latent_side=SIDE)
    # On the CPU, torch does not count its attention kernel. Not counted here: the adapters, and that the backward pass
    # ends at the first of them.
    assert work.products == pytest.approx(found.products, rel=0.01)
    assert work.training_flop(checkpointing=False) - work.products - 3 * work.attention == pytest.approx(
        found.backward, rel=0.12
    )
    assert work.kept == pytest.approx(found.kept, rel=0.06)
    assert work.parameters == pytest.approx(found.parameters, rel=0.01)


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
