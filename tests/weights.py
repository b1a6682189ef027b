"""Files in the form of weights, of a known size, for tests that count bytes or only look whether they are whole."""

from __future__ import annotations

import json

HEADER_BYTES = 96


def weights_of(size: int = 1000) -> bytes:
    """A whole `.safetensors` file of so many bytes."""
    count = size - 8 - HEADER_BYTES
    header = {"a": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
    return HEADER_BYTES.to_bytes(8, "little") + json.dumps(header).encode().ljust(HEADER_BYTES) + bytes(count)
