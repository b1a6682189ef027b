"""The steps since the last line of a job's metrics: their losses and gradient norms, summed where they are computed.

Reading the sums waits for the device; nothing else here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runner.train.place import Place


class Window:
    """Sums over steps, as tensors of the device; every process sums what it has seen."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._loss, self._loss_of_step, self._norm = (torch.zeros((), device=place.device) for _ in range(3))
        self._since_s = 0.0
        self.steps = 0

    def add(self, loss: Tensor) -> None:
        """Add the loss of a part of a step."""
        self._loss_of_step += loss.detach()

    def forget_step(self) -> None:
        """Discard the parts of a step that starts over."""
        self._loss_of_step.zero_()

    def end_step(self, norm: Tensor) -> None:
        """Count the parts as a step, whose gradient has this norm."""
        self._loss += self._loss_of_step
        self._loss_of_step.zero_()
        self._norm += norm
        self.steps += 1

    def means(self) -> tuple[float, float]:
        """(loss, gradient norm) of all processes, as means over the steps; waits for the device once."""
        self._place.sum(self._loss)
        loss, norm = torch.stack([self._loss, self._norm]).tolist()
        return loss / max(1, self.steps), norm / max(1, self.steps)

    def elapsed_s(self, trained_s: float) -> float:
        """Seconds of training since the window began, given those since the start of the job."""
        return trained_s - self._since_s

    def begin(self, trained_s: float) -> None:
        """Start the next window."""
        self._loss.zero_()
        self._norm.zero_()
        self._since_s, self.steps = trained_s, 0

    def gather(self) -> None:
        """Move the losses of all processes to the main one, where the next line reads them."""
        self._place.sum(self._loss)
        if not self._place.is_main:
            self._loss.zero_()

    def state(self, trained_s: float) -> dict[str, Any]:
        """All that a later process needs, so that stopping between two lines does not show in the next one."""
        sums = {"loss": self._loss.cpu(), "norm": self._norm.cpu()}
        return {"steps": self.steps, "elapsed_s": self.elapsed_s(trained_s), **sums}

    def load_state(self, state: Mapping[str, Any], trained_s: float) -> None:
        """Continue a window of an earlier process, given this one's seconds of training."""
        self.steps, self._since_s = state["steps"], trained_s - state["elapsed_s"]
        self._norm.copy_(state["norm"])
        if self._place.is_main:  # the sum over all processes, which will be summed over them again
            self._loss.copy_(state["loss"])
