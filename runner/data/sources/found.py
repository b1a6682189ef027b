"""What a source hands over: images not yet read, and rows for the files that are not images to train on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runner.data.address import Address
from runner.data.report import Row

KNOWN_SPLITS = frozenset({"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"})
"""Names that mark a folder or a table as one part of a data set."""


@dataclass(frozen=True)
class Entry:
    """One image of the source. `caption_fix` completes the sentence on how to give it a caption."""

    name: str
    address: Address
    caption: str | None
    caption_fix: str


@dataclass
class Found:
    """All of a source. `root` is the folder or file it was found in."""

    root: Path
    entries: list[Entry] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    instance_prompt: str | None = None
    class_prompt: str | None = None
    class_folder: Path | None = None
