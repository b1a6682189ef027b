"""A model's folder in diffusers layout: what its small files say, and whether all of it is there. Reads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from runner.system.tensor_file import read_header

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Any of these sets is a whole tokenizer."""
SHARD = re.compile(r"-\d{5}-of-\d{5}")
WEIGHTS = (".safetensors", ".bin")
WHOLE = "copy or download the whole model"


def index_of(folder: Path) -> dict[str, Any]:
    """What a model consists of: its pipeline's class, and the library and class of each part.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    return _object(folder / INDEX)


def config_of(folder: Path, part: str = "") -> dict[str, Any]:
    """The configuration of one part of a model, or of a part that has the folder for itself.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    return _object(folder / part / (SCHEDULER_CONFIG if part == "scheduler" else CONFIG))


def layout_faults(
    folder: Path, names: Collection[str], denoiser: str, *, variant: str | None, own_vae: bool, with_weights: bool
) -> Iterator[str]:
    """What a model lacks of what a training loads, or has damaged: reason and fix for each.

    Args:
        folder: its small files; weights are looked at where they are here.
        names: of all its files, as paths relative to the folder: of a model in S3 not all are here.
        denoiser: the name of its part.
        variant: of which the files with weights are, such as `fp16`.
        own_vae: whether the model's own VAE is used.
        with_weights: whether weights are needed.
    """
    try:
        index = index_of(folder)
    except (OSError, ValueError) as error:
        yield _reason(error)
        return
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
            yield from _config_faults(folder, name)
            if with_weights and name != "scheduler":
                files = [each.removeprefix(f"{name}/") for each in names if each.startswith(f"{name}/")]
                yield from _weight_faults(folder / name, files, f"its {name}", variant)


def part_faults(folder: Path) -> Iterator[str]:
    """What one network lacks that has a folder on this machine for itself, as of `layout_faults`."""
    yield from _config_faults(folder, "")
    yield from _weight_faults(folder, names_in(folder), "it", None)


def names_in(folder: Path) -> set[str]:
    """The names of a model's files, or of a part's, on this machine."""
    return {file.relative_to(folder).as_posix() for file in (*folder.glob("*"), *folder.glob("*/*")) if file.is_file()}


def _config_faults(folder: Path, part: str) -> Iterator[str]:
    try:
        config_of(folder, part)
    except (OSError, ValueError) as error:
        yield _reason(error)


def _weight_faults(folder: Path, names: Collection[str], said: str, variant: str | None) -> Iterator[str]:
    files = sorted(name for name in names if name.endswith(WEIGHTS) and "/" not in name)
    variants = {_variant_of(name) for name in files}
    if not variants:
        yield f"{said} has no weights ({' or '.join(f'*{suffix}' for suffix in WEIGHTS)}); {WHOLE}"
    elif variant not in variants and variant is not None:
        yield f"{said} has no weights of the variant {variant}; set model.variant=null, or {WHOLE}"
    elif variant not in variants:
        other = min(other for other in variants if other)
        yield f"{said} has weights of the variant {other} only; set model.variant={other}, or {WHOLE}"
    for name in files:
        if name.endswith(".safetensors") and _variant_of(name) == variant and (folder / name).is_file():
            try:
                read_header(folder / name)
            except (OSError, ValueError) as error:
                yield f"{folder / name}: cannot be read ({error}); {WHOLE}"
    for table in (name for name in names if ".index." in name and name.endswith(".json")):
        if _variant_of(table) != variant:
            continue
        try:
            parts = set(_object(folder / table).get("weight_map", {}).values())
        except (OSError, ValueError) as error:
            yield _reason(error)
            continue
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
        raise ValueError(f"{file}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: holds no JSON object")
    return found


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return f"{error}; {WHOLE}"
    reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return f"{error.filename} {reason}; {WHOLE}"
