"""New words: placed where captions have them, trained as in plain torch, saved so that diffusers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from runner.artifacts.words import load_words
from runner.errors import SettingsError
from runner.families import find_family
from runner.families.family import TextStack
from runner.jobs.earlier import find_earlier
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.schema import Experiment, LoraSettings
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.inputs.samples import Batch
from runner.train.inputs.tokens import NOWHERE, _Reader
from tests.train.bench import CPU, Bench, difference, records, weights, write_images
from tests.train.test_reference import ATTENTION, ROUNDING

WORDS: dict[str, Any] = {"name": "textual_inversion", "tokens": ["<cat>"], "initial": ["circle"], "vectors": 2}
PIVOTAL: dict[str, Any] = {"name": "pivotal", "tokens": ["<cat>", "<dog>"], "initial": ["red", "blue"]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("words") / "images")
    for index, file in enumerate(sorted(folder.glob("*.txt"))):
        file.write_text(f"a photo of {'<cat>' if index % 2 else '<dog> and <cat>'}, number {index}")
    return folder


def job_of(bench: Bench, model: Path, images: Path, **settings: Any) -> Job:
    chosen: dict[str, Any] = {"method": WORDS, **settings}
    if chosen["method"]["name"] == "textual_inversion":
        chosen["lora"] = {"rank": 8}  # the default instead of the bench's rank, which would have no effect
    return bench.job(model, images=images, **chosen)


def vectors(job: Job, word: str = "cat") -> dict[str, Tensor]:
    return load_file(job.paths.lora / f"{word}.safetensors")


def test_captions_without_new_words_are_read_as_ever_and_new_ones_have_their_places(
    bench: Bench, sdxl_folder: Path, images: Path
) -> None:
    job = job_of(bench, sdxl_folder, images)
    tokenizers = bench.base(job).tokenizers
    long = " ".join(["a red circle on a blue star"] * 30)
    for tokenizer, length in zip(tokenizers.each, tokenizers.lengths, strict=True):
        reader = _Reader(tokenizer, length, job.experiment.method)  # type: ignore[arg-type]
        plain = ["a red circle", "", long, "two  stars, one circle!"]
        ids, places = reader.read(plain)
        wanted = tokenizer(plain, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        assert torch.equal(ids, wanted.input_ids)
        assert bool((places == NOWHERE).all())

        ids, places = reader.read(["a <cat>, a <cat>", f"{long} <cat>"])
        spoken = tokenizer("a circle circle, a circle circle", add_special_tokens=True).input_ids
        assert ids[0, : len(spoken)].tolist() == spoken
        assert [place for place in places[0].tolist() if place != NOWHERE] == [0, 1, 0, 1]
        assert bool((places[1] == NOWHERE).all()), "what is cut has no place"

        pieces = tokenizer("a red star", add_special_tokens=False).input_ids
        several = job.experiment.method.model_copy(update={"initial": ("a red star",), "vectors": len(pieces) + 1})
        assert len(pieces) > 1
        assert _Reader(tokenizer, length, several).initial == [*pieces, pieces[0]], "each piece in turn"


@pytest.mark.parametrize(("initial", "vectors"), [("circle", 1), ("circle", 3), ("a round thing", 1)])
def test_captions_are_cut_where_their_words_and_the_vectors_of_new_ones_are_too_many(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, initial: str, vectors: int
) -> None:
    room = 77 - 2
    folder = write_images(tmp_path)
    fits, too_long = (f"<cat>{' circle' * (room - vectors + more)}" for more in (0, 1))
    texts = [fits, too_long, too_long.replace("<cat>", "<dog>"), too_long.replace("<cat>", "circle " * vectors)]
    for index, text in enumerate(texts):
        (folder / f"{index}.txt").write_text(text)
    method = {"name": "pivotal", "tokens": ["<cat>", "<dog>"], "initial": [initial, initial], "vectors": vectors}
    job = job_of(bench, sdxl_folder, folder, method=method)
    cut = bench.materials(job, bench.base(job)).cut.captions
    assert set(cut) == {text.strip() for text in texts[1:]}


def losses_by_hand(bench: Bench, job: Job) -> tuple[list[float], dict[str, Tensor]]:
    """Train embeddings, and a LoRA beside them, with plain torch and peft: new ids in larger tables."""
    settings, base = job.experiment, bench.base(job)
    samples = bench.materials(job, base).samples
    pipeline = DiffusionPipeline.from_pretrained(settings.model.path)
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if hasattr(pipeline, "text_encoder_2") else [])]
    tokenizers = [pipeline.tokenizer, *([pipeline.tokenizer_2] if len(encoders) > 1 else [])]
    tables, starts = [], []
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        encoder.requires_grad_(False)
        tokenizer.add_tokens(["<cat>", "<cat>_1"])
        encoder.resize_token_embeddings(len(tokenizer))
        table = encoder.get_input_embeddings().weight
        (first,) = tokenizer("circle", add_special_tokens=False).input_ids
        table.data[-2:] = table.data[first]
        table.requires_grad_(True)
        tables.append(table)
        starts.append(table.detach().clone())
    pipeline.unet.requires_grad_(False)
    chosen: Any = settings.optimizer
    method: Any = settings.method
    groups: list[dict[str, Any]] = [{"params": tables, "lr": chosen.lr, "weight_decay": 0.0}]
    if method.name == "pivotal":
        sites = find_sites(settings.lora, base.components(), base.family.target_presets)
        first_weights = Adapter(settings.lora, sites, seed=settings.seed, device=CPU.device).state()["unet"]
        pipeline.unet.add_adapter(
            LoraConfig(r=settings.lora.rank, lora_alpha=settings.lora.rank, target_modules=ATTENTION)
        )
        set_peft_model_state_dict(pipeline.unet, first_weights)
        groups[0]["lr"] = method.token_lr
        groups.append({"params": [each for each in pipeline.unet.parameters() if each.requires_grad]})
    parameters = [each for group in groups for each in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=chosen.lr, eps=chosen.eps, weight_decay=chosen.weight_decay)
    schedule, losses = DDPMScheduler.from_config(pipeline.scheduler.config), []
    for step in range(settings.steps):
        batch: Batch = samples.batch(step, range(settings.batch_size))
        captions = [str(caption).replace("<cat>", "<cat> <cat>_1") for caption in batch.captions]
        embeds, pooled = [], None
        for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
            given = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
            said = encoder(given.input_ids, output_hidden_states=True)
            embeds.append(said.hidden_states[-2] if len(encoders) > 1 else said[0])
            pooled = said[0]
        sizes = {"text_embeds": pooled, "time_ids": batch.time_ids} if len(encoders) > 1 else None
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = pipeline.unet(noisy, batch.timesteps, torch.cat(embeds, -1), added_cond_kwargs=sizes).sample
        loss = F.mse_loss(predicted, batch.noise)
        loss.backward()
        for table in tables:
            assert table.grad is not None
            table.grad[:-2] = 0
        nn.utils.clip_grad_norm_(parameters, chosen.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for table, start in zip(tables, starts, strict=True):
                table[:-2] = start[:-2]
        losses.append(loss.item())
    keys = ["clip_l", "clip_g"] if len(encoders) > 1 else ["emb_params"]
    found = {key: table.detach()[-2:] for key, table in zip(keys, tables, strict=True)}
    if method.name == "pivotal":
        found |= {f"unet.{key}": tensor for key, tensor in get_peft_model_state_dict(pipeline.unet).items()}
    return losses, found


@pytest.mark.parametrize("model", ["sd15_folder", "sdxl_folder"])
@pytest.mark.parametrize("method", ["textual_inversion", "pivotal"])
def test_new_words_are_trained_as_plain_torch_and_peft_would(
    bench: Bench, images: Path, model: str, method: str, request: pytest.FixtureRequest
) -> None:
    rate = {"token_lr": 3e-3} if method == "pivotal" else {}
    job = job_of(bench, request.getfixturevalue(model), images, steps=4, method={**WORDS, "name": method, **rate})
    assert bench.train(job)
    losses, by_hand = losses_by_hand(bench, job)
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)
    found = vectors(job) | (weights(job) if method == "pivotal" else {})
    assert found.keys() == by_hand.keys()
    for key, tensor in by_hand.items():
        if "lora" not in key:
            assert float((found[key] - tensor).norm() / tensor.norm()) < 1e-6
    if method == "pivotal":
        lora = [{key: each for key, each in state.items() if "lora" in key} for state in (found, by_hand)]
        assert difference(*lora) < ROUNDING


def test_the_files_are_read_by_diffusers_and_give_the_same_image(bench: Bench, sdxl_folder: Path, images: Path) -> None:
    drawn = {"prompts": ["a photo of <cat>"], "inference_steps": 2, "guidance_scale": 1.0}
    job = job_of(bench, sdxl_folder, images, steps=2, validation=drawn)
    assert bench.train(job)
    assert sorted(file.name for file in job.paths.lora.glob("*.safetensors")) == ["cat.safetensors"]
    assert {key: len(tensor) for key, tensor in vectors(job).items()} == {"clip_l": 2, "clip_g": 2}

    pipeline: Any = DiffusionPipeline.from_pretrained(sdxl_folder)
    tokenizers = bench.base(job).tokenizers
    tokenizers.each = [pipeline.tokenizer, pipeline.tokenizer_2]
    stack = TextStack(tokenizers, [pipeline.text_encoder, pipeline.text_encoder_2], True)
    load_words(pipeline, find_family("sdxl"), stack, {"<cat>": job.paths.lora / "cat.safetensors"})
    image = pipeline(
        "a photo of <cat>", height=64, width=64, num_inference_steps=2, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images[0]  # fmt: skip
    from PIL import Image

    saved = torch.from_numpy(np.array(Image.open(job.paths.samples_at(2) / "p00-s0.png"))) / 255
    assert float((torch.from_numpy(image) - saved).abs().max()) < 2 / 255
    card = (job.paths.lora / "README.md").read_text()
    assert 'load_textual_inversion(vectors["clip_g"], token="<cat>"' in card and "load_lora_weights" not in card
    assert any(line.startswith("# ") and r" \<cat\> for " in line for line in card.splitlines())


@pytest.mark.slow
def test_words_and_lora_together_in_a_pack_give_what_they_give_alone(
    bench: Bench, sdxl_folder: Path, images: Path
) -> None:
    settings: list[dict[str, Any]] = [
        {"seed": 1, "method": PIVOTAL, "lora": {"ema": 0.5}},
        {"seed": 2, "steps": 2},
        {"seed": 3, "method": {**PIVOTAL, "token_lr": 1e-3}, "batch_size": 3, "accumulation": 2,
         "lora": {"rank": 4, "dora": True}, "dataset": {"caption_dropout": 0.4}},
        {"seed": 4, "method": {**PIVOTAL, "vectors": 3}, "lr_scheduler": {"name": "linear"}},
    ]  # fmt: skip
    together, alone = ([job_of(bench, sdxl_folder, images, **each) for each in settings] for _ in range(2))
    assert bench.train(*together)
    for left, right in zip(together, alone, strict=True):
        assert bench.train(right)
        assert state_of(left.folder) is State.COMPLETED
        for word in ("cat", "dog") if left.experiment.method.name == "pivotal" else ("cat",):
            for key, tensor in vectors(right, word).items():
                assert float((vectors(left, word)[key] - tensor).norm() / tensor.norm()) < ROUNDING
        if left.experiment.method.name == "pivotal":
            assert difference(weights(left), weights(right)) < ROUNDING
        assert records(left, "train/loss") == pytest.approx(records(right, "train/loss"), rel=1e-5)


def test_an_interrupted_training_of_words_goes_on_where_it_was(bench: Bench, sdxl_folder: Path, images: Path) -> None:
    settings: dict[str, Any] = {"method": PIVOTAL, "steps": 4, "checkpoint": {"every": 1}}
    straight = job_of(bench, sdxl_folder, images, **settings)
    assert bench.train(straight)
    stopped = job_of(bench, sdxl_folder, images, **settings)
    asked = iter([False, False, True])
    from runner.errors import Interrupted

    with pytest.raises(Interrupted):
        bench.train(stopped, stop=lambda: next(asked, True))
    assert 0 < read_manifest(stopped.folder)["steps_done"] < 4
    assert bench.train(stopped)
    assert difference(weights(straight), weights(stopped)) == 0.0
    for word in ("cat", "dog"):
        assert all(torch.equal(vectors(straight, word)[key], each) for key, each in vectors(stopped, word).items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": {**WORDS, "initial": []}}, "method.initial=[cat]"),
        ({"method": {**WORDS, "tokens": ["cat"]}}, "between angle brackets"),
        ({"method": {**WORDS, "tokens": ["<a/b>"]}}, "between angle brackets"),
        ({"method": {**WORDS, "tokens": ["<a>", "<a>"], "initial": ["x", "y"]}}, "name each word once"),
        (
            {"method": {**PIVOTAL, "tokens": ["<cat>", "<Cat>"]}},
            "'<Cat>' is '<cat>' to CLIP's tokenizers, which read all letters as small ones; name each word once",
        ),
        (
            {"method": {**WORDS, "tokens": ["<Cat>"]}},
            "tokens = ['<Cat>']: diffusers finds a word of vectors = 2 only in small letters; write <cat>, here and in",
        ),
        (
            {"method": {**PIVOTAL, "tokens": ["<cat>", "<pytorch_lora_weights>"]}},
            "'<pytorch_lora_weights>' is what the LoRA's own file is called; choose another word",
        ),
        ({"method": WORDS, "lora": {"rank": 4}}, "lora.rank = 4: has no effect with method.name=textual_inversion"),
        (
            {"method": WORDS, "optimizer": {"name": "adamw", "lora_plus_ratio": 16}},
            "optimizer.lora_plus_ratio = 16.0: has no effect with method.name=textual_inversion",
        ),
        (
            {"method": WORDS, "optimizer": {"name": "prodigy", "weight_decay": 0.3}},
            "optimizer.weight_decay = 0.3: has no effect with method.name=textual_inversion",
        ),
        ({"method": PIVOTAL, "lora": {"text_encoder": True}}, "lora.text_encoder = true"),
        ({"method": PIVOTAL, "lora": {"init_from": "x"}}, "lora.init_from = 'x'"),
        ({"method": PIVOTAL, "model": {"family": "sd3"}}, "cannot be used with model.family=sd3"),
        ({"method": PIVOTAL, "dataset": {"caption_dropout": 1}}, "dataset.caption_dropout = 1.0: leaves out every"),
    ],
)
def test_what_words_do_not_go_with_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Experiment.model_validate(settings)
    assert said in str(raised.value)


def test_a_word_of_one_vector_may_have_capitals(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    for file in folder.glob("*.txt"):
        file.write_text("a photo of <Cat>")
    job = job_of(bench, sdxl_folder, folder, method={**WORDS, "tokens": ["<Cat>"], "vectors": 1}, steps=1)
    assert bench.train(job)
    assert state_of(job.folder) is State.COMPLETED and vectors(job, "Cat")


def test_a_lora_beside_words_has_an_optimizer_of_its_own() -> None:
    settings = {"method": PIVOTAL, "optimizer": {"name": "adamw", "lora_plus_ratio": 16, "weight_decay": 0.3}}
    assert Experiment.model_validate(settings).optimizer.weight_decay == 0.3


def test_the_layers_of_an_adapter_with_words_are_started_from_only_where_they_are_named_alone(
    bench: Bench, sdxl_folder: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pivotal = job_of(bench, sdxl_folder, images, method=PIVOTAL, lora={"rank": 4}, steps=1)
    words = job_of(bench, sdxl_folder, images, steps=1)
    assert bench.train(pivotal, words)
    for job, said in (
        (pivotal, rf"was taught words \(cat, dog\).*; to start from its layers alone, name {pivotal.paths.weights}, "),
        (words, r"was taught words \(cat\).*; there is nothing else in it to start from"),
    ):
        with pytest.raises(SettingsError, match=said):
            find_earlier(LoraSettings(rank=4, init_from=str(job.folder)))
    # The loss on its images was measured with the words in their captions, and cannot be measured without them.
    job = bench.job(sdxl_folder, lora={"rank": 4, "init_from": str(pivotal.paths.weights)}, steps=1)
    assert bench.train(job)
    assert "kept_of_earlier" not in read_manifest(job.folder) and "does not know the words" in caplog.text
