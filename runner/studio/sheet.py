"""A contact sheet: many pictures on one, each prompt above its row.

Takes drawn pictures in their order, gives a PNG; knows nothing of how they were drawn.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from runner.train.drawing import Picture

PAPER, INK = "#fcfcfa", "#1b1d21"
GAP_PX, LEAST_CELL_PX, MOST_CELL_PX = 8, 96, 512
TEXT_PX, LINE_PX, MOST_LINES = 14, 18, 3


def contact_sheet(pictures: Sequence[Picture], columns: int) -> bytes:
    """All pictures in rows, as a PNG. A prompt stands above the rows of its pictures.

    Args:
        columns: pictures in a row; of the same prompt, if it is the number of seeds.
    """
    assert pictures
    images = [_shown(picture) for picture in pictures]
    cell_px = max(max(image.size) for image in images)
    width = GAP_PX + min(columns, len(pictures)) * (cell_px + GAP_PX)
    font = ImageFont.load_default(size=TEXT_PX)
    rows = list(_rows(pictures, columns))
    said = [_lines(text, font, width - 2 * GAP_PX) if text else [] for text, _ in rows]
    height = GAP_PX + sum(len(lines) * LINE_PX + cell_px + GAP_PX for lines in said)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, top = ImageDraw.Draw(sheet), GAP_PX
    for lines, (_, places) in zip(said, rows, strict=True):
        for line in lines:
            pen.text((GAP_PX, top - 3), line, fill=INK, font=font)
            top += LINE_PX
        for column, place in enumerate(places):
            sheet.paste(images[place], (GAP_PX + column * (cell_px + GAP_PX), top))
        top += cell_px + GAP_PX
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    return stream.getvalue()


def _shown(picture: Picture) -> Image.Image:
    """The picture in a size to look at: those of miniatures enlarged, large ones reduced."""
    image = Image.open(io.BytesIO(picture.png)).convert("RGB")
    longest = max(image.size)
    if longest < LEAST_CELL_PX:
        factor = -(-LEAST_CELL_PX // longest)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longest > MOST_CELL_PX:
        image.thumbnail((MOST_CELL_PX, MOST_CELL_PX), Image.Resampling.LANCZOS)
    return image


def _rows(pictures: Sequence[Picture], columns: int) -> list[tuple[str, list[int]]]:
    """(prompt if it is another one than before, places of the pictures) of each row."""
    rows: list[tuple[str, list[int]]] = []
    before: str | None = None
    for place, picture in enumerate(pictures):
        new = picture.prompt != before
        if new or len(rows[-1][1]) == columns:
            rows.append((picture.prompt if new else "", []))
        rows[-1][1].append(place)
        before = picture.prompt
    return rows


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    """A prompt in lines that fit; what is too long for them ends in dots."""
    characters = max(8, int(width_px / (font.getlength("an average prompt") / len("an average prompt"))))
    return textwrap.wrap(text, characters, max_lines=MOST_LINES, placeholder=" ...") or [text[:characters]]
