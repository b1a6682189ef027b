"""What the card beside the weights says: how to load the model that they were trained on, and what was drawn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from runner.artifacts.card import pipeline_code, sample_table, table
from runner.artifacts.exported import Exported, write_export_card
from runner.embedded import MODEL_DIR
from runner.schema import ModelSettings
from tests.families.original_layout import write_original
from tests.train.bench import Bench, pipeline_of


def test_the_code_of_the_card_loads_a_single_file_as_it_was_trained_on(sd15_folder: Path, tmp_path: Path) -> None:
    file = write_original(pipeline_of(sd15_folder), tmp_path / "model.safetensors")
    weights = shutil.ignore_patterns("*.safetensors")
    config = shutil.copytree(sd15_folder, tmp_path / "config", ignore=weights)
    told = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    model = ModelSettings(path=str(file), config=str(config), family="sd", **told)
    found: dict[str, Any] = {}
    exec("\n".join(pipeline_code(model, torch.float32)), found)  # this is what people copy
    scheduler = found["pipeline"].scheduler.config
    assert (scheduler["prediction_type"], scheduler["timestep_spacing"]) == ("v_prediction", "trailing")


def test_the_code_of_the_card_names_the_files_that_were_trained_on() -> None:
    code = pipeline_code(ModelSettings(path="owner/name", variant="fp16", revision="main"), torch.bfloat16)
    assert code[-1] == (
        "pipeline = AutoPipelineForText2Image.from_pretrained('owner/name', variant='fp16', revision='main', "
        "torch_dtype=torch.bfloat16)"
    )


def test_the_card_of_an_export_tells_the_sampler_what_the_base_predicts(tmp_path: Path) -> None:
    drawn = {"prompts": ["un château rouge", "بيت أحمر"]}
    job = Bench(tmp_path).job(MODEL_DIR, model={"prediction_type": "epsilon"}, validation=drawn)
    (file := tmp_path / "pytorch_lora_weights.safetensors").touch()
    exported = Exported(tmp_path, {"diffusers": file}, (), {})
    card = write_export_card(exported, job, title="t", base_model="owner/name", family="sd").read_text()
    assert "from_config(pipeline.scheduler.config, prediction_type='epsilon')" in card
    assert all(f"- {prompt}\n" in card for prompt in drawn["prompts"]), "in the settings, as they are read"


@pytest.mark.parametrize(
    ("written", "samples"),
    [
        ("# Mine\n\nIt is: so: good\n", []),
        ("Mine.\n", []),
        ("---\r\nwidget:\r\n- text: a\r\n- a\r\n- text: b\r\n  output: {url: b.png}\r\n---\r\n# Mine\r\n", ["b"]),
        ("---\nwidget: none\n---\n", []),
    ],
)
def test_a_card_that_somebody_has_written_anew_keeps_nothing_from_being_exported(
    written: str, samples: list[str], tmp_path: Path
) -> None:
    job = Bench(tmp_path).job(MODEL_DIR)
    job.paths.lora.mkdir()
    (job.paths.lora / "README.md").write_bytes(written.encode())
    (job.paths.lora / "b.png").touch()
    card = write_export_card(Exported(tmp_path, {}, (), {}), job, title="t", base_model=None, family="sd").read_text()
    assert [each["text"] for each in yaml.safe_load(card.split("---")[1])["widget"]] == samples


def test_a_prompt_of_several_lines_or_with_bars_stays_in_its_cell() -> None:
    lines = sample_table([("a red house\non a | hill", "sample-00.png")])
    assert lines == [
        "| ![a red house on a \\| hill](sample-00.png) |",
        "|---|",
        "| a red house on a \\| hill |",
        "",
    ]


def test_a_prompt_is_shown_as_it_is_written_and_no_markup() -> None:
    first, _, _, _ = sample_table([("a <cat> ](x) <img src=x onerror=y> &lt; **b** \x1b[2J", "sample-00.png")])
    assert first == (r"| ![a \<cat\> \](x) \<img src=x onerror=y\> \&lt; \*\*b\*\* \\x1b\[2J](sample-00.png) |")


def test_what_names_have_in_them_is_shown_and_no_markup(tmp_path: Path) -> None:
    """In the heading of an export, which is named after a file, and in a table, where a bar would start a cell."""
    exported = Exported(tmp_path, {}, (), {})
    card = write_export_card(
        exported, None, title="my_<cat>_*red*_a|b", base_model="owner/name", family="sd"
    ).read_text()
    assert r"# my\_\<cat\>\_\*red\*\_a\|b" in card.splitlines()
    (row,) = table({"Data": "`pictures|red`"})[2:]
    assert row == r"| Data | `pictures\|red` |"
