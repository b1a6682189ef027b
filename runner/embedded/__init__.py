"""The embedded model: an SDXL-shaped miniature and its data, small enough to live in the repository.

Takes nothing, provides two folders: `MODEL_DIR`, a pipeline that diffusers loads, and `DATASET_DIR`, captioned pictures
of houses, which that pipeline has never seen. Neither torch nor diffusers is imported, so importing this is cheap.
"""

from __future__ import annotations

from pathlib import Path

MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
DATASET_DIR: Path = Path(__file__).resolve().parent / "houses"
