"""A single file that a reader takes for a different model from the merged one does not get its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from runner.errors import ArtifactError
from runner.families import find_family
from runner.families.original_file import write_single_file
from runner.mix.write import write_diffusers
from runner.tasks.merge import work
from tests.mix.adapters import random_layers
from tests.mix.conftest import Parts
from tests.tasks.doing import do


def test_a_single_file_with_another_number_in_it_is_refused(
    sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_otherwise(folder: Path, file: Path, *arguments: Any, **more: Any) -> None:
        write_single_file(folder, file, *arguments, **more)
        tensors = load_file(file)
        tensors["model.diffusion_model.input_blocks.0.0.bias"][0] += 1e-3
        save_file(tensors, file)

    monkeypatch.setattr(work, "write_single_file", write_otherwise)
    adapter = write_diffusers(tmp_path, find_family("sdxl"), random_layers({"unet": sdxl_parts["unet"]}))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: read back, unet\.conv_in\.bias is not what was"):
        do("merge", tmp_path / "job", sdxl_folder, adapter=str(adapter), output="single_file")
    assert not (tmp_path / "job" / "model.safetensors").exists()
