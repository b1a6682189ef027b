"""The W&B sweep agent that started this process, if one did: `wandb agent` says so in the environment."""

from __future__ import annotations

import os


def agent_run_id() -> str | None:
    """The run that the server made for this process and that the agent waits for; None if no agent started it."""
    return os.environ.get("WANDB_RUN_ID") or None if os.environ.get("WANDB_SWEEP_ID") else None
