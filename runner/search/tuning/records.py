"""What is known about a tuning job after its end: a small file beside the records of its training jobs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from runner.launchers.sagemaker.record import record_file
from runner.paths import write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningRecord:
    """A tuning job whose results are all here."""

    name: str
    arn: str
    status: str
    """Completed, Failed or Stopped."""
    failure_reason: str | None
    trials: Mapping[str, str]
    """Training job -> status."""
    jobs: tuple[str, ...]
    """Ids of the jobs that the trials stand for, each once."""

    @property
    def done(self) -> int:
        """How many trials count: completed, or ended early while the search continued."""
        counted = ("Completed",) if self.status == "Stopped" else ("Completed", "Stopped")
        return sum(status in counted for status in self.trials.values())

    def write(self, experiment_folder: Path) -> None:
        """Write it to the experiment's folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        write_text(record_file(experiment_folder, self.name), text + "\n")

    @classmethod
    def read(cls, experiment_folder: Path, name: str) -> TuningRecord | None:
        """The record of the tuning job of that name; None if it is not known here to have ended."""
        try:
            known = json.loads(record_file(experiment_folder, name).read_text(encoding="utf-8"))
            return cls(**known | {"jobs": tuple(known["jobs"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None
