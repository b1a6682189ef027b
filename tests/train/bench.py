"""Jobs on the miniatures, made and trained in a few lines; one cache of encodings for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from runner.artifacts import save_artifacts
from runner.artifacts.files import write_diffusers
from runner.data import read_dataset
from runner.data.classes import prior_of
from runner.families.files import fingerprint
from runner.jobs.earlier import find_earlier
from runner.jobs.job import Job, make_job, register
from runner.schema import Experiment
from runner.track import MetricsFile
from runner.train.adapters.adapter import DOWN, UP, Adapter, Site
from runner.train.base import Base
from runner.train.drawing import UseRows
from runner.train.inputs.materials import Materials, prepare
from runner.train.job_run import JobRun
from runner.train.loop import SaveArtifacts, train
from runner.train.place import Place

SIZES = ((80, 64), (64, 64), (64, 104), (120, 72), (96, 64), (64, 72), (90, 130))
"""(height, width) of the images: landscape, portrait, square."""

CPU = Place(torch.device("cpu"), 0, 1)


class Rounds(Place):
    """The CPU, hearing a signal only in the rounds of the loop: tests count those, however much is encoded."""

    def heed(self) -> None:
        """Ignore it."""


def write_images(folder: Path, *, seed: int = 0) -> Path:
    """Seven images that no encoder can confuse, each with its own caption."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for index, (height, width) in enumerate(SIZES):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[: 10 * (index + 1)] //= 4
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a {('red', 'blue', 'green')[index % 3]} circle {index}")
    return folder


class Listed:
    """A source of jobs that are all available from the start."""

    more_may_come = False

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.waiting = list(jobs)
        self.released: list[Job] = []

    def take(self, count: int) -> list[Job]:
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def release(self, job: Job) -> None:
        self.released.append(job)


class Bench:
    """A data set, a cache and a folder for results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = write_images(root / "images")
        self.cache = root / "cache"
        self._count = 0

    @contextmanager
    def own_cache(self) -> Iterator[None]:
        before = os.environ.get("RUNNER_CACHE")
        os.environ["RUNNER_CACHE"] = str(self.cache)
        try:
            yield
        finally:
            if before is None:
                del os.environ["RUNNER_CACHE"]
            else:
                os.environ["RUNNER_CACHE"] = before

    def job(self, model: Path, /, *, outputs: Path | None = None, images: Path | None = None, **settings: Any) -> Job:
        """A registered job in its own folder; the same `outputs` and settings mean the same folder."""
        if outputs is None:
            self._count += 1
            outputs = self.root / "outputs" / str(self._count)
        experiment = Experiment.model_validate(_settings(model, images or self.images, settings))
        with self.own_cache():
            dataset = read_dataset(experiment.dataset)
            prior = prior_of(experiment, dataset)
            earlier = find_earlier(experiment.lora)
            job = make_job(
                experiment,
                model=fingerprint(experiment.model),
                dataset=dataset.fingerprint,
                outputs=outputs,
                prior=prior and prior.identity,
                init=earlier and earlier.digest,
            )
        register(job)
        return job

    def train(
        self,
        *jobs: Job,
        stop: Callable[[], bool] = lambda: False,
        at_once: int | None = None,
        save: SaveArtifacts = save_artifacts,
        place: Place | None = None,
    ) -> bool:
        """Train the jobs as one pack, all together or `at_once` of them; `stop` is asked once in each round."""
        with self.own_cache():
            return train(
                Listed(jobs),
                place or Rounds(CPU.device, 0, 1),
                at_once=at_once or len(jobs),
                startup_s=0.0,
                about={},
                save=save,
                stop_requested=stop,
            )

    def train_only(self, *jobs: Job, **options: Any) -> bool:
        """Like `train`, but the adapter is neither checked nor described: a third of the time for a few steps."""
        return self.train(*jobs, save=_write_adapter, **options)

    def base(self, job: Job) -> Base:
        with self.own_cache():
            return Base.of(job.experiment, CPU)

    def materials(self, job: Job, base: Base) -> Materials:
        with self.own_cache():
            return prepare(job, base)


def _write_adapter(run: JobRun, _: UseRows, __: Mapping[str, float]) -> None:
    run.paths.lora.mkdir(parents=True, exist_ok=True)
    write_diffusers(run.paths.lora, run.base.family, run.adapter.state(run.published), run.settings.lora)


def family_of(model: Path) -> str:
    """The family of a miniature, from the name of its folder in tests/conftest.py."""
    return next((family for family in ("sdxl", "sd3", "flux") if family in model.name), "sd")


def pipeline_of(model: Path) -> Any:
    """The plain diffusers pipeline; for a model that was saved without T5, diffusers must be told so."""
    missing = {} if "sd35" not in model.name else {"text_encoder_3": None, "tokenizer_3": None}
    return diffusers.DiffusionPipeline.from_pretrained(model, **missing)


def _settings(model: Path, images: Path, changes: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "steps": 3,
        "batch_size": 2,
        "model": {"path": str(model), "family": family_of(model)},
        "dataset": {"path": str(images)},
        "lora": {"rank": 2},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "validation": {"prompts": [], "timesteps": 1, "max_images": 1},
        "logger": {"name": "none", "every": 1},
        "checkpoint": {"every": 0},
        "launcher": {"name": "local"},
    }
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    if settings["optimizer"]["name"] == "adamw":
        # With the usual 1e-8, Adam makes full steps out of gradients that are only rounding errors.
        settings["optimizer"].setdefault("eps", 1e-3)
    return settings


def weights(job: Job) -> dict[str, Tensor]:
    """The adapter of a completed job, under diffusers' keys."""
    return load_file(job.paths.lora / "pytorch_lora_weights.safetensors")


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference of two adapters, relative to the norm of the part trained from zero."""
    assert left.keys() == right.keys()
    ups = torch.cat([tensor.flatten() for key, tensor in left.items() if "lora_B" in key])
    apart = torch.cat([(left[key] - right[key]).flatten() for key in left])
    return float(apart.double().norm() / ups.double().norm())


def records(job: Job, name: str) -> dict[int, float]:
    """step -> value of one metric; fails if a step occurs twice."""
    lines = [line for line in MetricsFile(job.paths.metrics).read() if name in line]
    steps = [line["step"] for line in lines]
    assert len(steps) == len(set(steps)), f"{name} recorded twice: {steps}"
    return {line["step"]: line[name] for line in lines}


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    # The warnings are about parts that the files were never meant to contain.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    with pytest.MonkeyPatch.context() as changed:
        # Trainings here have hardly more steps than are normally used to time one job alone.
        changed.setattr("runner.train.pack.TIMED_STEPS", 2)
        yield Bench(tmp_path_factory.mktemp("bench"))


def pairs(adapter: Adapter, vector: Tensor) -> list[tuple[Site, Tensor, Tensor]]:
    """(site, down, up) views into a vector laid out like the weights."""
    views = {(site, kind): view for site, kind, view in adapter.parts(vector)}
    return [(site, views[site, DOWN], views[site, UP]) for site in adapter.sites]
