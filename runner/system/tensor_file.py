"""What a `.safetensors` file says about its tensors, read without loading them and without torch."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

TEXT_MODEL = "text_model."
"""In files, the prefix of the names inside CLIP's text encoders; transformers dropped it from the names in 5.6."""
METADATA = "lora_adapter_metadata"
"""Metadata key under which diffusers stores the peft configurations, as JSON."""
PEFT_CONFIG = "adapter_config.json"
"""Name of the file in which peft stores the scales, beside the adapter that it saved."""
PEFT_NAMES = "base_model.model."
"""Prefix of the tensor names in an adapter saved by peft."""
TOKEN = "token"
"""Metadata key under which the file of a new word names the word."""
LENGTH_BYTES = 8
LONGEST_HEADER_BYTES = 100_000_000
"""The limit set by the format."""


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a `.safetensors` file."""

    tensors: dict[str, dict[str, Any]]
    """Name -> `dtype`, `shape` and `data_offsets`, in bytes after the header."""
    metadata: dict[str, str]
    """Free-form text entries from the writer of the file."""


def read_header(file: Path) -> Header:
    """Read the header of a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a `.safetensors` file, or is incomplete.
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


def is_complete(file: Path) -> bool:
    """Whether a file is there and has the length that its header says, unlike what an interrupted copy leaves."""
    try:
        read_header(file)
    except (OSError, ValueError):
        return False
    return True


def order_metadata(file: Path) -> None:
    """Sort the metadata in a file's header, in place: safetensors writes it in an order that differs from process to
    process, and jobs are identified by the content of the files that they use.
    """
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        header = json.loads(stream.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(ordered) <= length, file
        stream.seek(LENGTH_BYTES)
        stream.write(ordered.ljust(length))


def config_of_peft(file: Path) -> Path | None:
    """peft's configuration beside an adapter that peft saved: the adapter's own file does not contain its scales.

    None if there is none. Raises the same errors as `read_header`.
    """
    beside = file.with_name(PEFT_CONFIG)
    return beside if beside.is_file() and is_of_peft(file) else None


def is_of_peft(file: Path) -> bool:
    """Whether peft itself saved the adapter. Raises the same errors as `read_header`."""
    header = read_header(file)
    return METADATA not in header.metadata and any(name.startswith(PEFT_NAMES) for name in header.tensors)
