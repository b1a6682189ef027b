"""What to do when validation does not fit into the memory: the same in smaller portions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Found = TypeVar("Found")


def within_memory(action: Callable[[int], Found], size: int, *, collect: Callable[[], None]) -> Found:
    """What an action finds that works on so many rows at a time; on half as many where they do not fit, and so on.

    Args:
        action: gives the same for every size, up to rounding.
        collect: gives back what a failed attempt has held.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    while True:
        try:
            return action(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
        collect()
        log.warning("out of memory while validating: going on with %d images at a time", size)
