"""Random numbers as pure functions of their purpose: no state, so nothing to save and nothing to disturb.

Every draw is keyed by the job's seed, a purpose and a counter such as the global sample index. The same sample gets
the same noise in any process, in any pack, before or after a resume. The generator is numpy's Philox (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", 2011), which is counter-based.
"""

from __future__ import annotations

import hashlib

import numpy as np


def _digest(seed: int, purpose: str, *counters: int | str) -> bytes:
    text = "|".join([str(seed), purpose, *map(str, counters)])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """A fresh numpy generator for one draw; its key has 128 bits, so that no two draws share a stream."""
    key = np.frombuffer(_digest(seed, purpose, *counters), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def torch_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """A 63-bit seed for a torch generator on a device, for when drawing on the host would cost too much."""
    return int.from_bytes(_digest(seed, purpose, *counters)[:8], "little") >> 1


def permutation(seed: int, epoch: int, length: int, *, purpose: str = "order") -> np.ndarray:
    """The order of `length` samples in one epoch, `[length]` indices."""
    return generator(seed, purpose, epoch).permutation(length)
