"""The embedded model draws what it is asked for, its data set is what draw.py draws, miniatures are as described."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from tokenizers import decoders
from transformers import CLIPTokenizer

from runner.embedded import DATASET_DIR, MODEL_DIR, draw
from runner.embedded.miniature import build_sdxl
from runner.embedded.tokenizer import WORDS, make_tokenizer
from tests.families.miniatures import build_sd15, build_sd21

BUILDERS: list[Callable[..., Any]] = [build_sdxl, build_sd15, build_sd21]
TEXTS = [
    "a red circle on a white background",
    "Zwölf Boxkämpfer jagen Viktor",
    "數據 данные データ 🏠🎈",
    "3.14 != 2,71; (a) [b] {c} <d> \\ / ~ ^ ` § €",
    "it's we're I'd",
    "e\u0301 combines",
    "tab\tand\nnewline",
    "\x00\x7f\xad controls",
]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    loaded = StableDiffusionXLPipeline.from_pretrained(MODEL_DIR, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def modules_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def test_finding_the_model_does_not_import_torch() -> None:
    code = "import sys; from runner.embedded import MODEL_DIR, DATASET_DIR; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_everything_embedded_fits_into_12_megabytes() -> None:
    files = [path for path in MODEL_DIR.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_weights_are_stored_in_half_precision_and_load_finite(pipeline: StableDiffusionXLPipeline) -> None:
    assert set(modules_of(pipeline)) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    for name, module in modules_of(pipeline).items():
        for key, values in module.state_dict().items():
            assert torch.isfinite(values).all(), f"{name}.{key}"
            if values.is_floating_point():
                assert values.dtype == torch.float32 and torch.equal(values, values.half().float()), f"{name}.{key}"


def test_no_config_names_a_folder_of_the_machine_it_was_made_on() -> None:
    for path in MODEL_DIR.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("colour", "background"), zip(draw.COLOURS, ["white", "black", "gray", "navy", "white", "black"], strict=True)
)
@pytest.mark.parametrize("shape", ["circle", "square"])
def test_the_model_draws_the_colours_it_is_asked_for(
    pipeline: StableDiffusionXLPipeline, shape: str, colour: str, background: str
) -> None:
    prompt = draw.caption(shape=shape, colour=colour, background=background)
    generator = torch.Generator().manual_seed(0)
    picture = (
        pipeline(prompt, num_inference_steps=10, guidance_scale=3.0, generator=generator, output_type="np").images[0]
        * 255
    )
    corners = [
        picture[rows, columns] for rows in (slice(0, 6), slice(-6, None)) for columns in (slice(0, 6), slice(-6, None))
    ]
    assert nearest_colour(picture[28:36, 28:36]) == colour
    assert [nearest_colour(corner) for corner in corners] == [background] * 4


def nearest_colour(patch: np.ndarray) -> str:
    mean = patch.mean(axis=(0, 1))
    palette = {**draw.COLOURS, **draw.BACKGROUNDS}
    return min(palette, key=lambda name: float(np.linalg.norm(mean - palette[name])))


def test_the_data_set_is_what_draw_draws(tmp_path: Path) -> None:
    draw.write_houses(tmp_path)
    assert sorted(path.name for path in DATASET_DIR.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
    assert (DATASET_DIR / "metadata.jsonl").read_bytes() == (tmp_path / "metadata.jsonl").read_bytes()
    for path in DATASET_DIR.glob(
        "*.png"
    ):  # pixels, not files: how PNG data is compressed depends on the machine's zlib
        with Image.open(path) as kept, Image.open(tmp_path / path.name) as drawn:
            assert kept.size == (64, 64) and kept.tobytes() == drawn.tobytes(), path.name


def test_the_data_set_leaves_one_house_to_the_demo() -> None:
    records = [json.loads(line) for line in (DATASET_DIR / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == draw.HOUSES
    assert all("house" in record["text"] and (DATASET_DIR / record["file_name"]).is_file() for record in records)
    colour, background = draw.HELD_OUT
    assert draw.caption(shape="house", colour=colour, background=background) not in {
        record["text"] for record in records
    }


def test_the_world_is_the_same_for_the_same_seed_and_holds_no_house() -> None:
    pictures, captions = draw.draw_world(40, seed=3)
    again, captions_again = draw.draw_world(40, seed=3)
    assert np.array_equal(pictures, again) and captions == captions_again
    assert not np.array_equal(pictures, draw.draw_world(40, seed=4)[0])
    assert not any("house" in caption for caption in captions)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_encoded_without_loss(text: str) -> None:
    tokenizer = make_tokenizer(WORDS, prompt_tokens=77, padding="!")
    assert spell(tokenizer, text) == "".join(unicodedata.normalize("NFC", text).lower().split())


def test_random_text_is_encoded_without_loss() -> None:
    generator = random.Random(0)
    tokenizer = make_tokenizer(WORDS, prompt_tokens=77, padding="!")
    for _ in range(200):
        letters = "".join(
            chr(generator.choice([*range(0x21, 0x7F), *range(0x3041, 0x3094), *range(0x1F300, 0x1F5FF)]))
            for _ in range(12)
        )
        assert spell(tokenizer, letters) == unicodedata.normalize("NFC", letters).lower()


def spell(tokenizer: CLIPTokenizer, text: str) -> str:
    """The text that the token ids spell, letter by letter: CLIP itself keeps neither capitals nor white space."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    return str(
        decoders.ByteLevel().decode([token.removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids)])
    )


def test_prompts_are_padded_as_in_the_real_models(pipeline: StableDiffusionXLPipeline) -> None:
    for built in (pipeline, build_sdxl()):
        assert (built.tokenizer.pad_token, built.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
        assert built.tokenizer_2.pad_token_id == 0
        for tokenizer in (built.tokenizer, built.tokenizer_2):
            ids = tokenizer("a red circle", padding="max_length").input_ids
            expected = [
                "<|startoftext|>",
                "a</w>",
                "red</w>",
                "circle</w>",
                "<|endoftext|>",
                tokenizer.pad_token,
            ]
            assert tokenizer.convert_ids_to_tokens(ids[:6]) == expected
            assert len(ids) == tokenizer.model_max_length
            assert all(len(tokenizer.tokenize(word)) == 1 for word in WORDS)


@pytest.mark.parametrize("build", BUILDERS)
def test_builders_are_pure_functions_of_the_seed(build: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = build(seed=5), build(seed=5), build(seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    for name, module in modules_of(one).items():
        weights, weights_same = module.state_dict(), modules_of(same)[name].state_dict()
        assert all(torch.equal(values, weights_same[key]) for key, values in weights.items())
        assert any(
            not torch.equal(values, modules_of(other)[name].state_dict()[key]) for key, values in weights.items()
        )


@pytest.mark.parametrize("build", BUILDERS)
def test_a_saved_miniature_draws_the_same_picture(build: Callable[..., Any], tmp_path: Path) -> None:
    def picture(pipeline: Any) -> np.ndarray:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(2)
        return np.asarray(
            pipeline("a red circle", num_inference_steps=2, generator=generator, output_type="np").images[0]
        )

    built = build(prompt_tokens=20)
    built.save_pretrained(tmp_path)
    loaded = type(built).from_pretrained(tmp_path)
    assert loaded.tokenizer.model_max_length == 20
    assert picture(built).shape == (64, 64, 3) and np.array_equal(picture(built), picture(loaded))


def test_each_miniature_keeps_what_makes_its_family() -> None:
    sdxl, sd15, sd21 = build_sdxl(), build_sd15(), build_sd21()
    widths = [encoder.config.hidden_size for encoder in (sdxl.text_encoder, sdxl.text_encoder_2)]
    assert sdxl.unet.config.addition_embed_type == "text_time" and sdxl.unet.config.cross_attention_dim == sum(widths)
    assert sdxl.text_encoder.config.num_hidden_layers >= 2 and sdxl.config.force_zeros_for_empty_prompt
    assert (sd15.scheduler.config.prediction_type, sd21.scheduler.config.prediction_type) == (
        "epsilon",
        "v_prediction",
    )
    assert (
        not sd15.unet.config.use_linear_projection
        and sd21.unet.config.use_linear_projection
        and sdxl.unet.config.use_linear_projection
    )
