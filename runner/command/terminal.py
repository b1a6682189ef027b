"""Lines of the log on standard output."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from runner.system.signals import silence


class Lines(logging.StreamHandler[TextIO]):
    """Writes lines while somebody reads them; after that, as with `| head`, the command continues without."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called by logging when a line could not be written."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        # The descriptor rather than Python's stream, whose remaining content would fail again when the process ends.
        silence([self.stream.fileno()])
