"""The record of a job while it trains: metrics.jsonl, and Weights & Biases as its mirror.

Takes plain numbers and paths; knows nothing about models or tensors.
"""

from __future__ import annotations

from runner.track.metrics import MetricsFile
from runner.track.mirror import Mirror
from runner.track.opening import open_mirror
from runner.track.rebuild import mirror_folder, report_to_agent
from runner.track.workspace import save_workspace

__all__ = ["MetricsFile", "Mirror", "mirror_folder", "open_mirror", "report_to_agent", "save_workspace"]
