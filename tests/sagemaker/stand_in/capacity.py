"""Whether instances are available: a test withholds a type, and restores it."""

from __future__ import annotations

import threading

CAPACITY_ERROR = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)


class Capacity:
    """The instances of the region."""

    def __init__(self) -> None:
        self._withheld: dict[str, int | None] = {}
        self._lock = threading.Lock()

    def withhold(self, instance_type: str, jobs: int | None = None) -> None:
        """Give no instances of a type until `restore`, or until a number of jobs have failed for it."""
        with self._lock:
            self._withheld[instance_type] = jobs

    def restore(self, instance_type: str) -> None:
        """Give instances of the type again."""
        with self._lock:
            self._withheld.pop(instance_type, None)

    def has(self, instance_type: str) -> bool:
        """Whether a job gets instances of a type now."""
        with self._lock:
            return instance_type not in self._withheld

    def count_failure(self, instance_type: str) -> None:
        """Note that a job has failed for lack of the type."""
        with self._lock:
            left = self._withheld.get(instance_type)
            if left is not None:
                self._withheld[instance_type] = left - 1
                if left <= 1:
                    del self._withheld[instance_type]
