"""Validation errors as a user wants to read them: key, value, what is wrong, nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from runner.schema.defaults import section_of, variants_of
from runner.schema.experiment import GROUPS
from runner.schema.inputs import SourceSettings
from runner.schema.tasks import TASKS


def dotted_keys(task: str = "train") -> list[str]:
    """Every key a user can set for a task, such as `lora.rank`, in the order of the schema."""
    keys: list[str] = []
    for name, field in TASKS[task].model_fields.items():
        if name in GROUPS:
            for model in variants_of(name).values():
                keys += [f"{name}.{key}" for key in model.model_fields]
        elif (kind := section_of(field)) is not None:
            keys += list(_keys_in(kind, f"{name}."))
        else:
            keys.append(name)
    return list(dict.fromkeys(keys))


def _keys_in(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = section_of(field)
        yield from [f"{prefix}{name}"] if inner is None else _keys_in(inner, f"{prefix}{name}.")


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean x?` for the known name closest to `word`, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""


def unknown_key(key: str, task: str = "train") -> str:
    """What to say of a key that a task does not have: whose it is, the closest full key, or the same name elsewhere."""
    owners = [other for other, kind in TASKS.items() if key.partition(".")[0] in kind.model_fields]
    if owners and task not in owners:
        return f"has no effect with task={task}, only with {' or '.join(owners)}; remove it"
    known = dotted_keys(task)
    last = key.rpartition(".")[2]
    same_name = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    if same_name and "." not in key:
        return f"unknown key, did you mean {' or '.join(same_name[:3])}?"
    tops = [candidate for candidate in (*known, *GROUPS) if "." not in candidate]
    near = nearest(key, tops) if "." not in key else ""
    return f"unknown key{near or nearest(key, known)}"


def explain(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One line for each fault that pydantic found in the resolved configuration `raw`."""
    faults = error.errors()
    wrong_inside = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    lines = []
    for fault in faults:
        # What is wrong in a list is not counted in it, so pydantic calls the list too short besides.
        if fault["type"] == "too_short" and fault["loc"] in wrong_inside:
            continue
        location = [str(part) for part in fault["loc"]]
        if len(location) > 1 and location[0] in GROUPS and location[1] in variants_of(location[0]):
            del location[1]  # the kind of a group with several kinds is not part of the key
        key = ".".join(part for part in location if not part.startswith(("function-", "literal[", "constrained-")))
        if fault["type"] == "extra_forbidden":
            lines.append(f"{key} = {fault['input']!r}: {_unknown(key, raw)}")
        elif not key:
            lines.append(_said(fault["msg"]))
        elif fault["type"].startswith("union_tag"):
            kinds = ", ".join(variants_of(key))
            name = raw.get(key, {}).get("name") if isinstance(raw.get(key), Mapping) else raw.get(key)
            lines.append(f"{key}.name = {name!r}: should be one of {kinds}{nearest(str(name), variants_of(key))}")
        elif fault["type"] == "missing" and key.rpartition(".")[2].isdigit():
            lines.append(f"{key.rpartition('.')[0]}: has too few values")
        elif fault["type"] == "missing" or (fault["input"] is None and fault["type"] == "string_type"):
            lines.append(f"{key}: has no value; set {key}=...")
        elif isinstance(fault["input"], (Mapping, BaseModel)):
            # A check over several keys of one group reports the group; it names the key and the value itself.
            said = _said(fault["msg"])
            lines.append(said if said.startswith(f"{key}.") else f"{key}.{said}")
        else:
            lines.append(f"{key} = {fault['input']!r}: {_said(fault['msg'])}")
    return _joined(lines)


def _joined(lines: list[str]) -> list[str]:
    """Without repetitions; a value that may be of two kinds, and is of neither, is one fault."""
    said: dict[str, list[str]] = {}
    for line in dict.fromkeys(lines):
        subject, colon, rest = line.partition(": ")
        said.setdefault(subject + colon, []).append(rest)
    return [
        subject + " or ".join([rests[0], *(rest.removeprefix("should be ") for rest in rests[1:])])
        if all(rest.startswith("should be") for rest in rests)
        else subject + "; ".join(rests)
        for subject, rests in said.items()
    ]


def _unknown(key: str, raw: Mapping[str, Any]) -> str:
    if source := re.fullmatch(r"dataset\.sources\.\d+\.(.+)", key):
        return f"unknown key{nearest(source[1], SourceSettings.model_fields)}"
    group, _, last = key.partition(".")
    kinds = variants_of(group) if group in GROUPS else {}
    owners = [kind for kind, model in kinds.items() if last in model.model_fields and kind]
    if owners:
        return f"has no effect with {group}={raw[group].get('name')}, only with {' or '.join(owners)}; remove it"
    task = raw.get("task")
    return unknown_key(key, task["name"] if isinstance(task, Mapping) and task.get("name") in TASKS else "train")


def _said(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return re.sub(r"^(Input|String|Value|Tuple|List) should", "should", message)
