"""One self-contained HTML page about an experiment, made from its folders alone."""

from __future__ import annotations

from runner.report.page import write_report

__all__ = ["write_report"]
