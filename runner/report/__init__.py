"""One self-contained HTML page about an experiment, plus its table as data, made from its folders alone."""

from __future__ import annotations

from runner.report.differences import differing_keys
from runner.report.page import write_report

__all__ = ["differing_keys", "write_report"]
