"""Images and captions: takes `DatasetSettings`, gives checked items, crops and an account of every file.

Deals with files, pixels and text. It knows nothing about tensors, models or how settings were composed; importing it
loads neither numpy nor Pillow.
"""

from __future__ import annotations

from runner.data.crops import Crop, crops_for, render, render_mask
from runner.data.dataset import Dataset, in_reading_order, read_dataset, split
from runner.data.item import Item

__all__ = [
    "Crop",
    "Dataset",
    "Item",
    "crops_for",
    "in_reading_order",
    "read_dataset",
    "render",
    "render_mask",
    "split",
]
