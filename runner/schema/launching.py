"""Where jobs run, and how many of them together: the settings of all launchers, and of this machine's own.

Group `launcher`; nothing in it changes what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from runner.schema.knob import Settings, knob


class Launcher(Settings):
    """Settings of every launcher."""

    name: str = knob("", doc="Where jobs run.")
    device: Literal["auto", "cpu", "cuda"] = knob("auto", doc="`auto` uses the GPUs if there are any.")
    processes: int | None = knob(
        None,
        ge=1,
        doc="Processes that each job is spread over; null means one, or more to use GPUs that would otherwise have no "
        "job.",
    )
    concurrency: int | None = knob(
        None,
        ge=1,
        doc="Packs that train at the same time; null means as many as the GPUs hold, and on the CPU one for every four "
        "jobs, within the cores and what is known to fit in memory.",
    )
    pack: Annotated[int, Field(ge=1)] | Literal["auto"] = knob(
        "auto",
        unit="jobs",
        doc="Most jobs trained together on one base model; `auto` is up to 8 on the CPU and 16 on a GPU, within what "
        "is known to fit in memory.",
    )
    gradient_checkpointing: bool = knob(
        False, doc="Recompute activations in the backward pass: less memory, about a third more time."
    )
    dry_run: bool | Literal["json"] = knob(
        False, doc="Print the plan and stop; `json` prints it as JSON and nothing else."
    )

    @property
    def fixed_processes(self) -> int | None:
        """Processes of every worker if the settings fix them; None leaves them to the plan."""
        return self.processes


class LocalLauncher(Launcher):
    """`launcher=local`: processes on this machine."""

    name: Literal["local"] = knob("local", doc="Where jobs run.")


class QueuedLauncher(Launcher):
    """Settings of launchers whose workers wait in a queue and outlive the command that submitted them."""

    concurrency: int | None = knob(
        None, ge=1, doc="Workers that run at the same time, over all packs; null means one for each pack."
    )
    wait: bool = knob(
        True,
        doc="Wait until all jobs are done; with `false` the command returns at once, and the same command collects the "
        "results later.",
    )
    resubmissions: int = knob(
        10,
        ge=0,
        doc="How often interrupted jobs (preempted, or at their time limit) are submitted again while the command "
        "waits.",
    )

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.wait:
            yield from self.idle("resubmissions", because="with launcher.wait=false", fix="remove one of them")
