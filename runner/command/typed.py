"""What was typed, before Hydra sees it: flags among settings, and values that a shell has split at spaces.

Takes the arguments of the command line; knows Hydra's flags, and of settings only their names in other programs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from runner.schema.messages import every_key, meant_by, nearest

MOVED = "moves no results; set the variable RUNNER_OUTPUTS, and name=... for the folder in it"
APART = "takes a sweep apart, which is checked and packed as a whole; remove it, "
REFUSED = {
    "hydra.run.dir": MOVED,
    "hydra.sweep.dir": MOVED,
    "hydra.sweep.subdir": MOVED,
    "hydra.output_subdir": "would write into the current folder; remove it, a job's folder holds its config.yaml",
    "hydra.job.chdir": "has no effect; remove it, and start the command in the folder that paths are relative to",
    "hydra.mode": "has no effect; several jobs need -m (python -m runner -m ...), a single one nothing",
    "hydra.sweeper.max_batch_size": f"{APART}launcher.pack and launcher.concurrency say how many at once",
    "hydra/launcher": f"{APART}launcher=local, slurm or sagemaker says where",
}
"""Hydra settings that would not do here what they do elsewhere, with what to use instead."""


def flags_first(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the arguments in the order that Hydra's parser expects, for which flags between settings are mistakes; a line
    for each that looks like a flag and is none, or would not do what it does elsewhere, which are left out).
    """
    known = get_args_parser()._option_string_actions
    flags: list[str] = []
    settings: list[str] = []
    faults: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, given, value = argument.partition("=")
        action = known.get(name)
        if not re.match(r"-[^\d.]", argument):
            key = name.lstrip("+")
            if key in REFUSED:
                faults.append(f"{key} = {value}: {REFUSED[key]}")
            else:
                settings.append(argument)
        elif action is None and not any(option.startswith(name) for option in known):
            fault, meant = _of_no_flag(argument, left, list(known))
            faults.append(fault)
            settings += meant
        # None means one value, as for --config-dir; "?" one or none, as for --info.
        elif action is not None and not given and not left and action.nargs is None:
            of = f", one of {', '.join(map(str, action.choices))}" if action.choices else ""
            faults.append(f"{argument}: should be followed by a value{of} (--hydra-help lists the flags)")
        elif action is not None and not given and left and (action.nargs is None or left[0] in (action.choices or ())):
            flags += [argument, left.pop(0)]
            value = flags[-1]
        else:
            flags.append(argument)
        if action is not None and action.choices and value and value not in action.choices:
            del flags[-1 if given else -2 :]
            choices = list(map(str, action.choices))
            faults.append(f"{name} {value}: should be one of {', '.join(choices)}{nearest(value, choices)}")
    return flags + settings, faults


def _of_no_flag(argument: str, left: list[str], flags: Sequence[str]) -> tuple[str, list[str]]:
    """(the message for an argument that is no flag, the setting that was meant); takes its value from what is left."""
    name, given, value = argument.lstrip("-").partition("=")
    key, near = meant_by(name), nearest(argument, flags)
    if near and not given:
        return f"{argument}: there is no such flag{near} (--hydra-help lists them)", []
    if not given and key in every_key() and left and not re.search(r"^-[^\d.]|=", left[0]):
        given, value = "=", left.pop(0)
        argument += f" {value}"
    setting = key if "=" in key else f"{key}={value if given else '...'}"
    fault = f"{argument}: there is no such flag; settings have no dashes: {setting} (--hydra-help lists the flags)"
    return fault, [setting] if given or "=" in key else []


def mended(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the intended settings, a line for each that was written with spaces): words without a key belong to the setting
    before them, and words around `=` belong together.
    """
    meant: list[str] = []
    faults: list[str] = []
    place = 0
    while place < len(overrides):
        words = [overrides[place]]
        place += 1
        while place < len(overrides) and not _begins(overrides, place):
            words.append(overrides[place])
            place += 1
        text = " ".join(words)
        key, _, value = (part.strip() for part in text.partition("="))
        if len(words) == 1 and not text.startswith("=") and ("=" in text or text.startswith("~")):
            meant.append(text)
        elif value and re.fullmatch(r"[+~]*[\w./@-]+", key):
            parts = [part.strip() for part in value.split(",")]
            # Numbers and names; a text has spaces elsewhere as well.
            value = value if any(" " in part for part in parts) or value[0] in "[{" else ",".join(parts)
            fault = "a value with spaces needs quotes" if " " in value else "no spaces around '=' and ','"
            meant.append(f"{key}={quoted(value) if ' ' in value else value}")
            faults.append(f"{text}: {fault}: {in_shell(key, value) if ' ' in value else f'{key}={value}'}")
        else:
            faults.append(f"{text}: is not a setting; write key=value, such as lora.rank=8")
    return meant, faults


def _begins(overrides: Sequence[str], place: int) -> bool:
    """Whether a setting starts here."""
    text = overrides[place]
    if text.startswith("="):
        return False
    # In `lora.rank = 4`, the key stands alone.
    is_key = place + 1 < len(overrides) and overrides[place + 1].startswith("=")
    return "=" in text or text.startswith("~") or is_key


def quoted(value: str) -> str:
    """A value as Hydra's grammar wants it; a list, a mapping or a value that needs no quotes is unchanged."""
    # Without quotes, the grammar accepts no letters other than a to z.
    plain = re.fullmatch(r"[\w./:@ -]+", value, re.ASCII) or value[0] in "[{\"'"
    return value if plain else '"' + value.replace('"', '\\"') + '"'


def in_shell(key: str, value: str) -> str:
    """What to type for a setting, including the quotes that the shell removes."""
    text = f"{key}={quoted(value)}"
    if re.fullmatch(r"[\w./:@=+-]+", text):
        return text
    return "'" + text.replace("'", "'\\''") + "'"
