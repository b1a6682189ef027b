"""On import, loads what commands and workers need, in the process that the tests fork them from."""

from __future__ import annotations

from importlib import import_module

from runner.work import load_libraries

COMMANDS = ("hydra.main", "hydra._internal.hydra", "rich.progress", "rich.table", "runner.command.diagnose")
DOORS = ("runner.command.entry", "runner.command.search", "runner.launchers.local", "runner.report")
AT_WORK = ("runner.families.sd", "runner.families.sdxl", "runner.tasks.evaluate.work", "runner.mix.read")
"""Modules that a worker loads only on demand: a fifth of the time of a one-step training."""

for module in (*COMMANDS, *DOORS, *AT_WORK):
    import_module(module)
load_libraries()
