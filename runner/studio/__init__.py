"""Draws with trained adapters: one loaded base, any mix of adapters, the same images as in training."""

from __future__ import annotations

from runner.studio.sheet import contact_sheet
from runner.studio.studio import Studio

__all__ = ["Studio", "contact_sheet"]
