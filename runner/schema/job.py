"""The settings of every job, whatever its task: where its result goes, its base model, and where it runs."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from runner.schema.inputs import ModelSettings, Precision
from runner.schema.knob import Settings, knob, section, spelt
from runner.schema.launchers import LauncherSettings
from runner.schema.launching import LocalLauncher
from runner.schema.running import LoggerSettings

Task = Literal["train", "generate", "evaluate", "merge", "export", "deploy", "undeploy"]


class TaskSettings(Settings):
    """Group `task`: what the job does."""

    name: Task = knob(
        "train",
        doc="`train` fine-tunes an adapter; the other tasks use trained adapters, and have settings of their own.",
    )


EXPERIMENT = spelt(
    r"[A-Za-z0-9][A-Za-z0-9._-]*",
    "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    lambda text: f"name={re.sub(r'[^A-Za-z0-9._-]+', '-', text).strip('._-') or 'dev'}",
)
"""Names that are valid for folders everywhere."""


class JobSettings(Settings):
    """The settings of every job; each task adds its own."""

    result_files: ClassVar[tuple[str, ...]] = ()
    """Patterns of files in a completed job's folder: if none of them exists, its result is lost."""
    local_files: ClassVar[tuple[str, ...]] = ()
    """Keys of settings, besides `model` and `adapter`, that may name files or folders of this machine."""
    done_once: ClassVar[bool] = True
    """Whether a completed job is not run again; False if what it did may have been undone elsewhere."""
    name: Annotated[str, EXPERIMENT] = knob(
        "dev",
        identity=False,
        max_length=100,
        doc="Name of the experiment: the folder under `outputs` and the W&B group.",
    )
    precision: Precision = knob(
        "fp32",
        doc="Precision of the frozen base and of the computation; adapter weights are always kept in fp32.",
    )
    task: TaskSettings = section(TaskSettings)
    model: ModelSettings = section(ModelSettings)
    launcher: LauncherSettings = section(LocalLauncher)
    logger: LoggerSettings = section(LoggerSettings)
