"""What this process is: its device, its rank, and how the processes of one pack agree."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor

from runner.errors import Interrupted, RunnerError
from runner.system.machine import cpu_name, find_gpus, with_threads

log = logging.getLogger(__name__)

Found = TypeVar("Found")

FAULTS = (RunnerError, OSError, ValueError, RuntimeError, SafetensorError)
"""Errors that concern one job and are not bugs of ours; SafetensorError also stands for a full disk."""

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Other ranks wait in a reduction while the main one validates and draws; NCCL's ten minutes are not enough."""


@dataclasses.dataclass
class Place:
    """One process of a pack."""

    device: torch.device
    rank: int
    world: int

    @classmethod
    def here(cls, device: str) -> Place:
        """Join the other processes, if accelerate started several; `device` is auto, cpu or cuda.

        Raises:
            RunnerError: it is cuda, and torch finds no usable GPU.
        """
        # Unless told that there is no GPU, accelerate treats several processes without one as several single ones.
        cpu = device == "cpu" or not torch.cuda.is_available()
        if cpu and device == "cuda":
            raise RunnerError(f"device = 'cuda': {_no_gpu()}")
        if cpu and device == "auto" and find_gpus():
            log.warning("training on the CPU, although there is an NVIDIA GPU: %s", _no_gpu())
        # Real fp32: a GPU would otherwise round the inputs of convolutions to 10 bits of mantissa (TF32).
        torch.backends.cudnn.allow_tf32 = False
        state = PartialState(cpu=cpu, timeout=COLLECTIVE_TIMEOUT)
        place = cls(torch.device(state.device), state.process_index, state.num_processes)
        if place.world > 1:
            place._control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return place

    def __post_init__(self) -> None:
        self._control: dist.ProcessGroup | None = None
        self._beside: dict[Path, list[int]] = {}
        self._stop_requested: Callable[[], bool] | None = None
        self._heeds = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def alone(self) -> Place:
        """This process without the others, for what it does while they wait; nothing of it waits for them."""
        return Place(self.device, 0, 1)

    def share(self, count: int, among: Sequence[int] | None = None) -> range:
        """The part of `count` positions that belongs to this process: contiguous, as even as possible.

        Args:
            among: the ranks that share the positions, including this one; all by default.
        """
        world, rank = (self.world, self.rank) if among is None else (len(among), among.index(self.rank))
        small, extra = divmod(count, world)
        start = rank * small + min(rank, extra)
        return range(start, start + small + (rank < extra))

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; exchanged by the host, so that no GPU has to wait."""
        return self.any_of([flag])[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is true in any process."""
        return list(map(bool, self._largest(list(map(int, flags)))))

    def most(self, count: int) -> int:
        """The largest `count` of any process."""
        return self._largest([count])[0]

    def _largest(self, numbers: list[int]) -> list[int]:
        if self.world == 1:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._control)
        return list(map(int, shared.tolist()))

    def from_main(self, find: Callable[[], Found]) -> Found:
        """What the main process finds, in every process: the others may not see the files it reads.

        Raises:
            RunnerError: the main process failed; it raises its own error itself.
        """
        if self.world == 1:
            return find()
        box: list[Found | None] = [None]
        failed = [True]
        try:
            if self.is_main:
                box, failed = [find()], [False]
        finally:
            dist.broadcast_object_list(failed, src=0, group=self._control)
        if failed[0]:
            raise RunnerError("the main process failed; its log says why")
        dist.broadcast_object_list(box, src=0, group=self._control)
        found: Found = box[0]  # type: ignore[assignment]
        return found

    def together(self, action: Callable[[], Found], *, what: str) -> Found:
        """The result of an action here, once it has succeeded in every process; so none waits for one that failed.

        Args:
            what: the action in words, as in "could not ...".

        Raises:
            RunnerError: it failed, here or elsewhere; a failure here may raise any other error of `FAULTS`.
            Interrupted: it heeded a signal, here or elsewhere.
        """
        failure: Exception | None = None
        found: list[Found] = []
        try:
            with self.heeding():
                found.append(action())
        except FAULTS as error:
            failure = error
        stopped, failed = self.any_of([isinstance(failure, Interrupted), failure is not None])
        if stopped:
            raise Interrupted("stopped by a signal; what was done before it is kept")
        if failed:
            raise failure or RunnerError(f"another process could not {what}; its log says why")
        return found[0]

    @contextmanager
    def hearing(self, stop_requested: Callable[[], bool]) -> Iterator[None]:
        """In this context, `heed` checks whether a signal asked to stop."""
        self._stop_requested = stop_requested
        try:
            yield
        finally:
            self._stop_requested = None

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """In this context, `heed` raises: for work that may end early without leaving other processes waiting."""
        before, self._heeds = self._heeds, True
        try:
            yield
        finally:
            self._heeds = before

    def heed(self) -> None:
        """Call this from time to time in long work whose results are kept or can be computed again.

        Raises:
            Interrupted: a signal asked to stop. It has to wait unless this is called in an action of `together`, whose
                end all processes learn of, or within `heeding`.
        """
        if self._heeds and self._stop_requested is not None and self._stop_requested():
            raise Interrupted("stopped by a signal")

    def beside(self, folder: Path) -> list[int]:
        """The ranks that see the same files in a folder: all on one machine or a shared disk, else those of a node."""
        if self.world == 1:
            return [0]
        if folder not in self._beside:
            mark = folder / f".process-{uuid.uuid4().hex}"
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
            marks: list[str] = [""] * self.world
            dist.all_gather_object(marks, mark.name, group=self._control)
            self._beside[folder] = [rank for rank, name in enumerate(marks) if (folder / name).exists()]
            self.wait()  # all must have looked before a mark is removed
            mark.unlink()
        return self._beside[folder]

    def synchronize(self) -> None:
        """Wait until the device has finished its queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier(group=self._control)

    def leave(self) -> None:
        """Leave the process group, at an end that all reach: left to the interpreter, a process sometimes aborts."""
        if self.world > 1:
            dist.destroy_process_group()

    @property
    def device_name(self) -> str:
        """The device's name in a plan (`runner.system.machine`); on a CPU it includes the number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return with_threads(cpu_name(), torch.get_num_threads())

    def describe(self) -> str:
        """The devices in words, for the manifest."""
        return self.device_name if self.world == 1 else f"{self.world} x {self.device_name}"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a host tensor is copied without waiting for the GPU's pending work."""
    # Neither torch.tensor(..., device=...) nor a copy from pageable memory achieves that: CUDA first copies such memory
    # itself, and above 64 KiB it may wait for the GPU. torch keeps a pinned copy until the GPU has read it.
    if tensor.device.type == "cpu" and device.type != "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _no_gpu() -> str:
    """Why torch uses no GPU."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} finds no GPU: it is built without CUDA; install a build for CUDA"
    return (
        f"torch {torch.__version__} finds no GPU: is one visible (CUDA_VISIBLE_DEVICES), and is the driver new enough "
        f"for CUDA {torch.version.cuda}?"
    )
