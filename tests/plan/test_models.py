"""What is known about adapters before a model is loaded, compared with what training finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from runner.embedded import MODEL_DIR
from runner.families.arithmetic import Work
from runner.families.known import FAMILIES
from runner.families.shapes import FLUX_TRANSFORMER, SD3_TRANSFORMER
from runner.plan.models import adapter_size
from runner.schema import Experiment, LoraSettings
from runner.train.adapters.adapter import Adapter, find_sites
from tests.plan.test_predict import SD15, SDXL
from tests.train.bench import CPU

WHOLE: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd": (UNet2DConditionModel, SD15),
    "sdxl": (UNet2DConditionModel, SDXL),
    "sd3": (SD3Transformer2DModel, SD3_TRANSFORMER),
    "flux": (FluxTransformer2DModel, FLUX_TRANSFORMER),
}


def experiment(path: str, family: str, **lora: Any) -> Experiment:
    return Experiment.model_validate({"model": {"path": path, "family": family}, "lora": lora})


@pytest.mark.parametrize("name", list(WHOLE))
def test_an_adapter_of_a_model_that_is_not_here_is_about_as_large_as_it_will_be(name: str) -> None:
    kind, config = WHOLE[name]
    presets = FAMILIES[name].presets
    with torch.device("meta"):
        denoiser = kind.from_config(config)
        component = FAMILIES[name].denoiser
        sizes = {
            targets: sum(
                site.down_units + site.out
                for site in find_sites(LoraSettings(targets=targets), {component: denoiser}, presets)
            )
            for targets in presets
        }
    work = Work(parameters=sum(each.numel() for each in denoiser.parameters()))
    for targets, numbers in sizes.items():
        settings = experiment(f"somebody/{name}", name, targets=targets, rank=16)
        assert adapter_size(settings, work) == pytest.approx(16 * numbers, rel=0.03), targets


@pytest.mark.parametrize(
    "lora",
    [
        {"rank": 8},
        {"rank": 4, "targets": "linear_conv"},
        {"rank": 4, "targets": r".*attn1\.to_[qk]"},
        {"rank": 4, "targets": "linear", "blocks": ["mid_block"]},
        {"rank": 4, "targets": "linear_conv", "rank_pattern": {"conv1": 2}},
    ],
)
def test_an_adapter_of_a_model_that_is_here_is_counted(lora: dict[str, Any]) -> None:
    unet = UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet")
    settings = LoraSettings(**lora)
    adapter = Adapter(settings, find_sites(settings, {"unet": unet}), seed=0, device=CPU.device)
    assert adapter_size(experiment(str(MODEL_DIR), "sdxl", **lora), None) == len(adapter)


def test_new_words_alone_have_no_adapter() -> None:
    method = {"name": "textual_inversion", "tokens": ["<a>"], "initial": ["house"]}
    model = {"path": str(MODEL_DIR), "family": "sdxl"}
    assert adapter_size(Experiment.model_validate({"model": model, "method": method}), None) == 0
