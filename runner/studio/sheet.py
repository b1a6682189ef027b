"""A contact sheet: many pictures in one, each prompt above its row.

Takes the files of drawn pictures in order and returns a PNG; knows nothing about how they were drawn. Only one picture
is held at a time, and the sheet's size is limited: with very many pictures they get smaller, and finally some are left
out.
"""

from __future__ import annotations

import dataclasses
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = "#fcfcfa", "#1b1d21"
GAP_PX, LEAST_CELL_PX, MOST_CELL_PX = 8, 96, 512
SMALLEST_CELL_PX, STEP_PX = 32, 16
MOST_PIXELS = 64_000_000
"""Limit for the whole sheet: 192 MB while it is made, and less than what Pillow treats as an attack on opening."""
TEXT_PX, LINE_PX, MOST_LINES = 14, 18, 3

Shown = tuple[str, Path]
"""Prompt and file of a picture."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where things go: the side of a cell and, for each row, the lines above it and the indices of its pictures."""

    cell_px: int
    width_px: int
    rows: Sequence[tuple[Sequence[str], Sequence[int]]]

    @property
    def height_px(self) -> int:
        return GAP_PX + sum(self.height_of(lines) for lines, _ in self.rows)

    @property
    def fits(self) -> bool:
        return self.width_px * self.height_px <= MOST_PIXELS

    def height_of(self, lines: Sequence[str]) -> int:
        return len(lines) * LINE_PX + self.cell_px + GAP_PX


def contact_sheet(shown: Sequence[Shown], columns: int) -> bytes:
    """All pictures in rows, as a PNG. A prompt stands above the rows of its pictures.

    Args:
        columns: pictures per row; with the number of seeds, each row shows one prompt.
    """
    assert shown
    font = ImageFont.load_default(size=TEXT_PX)
    layout, left_out = _bounded(shown, columns, font)
    sheet = Image.new("RGB", (layout.width_px, layout.height_px + (LINE_PX if left_out else 0)), PAPER)
    pen, top = ImageDraw.Draw(sheet), GAP_PX
    for lines, places in layout.rows:
        for line in lines:
            pen.text((GAP_PX, top - 3), line, fill=INK, font=font)
            top += LINE_PX
        for column, place in enumerate(places):
            picture = _fitted(shown[place][1], layout.cell_px)
            sheet.paste(picture, (GAP_PX + column * (layout.cell_px + GAP_PX), top))
        top += layout.cell_px + GAP_PX
    if left_out:
        pen.text((GAP_PX, top - 3), f"and {left_out} more", fill=INK, font=font)
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    return stream.getvalue()


def _bounded(shown: Sequence[Shown], columns: int, font: Font) -> tuple[_Layout, int]:
    """(the layout with the largest cells that fit, how many pictures it leaves out)."""
    cell_px = max(_side(file) for _, file in shown)
    layout = _laid_out(shown, columns, cell_px, font)
    while not layout.fits and cell_px > SMALLEST_CELL_PX:
        cell_px = max(SMALLEST_CELL_PX, cell_px - STEP_PX)
        layout = _laid_out(shown, columns, cell_px, font)
    rows = list(layout.rows)
    while not layout.fits:
        rows.pop()
        layout = dataclasses.replace(layout, rows=rows)
    return layout, len(shown) - sum(len(places) for _, places in rows)


def _laid_out(shown: Sequence[Shown], columns: int, cell_px: int, font: Font) -> _Layout:
    width_px = GAP_PX + min(columns, len(shown)) * (cell_px + GAP_PX)
    rows = [
        (_lines(text, font, width_px - 2 * GAP_PX) if text else [], places) for text, places in _rows(shown, columns)
    ]
    return _Layout(cell_px, width_px, rows)


def _side(file: Path) -> int:
    """The longest side at which a picture is shown: miniatures are enlarged, large pictures reduced."""
    with Image.open(file) as image:
        longest = max(image.size)
    if longest < LEAST_CELL_PX:
        return longest * -(-LEAST_CELL_PX // longest)
    return min(longest, MOST_CELL_PX)


def _fitted(file: Path, cell_px: int) -> Image.Image:
    """The picture for a cell: at its own size if that fits, enlarged by a whole factor, or reduced."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    longest = max(image.size)
    if longest < LEAST_CELL_PX and (factor := min(-(-LEAST_CELL_PX // longest), cell_px // longest)) > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((cell_px, cell_px), Image.Resampling.LANCZOS)
    return image


def _rows(shown: Sequence[Shown], columns: int) -> list[tuple[str, list[int]]]:
    """(prompt, if it differs from the one before; indices of the pictures) for each row."""
    rows: list[tuple[str, list[int]]] = []
    before: str | None = None
    for place, (prompt, _) in enumerate(shown):
        new = prompt != before
        if new or len(rows[-1][1]) == columns:
            rows.append((prompt if new else "", []))
        rows[-1][1].append(place)
        before = prompt
    return rows


def _lines(text: str, font: Font, width_px: int) -> list[str]:
    """A prompt broken into lines that fit; one that is too long is cut off with dots."""
    characters = max(8, int(width_px / (font.getlength("an average prompt") / len("an average prompt"))))
    return textwrap.wrap(text, characters, max_lines=MOST_LINES, placeholder=" ...") or [text[:characters]]
