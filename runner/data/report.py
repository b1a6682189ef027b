"""The account of a data set: what became of every file. Takes rows; gives counts, JSON and a terminal table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["used", "dropped", "ignored"]
SHOWN_ROWS = 20
MANIFEST_ROWS = 50
"""As many as the report shows. A manifest is read and written often, by everything that looks at its job."""


@dataclass(frozen=True)
class Row:
    """One file. `dropped`: an image that is not trained on; `ignored`: not an image of this data set at all."""

    file: str
    outcome: Outcome
    notes: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    """Counted properties: enlarged, reduced, duplicate, converted, rotated, warning, and with masks also unmasked."""


@dataclass(frozen=True)
class Share:
    """What one of several sources contributes: its images, how often each comes in an epoch, and samples in total."""

    source: str
    path: str
    images: int
    repeats: int
    samples: int


@dataclass(frozen=True)
class InventoryReport:
    """Rows of all files, sorted by name."""

    rows: tuple[Row, ...]
    resolution_px: int | None = None
    """Side of the training square; without it, enlarged and reduced are unknown and count as 0."""
    sources: tuple[Share, ...] = ()
    """One per source, if there are several; counts an epoch before images are held out."""
    remarks: tuple[str, ...] = ()
    """Remarks that concern no single file."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of files by outcome and by property; one image may count in several properties."""
        counts = dict.fromkeys(("used", "dropped", "ignored"), 0)
        counts |= dict.fromkeys(("enlarged", "reduced", "duplicate", "converted", "rotated", "warning"), 0)
        for row in self.rows:
            counts[row.outcome] += 1
            for kind in row.kinds:
                counts[kind] = counts.get(kind, 0) + 1
        return counts

    def as_dict(self, *, limit: int | None = None) -> dict[str, Any]:
        """For JSON: the counts, and a row for each notable file, in the files' order.

        Args:
            limit: if there are more rows, keep this many, those that cost images first, and count the others.
        """
        notable = self._notable()
        shown = notable if limit is None or len(notable) <= limit else _first(notable)[:limit]
        rows = [{"file": row.file, "outcome": row.outcome, "notes": list(row.notes)} for row in shown]
        about: dict[str, Any] = {"resolution_px": self.resolution_px, "counts": self.counts, "rows": rows}
        about |= {"more_rows": len(notable) - len(shown)} if len(shown) < len(notable) else {}
        about |= {"remarks": list(self.remarks)} if self.remarks else {}
        return about | ({"sources": [asdict(share) for share in self.sources]} if self.sources else {})

    def lines(self, *, limit: int = SHOWN_ROWS) -> list[str]:
        """A table of at most `limit` rows; files that cost images come first."""
        shown_always = ("used", "dropped")
        counts = [f"{count} {name}" for name, count in self.counts.items() if count or name in shown_always]
        lines = ["images: " + ", ".join(counts)]
        lines += [f"  {remark}" for remark in self.remarks]
        samples = sum(share.samples for share in self.sources)
        for share in self.sources:
            lines.append(
                f"  {share.source}  {share.path}: {share.images} x {share.repeats}, "
                f"{share.samples / max(1, samples):.0%} of the samples"
            )
        rows = _first(self._notable())
        width = max((len(row.file) for row in rows[:limit]), default=0)
        for row in rows[:limit]:
            line = f"  {row.outcome:<7}  {row.file:<{width}}  {'; '.join(row.notes)}"
            lines.append(line.rstrip().replace("\n", "\\n"))  # a newline in a name would look like another row
        if len(rows) > limit:
            lines.append(f"  ... and {len(rows) - limit} more")
        return lines

    def _notable(self) -> list[Row]:
        # Almost every photograph is larger than the square: that alone is counted, not listed.
        return [row for row in self.rows if row.outcome != "used" or row.kinds - {"reduced"}]


def _first(rows: list[Row]) -> list[Row]:
    """Files that cost images come first."""
    order = {"dropped": 0, "ignored": 2}
    return sorted(rows, key=lambda row: 1 if "warning" in row.kinds else order.get(row.outcome, 3))
