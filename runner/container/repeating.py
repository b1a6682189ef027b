"""Work that is repeated in the background of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], object], *, every_s: float, name: str) -> Iterator[None]:
    """Call `work` repeatedly in a thread named `name` while the block runs; no call is running after the block.

    Args:
        every_s: seconds before the first call, and from the end of each call to the next.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(every_s):
            work()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
