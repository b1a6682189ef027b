"""`python -m runner.schema.reference FILE`: the reference page of all settings, generated from the schema alone."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runner.paths import write_text
from runner.schema.defaults import SEARCHES, section_of, variants_of
from runner.schema.experiment import NOT_IDENTITY, SECTIONS, Experiment
from runner.schema.job import JobSettings
from runner.schema.tasks import TASKS

HEAD = """\
# Configuration

All settings. This page is generated from the schema (`make docs`), and a test keeps it current.

Set them on the command line (`lora.rank=16`), in a file of your own or in a recipe. The command line overrides files,
and a recipe overrides other files (one that changes what a choice typed beside it sets is refused). Changing a setting
marked *not part of the job id* does not make it another job.

## How values are written

| | On the command line | In a YAML file |
|---|---|---|
| a number; true or false; nothing | `optimizer.lr=1e-4`, `dataset.flip=true`, `model.vae=null` | `lr: 1e-4` |
| a text with spaces | `'dataset.instance_prompt=a photo of sks dog'` | `instance_prompt: a photo of sks dog` |
| a text with characters other than letters (a to z), digits, spaces and `. : / - _`, or of digits alone | \
`'dataset.instance_prompt="a dog, red"'`, `'name="2024"'` | `instance_prompt: "a dog, red"` |
| a list, even of one | `'validation.prompts=[a house, "a dog, red"]'`, `'validation.seeds=[0,1]'` | `seeds: [0, 1]` |
| a mapping | `'lora.rank_pattern={attn2.to_k: 4}'` | `rank_pattern: {attn2.to_k: 4}` |
| several values, a job for each (with `-m`) | `lora.rank=4,8`, `'dataset.instance_prompt="a dog, red","a dog"'` | \
in a recipe, below `hydra.sweeper.params`: `lora.rank: 4,8` |

The outer quotes are for the shell, the inner ones for the value; there are no spaces around `=`.

## Files of your own

`--config-dir DIR` adds choices: `DIR/lora/mine.yaml` is `lora=mine`, and holds the settings of that group without its
name (`rank: 16`). Names that are already taken (`lora=attention`) are refused. If a group has several kinds
(`launcher`, `method`, `optimizer`), the file begins by choosing one, such as `defaults: [adamw]`. A recipe of your own,
`DIR/recipe/ours.yaml`, begins with a line that puts its settings at the top level:

```yaml
# @package _global_
defaults:
  - override /model: sdxl
  - override /lora: linear

steps: 2000
lora:
  rank: 16
```
"""


def reference() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD, "## Top level\n", _table("", Experiment, skip=SECTIONS)]
    sections = [name for name in Experiment.model_fields if name in SECTIONS]
    for section in sections:
        kinds = variants_of(section)
        for kind, model in kinds.items():
            title = f"`{section}={kind}`" if kind else f"`{section}`"
            outside = section in (*NOT_IDENTITY, *BY_CONTENT)
            parts += [
                f"## {title}\n",
                _sentence(model, section),
                _table(f"{section}.", model, outside=outside),
                *_nested(f"{section}.", model),
            ]
            for key, item in _lists_of_settings(model):
                parts += [f"### Each of `{section}.{key}`\n", _sentence(item, section), _table("", item, outside=True)]
    parts += _tasks()
    for name, model in SEARCHES.items():
        parts += [f"## `hydra/sweeper={name}`\n", _sentence(model, ""), _table("hydra.sweeper.", model)]
    return "\n".join(parts)


def _tasks() -> Iterator[str]:
    """The settings that only a task after training has, and which of the sections it shares with a training."""
    of_all = {*JobSettings.model_fields, "resolution"}
    for task, kind in TASKS.items():
        if task == "train":
            continue
        shared = [f"`{name}`" for name in kind.model_fields if name in (*of_all, *SECTIONS) and name != "task"]
        yield f"## `task={task}`\n"
        yield _sentence(kind, "")
        yield f"It shares these settings with a training: {', '.join(shared)}.\n"
        shown_elsewhere = (*of_all, *SECTIONS)
        inner = [name for name, field in kind.model_fields.items() if section_of(field)]
        if kind.model_fields.keys() - {*shown_elsewhere, *inner}:
            yield _table("", kind, skip=shown_elsewhere)
        yield from _nested("", kind, skip=shown_elsewhere)


def _nested(prefix: str, model: type[BaseModel], *, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """Settings nested in others, each group in a table of its own."""
    for name, field in model.model_fields.items():
        if name not in skip and (inner := section_of(field)) is not None:
            yield _table(f"{prefix}{name}.", inner)


BY_CONTENT = ("model", "dataset")
"""Sections whose names are not part of the job id because the content of what they name is."""


def _lists_of_settings(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for kind in get_args(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield name, kind


def _sentence(model: type[BaseModel], section: str) -> str:
    text = " ".join((model.__doc__ or "").split())
    _, _, meaning = text.partition(": ")
    outside = " Not part of the job id." if section in NOT_IDENTITY else ""
    return f"{meaning[:1].upper()}{meaning[1:]}{outside}\n"


def _table(prefix: str, model: type[BaseModel], *, skip: tuple[str, ...] = (), outside: bool = False) -> str:
    lines = ["| Setting | Type | Default | Unit | Meaning |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in skip or section_of(field) is not None:
            continue
        extra = field.json_schema_extra
        assert isinstance(extra, dict), name
        note = "" if outside or extra["identity"] else " *Not part of the job id.*"
        cells = [
            f"`{prefix}{name}`",
            _type(field),
            _default(field),
            str(extra["unit"]),
            f"{field.description}{note}",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(field: FieldInfo) -> str:
    return f"{_name(field.annotation)}{_limits(field)}"


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return f"mapping to {_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _name(arguments[0])
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names[annotation]


def _limits(field: FieldInfo) -> str:
    signs: dict[type, tuple[str, str]] = {
        annotated_types.Ge: ("≥", "ge"),
        annotated_types.Gt: (">", "gt"),
        annotated_types.Le: ("≤", "le"),
        annotated_types.Lt: ("<", "lt"),
        annotated_types.MultipleOf: ("multiple of", "multiple_of"),
    }
    found = [
        f"{signs[type(limit)][0]} {getattr(limit, signs[type(limit)][1])}"
        for limit in field.metadata
        if type(limit) in signs
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.default
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference())
