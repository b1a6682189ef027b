"""Several subjects at once, each with its own class: which go together, what is drawn, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from pydantic import ValidationError

from runner.cache.encodings import Need, cache_work, class_images_folder
from runner.clean.__main__ import find
from runner.data import read_dataset
from runner.data.classes import Prior, prior_of
from runner.errors import SettingsError
from runner.jobs.job import Job, make_job, read_manifest
from runner.schema import Experiment
from runner.train.inputs.pairing import Pairing
from runner.train.inputs.prior import Stream
from runner.train.inputs.schedule import Schedule
from tests.train.bench import Bench, difference, records, weights
from tests.train.test_prior import predicted
from tests.train.test_reference import ROUNDING

DOG, CAT = "a photo of a dog", "a photo of a cat"
CLASS_OF = {"sks dog": DOG, "zwx cat": CAT}
SIZES = {
    "dog": [(80, 64), (64, 64), (64, 104)],
    "cat": [(72, 64), (64, 120)],
    "dogs": [(66, 66), (67, 67), (68, 68), (69, 69)],
    "cats": [(70, 70), (71, 71), (72, 72)],
}
"""(height, width) of the images in each folder; those of class images identify the image."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two subjects and two classes."""
    root = tmp_path_factory.mktemp("subjects")
    for seed, (name, sizes) in enumerate(SIZES.items()):
        (root / name).mkdir()
        draw = torch.Generator().manual_seed(seed)
        for index, size in enumerate(sizes):
            pixels = torch.randint(0, 256, (*size, 3), generator=draw)
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / name / f"{index}.bmp")
    return {name: str(root / name) for name in SIZES}


def sources(folders: dict[str, str], *, images: bool = True) -> list[dict[str, Any]]:
    dog = {"path": folders["dog"], "instance_prompt": "sks dog", "class_prompt": DOG}
    cat = {"path": folders["cat"], "instance_prompt": "zwx cat", "class_prompt": CAT, "repeats": 2}
    if images:
        dog["class_data_dir"], cat["class_data_dir"] = folders["dogs"], folders["cats"]
    return [dog, cat]


def of(sources: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"path": None, "sources": sources, **more}


GIVEN: dict[str, Any] = {"name": "dreambooth", "num_class_images": 0}
OF_BASE: dict[str, Any] = {"name": "dreambooth", "prior": "base"}


def stream_of(bench: Bench, job: Job) -> Stream:
    return bench.materials(job, bench.base(job)).samples


def pairs(stream: Stream, steps: range, batch_size: int = 2) -> list[tuple[str, str, tuple[int, int]]]:
    """(subject's caption, class's caption, size of the class image) of all samples of some steps."""
    found = []
    for step in steps:
        batch = stream.batch(step, range(batch_size))
        for row in range(batch_size):
            height, width = batch.time_ids[batch_size + row, :2].int().tolist()
            found.append((str(batch.captions[row]), str(batch.captions[batch_size + row]), (height, width)))
    return found


@pytest.mark.parametrize("shapes", [{}, {"buckets": True, "bucket_step": 8}], ids=["squares", "buckets"])
def test_each_image_is_only_ever_beside_its_own_class(
    bench: Bench, sdxl_folder: Path, folders: dict[str, str], shapes: dict[str, Any]
) -> None:
    job = bench.job(sdxl_folder, method=GIVEN, dataset=of(sources(folders), **shapes))
    stream = stream_of(bench, job)
    # An epoch has 3 dogs and 2 x 2 cats: over 24 epochs, the images of every class come in whole cycles.
    found = pairs(stream, range(24 * 7 // 2))
    assert {(subject, kind) for subject, kind, _ in found} == set(CLASS_OF.items())
    of_dog, of_cat = (Counter(size for _, kind, size in found if kind == each) for each in (DOG, CAT))
    assert set(of_dog) == set(SIZES["dogs"]) and set(of_cat) == set(SIZES["cats"])
    if not shapes:
        assert set(of_dog.values()) == {24 * 3 // 4} and set(of_cat.values()) == {24 * 4 // 3}
    # The same whoever asks, and whatever was asked for before.
    again = stream_of(bench, job)
    for step in (40, 3):
        whole, part = stream.batch(step, range(2)), again.batch(step, range(1, 2))
        assert torch.equal(whole.latents[[1, 3]], part.latents) and torch.equal(whole.noise[[1, 3]], part.noise)
        assert (whole.captions[1], whole.captions[3]) == part.captions


def test_a_class_that_is_the_only_one_comes_as_one_without_subjects_of_others() -> None:
    own = Schedule(7, [(64, 64)] * 5, 2)
    alone = Schedule(7, [(64, 64)] * 3, 2, purpose="class order")
    pairing = Pairing(own, [0] * 5, [3], purpose="class order")
    for step in range(20):
        assert pairing.samples(step, range(2)) == alone.samples(step)
        assert [pairing.image(sample) for sample in alone.samples(step)] == [
            alone.image(sample) for sample in alone.samples(step)
        ]


def test_noise_and_timesteps_beside_several_classes_are_those_beside_one(
    bench: Bench, sdxl_folder: Path, folders: dict[str, str]
) -> None:
    both = sources(folders)
    for source in both:
        source["class_data_dir"] = folders["dogs"]
    one = [{**source, "class_prompt": DOG} for source in both]
    two_classes, one_class = (
        stream_of(bench, bench.job(sdxl_folder, method=GIVEN, dataset=of(each))) for each in (both, one)
    )
    for step in range(4):
        left, right = two_classes.batch(step, range(2)), one_class.batch(step, range(2))
        assert torch.equal(left.noise, right.noise) and torch.equal(left.timesteps, right.timesteps)
        assert left.sample_ids == right.sample_ids and set(right.captions[2:]) == {DOG}


def test_the_base_keeps_each_subject_under_its_own_class_prompt(
    bench: Bench, sdxl_folder: Path, folders: dict[str, str]
) -> None:
    stream = stream_of(bench, bench.job(sdxl_folder, method=OF_BASE, dataset=of(sources(folders, images=False))))
    for step in range(7):
        batch = stream.batch(step, range(2))
        assert batch.captions[2:] == tuple(CLASS_OF[str(caption)] for caption in batch.captions[:2])
        assert batch.from_base == (2, 3) and torch.equal(batch.latents[:2], batch.latents[2:])


def test_images_are_drawn_of_each_class_and_the_loss_is_that_of_the_pairs(
    bench: Bench, sdxl_folder: Path, folders: dict[str, str]
) -> None:
    method = {
        "name": "dreambooth",
        "num_class_images": 1,
        "class_inference_steps": 1,
        "class_guidance_scale": 4.0,
        "prior_loss_weight": 0.3,
    }
    job = bench.job(sdxl_folder, steps=1, method=method, dataset=of(sources(folders, images=False)))
    with bench.own_cache():
        dataset = read_dataset(job.experiment.dataset)
        need = Need(job, dataset.items, prior_of(job.experiment, dataset))
        places = [class_images_folder(job.experiment, each, model=job.identity["model"]) for each in (DOG, CAT)]
        before = cache_work([need])
        assert bench.train_only(job)
        after = cache_work([need])
    assert before is not None and before.class_images_missing == 2
    assert after is not None and (after.class_images_missing, after.captions_missing, after.images_missing) == (0, 0, 0)
    assert places[0] != places[1]
    assert [sorted(file.name for file in place.glob("*.png")) for place in places] == [["00000.png"]] * 2
    assert read_manifest(job.folder)["dataset"]["class_images"] == 2
    with bench.own_cache():
        for thing in find([job], only=["cache"]):
            if thing.remove and "class images" in thing.what:
                thing.remove()
    assert all(place.is_dir() for place in places), "what the job uses is not cleaned away"

    batch = stream_of(bench, job).batch(0, range(2))
    assert batch.captions[2:] == tuple(CLASS_OF[str(caption)] for caption in batch.captions[:2])
    with torch.no_grad():
        errors = F.mse_loss(
            predicted(DiffusionPipeline.from_pretrained(sdxl_folder), batch), batch.noise, reduction="none"
        ).mean((1, 2, 3))
    assert records(job, "train/loss")[1] == pytest.approx(float(errors[:2].mean() + 0.3 * errors[2:].mean()), rel=1e-5)


def planned(data: dict[str, Any], method: dict[str, Any]) -> tuple[Prior, str]:
    """(the prior, the id) of a job on a model that need not exist."""
    experiment = Experiment.model_validate({"dataset": data, "method": {"name": "dreambooth", **method}})
    dataset = read_dataset(experiment.dataset)
    prior = prior_of(experiment, dataset)
    assert prior is not None
    job = make_job(experiment, model="m", dataset=dataset.fingerprint, outputs=Path("o"), prior=prior.identity)
    return prior, job.id


def test_a_job_with_one_class_keeps_its_id(tmp_path: Path) -> None:
    """The ids are the same as before sources could have classes of their own."""
    for name, colour in (("a", 1), ("b", 2), ("k", 9)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 48), (colour, 100, 200)).save(tmp_path / name / "x.bmp")
        (tmp_path / name / "x.txt").write_text(name)
    a, b, k = (str(tmp_path / name) for name in "abk")
    base, given = {"prior": "base", "class_prompt": "a dog"}, {"class_prompt": "a dog", "class_data_dir": k}
    assert [planned({"path": a}, method)[1] for method in (base, given)] == ["4a4a336461", "512a70edcd"]
    assert [planned(of([{"path": a}, {"path": b}]), each)[1] for each in (base, given)] == ["7a35572412", "9bab4af364"]
    # Even if set for each source, it is the same class.
    said = [{"path": path, "class_prompt": "a dog", "class_data_dir": k} for path in (a, b)]
    assert planned(of(said), {})[1] == "9bab4af364"
    by_itself = {"path": b, "class_prompt": "a dog"}
    assert planned(of([{"path": a}, by_itself]), base)[1] == "7a35572412"


def test_who_is_of_which_class_is_part_of_what_a_job_is(folders: dict[str, str]) -> None:
    dog, cat = sources(folders)
    both = planned(of([dog, cat]), {})[1]
    assert planned(of([cat, dog]), {})[1] == both, "in which order they are named does not count"
    class_of_dog, class_of_cat = ({key: each[key] for key in each if key.startswith("class")} for each in (dog, cat))
    swapped = [dog | class_of_cat, cat | class_of_dog]
    others = [{**dog, "class_data_dir": folders["cats"]}, cat]
    assert len({both, planned(of(swapped), {})[1], planned(of(others), {})[1]}) == 3


def test_a_source_says_more_than_the_method_and_the_method_more_than_a_file(
    folders: dict[str, str], tmp_path: Path
) -> None:
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        for file in Path(folders[name]).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        said = {"instance_prompt": name, "class_prompt": f"any {name}", "class_data_dir": folders[f"{name}s"]}
        (tmp_path / name / "dataset_info.json").write_text(json.dumps(said))
    dog, cat = ({"path": str(tmp_path / name)} for name in ("dog", "cat"))

    def classes(*sources: dict[str, Any], **method: Any) -> dict[str, tuple[str, int]]:
        prior, _ = planned(of(list(sources)), {"num_class_images": 5, **method})
        found = [prior.classes[number] for _, number in sorted(prior.of_source.items())]
        return {name: (each.prompt, len(each.items)) for name, each in zip(("dog", "cat"), found, strict=True)}

    assert classes(dog, cat) == {"dog": ("any dog", 4), "cat": ("any cat", 3)}
    assert classes(dog, {**cat, "class_prompt": CAT}) == {"dog": ("any dog", 4), "cat": (CAT, 3)}
    assert classes(dog, {**cat, "class_prompt": CAT}, class_prompt=DOG, class_data_dir=folders["cats"]) == {
        "dog": (DOG, 3),
        "cat": (CAT, 3),
    }
    prior, _ = planned(of([dog, cat]), {"num_class_images": 5})
    assert list(prior.lines()) == [
        "class of sources.0: 'any dog': 4 images given, 1 of the base model's",
        "class of sources.1: 'any cat': 3 images given, 2 of the base model's",
    ]


TWO = [{"path": "x"}, {"path": "y", "class_prompt": CAT}]


@pytest.mark.parametrize(
    ("sources", "method", "said"),
    [
        (TWO, {"name": "text_to_image"}, f"dataset.sources.1.class_prompt = {CAT!r}: has no effect without method=dre"),
        (
            TWO,
            {"prior": "none"},
            "dataset.sources.1.class_prompt = 'a photo of a cat': has no effect with method.prior",
        ),
        (
            [{"path": "x", "class_data_dir": "k"}],
            {"prior": "base", "class_prompt": DOG},
            "dataset.sources.0.class_data_dir = 'k': has no effect with method.prior=base; remove it",
        ),
        (
            TWO[1:],
            {"class_prompt": DOG},
            f"method.class_prompt = {DOG!r}: has no effect, because each of dataset.sources",
        ),
        (
            TWO[1:],
            {"class_data_dir": "k"},
            "method.class_data_dir = 'k': has no effect, because each of dataset.sources",
        ),
    ],
)
def test_classes_without_effect_are_refused(sources: list[dict[str, Any]], method: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Experiment.model_validate({"dataset": of(sources), "method": {"name": "dreambooth", **method}})
    assert said in str(raised.value)


def test_classes_that_are_missing_or_wrong_are_named_with_their_source(folders: dict[str, str]) -> None:
    dog, cat = sources(folders)
    unsaid = {key: value for key, value in dog.items() if not key.startswith("class")}
    wrong: list[tuple[list[dict[str, Any]], dict[str, Any], list[str]]] = [
        ([unsaid, cat], {}, ["dataset.sources.0.class_prompt = null", f"nothing says that of {folders['dog']!r}"]),
        (
            [{**dog, "class_data_dir": "/nowhere"}, {**cat, "class_data_dir": folders["dog"]}],
            {},
            [
                "dataset.sources.0.class_data_dir = '/nowhere': there is no such folder",
                f"dataset.sources.1.class_data_dir = {folders['dog']!r}: is in dataset.sources.0.path",
            ],
        ),
        (
            [unsaid, {**cat, "class_data_dir": "/nowhere"}],
            {"class_data_dir": "/nor/here"},
            [
                "dataset.sources.0.class_prompt = null",
                "method.class_data_dir = '/nor/here': there is no such folder",
                "dataset.sources.1.class_data_dir = '/nowhere': there is no such folder",
            ],
        ),
        (
            [dog, {**cat, "class_data_dir": None}],
            {"num_class_images": 0},
            [f"no images of the class {CAT!r} either; set dataset.sources.1.class_data_dir"],
        ),
        (
            [dog, {**dog, "class_prompt": CAT}],
            {},
            ["sources.0/", "are the same image with the same caption, and of different classes"],
        ),
    ]
    for given, method, texts in wrong:
        with pytest.raises(SettingsError) as raised:
            planned(of(given), method)
        assert [text for text in texts if text not in str(raised.value)] == [], str(raised.value)


@pytest.mark.slow
def test_several_subjects_give_the_same_in_a_pack(bench: Bench, sdxl_folder: Path, folders: dict[str, str]) -> None:
    settings: list[dict[str, Any]] = [
        {"method": GIVEN, "dataset": of(sources(folders), buckets=True, bucket_step=8), "seed": 1},
        {"method": OF_BASE, "dataset": of(sources(folders, images=False)), "seed": 2, "batch_size": 3},
        {"seed": 3},
    ]
    jobs = [bench.job(sdxl_folder, **each) for each in settings]
    assert bench.train_only(*jobs)
    for job, each in zip(jobs[:2], settings[:2], strict=True):
        alone = bench.job(sdxl_folder, **each)
        assert bench.train_only(alone)
        assert difference(weights(job), weights(alone)) < ROUNDING
