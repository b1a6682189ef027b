"""The output of a container: sent to CloudWatch Logs, and read by the metric definitions."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

TRAINING_GROUP = "/aws/sagemaker/TrainingJobs"
LARGEST_READ_BYTES = 1 << 16


class Metrics:
    """The last value of each metric of a job."""

    def __init__(self, definitions: list[dict[str, str]]) -> None:
        self._patterns = [(one["Name"], re.compile(one["Regex"])) for one in definitions]
        self._last: dict[str, tuple[float, datetime]] = {}

    def read(self, line: str) -> None:
        """Find values in a printed line; non-finite numbers do not count."""
        for name, pattern in self._patterns:
            found = pattern.search(line)
            try:
                value = float(found[1]) if found else math.nan
            except (ValueError, IndexError):
                continue
            if math.isfinite(value):
                self._last[name] = (value, datetime.now(UTC))

    def value(self, name: str) -> float | None:
        """The last value of a metric."""
        return self._last[name][0] if name in self._last else None

    def described(self) -> list[dict[str, Any]]:
        """The metrics in Describe's answer."""
        return [{"MetricName": name, "Value": value, "Timestamp": when} for name, (value, when) in self._last.items()]


CREATING = threading.Lock()
"""Moto cannot handle two jobs that make the same group at the same moment."""


def create_group(logs: Any, group: str) -> None:
    """Make a group of log streams, unless it exists."""
    with CREATING, contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=group)


class LogStream:
    """A thread that copies a process's output into a log stream, until nobody holds the output open."""

    def __init__(self, logs: Any, group: str, stream: str, pipe: Any, on_line: Callable[[str], None]) -> None:
        self._logs, self._group, self._stream, self._pipe, self._on_line = logs, group, stream, pipe, on_line
        if logs is not None:  # a role that may not write logs trains without them
            logs.create_log_stream(logGroupName=group, logStreamName=stream)
        self._thread = threading.Thread(target=self._carry, daemon=True, name=f"log {stream}")
        self._thread.start()

    def join(self, seconds: float = 10.0) -> None:
        """Wait until everything is written."""
        self._thread.join(seconds)

    def _carry(self) -> None:
        rest = b""
        with self._pipe:
            while data := os.read(self._pipe.fileno(), LARGEST_READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                self._put(lines)
        if rest:
            self._put([rest])

    def _put(self, lines: list[bytes]) -> None:
        """Send all available lines in one request."""
        now_ms = int(time.time() * 1000)
        texts = [line.decode("utf-8", "replace").rstrip() for line in lines]
        for text in texts:
            self._on_line(text)
        # CloudWatch rejects empty messages.
        events = [{"timestamp": now_ms, "message": text or " "} for text in texts]
        if events and self._logs is not None:
            self._logs.put_log_events(logGroupName=self._group, logStreamName=self._stream, logEvents=events)
