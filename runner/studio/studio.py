"""Draws images with any mix of adapters on one loaded base, through the code that draws a training's samples.

On a CPU, one adapter of weight 1 gives, bit for bit, what its training drew for the same prompt and seed. Not
thread-safe.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from runner.errors import OutOfMemoryError, SettingsError
from runner.families.family import Text, TextStack, is_text_encoder
from runner.families.files import resolution_faults
from runner.mix.layers import AdapterLayers
from runner.mix.mix import concatenate
from runner.mix.read import read_adapter
from runner.schema import ModelSettings
from runner.schema.inputs import Precision
from runner.studio.adapters import Found, Identity, find, merged_words
from runner.train.adapters.adapter import Adapter
from runner.train.adapters.packed import PackedAdapters
from runner.train.base import Base
from runner.train.drawing import Picture, Sampling, Wish, draw
from runner.train.inputs.encode import encode_at_once, encode_captions
from runner.train.inputs.samples import EMPTY
from runner.train.inputs.text import Conditioner, EncodedText, LiveText
from runner.train.inputs.tokens import TokenText, Words
from runner.train.memory import is_full
from runner.train.place import Place

MIXES, FILES, PROMPTS = 4, 16, 256
"""How many of each are cached in memory: mixes, adapters read from files, encoded prompts."""

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")


@dataclasses.dataclass
class Mix:
    """A combination of adapters on the layers of the base."""

    packed: PackedAdapters | None = None
    """None for the base alone."""
    adapts_text: bool = False
    words: Words | None = None

    def use_rows(self, count: int) -> AbstractContextManager[None]:
        """Inside the context, the first `count` rows of a forward pass use the mix."""
        return nullcontext() if self.packed is None else self.packed.using([(0, count)])


class Studio:
    """One base model, and adapters that come and go.

    Args:
        precision: of the denoiser, and of text encoders that an adapter changes.
        keep_prompts: whether encoded prompts are cached on disk, like captions in training, or only in memory.
    """

    def __init__(self, model: ModelSettings, precision: Precision, place: Place, *, keep_prompts: bool = True) -> None:
        self.base = Base(model, place, precision=precision, live_text=True)
        self.keep_prompts = keep_prompts
        self._shown = Mix()
        self._mixes: OrderedDict[Hashable, Mix] = OrderedDict()
        self._files: OrderedDict[Identity, AdapterLayers] = OrderedDict()
        self._prompts: OrderedDict[str, Text] = OrderedDict()

    def load(self) -> None:
        """Load all parts of the model now, not when they are first needed."""
        self._load_what_draws()
        for part in (self.base.tokenizers, self._frozen_text):
            assert part is not None

    def _load_what_draws(self) -> None:
        # Before prompts are encoded: if the text encoders do not fit on the GPU beside these, the CPU encodes.
        for part in (self.base.denoiser, self.base.vae):
            assert part is not None

    def check_resolution(self, resolution: int) -> None:
        """Reject a resolution that the model has no positions for.

        Raises:
            SettingsError: images of this side are too large for it.
        """
        loaded = self.base.settings.model_copy(update={"path": str(self.base.folder), "config": None})
        if faults := resolution_faults(loaded, resolution):
            raise SettingsError("\n".join(faults))

    def draw(
        self, wishes: Sequence[Wish], sampling: Sampling, adapters: Sequence[tuple[Path, float]] = ()
    ) -> list[Picture]:
        """Draw the requested images.

        Args:
            adapters: (folder of a job, folder of an adapter's files, or file; weight); those of weight 0 are ignored.
                The prompts may contain the new words that they bring.

        Raises:
            SettingsError: an adapter cannot be read or is not for this model, or the sampling does not suit the model.
            OutOfMemoryError: the adapters do not fit, or a single image does not.
        """
        found = tuple((find(path), float(weight)) for path, weight in adapters if weight != 0)
        fault = f"adapters: {len(found)} do not fit into the GPU's memory beside the model; take fewer, or smaller ones"
        with self._said_where_full(fault):
            mix = self._mix(found)
        self._show(mix)
        prompts = [*(wish.prompt for wish in wishes), sampling.negative_prompt or EMPTY]
        fault = f"resolution = {sampling.resolution}: not even one image fits into the GPU's memory; draw smaller ones"
        with self._said_where_full(fault):
            self._load_what_draws()
            return draw(wishes, sampling, self.base, self._conditioner(mix, prompts), mix.use_rows)

    @contextmanager
    def _said_where_full(self, fault: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_full(error):
                raise
            self.base.collect()
            raise OutOfMemoryError(fault) from error

    # --- adapters ---

    def _mix(self, parts: Sequence[tuple[Found, float]]) -> Mix:
        if not parts:
            return Mix()
        key = tuple((found.identity, weight) for found, weight in parts)
        return _kept(self._mixes, key, MIXES, lambda: self._mixed(parts))

    def _mixed(self, parts: Sequence[tuple[Found, float]]) -> Mix:
        self._show(Mix())  # layers must be found without adapters on them
        taught = merged_words([found for found, _ in parts], self.base.family)
        words, vectors = (None, None) if taught is None else taught
        layers = self._layers(parts)
        adapts_text = any(is_text_encoder(component) for component, _ in layers)
        components = self.base.parts(text=adapts_text)
        adapter = Adapter.of_layers(layers, components, device=self.base.place.device, words=vectors)
        packed = PackedAdapters(components, [adapter], dtype=self.base.dtype)
        packed.settle()
        packed.detach(for_good=False)
        return Mix(packed, adapts_text, words)

    def _layers(self, parts: Sequence[tuple[Found, float]]) -> AdapterLayers:
        read = [(self._read(found), weight) for found, weight in parts if found.weights is not None]
        return concatenate(read) if read else {}

    def _read(self, found: Found) -> AdapterLayers:
        assert found.weights is not None
        file, components = found.weights, self.base.parts(text=found.adapts_text)
        return _kept(self._files, found.identity, FILES, lambda: read_adapter(file, self.base.family, components))

    def _show(self, mix: Mix) -> None:
        """Make the layers of the base compute with this mix instead of the previous one."""
        if self._shown is mix:
            return
        if self._shown.packed is not None:
            self._shown.packed.detach(for_good=False)
        self._shown = mix
        if mix.packed is not None:
            mix.packed.attach()
        if mix.words is not None and mix.packed is not None:
            self.base.placed_tokens.vectors_in_use = mix.packed.words_in_use

    # --- prompts ---

    @cached_property
    def _frozen_text(self) -> TextStack:
        """The text encoders as in trainings that do not change them: in fp32."""
        base = self.base
        if base.dtype == torch.float32:
            return base.text
        return base.family.load_text(base.folder, base.settings.variant, torch.float32)

    def _conditioner(self, mix: Mix, prompts: Sequence[str]) -> Conditioner:
        base, device = self.base, self.base.place.device
        if mix.words is not None:
            return TokenText(base.family, base.text, base.placed_tokens, mix.words, prompts, device=device)
        if mix.adapts_text:
            return LiveText(base.family, base.text, prompts, device=device)
        encoded = self._encoded(tuple(dict.fromkeys([*prompts, EMPTY])))
        return EncodedText(encoded, zeros_for_empty=base.zeros_for_empty, device=device)

    def _encoded(self, prompts: Sequence[str]) -> dict[str, Text]:
        base = self.base
        missing = [prompt for prompt in prompts if prompt not in self._prompts]
        if missing and self.keep_prompts:
            found = encode_captions(
                missing,
                family=base.family,
                model_folder=base.folder,
                load_text=self._without_mix,
                place=base.place,
                variant=base.settings.variant,
            )
        else:
            found = dict(encode_at_once(missing, base.family, self._without_mix, base.place))
        given = {prompt: self._prompts[prompt] if prompt in self._prompts else found[prompt] for prompt in prompts}
        for prompt, text in given.items():
            self._prompts[prompt] = text
            self._prompts.move_to_end(prompt)
        while len(self._prompts) > PROMPTS:
            self._prompts.popitem(last=False)
        return given

    def _without_mix(self) -> TextStack:
        # No mix is active outside `use_rows`: the layers of these encoders compute without adapters.
        return self._frozen_text


def _kept(kept: OrderedDict[Key, Kept], key: Key, most: int, make: Callable[[], Kept]) -> Kept:
    """The value cached under a key, made if it is missing; evicts the least recently used one."""
    if key not in kept:
        while len(kept) >= most:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]
