"""Every family has everything that the Protocol names, and the page on new families names all of it."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from typing import get_args

import diffusers
import pytest

from runner.families import find_family
from runner.families.family import Family
from runner.families.known import FAMILIES, Known
from runner.schema import ModelSettings
from tests.command_line import ROOT

NAMES = {name for name in (*vars(Family), *Family.__annotations__) if not name.startswith("_")}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_has_all_that_the_others_have(family: str) -> None:
    found = find_family(family)
    assert sorted(name for name in NAMES if not hasattr(found, name)) == []


@pytest.mark.parametrize("known", FAMILIES.values(), ids=FAMILIES)
def test_the_usual_guidance_is_that_of_the_pipeline_in_diffusers(known: Known) -> None:
    pipeline = inspect.signature(getattr(diffusers, known.pipeline).__call__)
    assert known.guidance(None) == pipeline.parameters["guidance_scale"].default
    assert known.guidance(0.0) == 0.0


def test_what_can_be_chosen_is_what_there_is() -> None:
    assert set(get_args(ModelSettings.model_fields["family"].annotation)) == set(FAMILIES)
    assert all(find_spec(f"runner.families.{name}") for name in FAMILIES)


def test_the_page_on_new_families_names_each_function() -> None:
    page = (ROOT / "docs" / "new-family.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == NAMES
