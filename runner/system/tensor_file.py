"""What a `.safetensors` file says of its tensors, without reading them, and without torch."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

TEXT_MODEL = "text_model."
"""Stands in files before the names of what is in CLIP's text encoders; transformers took it out of them in 5.6."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the configurations of peft, as JSON."""
PEFT_CONFIG = "adapter_config.json"
"""Where peft says the scales of a file that it has saved, beside the file."""
PEFT_NAMES = "base_model.model."
"""How names of tensors begin in such a file."""
TOKEN = "token"
"""Where the file of a new word names it."""
LENGTH_BYTES = 8
LONGEST_HEADER_BYTES = 100_000_000
"""As the format has it."""


@dataclasses.dataclass(frozen=True)
class Header:
    """The beginning of such a file."""

    tensors: dict[str, dict[str, Any]]
    """Name -> `dtype`, `shape` and `data_offsets`, in bytes behind the header."""
    metadata: dict[str, str]
    """What whoever wrote it has said besides."""


def read_header(file: Path) -> Header:
    """Read it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or not the whole of it.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if not 0 < length <= LONGEST_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        tensors = json.loads(stream.read(length))
        size = stream.seek(0, os.SEEK_END)
    if not isinstance(tensors, dict):
        raise ValueError("its header is damaged")
    metadata = tensors.pop("__metadata__", {})
    try:
        whole = LENGTH_BYTES + length + max((about["data_offsets"][1] for about in tensors.values()), default=0)
    except (LookupError, TypeError) as error:
        raise ValueError("its header is damaged") from error
    if size < whole:
        raise ValueError(f"cut short: {size} of {whole} bytes")
    return Header(metadata=metadata, tensors=tensors)


def config_of_peft(file: Path) -> Path | None:
    """peft's configuration beside an adapter that it has saved, which says nothing of its scales itself; None where
    there is none. Errors as of `read_header`.
    """
    beside = file.with_name(PEFT_CONFIG)
    return beside if beside.is_file() and is_of_peft(file) else None


def is_of_peft(file: Path) -> bool:
    """Whether peft has saved an adapter by itself. Errors as of `read_header`."""
    header = read_header(file)
    return METADATA not in header.metadata and any(name.startswith(PEFT_NAMES) for name in header.tensors)
