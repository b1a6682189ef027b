"""Draws are pure functions of their purpose and never change: unfinished jobs continue with them."""

from __future__ import annotations

import pytest

from runner.train.randomness import generator, permutation, torch_seed


def test_draws_are_what_they_ever_were() -> None:
    """Also across versions of this project: otherwise resumed jobs would see other images and other noise."""
    assert generator(7, "noise", 1, 23).standard_normal(2).tolist() == pytest.approx([0.0193401693, -0.9586434427])
    assert torch_seed(7, "dropout", "unet", "a.1", 23) == 8920692647403985039
    assert permutation(7, 2, 8).tolist() == [5, 4, 0, 1, 2, 7, 3, 6]


def test_no_two_draws_share_a_stream() -> None:
    asked: list[tuple[int, str, *tuple[int | str, ...]]] = [
        *[(1, "a"), (2, "a"), (1, "b"), (1, "a", 1), (1, "a", 2), (1, "a", 1, 2), (1, "a", 12), (1, "a", 2, 1)],
        *[(1, "a", "layer.1", 23), (1, "a", "layer.12", 3)],
    ]
    assert len({torch_seed(*each) for each in asked}) == len(asked)
    assert len({generator(*each).random() for each in asked}) == len(asked)
