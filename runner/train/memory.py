"""What to do when something does not fit into the memory: the same in smaller portions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Found = TypeVar("Found")

FULL = re.compile(r"CUDA (error: )?out of memory|\bCU[A-Z]+_\w*ALLOC(ATION)?_FAILED")
"""What a full GPU says where it is not torch's own allocator that finds it full: CUDA (`torch.AcceleratorError`), and
its libraries, whose handles and workspaces come beside it, with plain RuntimeErrors."""


def is_full(error: Exception) -> bool:
    """Whether an error says that the GPU's memory is full: what failed may go with less, once memory is given back."""
    return isinstance(error, torch.OutOfMemoryError) or FULL.search(str(error)) is not None


def within_memory(action: Callable[[int], Found], size: int, *, collect: Callable[[], None]) -> Found:
    """What an action finds that works on so many rows at a time; on half as many where they do not fit, and so on.

    Args:
        action: gives the same for every size, up to rounding.
        collect: gives back what a failed attempt has held.

    Raises:
        RuntimeError: a single row does not fit (`is_full`), or another one of the action.
    """
    while True:
        try:
            return action(size)
        except RuntimeError as error:
            if size == 1 or not is_full(error):
                raise
        size //= 2
        collect()
        log.warning("out of memory: going on with %d images at a time", size)
