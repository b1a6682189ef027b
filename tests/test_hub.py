from __future__ import annotations

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from runner.hub import reason_of


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("403 for url 'https://cdn.example/file?X-Amz-Signature=abc&Expires=1' here\nmore"),
         "OSError: 403 for url 'https://cdn.example/file' here"),
        (ConnectionError(), "ConnectionError"),
        (caused(LocalEntryNotFoundError("look it up"), TimeoutError("10 s")), "TimeoutError: 10 s"),
        (ValueError("why? because"), "ValueError: why? because"),
    ],
)  # fmt: skip
def test_why_the_hub_gives_nothing_is_said_in_a_line_without_what_an_address_is_signed_with(
    error: Exception, said: str
) -> None:
    assert reason_of(error) == said
