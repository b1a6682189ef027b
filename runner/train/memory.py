"""What to do when something does not fit in memory: the same in smaller portions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Found = TypeVar("Found")

FULL = re.compile(r"CUDA (error: )?out of memory|\bCU[A-Z]+_\w*ALLOC(ATION)?_FAILED")
"""What a full GPU reports when torch's own allocator is not what fails: CUDA (`torch.AcceleratorError`), and its
libraries, which allocate handles and workspaces separately and raise plain RuntimeErrors."""


def is_full(error: Exception) -> bool:
    """Whether an error says that the GPU's memory is full, so that using less, after freeing memory, may succeed."""
    return isinstance(error, torch.OutOfMemoryError) or FULL.search(str(error)) is not None


def within_memory(action: Callable[[int], Found], size: int, *, collect: Callable[[], None]) -> Found:
    """The result of an action that works on `size` rows at a time; halves that for as long as they do not fit.

    Args:
        action: returns the same for every size, up to rounding.
        collect: frees what a failed attempt held.

    Raises:
        RuntimeError: a single row does not fit (`is_full`), or the action failed for another reason.
    """
    while True:
        try:
            return action(size)
        except RuntimeError as error:
            if size == 1 or not is_full(error):
                raise
        size //= 2
        collect()
        log.warning("out of memory: continuing with %d images at a time", size)
