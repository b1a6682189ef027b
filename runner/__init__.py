"""Declarative LoRA experiments: Hydra composes them, run folders hold them, launchers place them."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.platform == "win32":  # processes lock folders against each other as POSIX has it
    raise SystemExit("lora-runner needs Linux or macOS; on Windows, run it in WSL 2")

__version__ = "0.1.0"

PACKAGE = Path(__file__).resolve().parent
HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""Where conf/ and recipes/ lie: the package of an installed wheel, the checkout otherwise."""

# Hydra finds plugins only in the namespace package `hydra_plugins`, looked up on sys.path.
sys.path.append(str(PACKAGE / "plugins"))
