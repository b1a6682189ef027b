"""What is recorded as a mean over several steps does not depend on whether the job was stopped between them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runner.errors import Interrupted
from runner.train.adapters.adapter import Adapter, Site
from runner.train.clock import Clock
from runner.train.job_run import JobRun
from runner.train.place import Place
from tests.train.bench import CPU, Bench, records
from tests.train.ranks import in_both
from tests.train.test_resume import stopped_after

MEANS: dict[str, Any] = {"steps": 6, "logger": {"every": 4}}


@pytest.mark.parametrize("stops", [(3,), (1, 1, 1), (4,), (5,)], ids=str)
def test_means_over_steps_are_those_of_an_undisturbed_job(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    straight = bench.job(sdxl_folder, **MEANS, outputs=bench.root / "straight")
    if not straight.has_result:
        assert bench.train(straight)
    broken = bench.job(sdxl_folder, **MEANS, outputs=tmp_path)
    for steps in stops:
        with pytest.raises(Interrupted):
            bench.train(broken, stop=stopped_after(steps))
    assert bench.train(broken)
    for metric in ("train/loss", "train/grad_norm"):
        assert list(records(broken, metric)) == [4, 6]
        assert records(broken, metric) == records(straight, metric)


def test_a_checkpoint_from_before_they_were_kept_begins_a_new_mean(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    each = bench.job(sdxl_folder, steps=6, outputs=tmp_path / "each")
    broken = bench.job(sdxl_folder, **MEANS, outputs=tmp_path / "broken")
    assert bench.train(each)
    with pytest.raises(Interrupted):
        bench.train(broken, stop=stopped_after(3))
    file = broken.paths.checkpoint_at(3) / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    del state["window"]
    torch.save(state, file)
    assert bench.train(broken)
    assert records(broken, "train/loss")[4] == records(each, "train/loss")[4]


def test_the_losses_of_all_processes_are_in_the_mean_once(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, steps=6, batch_size=1)
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])

    def begun(place: Place) -> JobRun:
        adapter = Adapter(job.experiment.lora, [Site("unet", "0", (6,), 3)], seed=0, device=CPU.device)
        materials: Any = None
        base: Any = SimpleNamespace(place=place)
        return JobRun(job, materials, adapter, base, Clock())

    def process(place: Place) -> float:
        run = begun(place)
        for step, loss in enumerate(losses[place.rank]):
            if step in (1, 3):
                run.checkpoint()
            if step == 3:  # the one of step 1 was no end
                run = begun(place)
                run.resume()
            run.loss_of(loss[None])
            run.update()
        run.log_step()
        return run.last_loss

    assert in_both(process) == [27.5, 27.5]
