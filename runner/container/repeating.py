"""Something that is done from time to time beside the work of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], object], *, every_s: float, name: str) -> Iterator[None]:
    """Call it every so often while the block runs, in a thread of that name; it is not running when the block is left.

    Args:
        every_s: seconds from the end of a call to the next one, and before the first one.
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
