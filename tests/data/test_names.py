"""File names: some that cannot be written as text, and one that can be written in two ways."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.data import read_dataset
from runner.errors import DatasetError
from tests.data.test_folder import captions, ignored

Settings = Callable[..., Any]
Photos = dict[str, Image.Image]

DECOMPOSED = unicodedata.normalize("NFD", "café")
"""As macOS writes it into archives."""


def test_names_that_are_not_text(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """A name in an old encoding is refused where it can be shown, not later when a report is written."""
    photos["cat"].save(tmp_path / "cat.png")
    os.rename(tmp_path / "cat.png", os.fsencode(tmp_path) + b"/k\xe4tzchen.png")

    with pytest.raises(DatasetError, match=r"k\?tzchen\.png: the name is not UTF-8") as raised:
        read_dataset(settings(tmp_path, instance_prompt="x"))
    str(raised.value).encode()


def test_names_in_another_unicode_form_are_the_same_names(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """Typed names are composed; they look the same."""
    for folder in ("lines", "texts"):
        (tmp_path / folder).mkdir()
        photos["cat"].save(tmp_path / folder / f"{DECOMPOSED}.png")
    (tmp_path / "lines" / "metadata.jsonl").write_text('{"file_name": "café.png", "text": "a cup"}')
    (tmp_path / "texts" / "café.txt").write_text("a cup")
    Image.new("L", photos["cat"].size).save(tmp_path / "texts" / "café.mask.png")

    for folder, masks in (("lines", False), ("texts", True)):
        dataset = read_dataset(settings(tmp_path / folder, masks=masks))
        assert captions(dataset) == {f"{DECOMPOSED}.png": "a cup"}
        assert not ignored(dataset), "nothing is left over"
        assert bool(dataset.items[0].mask) is masks


def test_two_files_in_two_unicode_forms_are_two(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    for name, photo in (("café", "cat"), (DECOMPOSED, "coffee")):
        photos[photo].save(tmp_path / f"{name}.png")
        with (tmp_path / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": f"{name}.png", "text": photo}) + "\n")

    assert captions(read_dataset(settings(tmp_path))) == {"café.png": "cat", f"{DECOMPOSED}.png": "coffee"}


def test_names_that_are_longer_than_any_file_has(tmp_path: Path, photos: Photos, settings: Settings) -> None:
    """As when columns are swapped and a caption is taken for a name: its place is reported with all other faults."""
    photos["cat"].save(tmp_path / "cat.png")
    caption = "a photo of a cat, " * 20
    lines = [{"file_name": caption, "text": "cat.png"}, {"file_name": "cta.png", "text": "a cat"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"class_data_dir": caption}))

    with pytest.raises(DatasetError, match="3 faults") as raised:
        read_dataset(settings(tmp_path))
    for said in ("line 1: there is no file 'a photo", "line 2: there is no file 'cta.png'", "is not a folder"):
        assert said in str(raised.value)
    with pytest.raises(DatasetError, match="not found: no 'a photo"):
        read_dataset(settings(caption))
