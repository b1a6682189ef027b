"""Turns a training's own `evaluation` section into the settings of the evaluate task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.errors import SettingsError
from runner.schema import Experiment
from runner.schema.drawing import DrawingSettings
from runner.schema.evaluation import EvaluationSettings
from runner.schema.reading import read
from runner.schema.tasks.evaluate import Evaluate
from runner.tasks.evaluate.check import measured_with, settings_faults

FOLDER = "evaluation"
"""The folder, in the job's, of the images drawn for the evaluation."""


def evaluation_of(experiment: Experiment, adapter: Path) -> Evaluate | None:
    """The evaluation of a training's result, drawn like its samples; None if none is asked for.

    Args:
        adapter: the file that was trained, or will be.

    Raises:
        SettingsError: such an evaluation is not possible; one line per fault, with the full key.
    """
    if experiment.evaluation.metrics is None:
        return None
    drawing = {key: getattr(experiment.validation, key) for key in DrawingSettings.model_fields}
    shared = {key: getattr(experiment, key) for key in ("name", "precision", "model", "resolution", "scheduler")}
    asked = {key: getattr(experiment.evaluation, key) for key in EvaluationSettings.model_fields}
    raw = {**shared, **drawing, **asked, "task": {"name": "evaluate"}, "adapter": (str(adapter),)}
    settings, faults = read(Evaluate, raw)
    if settings is None:
        raise SettingsError("\n".join(f"{FOLDER}.{line}" for line in faults))
    return settings


def evaluation_contents(experiment: Experiment) -> dict[str, Any]:
    """What represents the files used to measure a training in its identity; empty if there are none.

    Raises:
        SettingsError: such an evaluation is not possible; one line per fault, with the full key.
    """
    settings = evaluation_of(experiment, Path("to-be-trained.safetensors"))
    if settings is None:
        return {}
    if faults := settings_faults(settings):
        # An indented line continues the one before it.
        raise SettingsError("\n".join(line if line.startswith(" ") else f"{FOLDER}.{line}" for line in faults))
    return {key: content for key, content in measured_with(settings).items() if content}
