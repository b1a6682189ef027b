from __future__ import annotations

import io

from PIL import Image

from runner.studio import contact_sheet
from runner.train.drawing import Picture

COLOURS = ("red", "blue", "green", "yellow", "black")


def picture(prompt: str, colour: str, side_px: int) -> Picture:
    stream = io.BytesIO()
    Image.new("RGB", (side_px, side_px), colour).save(stream, format="PNG")
    return Picture(f"{prompt}-{colour}.png", prompt, stream.getvalue())


def colours(sheet: Image.Image) -> dict[tuple[int, int, int], int]:
    counted = sheet.getcolors(maxcolors=1 << 20)
    assert counted
    return {colour: count for count, colour in counted}  # type: ignore[misc]


def test_every_picture_is_on_the_sheet_in_its_row() -> None:
    given = [picture("one", "red", 64), picture("one", "blue", 64), picture("a prompt " * 60, "lime", 64)]
    sheet = Image.open(io.BytesIO(contact_sheet(given, columns=2)))
    shown = colours(sheet)
    assert [shown[rgb] for rgb in ((255, 0, 0), (0, 0, 255), (0, 255, 0))] == [128 * 128] * 3, "enlarged, whole"
    left, right = (sheet.getpixel((x, 90)) for x in (20, 160))
    assert (left, right) == ((255, 0, 0), (0, 0, 255))
    assert sheet.getpixel((20, sheet.height - 20)) == (0, 255, 0)
    assert sheet.width == 8 + 2 * 136


def test_large_pictures_are_reduced_and_long_rows_broken() -> None:
    sheet = Image.open(io.BytesIO(contact_sheet([picture("one", colour, 1024) for colour in COLOURS], columns=2)))
    assert sheet.width == 8 + 2 * 520
    assert sheet.height > 3 * 520
