from __future__ import annotations

from tests.mix.conftest import sd15_parts, sdxl_parts
from tests.train.bench import bench

__all__ = ["bench", "sd15_parts", "sdxl_parts"]
