"""Faults of a data set, collected so that one error shows all of them; knows nothing about files or images."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from runner.errors import DatasetError

SHOWN_PER_KIND = 20
"""Ten thousand missing captions are one mistake: after this many lines of a kind, the rest is only counted."""

OF_A_SOURCE = re.compile(
    r"\bdataset\.(path|revision|split|image_column|caption_column|mask_column|instance_prompt|captions_per_line|stream)\b"
)
"""Settings that each of several sources has for itself; a fault in one of them names the source's own."""


NOT_TO_BE_SET = {
    "Set dataset.image_column.": "Rename the one with images.",
    "dataset.image_column=": "",
    "Choose a column of bytes": "Give a table where it is one of bytes",
    "dataset.split='train'": "split 'train'",
    "Choose one of them.": "Give its folder or file.",
}
"""Advice about settings -> what to say instead where images are read without them, such as those of a class."""


def without_settings(said: str) -> str:
    """A message reworded for images that have no settings of their own."""
    for words, instead in NOT_TO_BE_SET.items():
        said = said.replace(words, instead)
    return said


def nearest(name: str, names: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest of `names`, or an empty string if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]!r}?)" if found else ""


def listed(names: Iterable[str], *, limit: int = 12) -> str:
    """`'a', 'b' and 3 more` in sorted order; `none` if there are no names."""
    ordered = sorted(names)
    text = ", ".join(repr(name) for name in ordered[:limit])
    if len(ordered) > limit:
        text += f" and {len(ordered) - limit} more"
    return text or "none"


class Faults:
    """Collects what is wrong, by kind, and raises it as one `DatasetError`."""

    def __init__(self, path: str, *, section: str = "dataset") -> None:
        """`section`: the settings that name the data set, such as `dataset.sources.1`."""
        self._path, self._section = path, section
        self._by_kind: dict[str, list[str]] = {}

    def add(self, kind: str, text: str) -> None:
        """Add one fault; `text` names the file, what is wrong with it and the fix."""
        self._by_kind.setdefault(kind, []).append(OF_A_SOURCE.sub(rf"{self._section}.\1", text))

    def shows(self, kind: str) -> bool:
        """Whether one more fault of this kind would be shown rather than only counted."""
        return len(self._by_kind.get(kind, ())) < SHOWN_PER_KIND

    def __len__(self) -> int:
        return sum(len(texts) for texts in self._by_kind.values())

    def error(self) -> DatasetError:
        """All faults in one error; assumes that there is at least one."""
        assert self._by_kind, "no fault to report"
        noun = "fault" if len(self) == 1 else "faults"
        lines = [f"{self._section}.path={self._path!r}: {len(self)} {noun} in the data set"]
        for texts in self._by_kind.values():
            lines += [f"  - {text}" for text in texts[:SHOWN_PER_KIND]]
            if len(texts) > SHOWN_PER_KIND:
                lines.append(f"  - ... and {len(texts) - SHOWN_PER_KIND} more like the last")
        return DatasetError("\n".join(lines))

    def raise_if_any(self) -> None:
        """Raise `DatasetError` with everything that was added, if anything was."""
        if self._by_kind:
            raise self.error()
