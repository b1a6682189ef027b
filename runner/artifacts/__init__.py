"""What a finished job leaves: the adapter as diffusers and ComfyUI read it, checked, and a card that describes it."""

from __future__ import annotations

from runner.artifacts.finish import save_artifacts

__all__ = ["save_artifacts"]
