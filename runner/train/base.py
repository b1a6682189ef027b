"""The frozen base of a pack, loaded phase by phase so that the encoders are freed before the denoiser is loaded."""

from __future__ import annotations

import gc
from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from diffusers import AutoencoderKL
from torch import nn

from runner.families import find_family
from runner.families.control import load_controlnet
from runner.families.family import TextStack, Tokenizers
from runner.families.files import snapshot, vae_folder, vae_source
from runner.families.loading import load_vae
from runner.families.process import NoiseProcess
from runner.schema import Experiment, ModelSettings
from runner.schema.inputs import Precision
from runner.train.adapters.quantized import quantize
from runner.train.inputs.tokens import PlacedTokens
from runner.train.place import Place

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Base:
    """The base model that all jobs of a pack share; each part is loaded when it is first used.

    Args:
        trains_text: whether the text encoders carry adapters.
        live_text: whether captions are encoded when they are used rather than beforehand.
        checkpointing: whether backward passes recompute activations.
    """

    def __init__(
        self,
        settings: ModelSettings,
        place: Place,
        *,
        precision: Precision,
        trains_text: bool = False,
        live_text: bool = False,
        checkpointing: bool = False,
    ) -> None:
        self.settings = settings
        self.trains_text, self.live_text = trains_text, live_text
        self.checkpointing = checkpointing
        self.place = place
        self.dtype = DTYPES[precision]
        self.family = find_family(self.settings.family)
        self.folder = snapshot(self.settings)
        self.vae_source = vae_source(self.settings)
        self.shared: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        """Encodings shared by several jobs of the pack, for as long as one of them uses them."""
        self.validated: dict[Hashable, Any] = {}
        """Validation results of the base without an adapter, where every job starts, for the most recent jobs."""
        self.untrained: dict[Any, Any] = {}
        """Its loss on the images of each earlier training that jobs start from."""
        self.drawn: dict[Any, Any] = {}
        """The most recent images drawn without an adapter, by sampling settings and request."""
        self._controlnet: tuple[str, nn.Module] | None = None

    @classmethod
    def of(cls, experiment: Experiment, place: Place) -> Base:
        """The base of a pack that contains this job."""
        return cls(
            experiment.model,
            place,
            precision=experiment.precision,
            trains_text=experiment.lora.text_encoder,
            live_text=experiment.live_text,
            checkpointing=experiment.launcher.gradient_checkpointing,
        )

    @property
    def vae_folder(self) -> Path:
        """The folder with the VAE's files."""
        return vae_folder(self.folder, self.vae_source)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The VAE on the device, fp32; it also decodes the samples."""
        return load_vae(self.folder, self.vae_source, self.settings.variant, self.place.device)

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        """The VAE's configuration, which says how latents are scaled."""
        return dict(AutoencoderKL.load_config(self.vae_folder))

    @cached_property
    def text(self) -> TextStack:
        """The text encoders; in training precision if they are used during training, fp32 otherwise."""
        dtype = self.dtype if self.live_text else torch.float32
        return self.family.load_text(self.folder, self.settings.variant, dtype)

    def frozen_text(self) -> TextStack:
        """The text encoders in fp32 and without adapters, in any training; a separate copy if they are trained."""
        return self.family.load_text(self.folder, self.settings.variant, torch.float32) if self.live_text else self.text

    @cached_property
    def tokenizers(self) -> Tokenizers:
        """The tokenizers alone."""
        return self.family.load_tokenizers(self.folder)

    @property
    def zeros_for_empty(self) -> bool:
        """Whether the absence of a prompt means zero embeddings rather than those of the empty caption."""
        return self.family.zeros_for_empty(self.folder)

    def free_text(self) -> None:
        """Free the text encoders, which are not needed once every caption is encoded."""
        self.__dict__.pop("text", None)
        self.collect()

    def set_text_aside(self) -> None:
        """Make room on a GPU for encoding or sampling; captions of later jobs bring the encoders back."""
        if self.place.device.type != "cpu" and not self.live_text and "text" in vars(self):
            for encoder in self.text.encoders:
                encoder.to("cpu")
            self.collect()

    def free_vae(self) -> None:
        """Free the VAE."""
        self.__dict__.pop("vae", None)
        self.collect()

    def collect(self) -> None:
        """Return the memory of freed parts."""
        gc.collect()
        if self.place.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def noise(self) -> NoiseProcess:
        """How latents become noisy, with its tables on the device."""
        return self.family.load_noise(self.folder, self.settings).to(self.place.device)

    @cached_property
    def denoiser(self) -> nn.Module:
        """The denoiser on the device, frozen."""
        denoiser: Any = self.family.load_denoiser(self.folder, self.settings.variant, self.dtype)
        if self.checkpointing:
            denoiser.enable_gradient_checkpointing()
        if self.settings.quantization != "none":
            quantize(denoiser, self.settings.quantization, self.place.device)
        placed: nn.Module = denoiser.to(self.place.device)
        return placed

    def checkpoint_gradients(self) -> bool:
        """Recompute activations in the backward pass from now on; returns False if that is already done."""
        if self.checkpointing:
            return False
        self.checkpointing = True
        denoiser: Any = self.denoiser
        denoiser.enable_gradient_checkpointing()
        return True

    @cached_property
    def placed_tokens(self) -> PlacedTokens:
        """The encoders' embeddings, into which new words are placed."""
        encoders = [encoder.to(self.place.device) for encoder in self.text.encoders]
        return PlacedTokens(dict(zip(self.family.adapter_components[1:], encoders, strict=True)))

    def components(self) -> dict[str, nn.Module]:
        """The parts that carry adapters, by their names in the pipeline."""
        return self.parts(text=self.trains_text)

    def parts(self, *, text: bool) -> dict[str, nn.Module]:
        """The denoiser and, if wanted, the text encoders, by their names in the pipeline."""
        names = self.family.adapter_components
        parts = {names[0]: self.denoiser}
        if text:
            # An encoder without adapters (T5) is moved as well: captions go through all of them.
            encoders = [encoder.to(self.place.device) for encoder in self.text.encoders]
            parts |= dict(zip(names[1:], encoders, strict=False))
        return parts

    def controlnet(self, path: str) -> nn.Module:
        """A ControlNet on the device; the last one is kept."""
        if self._controlnet is None or self._controlnet[0] != path:
            self._controlnet = None
            self._controlnet = path, load_controlnet(path, self.dtype).to(self.place.device)
        return self._controlnet[1]

    def sampler(self, name: str) -> Any:
        """A fresh sampler for validation images."""
        return self.noise.sampler(self.folder, name)
