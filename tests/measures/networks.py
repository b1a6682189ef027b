"""Small feature networks with random weights, in the layouts that people use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    SwinConfig,
    SwinModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from runner.embedded import MODEL_DIR

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIDE_PX, PROJECTED, FEATURES = 32, 16, 24


def save_clip(folder: Path) -> Path:
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    text = SMALL | {
        "vocab_size": len(tokenizer), "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = SMALL | {"image_size": SIDE_PX, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTED)).save_pretrained(folder)
    crop = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=crop).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    torch.manual_seed(2)
    Dinov2Model(Dinov2Config(**SMALL, image_size=SIDE_PX, patch_size=8)).save_pretrained(folder)
    crop = {"height": SIDE_PX, "width": SIDE_PX}
    BitImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=crop).save_pretrained(folder)
    return folder


def save_swin(folder: Path) -> Path:
    sizes = {"image_size": SIDE_PX, "patch_size": 2, "embed_dim": 8, "window_size": 4}
    return _save_vision(SwinModel, SwinConfig(depths=[1, 1], num_heads=[1, 2], **sizes), folder)


def save_dinov3_convnext(folder: Path) -> Path:
    config = DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1])
    return _save_vision(DINOv3ConvNextModel, config, folder)


def _save_vision(kind: Any, config: Any, folder: Path) -> Path:
    torch.manual_seed(4)
    kind(config).save_pretrained(folder)
    crop = {"height": SIDE_PX, "width": SIDE_PX}
    BitImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=crop).save_pretrained(folder)
    return folder


class Inception(nn.Module):
    """Like the network in FID implementations: bytes of any size in, features out, on request."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, FEATURES, 5, stride=3)

    def forward(self, images_B3HW: Tensor, return_features: bool = False) -> Tensor:
        if not return_features:
            return torch.zeros(images_B3HW.shape[0], 2)
        return self.layer(images_B3HW.float() / 127.5 - 1).abs().mean(dim=(2, 3))


def save_inception(file: Path) -> Path:
    torch.manual_seed(3)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(Inception().eval()).save(str(file))
    return file
