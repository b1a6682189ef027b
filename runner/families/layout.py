"""A model's folder in diffusers layout: what its small files say, and whether all of it is there. Reads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from runner.system.tensor_file import read_header

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Any of these sets is a whole tokenizer."""
Weights = Literal["here", "listed", "none"]
"""Where the weights of a model are, if they are needed: in its folder, or elsewhere and known by name."""
SHARD = re.compile(r"-\d{5}-of-\d{5}")
WEIGHTS = (".safetensors", ".bin")
WHOLE = "copy or download the whole model"


def index_of(folder: Path) -> dict[str, Any]:
    """What a model consists of: its pipeline's class, and the library and class of each part.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    return _read(folder / INDEX)


def config_of(folder: Path, part: str = "") -> dict[str, Any]:
    """The configuration of one part of a model, or of a part that has the folder for itself.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    return _read(folder / part / (SCHEDULER_CONFIG if part == "scheduler" else CONFIG))


def layout_faults(
    folder: Path, names: Collection[str], denoiser: str, *, variant: str | None, own_vae: bool, weights: Weights
) -> Iterator[str]:
    """What a model lacks of what a training loads, or has damaged: reason and fix for each.

    Args:
        folder: its small files, and weights that are here.
        names: of all its files, as paths relative to the folder: of a model in S3 not all are here.
        denoiser: the name of its part.
        variant: of which the files with weights are, such as `fp16`.
        own_vae: whether the model's own VAE is used.
        weights: where they are.
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
    """What one network lacks that has a folder on this machine for itself, as of `layout_faults`."""
    yield from _faults_of_config(folder, "")
    yield from _weight_faults(folder, names_in(folder), "", None, here=True)


def names_in(folder: Path) -> set[str]:
    """The names of a model's files, or of a part's, on this machine."""
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
        choose = f"set model.variant={other}, or " if part else ""  # which is of the parts of a model
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
    """`fp16` of `model.fp16.safetensors`, and of the table and the parts of such a file; None for the plain one."""
    _, *words = SHARD.sub("", name).split(".")
    return next((word for word in words if word not in ("safetensors", "bin", "index", "json")), None)


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is no JSON ({error})") from error
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
