"""What the studio draws equals what the training drew, to the last bit, and mixes are sums."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runner.errors import OutOfMemoryError, SettingsError
from runner.families.family import TextStack
from runner.jobs.job import Job, read_job
from runner.schema import ModelSettings
from runner.studio import Studio
from runner.train.adapters.packed import PackedAdapters
from runner.train.drawing import Control, Picture, Sampling, Wish, wishes_of
from tests.train.bench import CPU, Bench

EMBEDDED = Path("embedded")
PROMPTS = ["a red house on a white background", "a yellow circle on a gray background"]
DRAWN: dict[str, Any] = {
    "model": {"family": "sdxl"},
    "steps": 4,
    "optimizer": {"lr": 3e-2},
    "validation": {"prompts": PROMPTS, "seeds": [0, 7], "inference_steps": 4, "guidance_scale": 3.0},
}
WORDS: dict[str, Any] = {"name": "pivotal", "tokens": ["<one>", "<two>"], "initial": ["red", "house"], "vectors": 2}


def trained(bench: Bench, model: Path = EMBEDDED, **settings: Any) -> Job:
    job = bench.job(model, **{**DRAWN, **settings})
    assert bench.train(job)
    return read_job(job.folder)


@pytest.fixture(scope="module")
def job(bench: Bench) -> Job:
    return trained(bench, lora={"rank": 4, "targets": "linear_conv", "rank_pattern": {"to_k": 2}, "rslora": True})


@pytest.fixture(scope="module")
def studio(bench: Bench) -> Studio:
    return Studio(ModelSettings(), "fp32", CPU)


def wanted(job: Job) -> tuple[list[Wish], Sampling]:
    drawing = job.experiment.validation
    return wishes_of(PROMPTS, drawing.seeds), Sampling.of(job.experiment, drawing)


def samples(job: Job, step: int) -> list[bytes]:
    wishes, _ = wanted(job)
    return [(job.paths.samples_at(step) / wish.name).read_bytes() for wish in wishes]


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(picture.png)), dtype=np.int16)


def test_one_adapter_draws_what_its_training_has_drawn(job: Job, studio: Studio) -> None:
    wishes, sampling = wanted(job)
    before, after = samples(job, 0), samples(job, 4)
    assert before != after
    assert [each.png for each in studio.draw(wishes, sampling, [(job.folder, 1.0)])] == after
    assert [each.png for each in studio.draw(wishes, sampling)] == before, "the base is as it was"
    assert [each.png for each in studio.draw(wishes, sampling, [(job.paths.weights, 0.0)])] == before
    alone = studio.draw(wishes[3:], sampling, [(job.paths.weights, 1.0)])
    assert alone[0].png == after[3], "an image has the same bits whatever is drawn beside it"


def test_adapters_that_do_not_fit_are_said_and_leave_nothing_on_the_layers(
    job: Job, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: PackedAdapters) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    wishes, sampling = wanted(job)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(PackedAdapters, "refresh", full)
        with pytest.raises(OutOfMemoryError, match="adapters: 1 do not fit"):
            studio.draw(wishes, sampling, [(job.folder, 0.25)])
    assert not [name for name, module in studio.base.denoiser.named_modules() if "forward" in vars(module)]
    assert [each.png for each in studio.draw(wishes, sampling)] == samples(job, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": {"rank": 2, "text_encoder": True}, "validation": {**DRAWN["validation"], "negative_prompt": "a star"}},
        {"method": WORDS, "validation": {**DRAWN["validation"], "prompts": ["a <one> <two>", "a house"]}},
        pytest.param({"lora": {"rank": 2, "dora": True}, "precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=["text encoders", "new words", "dora in bf16"],
)
def test_whatever_is_trained(bench: Bench, sdxl_folder: Path, settings: dict[str, Any]) -> None:
    # Without bf16 instructions, a convolution takes a processor forty times as long: hence a smaller model.
    job = trained(bench, sdxl_folder if "precision" in settings else EMBEDDED, **settings)
    wishes = wishes_of(job.experiment.validation.prompts or (), job.experiment.validation.seeds)
    studio = Studio(job.experiment.model, job.experiment.precision, CPU)
    for place in (job.folder, job.paths.weights):
        drawn = studio.draw(wishes, Sampling.of(job.experiment, job.experiment.validation), [(place, 1.0)])
        assert [each.png for each in drawn] == samples_named(job, wishes)
    before = studio.draw(wishes, Sampling.of(job.experiment, job.experiment.validation))
    assert before[0].png != drawn[0].png
    if job.experiment.precision == "fp32" and "method" not in settings:
        assert [each.png for each in before] == samples_named(job, wishes, step=0)


@pytest.mark.parametrize(("family", "text"), [("sd21", False), ("sd3", True), ("flux", True)])
def test_every_family(request: pytest.FixtureRequest, bench: Bench, family: str, text: bool) -> None:
    model = request.getfixturevalue(f"{family}_folder")
    drawn = {**DRAWN["validation"], "inference_steps": 2}
    job = bench.job(model, steps=2, optimizer={"lr": 3e-2}, lora={"rank": 2, "text_encoder": text}, validation=drawn)
    assert bench.train(job)
    studio, (wishes, sampling) = Studio(job.experiment.model, "fp32", CPU), wanted(job)
    after = [each.png for each in studio.draw(wishes, sampling, [(job.folder, 1.0)])]
    assert after == samples_named(job, wishes, step=2)
    assert [each.png for each in studio.draw(wishes, sampling)] == samples_named(job, wishes, step=0) != after


def test_what_draws_takes_its_room_before_the_text_encoders_do(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, there = Studio(ModelSettings(), "fp32", CPU, keep_prompts=False), list[bool]()
    load = Studio._without_mix

    def watched(self: Studio) -> TextStack:
        there.append({"denoiser", "vae"} <= vars(self.base).keys())
        return load(self)

    monkeypatch.setattr(Studio, "_without_mix", watched)
    studio.draw([Wish("a", "a circle", 0)], Sampling(64, "model", 1, 1.0))
    assert there == [True]


def samples_named(job: Job, wishes: list[Wish], step: int = 4) -> list[bytes]:
    return [(job.paths.samples_at(step) / wish.name).read_bytes() for wish in wishes]


def test_a_mix_is_the_sum_of_its_parts(bench: Bench, job: Job, studio: Studio) -> None:
    wishes, sampling = wanted(job)
    halves = studio.draw(wishes, sampling, [(job.folder, 0.5), (job.folder, 0.5)])
    whole = studio.draw(wishes, sampling, [(job.folder, 1.0)])
    assert max(int(abs(pixels(a) - pixels(b)).max()) for a, b in zip(halves, whole, strict=True)) <= 1
    cancelled = studio.draw(wishes, sampling, [(job.folder, 0.5), (job.folder, -0.5)])
    base = studio.draw(wishes, sampling)
    assert max(int(abs(pixels(a) - pixels(b)).max()) for a, b in zip(cancelled, base, strict=True)) <= 1
    more = studio.draw(wishes, sampling, [(job.folder, 1.5)])
    assert more[0].png not in (whole[0].png, base[0].png)


def test_words_of_two_trainings_are_not_confused(bench: Bench, job: Job) -> None:
    plain = job
    job = trained(bench, method=WORDS, seed=1, validation={**DRAWN["validation"], "prompts": ["a <one> <two>"]})
    studio = Studio(job.experiment.model, "fp32", CPU)
    with pytest.raises(SettingsError, match="brings the word <one>"):
        studio.draw([Wish("a", "a <one>", 0)], Sampling(64, "model", 2, 1.0), [(job.folder, 1.0)] * 2)
    word = job.paths.lora / "one.safetensors"
    drawn = [
        studio.draw([Wish("a", "a <one>", 0)], Sampling(64, "model", 2, 1.0), adapters)[0].png
        for adapters in ([], [(word, 1.0)], [(job.folder, 1.0)])
    ]
    assert len(set(drawn)) == 3
    # Words of one adapter and layers of another, of which there is almost nothing.
    wishes, sampling = [Wish("a", "a <one> <two>", 0)], Sampling(64, "model", 2, 3.0)
    alone = studio.draw(wishes, sampling, [(job.folder, 1.0)])[0]
    with_other = studio.draw(wishes, sampling, [(job.folder, 1.0), (plain.folder, 1e-6)])[0]
    assert abs(pixels(alone) - pixels(with_other)).max() <= 1
    mixed = studio.draw(wishes, sampling, [(job.folder, 1.0), (plain.folder, 1.0)])[0]
    assert abs(pixels(alone) - pixels(mixed)).max() > 1


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_samplers_of_few_steps(studio: Studio, sampler: str) -> None:
    wish = [Wish("a", PROMPTS[0], 3)]
    drawn = studio.draw(wish, Sampling(64, sampler, 4, 1.0))
    assert drawn == studio.draw(wish, Sampling(64, sampler, 4, 1.0)), "the fresh noise is of the seed"
    if sampler == "lcm":
        with pytest.raises(SettingsError, match=r"eta = 0.5: has no effect with the sampler 'lcm'"):
            studio.draw(wish, Sampling(64, sampler, 4, 1.0, eta=0.5))
        return
    by_eta = [studio.draw(wish, Sampling(64, sampler, 4, 1.0, eta=eta))[0].png for eta in (0.0, 0.3, 1.0)]
    assert len(set(by_eta)) == 3
    assert drawn[0].png == by_eta[1], "0.3 is the sampler's own"


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_controlnet_is_followed(request: pytest.FixtureRequest, tmp_path: Path, family: str) -> None:
    import torch
    from diffusers import ControlNetModel

    folder = request.getfixturevalue(f"{family}_folder")
    model = ModelSettings(path=str(folder), family="sd" if family == "sd15" else "sdxl")
    studio = Studio(model, "fp32", CPU)
    network = ControlNetModel.from_unet(
        studio.base.denoiser, conditioning_channels=3, conditioning_embedding_out_channels=(16, 32, 96)
    )
    torch.manual_seed(0)
    for block in [
        *network.controlnet_down_blocks,
        network.controlnet_mid_block,
        network.controlnet_cond_embedding.conv_out,
    ]:
        torch.nn.init.normal_(block.weight, std=0.5)
    network.save_pretrained(tmp_path / "control")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    upright = Image.new("RGB", (64, 64), "blue")
    upright.paste("red", (0, 0, 64, 32))
    upright.save(tmp_path / "upright.png")
    turned = Image.Exif()
    turned[0x0112] = 3  # turned by 180 degrees
    upright.rotate(180).save(tmp_path / "turned.png", exif=turned)
    upright.rotate(180).save(tmp_path / "down.png")

    def drawn(image: str | None, scale: float = 1.0) -> bytes:
        control = None if image is None else Control(tmp_path / image, str(tmp_path / "control"), scale)
        return studio.draw([Wish("a", "a circle", 0)], Sampling(64, "ddim", 2, 3.0, control=control))[0].png

    assert len({drawn(None), drawn("red.png"), drawn("blue.png"), drawn("red.png", 0.5)}) == 4
    assert drawn("red.png", 0.0) == drawn(None)
    assert drawn("turned.png") == drawn("upright.png") != drawn("down.png")
    with pytest.raises(SettingsError, match=r"control\.image"):
        drawn("none.png")


def test_what_is_not_there_or_for_another_model_is_refused(
    tmp_path: Path, bench: Bench, job: Job, sdxl_folder: Path
) -> None:
    studio = Studio(ModelSettings(path=str(sdxl_folder)), "fp32", CPU)
    one = [Wish("a", "a circle", 0)], Sampling(64, "model", 1, 1.0)
    with pytest.raises(SettingsError, match="no adapter is there"):
        studio.draw(*one, [(tmp_path, 1.0)])
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(SettingsError, match=r"torn\.safetensors.*safetensors"):
        studio.draw(*one, [(tmp_path / "torn.safetensors", 1.0)])
    with pytest.raises(SettingsError):
        studio.draw(*one, [(job.folder, 1.0)])
    assert studio.draw(*one), "it goes on after errors"
