"""A model's folder in diffusers layout: what its small files say, and whether it is complete. Reads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from runner.system.tensor_file import read_header

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Each of these sets of files is a complete tokenizer."""
Weights = Literal["here", "listed", "none"]
"""Where a model's weights are: in its folder, elsewhere and known by name ("listed"), or not needed ("none")."""
SHARD = re.compile(r"-\d{5}-of-\d{5}")
WEIGHTS = (".safetensors", ".bin")
WHOLE = "copy or download the whole model"


def index_of(folder: Path) -> dict[str, Any]:
    """The parts of a model: its pipeline's class, and the library and class of each part.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON object.
    """
    return _read(folder / INDEX)


def has_zeros_for_empty(index: Mapping[str, Any]) -> bool:
    """Whether an SDXL model uses zeros without a prompt, by its index, rather than the encoded empty caption."""
    return bool(index.get("force_zeros_for_empty_prompt", True))


def config_of(folder: Path, part: str = "") -> dict[str, Any]:
    """The configuration of one part of a model, or of a part in its own folder.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON object.
    """
    return _read(folder / part / (SCHEDULER_CONFIG if part == "scheduler" else CONFIG))


def layout_faults(
    folder: Path, names: Collection[str], denoiser: str, *, variant: str | None, own_vae: bool, weights: Weights
) -> Iterator[str]:
    """What training needs but a model lacks or has damaged: reason and fix for each.

    Args:
        folder: holds its small files, and its weights if they are here.
        names: all its files, as paths relative to the folder; for a model in S3, not all of them are here.
        denoiser: the name of its part.
        variant: the variant of the files with weights, such as `fp16`.
        own_vae: whether the model's own VAE is used.
        weights: where the weights are.
    """
    if unreadable := _fault_of(folder, INDEX):
        yield unreadable
        return
    index = _object(folder / INDEX)
    named = {name for name, kind in index.items() if isinstance(kind, list) and kind[:1] != [None]}
    vae = {"vae"} if own_vae else set()
    needed = {denoiser, "scheduler", "text_encoder", "tokenizer"} | vae
    yield from (f"its {INDEX} names no {name}; {WHOLE}" for name in sorted(needed - named))
    for name in sorted(named):
        if name.startswith("tokenizer"):
            if not any(all(f"{name}/{file}" in names for file in files) for files in TOKENIZERS):
                there_are = " nor ".join(" and ".join(files) for files in TOKENIZERS)
                yield f"its {name} has neither {there_are}; {WHOLE}"
        elif name in {denoiser, "scheduler"} | vae or name.startswith("text_encoder"):
            yield from _faults_of_config(folder, name)
            if weights != "none" and name != "scheduler":
                files = [each.removeprefix(f"{name}/") for each in names if each.startswith(f"{name}/")]
                yield from _weight_faults(folder / name, files, name, variant, here=weights == "here")


def part_faults(folder: Path) -> Iterator[str]:
    """What a network in its own folder on this machine lacks; like `layout_faults`."""
    yield from _faults_of_config(folder, "")
    yield from _weight_faults(folder, names_in(folder), "", None, here=True)


def names_in(folder: Path) -> set[str]:
    """The names of a model's or a part's files on this machine."""
    return {file.relative_to(folder).as_posix() for file in (*folder.glob("*"), *folder.glob("*/*")) if file.is_file()}


def _faults_of_config(folder: Path, part: str) -> Iterator[str]:
    name = SCHEDULER_CONFIG if part == "scheduler" else CONFIG
    if unreadable := _fault_of(folder, f"{part}/{name}" if part else name):
        yield unreadable


def _weight_faults(
    folder: Path, names: Collection[str], part: str, variant: str | None, *, here: bool
) -> Iterator[str]:
    said = f"its {part}" if part else "it"
    files = sorted(name for name in names if name.endswith(WEIGHTS) and "/" not in name)
    variants = {_variant_of(name) for name in files}
    if not variants:
        yield f"{said} has no weights ({' or '.join(f'*{suffix}' for suffix in WEIGHTS)}); {WHOLE}"
    elif variant not in variants and variant is not None:
        yield f"{said} has no weights of the variant {variant}; set model.variant=null, or {WHOLE}"
    elif variant not in variants:
        other = min(other for other in variants if other)
        choose = f"set model.variant={other}, or " if part else ""  # a setting for parts of a model only
        yield f"{said} has weights of the variant {other} only; {choose}{WHOLE}"
    for name in files:
        if here and name.endswith(".safetensors") and _variant_of(name) == variant:
            try:
                read_header(folder / name)
            except (OSError, ValueError) as error:
                yield f"{said} has {name}, which cannot be read ({error}); {WHOLE}"
    for table in (name for name in names if ".index." in name and name.endswith(".json")):
        if _variant_of(table) != variant:
            continue
        if unreadable := _fault_of(folder, table):
            yield unreadable
            continue
        parts = set(_object(folder / table).get("weight_map", {}).values())
        if missing := sorted(parts - set(names)):
            yield f"{said} lacks {len(missing)} of {len(parts)} files with weights, such as {missing[0]}; {WHOLE}"


def _variant_of(name: str) -> str | None:
    """`fp16` for `model.fp16.safetensors`, and for the index and shards of such a file; None for the plain one."""
    _, *words = SHARD.sub("", name).split(".")
    return next((word for word in words if word not in ("safetensors", "bin", "index", "json")), None)


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError("holds no JSON object")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        return _object(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _fault_of(folder: Path, name: str) -> str:
    """Why a small file cannot be read, with the fix; empty if it can."""
    try:
        _object(folder / name)
    except FileNotFoundError:
        return f"its {name} is missing; {WHOLE}"
    except OSError as error:
        return f"its {name} cannot be read ({error.strerror}); {WHOLE}"
    except ValueError as error:
        return f"its {name} {error}; {WHOLE}"
    return ""
