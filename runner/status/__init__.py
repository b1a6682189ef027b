"""How far jobs are at this moment: a table for people, data for programs. It reads folders and writes nothing."""

from __future__ import annotations

from runner.status.live import live_table

__all__ = ["live_table"]
