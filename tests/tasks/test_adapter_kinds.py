"""What is no LoRA, or has none, is refused by its header before a job starts, in whichever task it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.errors import SettingsError
from runner.schema.tasks.generate import Generate
from runner.tasks.adapters import find_adapters
from tests.tasks.doing import do, with_words
from tests.train.bench import Bench

NAMED = {"task": {"name": "generate"}, "prompts": ["a"]}
OTHERS = {
    "a base model": "model.diffusion_model.input_blocks.0.0.weight",
    "a LoHa": "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",
    "a LoKr": "lora_unet_mid_block_attentions_0_proj_in.lokr_w1",
}
LORAS = {
    "diffusers": "unet.mid_block.attentions.0.proj_in.lora_A.weight",
    "diffusers, before peft": "unet.mid_block.attentions.0.processor.to_q_lora.down.weight",
    "kohya": "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
}


@pytest.mark.parametrize("name", OTHERS.values(), ids=OTHERS)
def test_a_file_without_a_lora_is_no_adapter(name: str, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(1)}, file)
    with pytest.raises(SettingsError, match=rf"adapter = '{file}': holds tensors such as {name}, and no LoRA"):
        find_adapters(Generate.model_validate({**NAMED, "adapter": str(file)}))


@pytest.mark.parametrize("name", LORAS.values(), ids=LORAS)
def test_a_lora_of_any_program_is_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file({name: torch.zeros(1)}, file)
    (found,) = find_adapters(Generate.model_validate({**NAMED, "adapter": str(file)}))
    assert found.file == file


def test_a_word_named_by_its_file_is_neither_merged_nor_exported(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    job = with_words(bench, sdxl_folder, layers=False)
    word = str(job.paths.word("<sks>"))
    for task in ("merge", "export"):
        with pytest.raises(SettingsError, match=rf"adapter = '{word}': is a new word"):
            do(task, tmp_path / task, sdxl_folder, adapter=word)


def test_formats_of_layers_are_not_chosen_for_words_alone(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    job = with_words(bench, sdxl_folder, layers=False)
    given = {"formats": ["kohya"], "adapter_weight": 2}
    with pytest.raises(SettingsError) as raised:
        do("export", tmp_path / "job", sdxl_folder, adapter=str(job.folder), **given)
    because = f"has no effect on {job.folder}, which is words alone; remove it"
    assert str(raised.value).splitlines() == [f"adapter_weight = [2.0]: {because}", f"formats = [kohya]: {because}"]
