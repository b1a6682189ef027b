"""A GPU that stores and computes nothing: tensors on it know only their shape, type and device.

It refuses what torch refuses on a GPU: operations on tensors of two devices, and values that the host asks for.
`Waits` records what torch would allow but the host would wait for.

It uses a device that torch has no other use for, because a torch built without CUDA has no gradients on CUDA devices. A
process that has used it is good for nothing else.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from runner.cache.measured import Conditions
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.inputs.materials import Materials
from runner.train.job_run import JobRun
from runner.train.pack import Pack
from runner.train.place import Place
from tests.train.bench import Bench


class FakeGpu(FakeTensorMode):
    """Within it, tensors on the device are made without the device."""

    avoid_device_init = True

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._pin_memory.default:  # unknown to fake tensors
            self.pinned.append(super().__torch_dispatch__(torch.ops.aten.clone.default, types, args, {}))
            return self.pinned[-1]
        return super().__torch_dispatch__(func, types, args, kwargs or {})


class Waits(TorchDispatchMode):
    """Records where the host would wait for the GPU."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu, self.found = gpu, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, name = dict(kwargs or {}), func.overloadpacket.__name__
        if name == "_to_copy" and "device" in given:
            self._copied(args[0], torch.device(given["device"]), at_once=not given.get("non_blocking", False))
        elif name == "copy_":
            self._copied(args[1], args[0].device, at_once=len(args) < 3 or not args[2])
        return func(*args, **given)

    def _copied(self, source: Tensor, device: torch.device, *, at_once: bool) -> None:
        if source.device.type == device.type:
            return
        if device.type == "cpu" or at_once:
            self._waits(f"{list(source.shape)} goes to {device}")
        elif not any(source is each for each in self.gpu.pinned):
            self._waits(f"{list(source.shape)} goes to {device} out of pageable memory")

    def _waits(self, why: str) -> None:
        stack = traceback.extract_stack()
        last = next((frame for frame in reversed(stack) if "/runner/" in frame.filename), stack[-1])
        self.found.append(f"{why}, at {Path(last.filename).name}:{last.lineno}")


def step_on_a_gpu(root: Path, model: Path, settings: Sequence[Mapping[str, Any]], said: Path) -> None:
    """Run one step of a pack, record where the host waits in it or what went wrong, and end the process."""
    try:
        said.write_text("\n".join(_waits_of(root, model, settings)))
    except Exception:  # noqa: BLE001 - whatever it is, the test shows it
        said.write_text(traceback.format_exc())
    os._exit(0)  # otherwise torch would end with an error, as there is no such device


def _waits_of(root: Path, model: Path, settings: Sequence[Mapping[str, Any]]) -> list[str]:
    backend_registration._setup_privateuseone_for_python_backend("gpu")
    device, bench = torch.device("gpu:0"), Bench(root)
    jobs = [bench.job(model, **each) for each in settings]
    base = bench.base(jobs[0])
    materials = [bench.materials(job, base) for job in jobs]
    parts = base.components()
    with FakeGpu() as gpu:
        for part in parts.values():
            _move(part, device)
        base.place = Place(device, 0, 1)
        base.noise.to(device)
        pack = Pack(base.place)
        pack.found(base, Conditions.of(jobs[0], device="", processes=1))
        runs = []
        for job, inputs in zip(jobs, materials, strict=True):
            _move_captions(inputs, device)
            lora = job.experiment.lora
            sites = find_sites(lora, parts, base.family.target_presets)
            adapter = Adapter(lora, sites, seed=job.experiment.seed, device=device, components=parts)
            runs.append(JobRun(job, inputs, adapter, base, pack.clock))
        pack.runs = runs  # joining would time the runs
        pack._assemble(base)
        with Waits(gpu) as waits:
            pack.step()
    return waits.found


def _move(root: nn.Module, device: torch.device) -> None:
    # torch cannot do what `Module.to` does here with parameters that are tied to each other.
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.detach().to(device), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    root.to = lambda *_: root  # type: ignore[method-assign, assignment]


def _move_captions(materials: Materials, device: torch.device) -> None:
    conditioner: Any = materials.conditioner
    conditioner.device = device
    if hasattr(conditioner, "tensors"):
        conditioner.tensors = {name: tensor.to(device) for name, tensor in conditioner.tensors.items()}
    else:
        conditioner.ids = [ids.to(device) for ids in conditioner.ids]
