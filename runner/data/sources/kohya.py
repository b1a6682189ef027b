"""Folders named the way kohya's scripts expect, `10_sks dog`: how often their images come, and the caption for those
that have none. This project ignores such names, but says which settings to use instead.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.data.address import FileAddress
from runner.data.faults import Faults, listed
from runner.data.sources.found import Entry, Found
from runner.s3 import is_s3

if TYPE_CHECKING:
    from runner.schema import DatasetSettings

NAMED = re.compile(r"([1-9]\d{0,2})_(?=.*[^\W\d_])(.+)")
"""Repeats and caption; a year, a day, or a number with a leading zero is the user's own ordering."""
PLAIN = re.compile(r"[\w./-]+( [\w./-]+)*")
"""What Hydra accepts in a list without quotes."""


class Named(NamedTuple):
    """What a folder's name says."""

    repeats: int
    caption: str


def tell_captions_in_names(found: Found, settings: DatasetSettings, faults: Faults) -> None:
    """If images without captions lie in folders named this way, say how to express the names as settings."""
    without = [entry for entry in found.entries if not any(caption.strip() for caption in entry.captions)]
    named = _named(found.root, without)
    if not named:
        return
    captions = {each.caption for each in named.values()}
    if len(captions) == 1 and _named(found.root, found.entries).keys() == named.keys() == _folders(found.entries):
        fix = f"Set dataset.instance_prompt={shlex.quote(_typed(*captions))}"
    else:
        start = settings.paths[0].rstrip("/") if is_s3(settings.paths[0]) else str(found.root)
        sources = ", ".join(
            f"{{path: {_typed(f'{start}/{folder}' if folder else start)}, repeats: {each.repeats}, "
            f"instance_prompt: {_typed(each.caption)}}}"
            for folder, each in named.items()
        )
        fix = f"Give each as a source of its own: dataset=sources {shlex.quote(f'dataset.sources=[{sources}]')}"
    said = "a name that kohya's scripts read as repeats and caption, and that says nothing here"
    faults.add("kohya", f"{_shown(found.root, named)}: {said}. {fix}.")


def numbers_without_effect(found: Found, *, repeats: int) -> tuple[str, ...]:
    """A remark if the numbers in folder names differ from the source's repeats, since they have no effect."""
    named = _named(found.root, found.entries)
    idle = {folder: each for folder, each in named.items() if each.repeats != repeats}
    if not idle or named.keys() != _folders(found.entries):
        return ()
    said = "the number in the name is repeats to kohya's scripts and has no effect here; that is repeats of a source in"
    return (f"{_shown(found.root, idle)}: {said} dataset.sources",)


def _named(root: Path, entries: Iterable[Entry]) -> dict[str, Named]:
    """The folders of images that are named this way, relative to the root, which is the empty name."""
    found = {}
    for folder in sorted(_folders(entries)):
        if match := NAMED.fullmatch(os.path.basename(folder) or root.absolute().name):
            found[folder] = Named(int(match[1]), match[2].strip())
    return found


def _folders(entries: Iterable[Entry]) -> set[str]:
    return {os.path.dirname(entry.name) for entry in entries if isinstance(entry.address, FileAddress)}


def _shown(root: Path, folders: Iterable[str]) -> str:
    return listed([f"{folder or root.absolute().name}/" for folder in folders], limit=3)


def _typed(text: str) -> str:
    """A text as it must be written in a list on the command line."""
    if PLAIN.fullmatch(text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'
