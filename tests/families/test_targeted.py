"""What a model's files say about its layers matches the loaded model."""

from __future__ import annotations

from typing import Any

import pytest

from runner.errors import SettingsError
from runner.families import find_family
from runner.families.targeted import _layers, _shapes, adapter_numbers, matched, target_faults, targets_of
from runner.schema import LoraSettings, ModelSettings
from runner.train.adapters.adapter import find_sites

FOLDERS = {"sd": "sd15_folder", "sdxl": "sdxl_folder", "sd3": "sd3_folder", "flux": "flux_folder"}
CHOSEN: tuple[dict[str, Any], ...] = (
    {"targets": "attention"},
    {"targets": "attention_ff"},
    {"targets": "linear"},
    {"targets": r".*(to_[qk]|proj_in)"},
)
WRONG: tuple[dict[str, Any], ...] = (
    {"targets": "nothing_like_it"},
    {"targets": ".*"},
    {"targets": ".*norm1"},
    {"blocks": ["nowhere"]},
    {"rank_pattern": {"atn2.to_k": 4}},
    {"alpha_pattern": {"to_k": 4, ".*to_k": 2}},
)


@pytest.mark.parametrize("name", FOLDERS)
def test_layers_are_found_in_the_files_as_in_the_model(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(FOLDERS[name])
    model, family = ModelSettings.model_validate({"path": str(folder), "family": name}), find_family(name)
    denoiser = family.load_denoiser(folder, None, None)
    component = family.adapter_components[0]
    layers = _layers(_shapes(folder / component))
    for chosen in CHOSEN:
        settings = LoraSettings.model_validate(chosen)
        sites = find_sites(settings, {component: denoiser}, family.target_presets)
        assert target_faults(settings, model) == []
        assert {site.name for site in sites} == set(matched(targets_of(settings, family.target_presets), layers))
        numbers = sum(settings.rank_of(site.name) * (site.down_units + site.out) for site in sites)
        assert adapter_numbers(settings, model) == numbers
    for chosen in WRONG:
        settings = LoraSettings.model_validate(chosen)
        with pytest.raises(SettingsError) as refused:
            find_sites(settings, {component: denoiser}, family.target_presets)
        (fault,) = target_faults(settings, model)
        assert fault.split(":")[0] == str(refused.value).split(":")[0]


def test_where_the_weights_are_not_here_nothing_is_said() -> None:
    model = ModelSettings.model_validate({"path": "somebody/model", "family": "sdxl"})
    assert target_faults(LoraSettings(targets="nothing_like_it"), model) == []


def test_patterns_may_be_about_text_encoders(sdxl_folder: Any) -> None:
    model = ModelSettings.model_validate({"path": str(sdxl_folder), "family": "sdxl"})
    settings = LoraSettings.model_validate({"rank_pattern": {"q_proj": 2}})
    assert target_faults(settings, model) != []
    assert target_faults(settings.model_copy(update={"text_encoder": True}), model) == []
    mistyped = LoraSettings.model_validate({"rank_pattern": {"q_prj": 2}, "text_encoder": True})
    (fault,) = target_faults(mistyped, model)
    assert fault.startswith("lora.rank_pattern.q_prj = 2: matches none of the adapted layers") and "q_proj?" in fault
