"""Validation errors as a user wants to read them: key, value, what is wrong, nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_origin

from pydantic import BaseModel, ValidationError

from runner.schema.defaults import section_of, variants_of
from runner.schema.experiment import GROUPS
from runner.schema.inputs import DatasetSettings, SourceSettings
from runner.schema.knob import kinds_in
from runner.schema.other_scripts import HERE
from runner.schema.tasks import TASKS
from runner.system.amounts import count
from runner.system.values import as_typed

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

MOST_NAMED = 24
"""The settings of a section are listed if there are no more than these."""
PLAIN_KINDS = ("bool", "int", "float", "str")
"""What pydantic appends to the key of a value that may have several types."""
WANTS = " should be "
TRUTH = f"{WANTS.strip()} true or false"
WANTED = {
    "bool_parsing": TRUTH,
    "bool_type": TRUTH,
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "should be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    "string_type": "should be a text",
    "string_unicode": "should be a text",
    "greater_than_equal": "should be at least {ge}",
    "less_than_equal": "should be at most {le}",
    "greater_than": "should be greater than {gt}",
    "less_than": "should be less than {lt}",
}
"""What a value should be, for each type of fault whose message by pydantic is not meant for users."""
ONE_VALUE = ("int_type", "int_parsing", "float_type", "float_parsing", "bool_type", "bool_parsing", "literal_error")
SWEPT = "several values are swept: -m {}, or '{}' under hydra.sweeper.params in a recipe (docs/sweeps.md)"


def dotted_keys(task: str) -> list[str]:
    """Every key a user can set for a task, such as `lora.rank`, in the order of the schema."""
    return list(dict.fromkeys(key for key, _ in _fields(task)))


def takes_list(key: str) -> bool:
    """Whether a setting may be a list, with any task."""
    kinds = [
        kind for task in TASKS for each, field in _fields(task) if each == key for kind in kinds_in(field.annotation)
    ]
    return any(get_origin(kind) is tuple for kind in kinds)


def _fields(task: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in TASKS[task].model_fields.items():
        if name in GROUPS:
            for model in variants_of(name).values():
                yield from ((f"{name}.{key}", inner) for key, inner in model.model_fields.items())
        elif (kind := section_of(field)) is not None:
            yield from _fields_in(kind, f"{name}.")
        else:
            yield name, field


def _fields_in(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = section_of(field)
        yield from [(f"{prefix}{name}", field)] if inner is None else _fields_in(inner, f"{prefix}{name}.")


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean x?` for the known name closest to `word`, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""


def unknown_key(key: str, task: str = "train") -> str:
    """The message for a key that a task lacks: which task has it, or what may have been meant."""
    owners = [other for other, kind in TASKS.items() if key.partition(".")[0] in kind.model_fields]
    known = dotted_keys(task)
    same = _same_name(key, known)
    meant = f"did you mean {' or '.join(same[:3])}?" if same else ""
    if owners and task not in owners:
        fix = "" if "." in key else meant
        return f"has no effect with task={task}, only with {' or '.join(owners)}; {fix or 'remove it'}"
    return f"unknown key, {meant}" if meant else f"unknown key{_near(key, known)}"


def every_key() -> set[str]:
    """The settings of all tasks, and the groups."""
    return {*GROUPS, *(key for task in TASKS for key in dotted_keys(task))}


def meant_by(key: str) -> str:
    """The setting that a name stands for: itself where it is one or is like none, or one with a value."""
    if key in every_key():
        return key
    return (_same_name(key, dotted_keys("train")) or [key])[0]


def _same_name(key: str, known: Sequence[str]) -> list[str]:
    """What is called so in other scripts, written with a dot here, or in another group."""
    last = key.rpartition(".")[2]
    for name in (key, key.replace(".", "_"), last):
        if (here := HERE.get(name, "")) and here.partition("=")[0] in (*known, *GROUPS):
            return [here]
    if last == "name":  # says which of its kinds a group is, and is chosen
        return []
    spelt = [each for each in known if each == last or each.replace(".", "_") == key]
    return spelt or [each for each in known if each.rpartition(".")[2] == last]


def _near(key: str, known: Sequence[str]) -> str:
    """The known key that is nearest to a misspelt one: within the same group, whose name would count as likeness."""
    group, _, last = key.rpartition(".")
    within = [name for each in known if (name := each.removeprefix(f"{group}.")) != each and "." not in name]
    if within:
        near = nearest(last, within).replace("did you mean ", f"did you mean {group}.")
        fix = f"{group} has {', '.join(within)}" if len(within) <= MOST_NAMED else "remove it"
        return near or f"; {fix}"
    tops = [candidate for candidate in (*known, *GROUPS) if "." not in candidate]
    return ("" if group else nearest(key, tops)) or nearest(key, known) or "; remove it"


def explain(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One line for each fault that pydantic found in the resolved configuration `raw`."""
    faults = error.errors()
    wrong_inside = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    lines = []
    for fault in faults:
        # Pydantic does not count wrong items of a list, so it also calls the list too short.
        if fault["type"] == "too_short" and fault["loc"] in wrong_inside:
            continue
        key = _key(fault["loc"], raw)
        if fault["type"] == "extra_forbidden":
            lines.append(f"{key} = {as_typed(fault['input'])}: {_unknown(key, raw)}")
        elif not key:
            lines += wanted(fault).splitlines()
        elif fault["type"] == "invalid_key":
            lines.append(f"{key}: is not the name of a setting; {SWEPT.format('lora.rank=2,4', 'lora.rank: 2,4')}")
        elif fault["type"].startswith("union_tag"):
            kinds = ", ".join(variants_of(key))
            name = raw.get(key, {}).get("name") if isinstance(raw.get(key), Mapping) else raw.get(key)
            if name is None:
                first = next(iter(variants_of(key)))
                lines.append(f"{key}.name: has no value; a file of your own begins with its kind: defaults: [{first}]")
                continue
            lines.append(
                f"{key}.name = {as_typed(name)}: should be one of {kinds}{nearest(str(name), variants_of(key))}"
            )
        elif fault["type"] == "missing" and key.rpartition(".")[2].isdigit():
            lines.append(_too_few(key.rpartition(".")[0], fault, faults))
        elif fault["type"] == "missing" or (fault["input"] is None and fault["type"] == "string_type"):
            lines.append(f"{key}: has no value; set {key}=...")
        elif isinstance(fault["input"], Mapping) and fault["type"] != "value_error":
            lines.append(_of_too_deep(key, fault))
        elif isinstance(fault["input"], (Mapping, BaseModel)) and not wanted(fault).startswith(WANTS.lstrip()):
            # Checks over several keys of one group report the group; each line names its key and value itself.
            lines += [f"{key}.{said}" for said in wanted(fault).splitlines()]
        else:
            lines.append(f"{key} = {as_typed(fault['input'])}: {_wanted(fault, key)}{_meant(fault, key)}")
    return _joined(lines)


def _key(place: Sequence[int | str], raw: Mapping[str, Any]) -> str:
    """The key that a user can set, without what pydantic adds to say which type of value it tried."""
    location = [str(part) for part in place]
    if len(location) > 1 and location[0] in GROUPS and location[1] in variants_of(location[0]):
        del location[1]  # the kind of a group with several kinds is not part of the key
    if location and location[-1] in PLAIN_KINDS:
        holder: Any = raw
        for part in location[:-1]:
            holder = holder.get(part) if isinstance(holder, Mapping) else None
        if not isinstance(holder, Mapping) or location[-1] not in holder:
            location.pop()
    return ".".join(part for part in location if not part.startswith(("function-", "literal[", "constrained-")))


def _too_few(key: str, fault: ErrorDetails, faults: Sequence[ErrorDetails]) -> str:
    """The message for a list of fixed length that is too short: pydantic names each missing item."""
    *place, _ = fault["loc"]
    needed = 1 + max(int(each["loc"][-1]) for each in faults if [*each["loc"][:-1]] == place)
    found = len(fault["input"])
    return f"{key} = {as_typed(fault['input'])}: has {count(found, 'value')}, and should have {needed}"


def _of_too_deep(key: str, fault: ErrorDetails) -> str:
    """The message for settings below one that has a value of its own, such as `lora.rank.x`."""
    inner, value = "", fault["input"]
    while isinstance(value, Mapping) and len(value) == 1:
        ((name, value),) = value.items()
        inner += f".{name}"
    said = f"{key}{inner} = {as_typed(value)}: "
    holder, _, first = key.rpartition(".")
    if holder in ("lora.rank_pattern", "lora.alpha_pattern") and not isinstance(value, Mapping):
        return f"{said}a name with dots belongs in braces: '{holder}={{{first}{inner}: {as_typed(value)}}}'"
    return f"{said}{key} has nothing below it; it {_wanted(fault, key)}" if inner else said + _wanted(fault, key)


def wanted(fault: ErrorDetails) -> str:
    """What a value should be, in words for users: pydantic's own speak of Python."""
    if (known := WANTED.get(fault["type"])) is not None:
        limits = {key: f"{each:g}" if isinstance(each, float) else each for key, each in fault.get("ctx", {}).items()}
        return known.format(**limits)
    return re.sub(r"^Value error, |^\w+ (?=should )| after validation, not \d+$", "", fault["msg"])


def _wanted(fault: ErrorDetails, key: str) -> str:
    """The same, with what to type."""
    value = fault["input"]
    if fault["type"] in ("dict_type", "model_type"):
        return f"should be a mapping, such as '{key}={{name: value}}'"
    if fault["type"] == "tuple_type":
        example = "a, b" if isinstance(value, Mapping) else _quoted(value)
        return f"should be a list, such as '{key}=[{example}]'"
    if fault["type"] == "string_type" and isinstance(value, (int, float)):
        # An item of a list cannot be typed by itself.
        text = as_typed(value)
        typed = f'"{text}"' if key.rpartition(".")[2].isdigit() else f"'{key}=\"{text}\"'"
        return f"should be a text; put it in quotes: {typed}"
    if fault["type"] == "string_type" and isinstance(value, (list, tuple)):
        several = f"; several are typed as dataset=sources 'dataset.sources={as_typed(value)}'"
        return f"should be one text, not a list{several if key == 'dataset.path' else ''}"
    return wanted(fault)


def _meant(fault: ErrorDetails, key: str) -> str:
    """How to sweep several values in place of one, or the name nearest to a wrong one of several."""
    is_item = key.rpartition(".")[2].isdigit()
    if several := _several(fault["input"]) if fault["type"] in ONE_VALUE and not is_item else "":
        return f"; {SWEPT.format(f'{key}={several}', f'{key}: {several}')}"
    if fault["type"] != "literal_error":
        return ""
    names, word = re.findall(r"'([^']*)'", fault["ctx"]["expected"]), fault["input"]
    if word is None:
        return nearest("none", {"none"}.intersection(names))
    return nearest(word, names) if len(names) > 2 and isinstance(word, str) else ""


def _several(value: Any) -> str:
    """A text or list of several values as they would be swept; empty if it is anything else."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ()
    texts = [str(part).strip() for part in parts]
    return ",".join(texts) if len(texts) > 1 and all(re.fullmatch(r"[\w.+-]+", text) for text in texts) else ""


def _quoted(value: Any) -> str:
    """A value as an item of a list on the command line."""
    return (
        f'"{value}"' if isinstance(value, str) and not re.fullmatch(r"[\w./ -]+", value) else as_typed(value).strip("'")
    )


def _joined(lines: list[str]) -> list[str]:
    """The lines without repetitions; a value that may have either of two types, and has neither, is one fault."""
    said: dict[str, list[str]] = {}
    for line in dict.fromkeys(lines):
        # A value may hold a colon, too.
        subject, wants, rest = line.partition(WANTS) if WANTS in line else line.partition(": ")
        said.setdefault(subject + wants, []).append(rest)
    return [
        subject + (_either(rests) if subject.endswith(WANTS) else "; ".join(rests)) for subject, rests in said.items()
    ]


def _either(wants: Sequence[str]) -> str:
    if len(wants) == 1:
        return wants[0]
    choices: list[str] = []
    for want in wants:
        choice = want.partition(", did you mean")[0].strip("'")
        choices += ["true", "false"] if TRUTH.endswith(f" {choice}") else [choice]
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _unknown(key: str, raw: Mapping[str, Any]) -> str:
    if (of_file := _of_file(key, raw)) is not None:
        return of_file
    if source := re.fullmatch(r"dataset\.sources\.\d+\.(.+)", key):
        if source[1] in DatasetSettings.model_fields:
            return f"unknown key; dataset.{source[1]} is for all sources together"
        return f"unknown key{nearest(source[1], SourceSettings.model_fields)}"
    group, _, last = key.partition(".")
    kinds = variants_of(group) if group in GROUPS else {}
    owners = [kind for kind, model in kinds.items() if last in model.model_fields and kind]
    if owners:
        return f"has no effect with {group}={raw[group].get('name')}, only with {' or '.join(owners)}; remove it"
    task = raw.get("task")
    return unknown_key(key, task["name"] if isinstance(task, Mapping) and str(task.get("name")) in TASKS else "train")


def _of_file(key: str, raw: Mapping[str, Any]) -> str | None:
    """The message for a key that only a file can have: one with dots in it, or a group's name repeated."""
    if "." in key and key in raw:
        *holders, last = key.split(".")
        return f"a file has no names with dots; write '{': '.join(holders)}:' and '{last}: ...' indented below it"
    group, _, last = key.partition(".")
    if group in GROUPS and last == group:
        return f"a file of the group {group} holds its settings without its name; remove '{group}:' and its indentation"
    return None
