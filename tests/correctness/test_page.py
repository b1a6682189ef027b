"""docs/correctness.md says what the tests show."""

from __future__ import annotations

from tests.correctness.page import PAGE, page


def test_the_page_is_written_from_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.correctness.page"
