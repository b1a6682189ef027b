"""The schema's defaults as plain nodes, for Hydra to compose on; knows nothing about Hydra."""

from __future__ import annotations

from typing import Any, get_args

from pydantic.fields import FieldInfo

from runner.schema.comparing import SearchSettings
from runner.schema.experiment import GROUPS, SECTIONS, Experiment
from runner.schema.job import JobSettings
from runner.schema.knob import Settings
from runner.schema.tasks import TASKS
from runner.schema.tuning import TuningSettings

SEARCHES: dict[str, type[Settings]] = {"optuna": SearchSettings, "sagemaker_tuning": TuningSettings}
"""The settings of each search, by its choice in the group `hydra/sweeper`."""


def variants_of(group: str) -> dict[str, type[Settings]]:
    """The models a group may hold, by the value of its `name`; one entry named "" for a plain group."""
    annotation = Experiment.model_fields[group].annotation
    kinds = get_args(annotation) or (annotation,)
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]
    assert len(models) == len(kinds), group
    if len(models) == 1:
        return {"": models[0]}
    return {str(kind.model_fields["name"].default): kind for kind in models}


def base_node() -> dict[str, Any]:
    """Every knob with its default, except in groups with several kinds, whose choices bring their own."""
    return {
        name: _node(variants_of(name)[""]) if name in SECTIONS else _plain(field.default)
        for name, field in Experiment.model_fields.items()
        if name not in GROUPS or "" in variants_of(name)
    }


def variant_nodes() -> dict[tuple[str, str], dict[str, Any]]:
    """(group, kind) -> the knobs of that kind with their defaults."""
    return {(group, kind): _node(model) for group in GROUPS for kind, model in variants_of(group).items() if kind}


def task_nodes() -> dict[str, dict[str, Any]]:
    """For each task, the knobs that only it has, with their defaults; the rest belong to all tasks or to groups."""
    shared = {*JobSettings.model_fields, *GROUPS, "resolution"}
    return {
        task: {name: _default(field) for name, field in settings.model_fields.items() if name not in shared}
        for task, settings in TASKS.items()
        if task != "train"
    }


def section_of(field: FieldInfo) -> type[Settings] | None:
    """The settings that a knob holds; None if it holds a single value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def search_nodes() -> dict[str, dict[str, Any]]:
    """The knobs of each search with their defaults."""
    return {name: _node(model) for name, model in SEARCHES.items()}


def _node(model: type[Settings]) -> dict[str, Any]:
    # Read from the declarations: making an instance would build its validators.
    return {name: _default(field) for name, field in model.model_fields.items()}


def _default(field: FieldInfo) -> Any:
    return _plain(field.default) if (kind := section_of(field)) is None else _node(kind)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
