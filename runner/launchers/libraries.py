"""Loads, when it is imported, what a worker needs: in the process that workers are forked from."""

from __future__ import annotations

from contextlib import suppress

from runner.work import load_libraries

with suppress(Exception):  # a worker meets it again, and says it where it is looked for
    load_libraries()
