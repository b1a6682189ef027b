"""Lines of the log on standard output."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from runner.system.signals import silence


class Lines(logging.StreamHandler[TextIO]):
    """Lines for whoever reads them; when nobody does any more, as after `| head`, the command goes on without."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """What logging calls when a line could not be written."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        # The descriptor rather than Python's stream: what is left in that would fail again when the process ends.
        silence([self.stream.fileno()])
