"""What a source returns: images not yet read, and rows for the files that are not images to train on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.data.address import Address
from runner.data.faults import listed
from runner.data.inspection import Inspected
from runner.data.report import Row

KNOWN_SPLITS = frozenset({"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"})
"""Names that mark a folder or a table as one part of a data set."""

CAPTION_COLUMN = "text"
"""The column with captions by default (`dataset.caption_column`)."""


@dataclass(frozen=True)
class Entry:
    """One image of the source, with any number of captions. `caption_fix` completes the sentence on how to give it
    one.
    """

    name: str
    address: Address
    captions: tuple[str, ...]
    caption_fix: str
    repeats: int = 1
    mask: tuple[str, Address] | None = None
    """Name and address of its mask."""


@dataclass
class Found:
    """Everything a source contains. `root` is the folder or file it was found in."""

    root: Path
    entries: list[Entry] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    instance_prompt: str | None = None
    class_prompt: str | None = None
    class_folder: Path | None = None
    seen: dict[Address, Inspected] = field(default_factory=dict)
    """What an earlier look found out about images."""


def captions_in(value: Any) -> tuple[str, ...] | None:
    """The captions in one cell or value: none, a text, or a list of texts; None if it is anything else."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value):
        return tuple(value)
    return None


def passed_over(file: str, column: str, columns: Collection[str]) -> list[Row]:
    """A row for a file of captions without the caption column, if the column was set explicitly or another one looks
    like captions: `instance_prompt` is used instead.
    """
    others = [each for each in ("caption", "captions", "prompt", "text") if each in columns]
    if not columns or column in columns or (column == CAPTION_COLUMN and not others):
        return []
    note = f"no caption is read from it: it has no column dataset.caption_column={column!r}; columns: {listed(columns)}"
    return [Row(file, "ignored", (note,), frozenset({"warning"}))]
