"""`task=evaluate`: draws once, measures what was requested, and refuses what cannot be measured."""

from __future__ import annotations

import re
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from runner.errors import Interrupted
from runner.jobs.job import Job, read_job
from runner.measures.networks import PICTURES_AT_ONCE, Clip
from runner.paths import JobPaths
from runner.schema import Experiment
from runner.schema.evaluation import METRICS
from runner.studio import Studio
from runner.tasks.evaluate.check import check, real_images
from runner.tasks.evaluate.measuring import as_drawn
from runner.tasks.evaluate.of_training import FOLDER
from runner.tasks.evaluate.prompts import NEUTRAL, SUBJECT
from runner.tasks.evaluate.work import drawn_by_base, evaluate_training, work
from runner.tasks.studios import studio_of
from runner.train.drawing import Picture, Sampling, Wish
from runner.train.place import Place
from tests.command_line import runner
from tests.measures.networks import save_clip
from tests.tasks.evaluations import Networks, networks, settings
from tests.train.bench import CPU, Bench, bench

__all__ = ["bench", "networks"]

EMBEDDED = Path("embedded")
DRIFT = {"metrics": ["base_drift"], "adapter": "outputs/dev/1", "real": None, "subject": None, "subject_class": None}
FIGURES = {metric.figure for metric in METRICS.values()}


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def job(bench: Bench) -> Job:
    made = bench.job(EMBEDDED, model={"family": "sdxl"}, lora={"rank": 2, "targets": "linear"}, optimizer={"lr": 1e-1})
    assert bench.train(made)
    return read_job(made.folder)


def images_of(paths: JobPaths) -> dict[str, bytes]:
    return {str(file.relative_to(paths.samples)): file.read_bytes() for file in paths.samples.rglob("*.png")}


def test_everything_is_measured_and_said_and_nothing_is_drawn_twice(
    networks: Networks, job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, paths = settings(networks, job), JobPaths(tmp_path)
    found = work(asked, paths, CPU, stop=never)
    lines = dict(re.findall(r"^([a-z_]+)=(\S+)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert set(found["figures"]) == set(lines) == FIGURES
    assert all(float(lines[name]) == figure["value"] for name, figure in found["figures"].items())
    for name, figure in found["figures"].items():
        assert figure["low"] <= figure["value"] <= figure["high"], name
        assert figure["n"] == (len(NEUTRAL) * 2 if name == "base_drift" else 4)
    assert found["of"] == job.id and found["figures"]["base_drift"]["value"] > 0
    drawn = images_of(paths)
    assert found["images"] == found["drawn"] == len(drawn) == 4 + 2 * 2 * len(NEUTRAL)

    (paths.samples_at(0) / "p01-s1.png").unlink()
    again = work(asked, paths, CPU, stop=never)
    assert again["drawn"] == 1 and again["figures"] == found["figures"]
    assert images_of(paths) == drawn


def test_clip_compares_with_the_class_and_not_with_the_taught_word(
    networks: Networks, job: Job, tmp_path: Path
) -> None:
    asked, paths = settings(networks, job, metrics=["clip_text"], seeds=[3, 5]), JobPaths(tmp_path)
    found = work(asked, paths, CPU, stop=never)
    images = [Image.open(paths.samples_at(0) / f"p0{prompt}-s{seed}.png") for prompt in (0, 1) for seed in (3, 5)]
    clip = Clip("", networks.clip, torch.device("cpu"))
    seen, texts = clip.pictures(images), clip.texts(["a red house", "a red house", "a star", "a star"])
    assert found["figures"]["clip_text_score"]["value"] == pytest.approx(
        float(torch.cosine_similarity(seen, texts).mean()), rel=1e-5
    )
    assert {file.parent.name for file in paths.samples.rglob("*.png")} == {"step-000000"}, (
        "no image that nobody measures"
    )


def test_an_adapter_of_weight_zero_does_not_drift(networks: Networks, job: Job, tmp_path: Path) -> None:
    for space in ("pixels", "dino"):
        asked = settings(
            networks, job, metrics="base_drift", adapter_weight=0, drift_in=space,
            prompts=None, subject=None, subject_class=None, seeds=[0],
        )  # fmt: skip
        found = work(asked, JobPaths(tmp_path), CPU, stop=never)
        assert found["figures"]["base_drift"]["value"] == pytest.approx(0, abs=1e-12)


def test_what_the_base_draws_is_drawn_once_for_all_weights(
    networks: Networks, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Wish] = []

    def draw(studio: Studio, wishes: Sequence[Wish], sampling: Sampling, adapters: Any = ()) -> list[Picture]:
        drawn.extend([] if adapters else wishes)
        return by_itself(studio, wishes, sampling, adapters)

    by_itself = Studio.draw
    monkeypatch.setattr(Studio, "draw", draw)
    of_base = []
    for weight in (0.5, 1.0):
        paths = JobPaths(tmp_path / str(weight))
        asked = settings(
            networks, job, metrics="base_drift", adapter_weight=weight, seeds=[5],
            prompts=None, subject=None, subject_class=None,
        )  # fmt: skip
        work(asked, paths, CPU, stop=never)
        of_base.append({file.name: file.read_bytes() for file in paths.samples.glob("neutral-base/*.png")})
    assert len(drawn) == len(of_base[0]) == len(NEUTRAL)
    assert of_base[0] == of_base[1]


def test_only_the_last_pictures_of_the_base_are_kept(
    networks: Networks, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a sweep over drawing settings would keep more with every job."""
    monkeypatch.setattr("runner.tasks.evaluate.drawn.NEUTRAL", ("a star", "a circle"))
    monkeypatch.setattr("runner.tasks.evaluate.work.KEPT_BYTES", 2**16)
    for steps in (1, 2, 3, 4):
        asked = settings(
            networks, job, metrics="base_drift", seeds=[5, 6], inference_steps=steps,
            prompts=None, subject=None, subject_class=None,
        )  # fmt: skip
        work(asked, JobPaths(tmp_path / str(steps)), CPU, stop=never)

    kept = studio_of(asked.model, asked.precision, CPU).base.drawn
    assert sum(len(each.png) for each in kept.values()) <= 2**16
    assert [sampling.inference_steps for sampling, _ in kept][-4:] == [4] * 4
    wishes = [wish for _, wish in kept][-4:]
    last = next(reversed(kept))[0]
    assert drawn_by_base(lambda: pytest.fail("they are there"), wishes[:1], last, kept) == [kept[last, wishes[0]]]
    assert next(reversed(kept)) == (last, wishes[0]), "what is asked for again stays longest"


def test_real_images_that_are_the_drawn_ones_are_no_distance_away(networks: Networks, tmp_path: Path) -> None:
    asked, paths = settings(networks, metrics=["clip_text"]), JobPaths(tmp_path / "job")
    work(asked, paths, CPU, stop=never)
    shutil.copytree(paths.samples_at(0), tmp_path / "real")
    same = settings(networks, metrics=["fid", "dino"], real=str(tmp_path / "real"))
    found = work(same, paths, CPU, stop=never)
    assert found["drawn"] == 0 and found["of"] is None
    assert found["figures"]["fid_score"]["value"] == pytest.approx(0, abs=1e-4)
    dino = found["figures"]["dino_score"]
    assert dino["value"] < 1, "all pairs count, not only each image with itself"


def test_masks_beside_real_images_are_none_of_them(networks: Networks, tmp_path: Path) -> None:
    def write(*names: str) -> None:
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), (number, len(name), 0)).save(tmp_path / name)

    write("a.png", "b.png", "c.mask.png")
    asked = settings(networks, metrics=["dino"], real=str(tmp_path))
    without = check(asked)
    write("a.mask.png", "masks/b.png")  # of a.png and b.png, and nothing is c.png
    found = real_images(asked)
    assert found is not None and sorted(item.file for item in found.items) == ["a.png", "b.png", "c.mask.png"]
    assert check(asked) == without


def test_real_images_are_opened_a_few_at_a_time(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Image.Image]] = []
    most = 0

    def watched(image: Image.Image, side_px: int) -> Image.Image:
        nonlocal most
        picture = as_drawn(image, side_px)
        alive[:] = [*(each for each in alive if each() is not None), weakref.ref(picture)]
        most = max(most, len(alive))
        return picture

    monkeypatch.setattr("runner.tasks.evaluate.work.as_drawn", watched)
    real, count = tmp_path / "real", 2 * PICTURES_AT_ONCE + 8
    real.mkdir()
    for shade in range(count):
        Image.new("RGB", (64, 64), (shade, 0, 0)).save(real / f"{shade}.png")
    asked = settings(
        networks, metrics=["dino", "kid"], prompts=["a star"], subject=None, subject_class=None, real=str(real)
    )
    work(asked, JobPaths(tmp_path / "job"), CPU, stop=never)
    assert PICTURES_AT_ONCE <= most < count


def test_it_stops_between_images_and_goes_on_there(networks: Networks, job: Job, tmp_path: Path) -> None:
    asked, paths, looks = settings(networks, job, metrics=["base_drift", "dino"], seeds=[0]), JobPaths(tmp_path), []

    def soon() -> bool:
        looks.append(True)
        return len(looks) > 2

    with pytest.raises(Interrupted):
        work(asked, paths, CPU, stop=soon)
    before = images_of(paths)
    assert 0 < len(before) < 2 + 2 * len(NEUTRAL)
    found = work(asked, paths, CPU, stop=never)
    assert found["drawn"] == found["images"] - len(before)
    assert before.items() <= images_of(paths).items()


def test_what_has_no_network_is_left_out_unless_it_was_asked_for(networks: Networks, job: Job) -> None:
    only_clip = settings(networks, job, features={"clip": networks.clip})
    assert only_clip.measured == ("clip_text", "clip_image", "base_drift")
    alone = settings(networks, real=None)
    assert alone.measured == ("clip_text",), "no real images, no adapter"
    with pytest.raises(ValidationError, match=r"metrics = \[dino\]: dino needs features.dino=<network>"):
        settings(networks, job, features={}, metrics=["dino"])
    with pytest.raises(ValidationError, match=r"fid needs real=<folder of images>\n.*base_drift needs adapter=<job>"):
        settings(networks, real=None, metrics=["fid", "base_drift"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": {}, "real": None}, "nothing can be measured; give a network"),
        (
            {"features": {}, "adapter": "outputs/dev/1", "prompts": None, "subject": None, "subject_class": None},
            "real = 'embedded': has no effect without a network that compares",
        ),
        ({"prompts": None, "subject": None, "subject_class": None}, "subject = null: the prompts have a {} for it"),
        ({"prompts": ["a star"], "subject_class": None}, "subject = '<one> house': has no effect"),
        ({"prompts": []}, "prompts = .*: should hold texts"),
        (
            {"prompts": ["a {}", "a star", "a <one> house"]},
            "'a <one> house' is named twice, and copies would count",
        ),
        ({"subject_kind": "live"}, "subject_kind = 'live': has no effect with prompts"),
        ({"drift_in": "dino"}, "drift_in = 'dino': has no effect without base_drift"),
        ({**DRIFT, "prompts": ["a star"]}, r"prompts = \[a star\]: has no effect on base_drift, .* of its own"),
        (
            {**DRIFT, "prompts": None, "subject": "a dog"},
            "subject = 'a dog': has no effect on base_drift, .* of its own",
        ),
        ({**DRIFT, "prompts": None, "subject_kind": "live"}, "subject_kind = 'live': has no effect on base_drift"),
        ({"confidence": 1.0}, "less than 1"),
    ],
)
def test_what_has_no_meaning_is_refused(networks: Networks, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(networks, **changes)


def test_of_several_processes_the_main_one_measures_a_training_and_draws_the_base_once_for_its_pack(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Wish] = []

    def draw(studio: Studio, wishes: Sequence[Wish], sampling: Sampling, adapters: Any = ()) -> list[Picture]:
        drawn.extend([] if adapters else wishes)
        return by_itself(studio, wishes, sampling, adapters)

    by_itself = Studio.draw
    monkeypatch.setattr(Studio, "draw", draw)
    monkeypatch.setattr("runner.tasks.evaluate.drawn.NEUTRAL", ("a star", "a circle"))
    measured: list[Any] = []
    # The other process waits for this one: anything that asked for it would wait forever, so it is an error here.
    base = SimpleNamespace(place=Place(torch.device("cpu"), 0, 2), drawn={}, collect=lambda: None)
    asked = {"evaluation": {"metrics": ["base_drift"]}, "validation": {"inference_steps": 1, "guidance_scale": 1.0}}
    experiment = Experiment.model_validate({**job.experiment.model_dump(), **asked})
    for _ in range(2):
        run: Any = SimpleNamespace(
            job=job, settings=experiment, paths=job.paths, base=base, record=lambda values: measured.append(values)
        )
        evaluate_training(run, stop=never)
        shutil.rmtree(job.folder / FOLDER)
    assert measured[0]["evaluation/base_drift"] > 0 and measured[0] == measured[1]
    assert len(drawn) == 2


def test_content_makes_the_identity_and_names_do_not(networks: Networks, tmp_path: Path) -> None:
    before = check(settings(networks, metrics=["dino"]))
    shutil.copytree(networks.dino, tmp_path / "other-name")
    moved = Networks(networks.clip, str(tmp_path / "other-name"), networks.inception)
    assert check(settings(moved, metrics=["dino"])) == before
    save_clip(tmp_path / "other")
    assert check(settings(networks, metrics=["clip_image"])) != before
    assert "clip" not in before["networks"], "a network that nobody uses does not count"


def test_dreambooths_lists_have_their_lengths_and_one_place_each() -> None:
    for prompts in SUBJECT.values():
        assert len(set(prompts)) == 25 and all(prompt.count("{}") == 1 for prompt in prompts)
    assert len(set(NEUTRAL)) == 16 and not any("{" in prompt for prompt in NEUTRAL)


def test_the_command_measures_a_base_model(networks: Networks, tmp_path: Path) -> None:
    answer = runner(
        "task=evaluate", "logger=none", f"features.dino={networks.dino}", "real=embedded", "prompts=[a star]",
        "inference_steps=1",
    )  # fmt: skip
    assert answer.code == 0, answer.output
    assert re.search(r"^dino_score=0\.\d+$", answer.output, flags=re.MULTILINE)
    refused = runner("task=evaluate", "logger=none", "metrics=[fid]")
    assert refused.code != 0 and "features.inception=<network>" in refused.output
