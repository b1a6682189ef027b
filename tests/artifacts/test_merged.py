"""What is merged from adapters, or rewritten, is compared with what it should be, and refused if it differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from runner.artifacts.merged import check_put_together, check_read_back
from runner.errors import ArtifactError
from runner.families import find_family
from runner.mix.layers import AdapterLayers
from runner.mix.write import write_diffusers
from runner.schema import ModelSettings
from tests.mix.adapters import random_layers
from tests.mix.conftest import Parts
from tests.train.bench import CPU


def changed(layers: AdapterLayers, **fields: object) -> AdapterLayers:
    """The same with one layer changed."""
    key = next(iter(layers))
    return layers | {key: dataclasses.replace(layers[key], **fields)}  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_an_adapter_that_does_not_do_what_it_was_put_together_from_is_refused(
    sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path
) -> None:
    layers = random_layers({"unet": sdxl_parts["unet"]}, scale=0.25)
    family = find_family("sdxl")
    for name, written in (("right", layers), ("wrong", changed(layers, scale=0.5))):
        (tmp_path / name).mkdir()
        write_diffusers(tmp_path / name, family, written)
    right, wrong = (tmp_path / name / "pytorch_lora_weights.safetensors" for name in ("right", "wrong"))
    settings = ModelSettings(path=str(sdxl_folder), family="sdxl")

    def compare(merged: Path, *, exact: bool) -> float:
        adapters = [(right, 1.0)]
        return check_put_together(
            settings, sdxl_folder, adapters, merged, CPU, computed=torch.float32, exact=exact
        ).output

    assert compare(right, exact=True) < 1e-6
    assert compare(wrong, exact=False) > 1e-4, "where something is left out, the difference is measured"
    with pytest.raises(ArtifactError, match="differs from the adapters that it was put together from"):
        compare(wrong, exact=True)


def test_an_adapter_with_another_update_or_other_magnitudes_than_were_written_is_refused(
    sdxl_parts: Parts, tmp_path: Path
) -> None:
    unet = {"unet": sdxl_parts["unet"]}
    layers = random_layers(unet, dora=True, targets=("to_q",))
    file = write_diffusers(tmp_path, find_family("sdxl"), layers)
    check_read_back(file, find_family("sdxl"), unet, layers)
    first = layers[next(iter(layers))]
    assert first.magnitude is not None
    for otherwise in ({"magnitude": first.magnitude * 1.001}, {"magnitude": None}, {"scale": first.scale * 1.001}):
        with pytest.raises(ArtifactError, match=r"read back, unet\..* is not what was written"):
            check_read_back(file, find_family("sdxl"), unet, changed(layers, **otherwise))
    fewer = dict(list(layers.items())[1:])
    with pytest.raises(ArtifactError, match="other layers than were written"):
        check_read_back(file, find_family("sdxl"), unet, fewer)
