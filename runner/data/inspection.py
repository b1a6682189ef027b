"""Reads every image once, in parallel, and remembers the result so that a second look at the same files is quick.

Takes addresses; returns each one's content id, size and notes, or why it cannot be used. Does not know captions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import paths
from runner.data.address import Address
from runner.data.decode import UnreadableImage, inspect
from runner.data.item import content_id

log = logging.getLogger(__name__)

FORMAT = 1
"""Increase when the notes or the meaning of a remembered result change."""
SETTLED_NS = 2_000_000_000
"""A file written more recently than this may be rewritten within the resolution of its time stamp."""
THREADS_MAX = 16


@dataclass(frozen=True)
class Inspected:
    """Result for one address: either `error`, or everything else."""

    id: str = ""
    width_px: int = 0
    height_px: int = 0
    notes: tuple[str, ...] = ()
    error: str | None = None
    lasting: bool = True
    """Whether a second look would find the same: a disk may fail just once."""


def inspect_all(
    addresses: Sequence[Address], *, root: Path, known: Mapping[Address, Inspected] | None = None
) -> list[Inspected]:
    """Inspect each address, in the order given. `root` identifies the data set whose memory is used; addresses in
    `known` are not inspected again.
    """
    if known:
        rest = iter(inspect_all([address for address in addresses if address not in known], root=root))
        return [known.get(address) or next(rest) for address in addresses]
    memory_file = _memory_file(root)
    remembered = _recall(memory_file)
    stamps = _stamps(addresses)
    keys = [_key(address, stamps.get(address.path)) for address in addresses]
    results: dict[int, Inspected] = {}
    unknown = []
    for index, key in enumerate(keys):
        if key in remembered:
            results[index] = remembered[key]
        else:
            unknown.append(index)
    results.update(zip(unknown, inspect_now([addresses[index] for index in unknown]), strict=True))
    if unknown:
        now = time.time_ns()
        settled = {path for path, stamp in stamps.items() if now - stamp[1] > SETTLED_NS}
        lasting = [i for i, address in enumerate(addresses) if address.path in settled and not results[i].error]
        # Another split of the same folder may be remembered too; only the results for these files are replaced.
        here = {os.path.abspath(path) for path in stamps}
        others = {key: seen for key, seen in remembered.items() if json.loads(key)[0] not in here}
        _remember(memory_file, others | {keys[i]: results[i] for i in lasting})
    return [results[index] for index in range(len(addresses))]


def inspect_now(addresses: Sequence[Address]) -> list[Inspected]:
    """Inspect each address, without using the memory."""
    # Decoding runs in C code outside Python's lock, so threads use all cores.
    with ThreadPoolExecutor(min(THREADS_MAX, (os.cpu_count() or 1) + 2)) as pool:
        return list(pool.map(_inspect, addresses))


def _inspect(address: Address) -> Inspected:
    try:
        encoded = address.read()
        seen = inspect(encoded)
    except (OSError, ValueError, LookupError) as error:
        return Inspected(error=f"cannot be read: {error}", lasting=not isinstance(error, OSError))
    except UnreadableImage as error:
        return Inspected(error=f"cannot be decoded: {error}")
    return Inspected(content_id(encoded), seen.width_px, seen.height_px, seen.notes)


def _stamps(addresses: Sequence[Address]) -> dict[Path, tuple[int, int, int]]:
    """Size in bytes, and times of modification and change in nanoseconds, of each file whose status can be read. Copies
    and archives preserve the modification time, so another file may have had the same one; nobody can set the change
    time.
    """
    stamps = {}
    for path in dict.fromkeys(address.path for address in addresses):
        try:
            status = path.stat()
        except OSError:
            # Reading it will fail too, and that failure is the one reported.
            continue
        stamps[path] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return stamps


def _key(address: Address, stamp: tuple[int, int, int] | None) -> str:
    return json.dumps([os.path.abspath(address.path), address.column, address.row, stamp])


def _memory_file(root: Path) -> Path:
    name = hashlib.sha256(os.path.abspath(root).encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return paths.cache_dir() / "inspections" / f"{name}.json"


def version() -> list[Any]:
    """What the result of an inspection depends on besides the image."""
    import PIL

    return [FORMAT, PIL.__version__]


def _recall(memory_file: Path) -> dict[str, Inspected]:
    try:
        stored = json.loads(memory_file.read_text(encoding="utf-8"))
        if stored["version"] != version():
            return {}
        return dict(_entries(stored["files"]))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("%s cannot be used (%s); every image is read again", memory_file, error)
        return {}


def _entries(files: dict[str, list[Any]]) -> Iterator[tuple[str, Inspected]]:
    for key, (identity, width, height, notes) in files.items():
        json.loads(key)  # raises if the key is not one of ours, like any other damage
        yield key, Inspected(str(identity), int(width), int(height), tuple(str(note) for note in notes))


def _remember(memory_file: Path, results: dict[str, Inspected]) -> None:
    files = {key: [seen.id, seen.width_px, seen.height_px, list(seen.notes)] for key, seen in results.items()}
    try:
        paths.write_text(memory_file, json.dumps({"version": version(), "files": files}))
    except OSError as error:
        # A full or read-only cache folder costs time at the next start, not the run.
        log.warning("%s cannot be written (%s); the next start reads every image again", memory_file, error)
