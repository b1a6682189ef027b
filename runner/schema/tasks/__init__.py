"""The settings of each task, by its name."""

from __future__ import annotations

from runner.schema.experiment import Experiment
from runner.schema.job import JobSettings
from runner.schema.tasks.deploy import Deploy, Undeploy
from runner.schema.tasks.evaluate import Evaluate
from runner.schema.tasks.export import Export
from runner.schema.tasks.generate import Generate
from runner.schema.tasks.merge import Merge

TASKS: dict[str, type[JobSettings]] = {
    "train": Experiment,
    "generate": Generate,
    "evaluate": Evaluate,
    "merge": Merge,
    "export": Export,
    "deploy": Deploy,
    "undeploy": Undeploy,
}
"""`task.name` -> the settings of its jobs."""
