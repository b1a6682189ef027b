"""Where this process stands: its device, its rank, and how the processes of one pack agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from runner.machine import cpu_name

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Other ranks wait in a reduction while the main one validates and draws; NCCL's ten minutes are too few."""


@dataclasses.dataclass
class Place:
    """One process of a pack."""

    device: torch.device
    rank: int
    world: int

    @classmethod
    def here(cls, device: str) -> Place:
        """Join the other processes, if accelerate started several; `device` is auto, cpu or cuda."""
        # Unless told that there is no GPU, accelerate takes several processes without one for several single ones.
        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        state = PartialState(cpu=cpu, timeout=COLLECTIVE_TIMEOUT)
        place = cls(torch.device(state.device), state.process_index, state.num_processes)
        if place.world > 1:
            place._control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return place

    def __post_init__(self) -> None:
        self._control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` positions are this process's: contiguous, as even as possible."""
        small, extra = divmod(count, self.world)
        start = self.rank * small + min(self.rank, extra)
        return range(start, start + small + (self.rank < extra))

    def sum(self, tensor: Tensor) -> None:
        """Add up a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process; over the host, so that no GPU has to wait."""
        return self.any_of([flag])[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each of some flags, whether it holds in any process."""
        if self.world == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.float32)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in shared.tolist()]

    def shared(self, words: Sequence[str]) -> list[str]:
        """The main process's words, in every process."""
        box = [list(words)]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier(group=self._control)

    @property
    def device_name(self) -> str:
        """The device as a plan names it (`runner.machine`); on a CPU, how many threads are used matters too."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{cpu_name()}, {torch.get_num_threads()} threads"

    def describe(self) -> str:
        """The devices in words, for the manifest."""
        return self.device_name if self.world == 1 else f"{self.world} x {self.device_name}"
