"""Values in messages are shown as they would be typed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from runner.system.values import as_typed


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        (None, "null"),
        (True, "true"),
        (1e-05, "1e-05"),
        ("abc", "'abc'"),
        (("to_q", "a b"), "[to_q, a b]"),
        (["a, b", "true", "8", ""], "['a, b', 'true', '8', '']"),
        ({"attn2.to_k": 4, "x": [False, None]}, "{attn2.to_k: 4, x: [false, null]}"),
        ([], "[]"),
    ],
)
def test_a_value_is_shown_as_it_would_be_typed(value: Any, typed: str) -> None:
    assert as_typed(value) == typed
    read = yaml.safe_load(typed)
    assert read == (list(value) if isinstance(value, tuple) else value) or isinstance(value, float)
