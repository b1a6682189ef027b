"""IAM policies, as far as the documented ones need: statements that allow actions on resources under conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Policy = Mapping[str, Any]
"""As the JSON has it."""


def allows(policy: Policy, action: str, resource: str, context: Mapping[str, str]) -> bool:
    """Whether a statement allows an action on a resource, which is taken literally, "*" too."""
    return any(
        _matches(statement["Action"], action, re.IGNORECASE)
        and _matches(statement["Resource"], resource)
        and _holds(statement.get("Condition", {}), context)
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
    )


def _matches(patterns: str | list[str], text: str, flags: int = 0) -> bool:
    wanted = [patterns] if isinstance(patterns, str) else patterns
    words = (re.escape(each).replace(r"\*", ".*").replace(r"\?", ".") for each in wanted)
    return any(re.fullmatch(each, text, flags) for each in words)


def _holds(conditions: Mapping[str, Mapping[str, str | list[str]]], context: Mapping[str, str]) -> bool:
    """Whether all conditions hold; a condition on an unknown key does not."""
    assert conditions.keys() <= {"StringEquals", "StringLike"}, f"the stand-in knows no {[*conditions]}"
    return all(
        key in context and _matches(patterns, context[key])
        for each in conditions.values()
        for key, patterns in each.items()
    )
