"""Networks that compute features of pictures and texts: from a folder in transformers layout, the Hub, or TorchScript.

Takes Pillow images, gives fp32 features on the CPU: B images, D features. The choice of network decides what a figure
means; nothing is fetched here except what a setting names.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor

from runner.errors import SettingsError
from runner.families.loading import MORE_THAN_WEIGHTS
from runner.paths import path_of
from runner.train.memory import is_full

PICTURES_AT_ONCE = 16
FIX = "give a folder in transformers layout with its preprocessor_config.json, or the id of one on the Hub"
IDLE = ("pooler.", "embeddings.mask_token")
"""Weights that do not affect a network's features; files often lack them."""


class PictureNetwork(Protocol):
    """Computes features of pictures."""

    def pictures(self, pictures: Sequence[Image]) -> Tensor:
        """Their features, `[B, D]`."""


class Vision:
    """A vision network of transformers, such as DINO, DINOv2 or ViT: the features of its class token, which comes
    first. A network without one gives the mean over all positions; one that also knows texts, its joint embedding.

    Raises:
        SettingsError: it cannot be loaded.
    """

    def __init__(self, key: str, named: str, device: torch.device) -> None:
        self.network, self.processor = _of_transformers(key, named, device)
        self.said, self.device = f"{key} = {named!r}", device

    def pictures(self, pictures: Sequence[Image]) -> Tensor:
        """Their features, `[B, D]`."""
        return _in_parts(self.said, pictures, self._some)

    def _some(self, pictures: Sequence[Image]) -> Tensor:
        given = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        if hasattr(self.network, "get_image_features"):
            return _projected(self.network.get_image_features(**given))
        hidden: Tensor = self.network(**given).last_hidden_state
        if hidden.ndim != 3:
            return hidden.flatten(2).mean(dim=2)
        # Square pictures have a square number of positions; with one or more extra tokens, the first is the class's.
        only_places = math.isqrt(hidden.shape[1]) ** 2 == hidden.shape[1]
        return hidden.mean(dim=1) if only_places else hidden[:, 0]


class Clip(Vision):
    """A CLIP of transformers: pictures and texts in one space, projected but not normalised.

    Raises:
        SettingsError: it cannot be loaded, or is not a CLIP.
    """

    def __init__(self, key: str, named: str, device: torch.device) -> None:
        from transformers import AutoTokenizer

        super().__init__(key, named, device)
        if not hasattr(self.network, "get_text_features"):
            kind = type(self.network).__name__
            raise SettingsError(f"{key} = {named!r}: is a {kind}, which does not encode texts; give a CLIP")
        self.tokenizer = _loaded(key, named, AutoTokenizer)
        # If its files are missing, transformers creates a tokenizer that maps all words to the same token.
        if len(self.tokenizer) <= len(self.tokenizer.all_special_tokens):
            raise SettingsError(f"{key} = {named!r}: has no tokenizer that knows any words; give a CLIP with its own")

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Their features, `[B, D]`; texts longer than the network's context are truncated."""
        return _in_parts(self.said, texts, self._some_texts)

    def _some_texts(self, texts: Sequence[str]) -> Tensor:
        longest = self.network.config.text_config.max_position_embeddings
        given = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        return _projected(self.network.get_text_features(**given.to(self.device)))


class Scripted:
    """A TorchScript file that takes pictures `[B, 3, H, W]` as bytes (0 to 255) in their own size and returns features
    `[B, D]`, like the Inception networks of FID implementations.

    Such a file is a program, which is run. If it takes an argument `return_features`, that is set.

    Raises:
        SettingsError: the file is not TorchScript.
    """

    def __init__(self, key: str, named: str, device: torch.device) -> None:
        self.said = f"{key} = {named!r}"
        self.device = device
        try:
            self.network = torch.jit.load(path_of(named), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise SettingsError(f"{self.said}: is not a TorchScript file ({reason}); {FIX}") from error
        names = [argument.name for argument in self.network.forward.schema.arguments]
        self._told = {"return_features": True} if "return_features" in names else {}

    def pictures(self, pictures: Sequence[Image]) -> Tensor:
        """The features, `[B, D]`, of pictures that all have one size."""
        return _in_parts(self.said, pictures, self._some)

    def _some(self, pictures: Sequence[Image]) -> Tensor:
        bytes_B3HW = torch.from_numpy(np.stack([np.asarray(each.convert("RGB")) for each in pictures]))
        try:
            features: Any = self.network(bytes_B3HW.permute(0, 3, 1, 2).to(self.device), **self._told)
        except (RuntimeError, torch.jit.Error) as error:
            if is_full(error):
                raise
            side, reason = pictures[0].size, str(error).strip().splitlines()[-1]
            raise SettingsError(f"{self.said}: does not accept bytes of {side[0]} x {side[1]} px ({reason})") from error
        if not isinstance(features, Tensor) or features.ndim != 2:
            given = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise SettingsError(f"{self.said}: gives {given} instead of a row of features for each image")
        return features


def picture_network(key: str, named: str, device: torch.device) -> PictureNetwork:
    """The network in a file or folder.

    Args:
        key: the setting that names it, for messages.
        named: its folder, file or Hub id.

    Raises:
        SettingsError: it cannot be loaded.
    """
    return (Scripted if path_of(named).is_file() else Vision)(key, named, device)


def _of_transformers(key: str, named: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel

    network, report = _loaded(key, named, AutoModel, output_loading_info=True)
    # transformers fills in missing weights with random numbers, different on each run.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(IDLE)):
        raise SettingsError(
            f"{key} = {named!r}: its files lack {len(missing)} of the weights of a {type(network).__name__}, such as "
            f"{missing[0]}; {FIX}"
        )
    # Always in fp32, however it is stored: the rounding of half precision would show in every figure.
    network = network.float().eval().requires_grad_(False).to(device)
    # The processors that work on Pillow images: the others need torchvision and round differently.
    return network, _loaded(key, named, AutoImageProcessor, backend="pil")


def _loaded(key: str, named: str, kind: Any, **how: Any) -> Any:
    local = path_of(named)
    try:
        # Otherwise transformers asks, on a terminal, whether to run code from the repository.
        return kind.from_pretrained(local if local.is_dir() else named, trust_remote_code=False, **how)
    except pickle.UnpicklingError as error:
        raise SettingsError(f"{key} = {named!r}: {MORE_THAN_WEIGHTS}") from error
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"{key} = {named!r}: cannot be loaded ({reason}); {FIX}") from error


def _projected(found: Any) -> Tensor:
    """The features of a CLIP; newer versions of transformers return them along with the hidden states."""
    features: Tensor = getattr(found, "pooler_output", found)
    return features


@torch.no_grad()
def _in_parts(said: str, given: Sequence[Any], make: Any) -> Tensor:
    starts = range(0, len(given), PICTURES_AT_ONCE)
    parts = [make(given[start : start + PICTURES_AT_ONCE]) for start in starts]
    features_BD = torch.cat([part.float().cpu() for part in parts])
    if spoilt := int((~features_BD.isfinite().all(dim=1)).sum()):
        raise SettingsError(f"{said}: for {spoilt} of {len(given)} its features are not finite; give another network")
    return features_BD
