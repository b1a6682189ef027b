from __future__ import annotations

from tests.train.bench import bench

__all__ = ["bench"]
