"""The W&B sweep agent that started this process, if one did: `wandb agent` says so in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class AgentRun:
    """The run that the server made for this process, and that the agent waits for."""

    sweep_id: str
    run_id: str

    @classmethod
    def of_this_process(cls) -> AgentRun | None:
        """The agent's run, or None where no agent started this process."""
        sweep_id, run_id = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
        return cls(sweep_id, run_id) if sweep_id and run_id else None
