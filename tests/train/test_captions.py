"""Caption options together with the cache: every caption that a step may need is encoded before the first one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.cache.encodings import Need, cache_work, caption_cache
from runner.data import read_dataset
from runner.errors import DatasetError
from runner.families import find_family
from runner.families.family import TextStack
from runner.jobs.job import read_manifest
from runner.train.inputs import materials
from runner.train.inputs.encode import encode_captions
from tests.train.bench import CPU, SIZES, Bench, difference, pipeline_of, weights, write_images

OPTIONS: dict[str, Any] = {
    "caption_prefix": "a photo of",
    "caption_suffix": ", sharp",
    "caption_shuffle": True,
    "caption_variants": 3,
    "keep_tokens": 1,
    "caption_dropout": 0.2,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the bench, with two captions each."""
    folder = write_images(tmp_path_factory.mktemp("captions"))
    lines = [
        json.dumps({"file_name": f"{index}.png", "text": [f"circle {index}, red, blue, green", f"round {index}"]})
        for index in range(len(SIZES))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for text in folder.glob("*.txt"):
        text.unlink()
    return folder


def test_no_step_calls_a_text_encoder(
    bench: Bench, sdxl_folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.job(sdxl_folder, images=images, dataset=OPTIONS)
    assert bench.train_only(first)
    with bench.own_cache():
        items = read_dataset(first.experiment.dataset).items
        work = cache_work([Need(first, items)])
    # For each image, at least two orders of the first caption, and the second one; plus the empty caption.
    assert work is not None
    assert work.captions_missing == 0
    assert len(SIZES) * 3 + 1 <= work.captions <= len(SIZES) * 4 + 1

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a text encoder was called")

    monkeypatch.setattr(find_family("sdxl"), "encode_text", refuse)
    again = bench.job(sdxl_folder, images=images, dataset=OPTIONS, seed=1, steps=5)
    assert bench.train_only(again), read_manifest(again.folder).get("error")
    more = bench.job(sdxl_folder, images=images, dataset=OPTIONS | {"caption_variants": 9})
    with pytest.raises(AssertionError, match="was called"):
        bench.train_only(more)  # captions that are not encoded yet do need the encoder


def test_which_caption_a_sample_gets_depends_on_seed_and_sample(bench: Bench, sdxl_folder: Path, images: Path) -> None:
    job = bench.job(sdxl_folder, images=images, dataset=OPTIONS | {"caption_dropout": 0.0}, batch_size=400)
    base = bench.base(job)
    samples = bench.materials(job, base).samples
    whole = samples.batch(2, range(400)).captions
    assert samples.batch(2, range(150, 170)).captions == whole[150:170]
    other = bench.job(sdxl_folder, images=images, dataset=OPTIONS | {"caption_dropout": 0.0}, batch_size=400, seed=1)
    assert bench.materials(other, base).samples.batch(2, range(400)).captions != whole
    seconds = sum("round" in str(caption) for caption in whole)
    assert 150 < seconds < 250, "both captions of an image are as likely"
    orders = Counter(caption for caption in whole if "circle 3" in str(caption))
    assert len(orders) > 1
    assert all(str(caption).startswith("a photo of circle 3, ") for caption in orders)
    assert all(str(caption).endswith(", sharp") for caption in orders)


def test_caption_options_shift_nothing_else(bench: Bench, sdxl_folder: Path, images: Path) -> None:
    plain, chosen = (bench.job(sdxl_folder, images=images, dataset=data, batch_size=6) for data in ({}, OPTIONS))
    batches = [bench.materials(job, bench.base(job)).samples.batch(1, range(6)) for job in (plain, chosen)]
    assert batches[0].latents.equal(batches[1].latents)
    assert batches[0].noise.equal(batches[1].noise)
    assert batches[0].timesteps.equal(batches[1].timesteps)


def test_a_long_caption_is_shown_by_its_beginning(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path)
    (images / "0.txt").write_text("a red circle " * 500)
    job = bench.job(sdxl_folder, images=images)
    with caplog.at_level("WARNING"):
        materials = bench.materials(job, bench.base(job))
    (line,) = [record.getMessage() for record in caplog.records if "are cut" in record.getMessage()]
    assert len(line) < 200
    assert line.endswith(
        "the first: 'a red circle a red circle a red circle a red circle a red circle a red circle...'"
    )
    assert [len(caption) for caption in materials.cut.captions] == [6499], "the record has all of it"


def test_an_encoding_that_is_not_finite_names_the_caption_and_is_not_kept(sd15_folder: Path) -> None:
    family = find_family("sd")

    def load() -> TextStack:
        text = family.load_text(sd15_folder, None, torch.float32)
        with torch.no_grad():
            next(iter(text.encoders[0].parameters())).fill_(float("nan"))
        return text

    with pytest.raises(DatasetError, match="the encoding of the caption 'a red star' is not finite"):
        encode_captions(["a red star"], family=family, model_folder=sd15_folder, load_text=load, place=CPU)
    assert not list(caption_cache().folder.rglob("*.safetensors"))


def test_encodings_of_the_files_of_another_variant_are_other_ones(sd15_folder: Path) -> None:
    family, loaded = find_family("sd"), list[str | None]()

    def encode(variant: str | None) -> None:
        def load() -> TextStack:
            loaded.append(variant)
            return family.load_text(sd15_folder, None, torch.float32)

        encode_captions(
            ["a red star"], family=family, model_folder=sd15_folder, load_text=load, place=CPU, variant=variant
        )

    for variant in (None, "fp16", "fp16", None):
        encode(variant)
    assert loaded == [None, "fp16"]


def test_trained_text_encoders_know_all_captions(bench: Bench, sdxl_folder: Path, images: Path) -> None:
    settings: dict[str, Any] = {"dataset": OPTIONS, "lora": {"text_encoder": True}, "batch_size": 6}
    packed = [bench.job(sdxl_folder, images=images, seed=seed, **settings) for seed in (1, 2)]
    assert bench.train_only(*packed)
    alone = bench.job(sdxl_folder, images=images, seed=1, **settings)
    assert bench.train_only(alone)
    assert difference(weights(packed[0]), weights(alone)) < 1e-5


def test_a_job_with_caption_options_gives_the_same_in_a_pack(bench: Bench, sdxl_folder: Path, images: Path) -> None:
    settings: list[dict[str, Any]] = [{"dataset": OPTIONS}, {"dataset": {}, "seed": 2}, {"dataset": OPTIONS, "seed": 3}]
    jobs = [bench.job(sdxl_folder, images=images, **each) for each in settings]
    assert bench.train_only(*jobs)
    for job, each in zip(jobs[::2], settings[::2], strict=True):
        alone = bench.job(sdxl_folder, images=images, **each)
        assert bench.train_only(alone)
        assert difference(weights(job), weights(alone)) < 1e-5


def test_a_manifest_stays_small_however_many_images_there_are(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materials, "MANIFEST_ROWS", 3)
    images = write_images(tmp_path / "many")
    for index in range(6):
        (images / f"again-{index}.png").write_bytes((images / "0.png").read_bytes())
        (images / f"again-{index}.txt").write_text(f"a red circle {index} " * 50)
    job = bench.job(sdxl_folder, images=images, steps=1)
    assert bench.train_only(job)
    about = read_manifest(job.folder)["dataset"]
    every = json.loads(job.paths.images.read_text())
    files = {row["file"] for row in every["table"]["rows"]}
    assert {f"again-{index}.png" for index in range(1, 6)} <= files, "those that are copies of another"
    assert len(every["cut_captions"]) == 6
    assert (len(about["cut_captions"]), about["more_cut_captions"]) == (3, 3)
    assert (len(about["table"]["rows"]), about["table"]["more_rows"]) == (3, len(files) - 3)
    assert about["table"]["counts"]["used"] == 13
    few = bench.job(sdxl_folder, images=write_images(tmp_path / "few"), steps=1)
    assert bench.train_only(few)
    assert not few.paths.images.exists()


def test_the_jobs_of_a_pack_share_one_look_at_their_data(
    bench: Bench, sdxl_folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [bench.job(sdxl_folder, images=images, dataset=OPTIONS, seed=seed) for seed in range(3)]
    other = bench.job(sdxl_folder, images=images, dataset=OPTIONS | {"caption_prefix": None})
    base = bench.base(jobs[0])
    reads, tokenized = [], []
    too_long = base.tokenizers.too_long
    monkeypatch.setattr(materials, "read_dataset", lambda *a, **k: reads.append(a) or read_dataset(*a, **k))
    monkeypatch.setattr(base.tokenizers, "too_long", lambda captions: tokenized.append(captions) or too_long(captions))
    of_jobs = [bench.materials(job, base) for job in jobs]
    assert (len(reads), len(tokenized)) == (1, 1)
    assert of_jobs[0].dataset == of_jobs[2].dataset == read_dataset(jobs[0].experiment.dataset, resolution=64)
    assert bench.materials(other, base).captions != of_jobs[0].captions
    assert (len(reads), len(tokenized)) == (2, 2)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen encoders", "trained encoders"])
@pytest.mark.parametrize("model", ["sdxl_folder", "sd15_folder"])
def test_without_its_caption_a_sample_has_what_the_pipeline_takes_for_no_prompt(
    bench: Bench, model: str, trained: bool, request: pytest.FixtureRequest
) -> None:
    """Zeros for both embeddings of SDXL, the encoded empty caption for SD."""
    folder: Path = request.getfixturevalue(model)
    job = bench.job(folder, lora={"text_encoder": trained})
    with torch.no_grad():
        found = bench.materials(job, bench.base(job)).conditioner.text(["a red circle 0", None])
        pipeline = pipeline_of(folder)
        encoded = pipeline.encode_prompt(
            "a red circle 0", device=CPU.device, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    pairs = {"embeds": encoded[:2], "pooled": encoded[2:]}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, torch.cat(pairs[name]), rtol=1e-4, atol=1e-5)
