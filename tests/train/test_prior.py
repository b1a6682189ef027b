"""DreamBooth: prior preservation is trained beside the subject, with its own sizes, noise and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image
from pydantic import ValidationError

from runner.data import read_dataset
from runner.data.classes import prior_of
from runner.errors import SettingsError
from runner.jobs.job import Job, read_manifest
from runner.schema import Experiment
from runner.train.inputs.samples import Batch
from runner.train.job_run import JobRun
from runner.train.passes import in_chunks
from tests.train.bench import Bench, difference, records, weights, write_images
from tests.train.test_reference import ROUNDING, encode

PROMPT = "a photo of a dog"
CLASS_SIDE = (72, 120)


@pytest.fixture(scope="module")
def class_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of a class, in a different shape from the subject's."""
    folder = tmp_path_factory.mktemp("class")
    for index in range(3):
        pixels = torch.randint(0, 256, (*CLASS_SIDE, 3), generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{index}.png")
    return folder


def of_images(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "dreambooth",
        "class_prompt": PROMPT,
        "class_data_dir": str(folder),
        "num_class_images": 0,
        **changes,
    }


OF_BASE = {"name": "dreambooth", "prior": "base", "class_prompt": PROMPT, "prior_loss_weight": 0.5}


def batch_of(bench: Bench, job: Job) -> Batch:
    return bench.materials(job, bench.base(job)).samples.batch(0, range(job.experiment.batch_size))


def test_each_sample_is_followed_by_one_of_its_class(bench: Bench, sdxl_folder: Path, class_images: Path) -> None:
    plain = batch_of(bench, bench.job(sdxl_folder))
    both = batch_of(bench, bench.job(sdxl_folder, method=of_images(class_images, prior_loss_weight=0.3)))
    assert both.captions == (*plain.captions, PROMPT, PROMPT)
    assert torch.equal(both.latents[:2], plain.latents) and torch.equal(both.noise[:2], plain.noise)
    assert both.weights is not None and both.weights.tolist() == pytest.approx([1, 1, 0.3, 0.3])
    assert both.sample_ids == (0, 1, -1, -2)
    # The class images' own sizes, not the subject's (time_ids start with the height and width of the file).
    assert both.time_ids[2:, :2].tolist() == [[72.0, 120.0]] * 2
    assert not torch.equal(both.noise[2:], plain.noise) and not torch.equal(both.timesteps[2:], plain.timesteps)


def test_the_base_itself_is_the_prior_where_there_are_no_images(bench: Bench, sdxl_folder: Path) -> None:
    both = batch_of(bench, bench.job(sdxl_folder, method=OF_BASE))
    assert both.captions[2:] == (PROMPT, PROMPT) and both.from_base == (2, 3)
    for name in ("latents", "noise", "timesteps", "time_ids"):
        assert torch.equal(getattr(both, name)[:2], getattr(both, name)[2:])


def predicted(pipeline: Any, batch: Batch) -> torch.Tensor:
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    text = encode(pipeline, [caption or "" for caption in batch.captions])
    sizes = {"text_embeds": text["pooled"], "time_ids": batch.time_ids}
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    found: torch.Tensor = pipeline.unet(noisy, batch.timesteps, text["embeds"], added_cond_kwargs=sizes).sample
    return found


def test_the_loss_is_that_of_the_subject_plus_the_weighted_one_of_the_class(
    bench: Bench, sdxl_folder: Path, class_images: Path
) -> None:
    """The first loss, by hand; also with min-SNR weights, which the class takes at its own timesteps."""
    for settings in (
        {"method": of_images(class_images, prior_loss_weight=0.3)},
        {"method": of_images(class_images, prior_loss_weight=0.3), "loss": {"snr_gamma": 5.0}},
        {"method": of_images(class_images), "batch_size": 1, "loss": {"snr_gamma": 5.0}},
    ):
        job = bench.job(sdxl_folder, steps=1, **settings)
        batch, count = batch_of(bench, job), job.experiment.batch_size
        pipeline = DiffusionPipeline.from_pretrained(sdxl_folder)
        with torch.no_grad():
            errors = F.mse_loss(predicted(pipeline, batch), batch.noise, reduction="none").mean((1, 2, 3))
        if job.experiment.loss.snr_gamma:
            alpha = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod[batch.timesteps]
            snr = alpha / (1 - alpha)
            errors = errors * snr.clamp(max=5.0) / snr
        weight = job.experiment.method.prior_loss_weight  # type: ignore[union-attr]
        wanted = errors[:count].mean() + weight * errors[count:].mean()
        assert bench.train_only(job)
        assert records(job, "train/loss")[1] == pytest.approx(float(wanted), rel=1e-5)
        assert read_manifest(job.folder)["dataset"]["class_images"] == 3


def test_a_prior_of_the_base_pulls_back_to_it(bench: Bench, sdxl_folder: Path) -> None:
    """Before the first step, the adapter changes nothing, so the prior loss is zero; after some steps it is not."""
    plain = bench.job(sdxl_folder, steps=4)
    kept = bench.job(sdxl_folder, steps=4, method=OF_BASE)
    strict = bench.job(sdxl_folder, steps=4, method={**OF_BASE, "prior_loss_weight": 100.0})
    for job in (plain, kept, strict):
        assert bench.train_only(job)
    assert records(kept, "train/loss")[1] == pytest.approx(records(plain, "train/loss")[1], rel=1e-5)
    assert records(kept, "train/loss")[4] != pytest.approx(records(plain, "train/loss")[4], rel=1e-5)
    assert difference(weights(strict), weights(plain)) > difference(weights(kept), weights(plain)) > 1e-3


@pytest.mark.parametrize("prior", ["images", "base"])
def test_a_batch_in_parts_gives_what_it_gives_whole(
    bench: Bench, sdxl_folder: Path, class_images: Path, prior: str
) -> None:
    method = OF_BASE if prior == "base" else of_images(class_images, prior_loss_weight=0.3)
    whole, parts = (bench.job(sdxl_folder, method=method, batch_size=3, accumulation=count) for count in (1, 3))
    for job in (whole, parts):
        assert bench.train_only(job)
    assert difference(weights(whole), weights(parts)) < ROUNDING
    assert records(whole, "train/loss") == pytest.approx(records(parts, "train/loss"), rel=1e-5)


@pytest.mark.parametrize("loss", [{"multires_levels": 4, "multires_discount": 0.9}, {"input_perturbation": 1.0}])
def test_images_of_the_class_have_noise_of_their_own(
    bench: Bench, sdxl_folder: Path, class_images: Path, loss: dict[str, Any]
) -> None:
    plain, more = (
        batch_of(bench, bench.job(sdxl_folder, method=of_images(class_images), loss=each)).seen_noise
        for each in ({}, loss)
    )
    # With the coarse noise of one sample in another, what is added would be the same up to its scale.
    subject, of_class = (
        torch.stack(
            [(each / each.std() - start) for each, start in zip(more[rows], plain[rows], strict=True)]
        ).flatten()
        for rows in (slice(0, 2), slice(2, 4))
    )
    assert abs(float(torch.corrcoef(torch.stack([subject, of_class]))[0, 1])) < 0.3


MIXED: list[tuple[str, dict[str, Any]]] = [
    ("text to image", {"seed": 1, "loss": {"name": "huber"}}),
    ("class images", {"seed": 2, "loss": {"snr_gamma": 5.0, "input_perturbation": 0.1}, "lora": {"dropout": 0.2}}),
    ("base", {"seed": 3, "method": {**OF_BASE, "prior_loss_weight": 2.0}, "batch_size": 3, "accumulation": 2}),
    ("class images, few", {"seed": 4, "batch_size": 1, "dataset": {"caption_dropout": 0.5}}),
]


def test_jobs_with_and_without_a_prior_in_one_pack_give_what_they_give_alone(
    bench: Bench, sdxl_folder: Path, class_images: Path
) -> None:
    def jobs() -> list[Job]:
        made = []
        for name, settings in MIXED:
            own = {"method": of_images(class_images)} if name.startswith("class images") else {}
            made.append(bench.job(sdxl_folder, **own, **settings))
        return made

    together, alone = jobs(), jobs()
    assert bench.train_only(*together)
    for left, right in zip(together, alone, strict=True):
        assert bench.train_only(right)
        assert difference(weights(left), weights(right)) < ROUNDING
        assert records(left, "train/loss") == pytest.approx(records(right, "train/loss"), rel=1e-5)


def test_text_encoders_that_are_trained_do_not_move_the_prior_of_the_base(bench: Bench, sdxl_folder: Path) -> None:
    lora = {"text_encoder": True, "dropout": 0.1}
    jobs = [bench.job(sdxl_folder, seed=seed, method=OF_BASE, lora=lora) for seed in (1, 2, 1)]
    assert bench.train_only(*jobs[:2])
    assert bench.train_only(jobs[2])
    assert difference(weights(jobs[0]), weights(jobs[2])) < ROUNDING


def test_a_prior_is_part_of_what_a_job_is(bench: Bench, sdxl_folder: Path, class_images: Path, tmp_path: Path) -> None:
    plain = bench.job(sdxl_folder)
    given = bench.job(sdxl_folder, method=of_images(class_images))
    other = bench.job(sdxl_folder, method=of_images(write_images(tmp_path / "other", seed=3)))
    renamed = bench.job(sdxl_folder, method=of_images(class_images, class_prompt="a cat"))
    assert len({plain.id, given.id, other.id, renamed.id, bench.job(sdxl_folder, method=OF_BASE).id}) == 5
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in class_images.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert bench.job(sdxl_folder, method=of_images(moved)).id == given.id, "where they lie does not count"


def test_the_class_is_read_from_dataset_info(
    bench: Bench, sdxl_folder: Path, class_images: Path, tmp_path: Path
) -> None:
    subject = write_images(tmp_path / "subject")
    (subject / "class").mkdir()
    for file in class_images.iterdir():
        (subject / "class" / file.name).write_bytes(file.read_bytes())
    described = {"instance_prompt": "sks dog", "class_prompt": PROMPT, "class_data_dir": "class"}
    (subject / "dataset_info.json").write_text(json.dumps(described))
    job = bench.job(sdxl_folder, images=subject, method={"name": "dreambooth", "num_class_images": 0})
    assert batch_of(bench, job).captions[2:] == (PROMPT, PROMPT)
    assert job.id == bench.job(sdxl_folder, method=of_images(class_images)).id


def test_masks_beside_images_of_the_class_are_none_of_it(bench: Bench, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "class")
    (first, *others), masks = sorted(folder.glob("*.png")), folder / "masks"
    masks.mkdir()
    Image.new("L", (64, 64)).save(folder / f"{first.stem}.mask.png")
    Image.new("L", (64, 64)).save(masks / others[0].name)
    settings = Experiment.model_validate({"dataset": {"path": str(bench.images)}, "method": of_images(folder)})
    prior = prior_of(settings, read_dataset(settings.dataset))
    assert prior is not None and {item.file for item in prior.classes[0].items} == {
        each.name for each in (first, *others)
    }


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({}, "method.class_prompt = null"),
        ({"class_prompt": "a dog", "num_class_images": 0}, "method.num_class_images = 0"),
        (
            {"class_prompt": "a dog", "class_data_dir": "/nowhere"},
            "method.class_data_dir = '/nowhere': there is no such",
        ),
    ],
)
def test_a_prior_that_cannot_be_kept_is_refused(bench: Bench, method: dict[str, Any], said: str) -> None:
    settings = Experiment.model_validate(
        {"dataset": {"path": str(bench.images)}, "method": {"name": "dreambooth", **method}}
    )
    with pytest.raises(SettingsError, match="^" + said.replace(".", r"\.")):
        prior_of(settings, read_dataset(settings.dataset))


def test_images_of_the_class_among_those_of_the_subject_are_refused(bench: Bench, tmp_path: Path) -> None:
    subject = write_images(tmp_path / "subject")
    write_images(subject / "class")
    settings = Experiment.model_validate({"dataset": {"path": str(subject)}, "method": of_images(subject / "class")})
    with pytest.raises(SettingsError, match=r"is in dataset\.path"):
        prior_of(settings, read_dataset(settings.dataset))


def test_images_of_the_subject_among_those_of_the_class_are_refused(tmp_path: Path) -> None:
    """They would be trained as examples of the original class; even if there are other images beside them."""
    write_images(tmp_path / "class")
    for name in ("one", "two"):
        write_images(tmp_path / "class" / name)
    folders = [str(tmp_path / "class" / name) for name in ("one", "two")]
    for data, key in (({"path": folders[0]}, "path"), ({"path": None, "sources": folders}, r"sources\.0\.path")):
        settings = Experiment.model_validate({"dataset": data, "method": of_images(tmp_path / "class")})
        with pytest.raises(
            SettingsError, match=rf"^method\.class_data_dir = '.*/class': holds dataset\.{key} = '.*/one'"
        ):
            prior_of(settings, read_dataset(settings.dataset))


def test_no_settings_are_named_that_images_of_the_class_have_not(bench: Bench, tmp_path: Path) -> None:
    write_images(tmp_path / "class" / "test")
    settings = Experiment.model_validate(
        {"dataset": {"path": str(bench.images)}, "method": of_images(tmp_path / "class")}
    )
    with pytest.raises(
        SettingsError, match=r"^method\.class_data_dir=.*\n.*'test'\. Give its folder or file\.$"
    ) as raised:
        prior_of(settings, read_dataset(settings.dataset))
    assert "dataset." not in str(raised.value)


def test_what_is_left_out_of_a_class_is_said(bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The settings suggested for faulty images are those of the data set."""
    folder = write_images(tmp_path / "class")
    count = len(list(folder.glob("*.png")))
    (folder / "damaged.png").write_bytes(b"nothing")
    Image.new("RGB", (20, 20)).save(folder / "small.png")

    def given(**data: Any) -> int:
        raw = {"dataset": {"path": str(bench.images), **data}, "method": of_images(folder)}
        settings = Experiment.model_validate(raw)
        prior = prior_of(settings, read_dataset(settings.dataset))
        assert prior
        return len(prior.classes[0].items)

    with pytest.raises(SettingsError) as raised:
        given()
    assert "or set dataset.skip_unreadable=true" in str(raised.value)
    assert not caplog.records
    assert given(skip_unreadable=True) == count
    assert "2 images are left out, such as damaged.png: cannot be decoded" in caplog.text
    assert given(skip_unreadable=True, min_side_px=20) == count + 1


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"prior": "none", "class_prompt": "a dog"}, "class_prompt = 'a dog': has no effect with method.prior=none"),
        ({"prior": "base", "num_class_images": 7}, "num_class_images = 7: has no effect with method.prior=base"),
        ({"num_class_images": 0, "class_inference_steps": 9}, "has no effect with method.num_class_images=0"),
        ({"prior": "text"}, "'images', 'base' or 'none'"),
        ({"prior_loss_weight": 0}, "greater than 0"),
    ],
)
def test_settings_without_effect_are_refused(method: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Experiment.model_validate({"method": {"name": "dreambooth", **method}})
    assert said in str(raised.value)


class Rows(JobRun):
    """The parts of a job that chunks are made of."""

    rows_per_position = 2  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("most_rows", [None, 1, 2, 3, 4, 5])
def test_a_subject_and_its_class_stay_together_however_small_the_memory(most_rows: int | None) -> None:
    runs = [Rows(), Rows()]
    chunks = list(in_chunks([(0, runs[0], range(3)), (1, runs[1], range(2))], most_rows))
    seen = [(index, position) for chunk in chunks for index, _, positions in chunk for position in positions]
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    largest = max(sum(2 * len(positions) for _, _, positions in chunk) for chunk in chunks)
    assert largest <= max(2, most_rows or 10)


def test_captions_of_class_images_are_not_used(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 64), (9, 99, 200)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ["one", "two"]}))
    job = bench.job(sdxl_folder, method=of_images(tmp_path), batch_size=8)
    batch = batch_of(bench, job)
    assert batch.captions[8:] == (PROMPT,) * 8
    assert set(bench.materials(job, bench.base(job)).conditioner.text(batch.captions)) == {"embeds", "pooled"}


IN_BUCKETS: dict[str, Any] = {"buckets": True, "bucket_step": 8, "caption_prefix": "in oil,"}


def test_images_of_the_class_are_cut_to_the_shapes_of_the_subject(
    bench: Bench, sdxl_folder: Path, class_images: Path
) -> None:
    """A forward pass has a single shape; caption options of the subject do not apply to the class."""
    job = bench.job(sdxl_folder, method=of_images(class_images), dataset=IN_BUCKETS)
    samples = bench.materials(job, bench.base(job)).samples
    shapes = set()
    for step in range(20):
        batch = samples.batch(step, range(2))
        shapes.add(samples.shape(step))
        assert {tuple(sizes[4:]) for sizes in batch.time_ids.tolist()} == {samples.shape(step)}
        assert batch.time_ids[2:, :2].tolist() == [[float(CLASS_SIDE[0]), float(CLASS_SIDE[1])]] * 2
        assert batch.captions[2:] == (PROMPT, PROMPT)
        assert all(str(caption).startswith("in oil, ") for caption in batch.captions[:2])
    assert len(shapes) > 2


def test_jobs_with_a_prior_in_buckets_give_the_same_in_a_pack(
    bench: Bench, sdxl_folder: Path, class_images: Path
) -> None:
    settings: list[dict[str, Any]] = [
        {"method": of_images(class_images), "dataset": IN_BUCKETS, "seed": 1},
        {"method": OF_BASE, "dataset": IN_BUCKETS | {"crop": "random"}, "seed": 2, "batch_size": 3},
        {"seed": 3},
    ]
    jobs = [bench.job(sdxl_folder, **each) for each in settings]
    assert bench.train_only(*jobs)
    for job, each in zip(jobs[:2], settings[:2], strict=True):
        alone = bench.job(sdxl_folder, **each)
        assert bench.train_only(alone)
        assert difference(weights(job), weights(alone)) < ROUNDING
