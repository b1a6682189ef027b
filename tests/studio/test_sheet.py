from __future__ import annotations

import io
import weakref
from pathlib import Path

import pytest
from PIL import Image

from runner.studio import contact_sheet
from runner.studio import sheet as sheets

COLOURS = ("red", "blue", "green", "yellow", "black")


def picture(folder: Path, prompt: str, colour: str, side_px: int) -> tuple[str, Path]:
    file = folder / f"{len(list(folder.iterdir()))}.png"
    Image.new("RGB", (side_px, side_px), colour).save(file)
    return prompt, file


def colours(sheet: Image.Image) -> dict[tuple[int, int, int], int]:
    counted = sheet.getcolors(maxcolors=1 << 20)
    assert counted
    return {colour: count for count, colour in counted}  # type: ignore[misc]


def test_every_picture_is_on_the_sheet_in_its_row(tmp_path: Path) -> None:
    said = (("one", "red"), ("one", "blue"), ("a prompt " * 60, "lime"))
    given = [picture(tmp_path, prompt, colour, 64) for prompt, colour in said]
    sheet = Image.open(io.BytesIO(contact_sheet(given, columns=2)))
    shown = colours(sheet)
    assert [shown[rgb] for rgb in ((255, 0, 0), (0, 0, 255), (0, 255, 0))] == [128 * 128] * 3, "enlarged, whole"
    left, right = (sheet.getpixel((x, 90)) for x in (20, 160))
    assert (left, right) == ((255, 0, 0), (0, 0, 255))
    assert sheet.getpixel((20, sheet.height - 20)) == (0, 255, 0)
    assert sheet.width == 8 + 2 * 136


def test_large_pictures_are_reduced_and_long_rows_broken(tmp_path: Path) -> None:
    given = [picture(tmp_path, "one", colour, 1024) for colour in COLOURS]
    sheet = Image.open(io.BytesIO(contact_sheet(given, columns=2)))
    assert sheet.width == 8 + 2 * 520
    assert sheet.height > 3 * 520


def test_very_many_pictures_are_small_and_in_the_end_not_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [picture(tmp_path, "one", colour, 300) for colour in COLOURS] * 8
    monkeypatch.setattr(sheets, "MOST_PIXELS", 8 * 108 * 5 * 108)
    small = Image.open(io.BytesIO(contact_sheet(many, columns=8)))
    assert small.width * small.height <= sheets.MOST_PIXELS and 8 * 90 < small.width < 8 * 110
    assert colours(small)[255, 255, 0] > 8 * 80 * 80, "each is whole"
    monkeypatch.setattr(sheets, "MOST_PIXELS", 8 * 41 * 130)
    few = Image.open(io.BytesIO(contact_sheet(many, columns=8)))
    assert few.width == 8 + 8 * 40 and few.height < 130 + 18


def test_pictures_are_let_go_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Image.Image]] = []
    most = 0

    def convert(image: Image.Image, mode: str) -> Image.Image:
        nonlocal most
        found = by_itself(image, mode)
        held.append(weakref.ref(found))
        most = max(most, sum(each() is not None for each in held))
        return found

    by_itself = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", convert)
    contact_sheet([picture(tmp_path, "one", "red", 128)] * 9, columns=3)
    assert len(held) == 9 and most <= 2, "the one that is read, and the one before"
