"""Nonsense in a data set's settings is reported with key, value and fix, before any file is looked at."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from runner.schema import Experiment
from runner.schema.messages import explain

WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "idle bucket step": ({"bucket_step": 32}, ["dataset.bucket_step = 32: has no effect without dataset.buckets=true"]),
    "idle aspect": ({"bucket_max_aspect": 3}, ["dataset.bucket_max_aspect = 3.0: has no effect without"]),
    "odd bucket step": ({"buckets": True, "bucket_step": 12}, ["dataset.bucket_step = 12", "multiple of 8"]),
    "no bucket step": ({"buckets": True, "bucket_step": 0}, ["dataset.bucket_step = 0", "at least 8"]),
    "no aspect": ({"buckets": True, "bucket_max_aspect": 0.5}, ["dataset.bucket_max_aspect = 0.5", "at least 1"]),
    "one bucket": ({"buckets": True}, ["dataset.buckets = true: with resolution=64, dataset.bucket_step=64", "lower"]),
    "one aspect": ({"buckets": True, "bucket_step": 8, "bucket_max_aspect": 1}, ["raise dataset.bucket_max_aspect"]),
    "nowhere": ({"path": None}, ["dataset.path: has no value; set dataset.path=..."]),
    "a path and sources": (
        {"path": "a", "sources": ["b"]},
        ["dataset.path = 'a': has no effect with dataset.sources; choose dataset=sources, which has none, and remove"],
    ),
    "a revision of all": (
        {"path": None, "revision": "main", "sources": ["b"]},
        ["dataset.revision = 'main': has no effect with dataset.sources"],
    ),
    "sources beside the default": (
        {"sources": ["b"]},
        ["dataset.path = 'embedded': has no effect with dataset.sources; choose dataset=sources, which has none"],
    ),
    "a source without a path": ({"path": None, "sources": ["b", {"repeats": 2}]}, ["dataset.sources.1.path: has no"]),
    "a misspelt key of a source": (
        {"path": None, "sources": [{"path": "b", "repeat": 2}]},
        ["dataset.sources.0.repeat = 2: unknown key, did you mean repeats?"],
    ),
    "a key of all sources in one": (
        {"path": None, "sources": [{"path": "b", "masks": True}]},
        ["dataset.sources.0.masks = true: unknown key; dataset.masks is for all sources together"],
    ),
    "a key of one source for all": ({"repeats": 3}, ["dataset.repeats = 3: unknown key, did you mean dataset.sources"]),
    "no repeats": ({"path": None, "sources": [{"path": "b", "repeats": 0}]}, ["dataset.sources.0.repeats = 0"]),
    "half a repeat": ({"path": None, "sources": [{"path": "b", "repeats": 1.5}]}, ["dataset.sources.0.repeats = 1.5"]),
    "a number for a source": ({"path": None, "sources": [3]}, ["dataset.sources = [3]: should be a list of paths"]),
    "no list": ({"path": None, "sources": "b"}, ["dataset.sources = 'b': should be a list of paths"]),
    "idle masks": ({"masks": True}, ["dataset.masks = true: has no effect without loss.masked=true"]),
    "idle mask column": ({"mask_column": "m"}, ["dataset.mask_column = 'm': has no effect without dataset.masks=true"]),
    "idle separator": ({"caption_separator": "|"}, ["dataset.caption_separator = '|': has no effect without"]),
    "idle variants of captions": ({"caption_variants": 3}, ["without dataset.caption_shuffle=true; remove it"]),
    "one order": ({"caption_shuffle": True, "caption_variants": 1}, ["dataset.caption_variants = 1", "at least 2"]),
    "fewer than none": ({"caption_shuffle": True, "keep_tokens": -1}, ["dataset.keep_tokens = -1"]),
    "no separator": ({"caption_shuffle": True, "caption_separator": ""}, ["dataset.caption_separator = ''"]),
    "empty prefix": ({"caption_prefix": ""}, ["dataset.caption_prefix = ''", "at least 1 character"]),
}


def test_buckets_of_a_transformer_are_made_of_its_patches() -> None:
    raw = {"model": {"family": "flux", "path": "x"}, "dataset": {"buckets": True, "bucket_step": 24}}
    with pytest.raises(
        ValidationError, match=r"dataset\.bucket_step = 24: should be a multiple of 16 with model\.family"
    ):
        Experiment.model_validate(raw)


def test_a_masked_loss_needs_masks() -> None:
    with pytest.raises(ValidationError, match=r"loss\.masked = true: no masks are read without dataset\.masks=true"):
        Experiment.model_validate({"loss": {"masked": True}})


@pytest.mark.parametrize(("dataset", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_named_with_its_fix(dataset: dict[str, Any], said: list[str]) -> None:
    raw = {"dataset": dataset}
    with pytest.raises(ValidationError) as failure:
        Experiment.model_validate(raw)
    text = "\n".join(explain(failure.value, raw))
    assert [words for words in said if words not in text] == [], text
