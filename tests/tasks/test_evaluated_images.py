"""The images of an evaluation: what accompanies the drawn ones, how real ones are resized to match, and which pixels
count.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from runner.paths import JobPaths
from runner.tasks.evaluate.drawn import neutral_series, subject_series, write_about
from runner.tasks.evaluate.measuring import Pictures, as_drawn
from runner.tasks.evaluate.prompts import NEUTRAL
from tests.tasks.evaluations import Networks, settings
from tests.tasks.test_evaluate import DRIFT

ANY = Networks("clip", "dino", "inception")


def test_each_prompt_stands_once_beside_the_images_of_all_its_seeds(tmp_path: Path) -> None:
    asked, paths = settings(ANY), JobPaths(tmp_path)
    series = subject_series(asked, paths)

    write_about(asked, series, paths)

    told = json.loads(paths.prompts.read_text())
    assert (told["prompts"], told["neutral"]) == (["a red <one> house", "a star"], list(NEUTRAL))
    # In the numbering of `p01` in a picture's name.
    assert [told["prompts"][int(wish.name[1:3])] for wish in series.wishes] == [wish.prompt for wish in series.wishes]


def test_the_base_and_the_adapted_draw_the_same_into_folders_of_their_own(tmp_path: Path) -> None:
    base, adapted = (neutral_series(settings(ANY), JobPaths(tmp_path), adapted=each) for each in (False, True))
    assert base.wishes == adapted.wishes
    assert (base.adapted, adapted.adapted) == (False, True)
    assert base.folder != adapted.folder


def test_real_images_are_cut_in_their_middle_and_not_stretched() -> None:
    image = Image.new("RGB", (96, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))
    assert as_drawn(image, 32).getcolors() == [(32 * 32, (0, 0, 255))]
    assert as_drawn(image, 64).size == (64, 64)


def test_the_drift_of_pixels_is_a_share_of_their_range() -> None:
    pictures = [[Image.new("RGB", (4, 4), shade)] * 2 for shade in ("black", "white")]
    found = Pictures(
        settings(ANY, prompts=None, **DRIFT), torch.device("cpu"), neutral=(pictures[0], pictures[1])
    ).measure()
    assert {name: figure.value for name, figure in found.items()} == {"base_drift": 1.0}
