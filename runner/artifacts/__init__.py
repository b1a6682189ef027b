"""What a finished job leaves: the adapter as diffusers and as ComfyUI read it, checked, and a card that says
what it is.
"""

from __future__ import annotations

from runner.artifacts.finish import save_artifacts

__all__ = ["save_artifacts"]
