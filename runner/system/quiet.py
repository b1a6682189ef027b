"""Silences what libraries print while they are loaded."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Make libraries report only errors, unless the environment asks for more; call this before loading them.

    Their other messages are about other ways of using them, such as with torchvision.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
