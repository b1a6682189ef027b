"""Reads an adapter from disk: the updates of its layers, and its new words.

Takes a job's folder, the folder of its files, or one file; knows nothing about the rest of the drawing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runner.errors import SettingsError
from runner.families.family import Family
from runner.paths import WEIGHTS_NAME, JobPaths
from runner.system.tensor_file import TOKEN
from runner.train.inputs.tokens import Words

STAND_IN = "a"
"""The known word whose embedding a new word replaces where it appears in a prompt; any known word will do."""

OF_TEXT = ("text_encoder", "lora_te")
"""Prefixes of a text encoder's layer names: in files of diffusers and peft, and in those of kohya."""

Identity = tuple[tuple[str, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of an adapter."""

    weights: Path | None
    """The file of its layers; None if there are only new words."""
    words: Mapping[str, Path]
    """New word -> its file."""

    @property
    def identity(self) -> Identity:
        """Changes when a file does: name, size and time of each."""
        files = [*([self.weights] if self.weights else []), *self.words.values()]
        return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)

    @property
    def adapts_text(self) -> bool:
        """Whether it changes layers of text encoders."""
        if self.weights is None:
            return False
        return any(key.startswith(OF_TEXT) or f".{OF_TEXT[0]}" in key for key in _keys(self.weights))


def find(place: Path) -> Found:
    """The files of the adapter in a job's folder, in the folder of its files, or in a single file.

    Words that the job taught besides its layers are included, whichever of these is named.

    Raises:
        SettingsError: there is no adapter, or several.
    """
    if place.is_file():
        token = _token(place)
        if token is not None:
            return Found(None, {token: place})
        return Found(place, _words_in(place.parent) if place.name == WEIGHTS_NAME else {})
    folder = JobPaths(place).lora
    folder = folder if folder.is_dir() else place
    words = _words_in(folder)
    weights: Path | None = folder / WEIGHTS_NAME
    if weights is not None and not weights.is_file():
        others = [file for file in sorted(folder.glob("*.safetensors")) if file not in words.values()]
        if len(others) > 1:
            names = ", ".join(file.name for file in others)
            raise SettingsError(f"adapter = {str(place)!r}: holds several ({names}); name one of them")
        weights = others[0] if others else None
    if weights is None and not words:
        raise SettingsError(
            f"adapter = {str(place)!r}: no adapter is there; give the folder of a completed job, or a .safetensors file"
        )
    return Found(weights, words)


def merged_words(parts: Sequence[Found], family: Family) -> tuple[Words, dict[str, Tensor]] | None:
    """The new words of several adapters, and their vectors by text encoder, `[V, D]` each; None if there are none.

    Raises:
        SettingsError: two of them bring the same word, or one is for another family.
    """
    files: dict[str, Path] = {}
    for part in parts:
        for token, file in part.words.items():
            if token in files:
                raise SettingsError(
                    f"adapter = {str(file)!r}: brings the word {token}, and so does {files[token]}; leave out one of "
                    "the two"
                )
            files[token] = file
    if not files:
        return None
    vectors: dict[str, list[Tensor]] = {name: [] for name in family.token_keys}
    for file in files.values():
        tensors = _tensors(file)
        if set(tensors) != set(family.token_keys.values()):
            raise SettingsError(
                f"adapter = {str(file)!r}: has words for {', '.join(sorted(tensors))}, and this model takes "
                f"{', '.join(sorted(family.token_keys.values())) or 'none'}"
            )
        for name, key in family.token_keys.items():
            vectors[name].append(tensors[key].float())
    first = next(iter(vectors.values()))
    words = Words(tuple(files), (STAND_IN,) * len(files), tuple(len(each) for each in first))
    return words, {name: torch.cat(each) for name, each in vectors.items()}


def _words_in(folder: Path) -> dict[str, Path]:
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.name != WEIGHTS_NAME]
    return {token: file for file in files if (token := _token(file)) is not None}


def _token(file: Path) -> str | None:
    """The word that a file holds, if it was written by `runner.artifacts.words`."""
    with _opened(file) as content:
        return (content.metadata() or {}).get(TOKEN)


def _keys(file: Path) -> list[str]:
    with _opened(file) as content:
        return list(content.keys())


def _tensors(file: Path) -> dict[str, Tensor]:
    with _opened(file) as content:
        return {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - not a mapping


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"adapter = {str(file)!r}: cannot be read as safetensors ({error})") from error
