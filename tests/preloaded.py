"""Loads, when it is imported, what commands and workers need: in the process that tests fork them from."""

from __future__ import annotations

from importlib import import_module

from runner.work import load_libraries

for module in ("hydra.main", "hydra._internal.hydra", "rich.progress", "rich.table", "runner.command.diagnose"):
    import_module(module)
for module in ("runner.command.entry", "runner.command.search", "runner.launchers.local", "runner.report"):
    import_module(module)
load_libraries()
