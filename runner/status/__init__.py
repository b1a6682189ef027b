"""How far jobs are right now: a table for people, data for programs. Reads folders and writes nothing."""

from __future__ import annotations

from runner.status.live import live_table

__all__ = ["live_table"]
