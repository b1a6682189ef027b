"""Loads, when it is imported, what commands and workers need: in the process that tests fork them from."""

from __future__ import annotations

from importlib import import_module

from runner.work import load_libraries

COMMANDS = ("hydra.main", "hydra._internal.hydra", "rich.progress", "rich.table", "runner.command.diagnose")
DOORS = ("runner.command.entry", "runner.command.search", "runner.launchers.local", "runner.report")
AT_WORK = ("runner.families.sd", "runner.families.sdxl", "runner.tasks.evaluate.work", "runner.mix.read")
"""What work loads where it comes to it, a fifth of a training of one step."""

for module in (*COMMANDS, *DOORS, *AT_WORK):
    import_module(module)
load_libraries()
