"""Where jobs run, and how many of them together: what all launchers can be told, and this machine's own.

Group `launcher`; nothing in it changes what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from runner.schema.knob import Settings, knob


class Launcher(Settings):
    """What every launcher can be told."""

    name: str = knob("", doc="Where jobs run.")
    device: Literal["auto", "cpu", "cuda"] = knob("auto", doc="`auto` uses the GPUs where there are any.")
    processes: int | None = knob(
        None,
        ge=1,
        doc="Processes each job is spread over; null means one, or the GPUs that would have no job otherwise.",
    )
    concurrency: int | None = knob(
        None,
        ge=1,
        doc="Packs that train at the same time; null means as many as the GPUs hold, and on the CPU one for every four "
        "jobs, as far as there are cores and the memory is known to hold them.",
    )
    pack: Annotated[int, Field(ge=1)] | Literal["auto"] = knob(
        "auto",
        unit="jobs",
        doc="Most jobs trained together over one base model; `auto` is up to 8 on the CPU and 16 on a GPU, as far as "
        "the memory is known to hold them.",
    )
    gradient_checkpointing: bool = knob(
        False, doc="Recompute activations in the backward pass: less memory, about a third more time."
    )
    dry_run: bool | Literal["json"] = knob(
        False, doc="Print the plan and stop; `json` prints it as JSON and nothing else."
    )

    @property
    def fixed_processes(self) -> int | None:
        """Processes of every worker where the settings say it; None leaves it to the plan."""
        return self.processes


class LocalLauncher(Launcher):
    """`launcher=local`: processes on this machine."""

    name: Literal["local"] = knob("local", doc="Where jobs run.")


class QueuedLauncher(Launcher):
    """What a launcher can be told whose workers wait in a queue, and go on without the command that sent them there."""

    concurrency: int | None = knob(
        None, ge=1, doc="Workers that run at the same time, of all packs together; null means one for each pack."
    )
    wait: bool = knob(
        True,
        doc="Wait until all jobs are done; `false` ends at once, and the same command collects the results later.",
    )
    resubmissions: int = knob(
        10,
        ge=0,
        doc="How often jobs that were interrupted (preempted, or at their time limit) are sent again while the command "
        "waits.",
    )

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.wait:
            yield from self.idle("resubmissions", because="with launcher.wait=false", fix="remove one of them")
