from __future__ import annotations

from tests.mix.conftest import sdxl_parts
from tests.train.bench import bench

__all__ = ["bench", "sdxl_parts"]
