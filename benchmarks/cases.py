"""What the benchmarks train: models, images and batch sizes, the same for every side of a comparison."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from runner.embedded import DATASET_DIR, MODEL_DIR
from runner.embedded.miniature import Size, TextSize, build_sdxl

PHOTOGRAPHS_DIR = Path(__file__).resolve().parents[1] / "tests" / "data" / "photographs"

RANK = 8
LR = 1e-4

WIDER = Size(
    text=(TextSize(width=128, layers=4, heads=4), TextSize(width=256, layers=4, heads=4)),
    unet_channels=(64, 128, 256),
    transformer_depth=(1, 1, 2),
    head_width=32,
    time_id_width=32,
    vae_channels=(16, 32, 64, 64),
    vae_groups=4,
    sample_px=256,
)
"""Random weights, 23 million in the UNet; latents are eight times smaller than images, as in the real model."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    model: str
    resolution: int
    batch_size: int
    photographs: bool = False
    """Whether to use JPEG files of three megapixels, like people's own photographs, instead of the drawn images."""


PHOTOGRAPH_PX = (2048, 1536)

CASES = (
    Case("embedded, 64 px, batch 1", "embedded", 64, 1),
    Case("embedded, 64 px, batch 4", "embedded", 64, 4),
    Case("wider, 256 px, batch 1", "wider", 256, 1),
    Case("photographs, embedded, 64 px, batch 1", "embedded", 64, 1, photographs=True),
    Case("photographs, embedded, 64 px, batch 4", "embedded", 64, 4, photographs=True),
)


def model_folder(case: Case, work: Path) -> Path:
    """The model in diffusers layout; a random one is made on first use."""
    if case.model == "embedded":
        return MODEL_DIR
    folder = work / "models" / case.model
    if not folder.is_dir():
        build_sdxl(WIDER).save_pretrained(folder)
    return folder


def images_folder(case: Case, work: Path) -> Path:
    """32 captioned images, enlarged to 5:4 so that both sides have something to resize and to crop."""
    if case.photographs:
        return _photographs(work / "images" / "photographs")
    if case.resolution == 64:
        return DATASET_DIR
    folder = work / "images" / str(case.resolution)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        height = case.resolution * 9 // 8
        for file in sorted(DATASET_DIR.glob("*.png")):
            with Image.open(file) as image:
                image.resize((height * 5 // 4, height), Image.Resampling.BICUBIC).save(folder / file.name)
        captions = (DATASET_DIR / "metadata.jsonl").read_text(encoding="utf-8")
        (folder / "metadata.jsonl").write_text(captions, encoding="utf-8")
    return folder


def _photographs(folder: Path) -> Path:
    """32 crops of the tests' photographs, enlarged to three megapixels."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    lines = []
    for source in sorted(PHOTOGRAPHS_DIR.glob("*.jpg")):
        name = source.stem
        with Image.open(source) as image:
            picture = image.convert("RGB")
        for index in range(8):
            edge = 4 * index
            cut = picture.crop((edge, edge, picture.width - edge, picture.height - edge))
            file = f"{name}-{index}.jpg"
            cut.resize(PHOTOGRAPH_PX, Image.Resampling.BICUBIC).save(folder / file, quality=90)
            lines.append(json.dumps({"file_name": file, "text": f"a photo of a {name}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def gflop_of_one_image(case: Case, folder: Path) -> dict[str, float]:
    """GFLOP for one image in a training step: forward and backward of the UNet with its adapter, and both encoders."""
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    unet, vae = pipeline.unet, pipeline.vae
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    side = case.resolution // 2 ** (len(vae.config.block_out_channels) - 1)
    ids = torch.ones(1, pipeline.tokenizer.model_max_length, dtype=torch.long)
    pixels = torch.randn(1, 3, case.resolution, case.resolution)
    text = torch.randn(1, ids.shape[1], unet.config.cross_attention_dim)
    sizes = {"text_embeds": torch.randn(1, pipeline.text_encoder_2.config.projection_dim), "time_ids": torch.ones(1, 6)}
    latents = torch.randn(1, 4, side, side)
    with torch.no_grad():
        encoders = {
            "vae": _gflop(lambda: vae.encode(pixels)),
            "text": _gflop(lambda: (pipeline.text_encoder(ids), pipeline.text_encoder_2(ids))),
        }
    step = _gflop(lambda: unet(latents, torch.ones(1), text, added_cond_kwargs=sizes)[0].mean().backward())
    return {"unet": step, **encoders}


def _gflop(action: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        action()
    return float(counter.get_total_flops()) / 1e9


def same_adapters(first: Path, second: Path) -> int:
    """The number of weights in two LoRA files, which must have the same layers and shapes."""
    from safetensors import safe_open

    shapes: list[dict[str, tuple[int, ...]]] = []
    for file in (first, second):
        with safe_open(file, "pt") as opened:
            found = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        # diffusers has two spellings for the same layers; its pipelines read both.
        spelled = {key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B."): key for key in found}
        shapes.append({name: found[key] for name, key in spelled.items()})
    if shapes[0] != shapes[1]:
        different = sorted(shapes[0].items() ^ shapes[1].items())[:4]
        raise ValueError(f"the two sides did not train the same layers: {json.dumps(different)}")
    return sum(torch.Size(shape).numel() for shape in shapes[0].values())
