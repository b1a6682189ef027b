"""Photographs to make data sets of, and settings to read them with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

DEFAULTS = {
    "sources": (),
    "revision": None,
    "split": "train",
    "stream": False,
    "max_cache_gb": 50.0,
    "image_column": "image",
    "caption_column": "text",
    "instance_prompt": None,
    "masks": False,
    "mask_column": "mask",
    "buckets": False,
    "bucket_step": 64,
    "bucket_max_aspect": 2.0,
    "captions_per_line": False,
    "caption_prefix": None,
    "caption_suffix": None,
    "caption_shuffle": False,
    "caption_variants": 8,
    "caption_separator": ",",
    "keep_tokens": 0,
    "crop": "center",
    "flip": False,
    "variants": 4,
    "skip_unreadable": False,
    "max_images": None,
    "min_side_px": 32,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def settings() -> Callable[..., Any]:
    """`DatasetSettings` with the schema's defaults, except for the given ones."""

    def make(path: Path | str, **changed: Any) -> Any:
        assert changed.keys() <= DEFAULTS.keys(), "a setting that does not exist"
        return SimpleNamespace(**{**DEFAULTS, "path": str(path), "paths": (str(path),), **changed})

    return make


@pytest.fixture(scope="session")
def photos() -> dict[str, Image.Image]:
    """Real photographs, reduced so that the tests stay quick: RGB, of different shapes."""
    pictures = {}
    for file in sorted((Path(__file__).parent / "photographs").glob("*.jpg")):
        with Image.open(file) as image:
            pictures[file.stem] = image.convert("RGB")
        pictures[file.stem].thumbnail((240, 240))
    return pictures


@pytest.fixture
def captioned(tmp_path: Path, photos: dict[str, Image.Image]) -> Path:
    """A folder of four PNG files with `metadata.jsonl`."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    lines = []
    for name, picture in photos.items():
        picture.save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": f"a photo of a {name}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
