"""Drawing with a ControlNet, a second network that sees an image and adds to the denoiser's activations.

Takes a family's pipeline and a ControlNet; returns the pipeline that uses both and the arguments it needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import ControlNetModel
from torch import nn

from runner.data.decode import BLACK, UnreadableImage, decode
from runner.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from runner.families.family import Family


@dataclasses.dataclass(frozen=True)
class Control:
    """An image that a ControlNet makes the generated images follow (arXiv 2302.05543)."""

    image: Path
    path: str
    """Folder or Hub id of the ControlNet."""
    scale: float = 1.0
    """Factor for what the ControlNet adds."""


def load_controlnet(path: str, dtype: torch.dtype) -> nn.Module:
    """A ControlNet in diffusers layout, frozen, on the CPU.

    Raises:
        ModelError: it is neither on this machine nor on the Hub.
    """
    try:
        network: Any = ControlNetModel.from_pretrained(path, torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"control.path = {path!r}: cannot be read as a ControlNet ({str(error).strip().splitlines()[0]}); give its "
            "folder in diffusers layout, or its name on the Hub"
        ) from error
    frozen: nn.Module = network.requires_grad_(False).eval()
    return frozen


def controlled_by(
    control: Control, pipeline: Any, family: Family, load: Callable[[str], nn.Module]
) -> tuple[Any, dict[str, Any]]:
    """(a pipeline of the same parts with a ControlNet, its additional arguments).

    Raises:
        SettingsError: the image cannot be read.
    """
    assert family.controlled_pipeline is not None, "the schema refuses it"
    kind = getattr(diffusers, family.controlled_pipeline)
    quiet = (
        {"requires_safety_checker": False} if "safety_checker" in pipeline.components else {"add_watermarker": False}
    )
    try:
        image = decode(control.image.read_bytes(), under=BLACK)
    except (OSError, UnreadableImage) as error:
        raise SettingsError(f"control.image = {str(control.image)!r}: cannot be read as an image ({error})") from error
    controlled = kind(**pipeline.components, controlnet=load(control.path), **quiet)
    return controlled, {"image": image, "controlnet_conditioning_scale": control.scale}
