"""SD3 and FLUX.1: encoded as in their pipelines, trained, saved for two kinds of readers, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from runner.check import Checker
from runner.errors import SettingsError
from runner.families import find_family, flux
from runner.families.files import resolution_faults
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.schema import LoraSettings, ModelSettings
from runner.train.adapters.adapter import find_sites
from tests.train.bench import Bench, family_of, pipeline_of, records

DIFFUSERS = "pytorch_lora_weights.safetensors"
PROMPTS = ["a red circle on a blue background", ""]
MODELS = ["sd3_folder", "sd35_folder", "flux_folder"]


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


TRAINED: dict[Path, Job] = {}


@pytest.fixture
def job(bench: Bench, folder: Path) -> Job:
    """A job of three steps with samples, once for each model."""
    if folder not in TRAINED:
        lora = {"rank": 4, "alpha": 16.0, "targets": "attention_ff", "text_encoder": True}
        validation = {"prompts": PROMPTS[:1], "inference_steps": 2, "timesteps": 2, "max_images": 1}
        TRAINED[folder] = bench.job(folder, lora=lora, validation=validation)
        assert bench.train(TRAINED[folder])
    return TRAINED[folder]


def encoded(pipeline: Any) -> tuple[Tensor, Tensor]:
    """(embeds, pooled) of the prompts, by the pipeline itself."""
    if isinstance(pipeline, FluxPipeline):
        embeds, pooled, _ = pipeline.encode_prompt(PROMPTS)
    else:
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, PROMPTS, PROMPTS, do_classifier_free_guidance=False)
    return embeds, pooled


@torch.no_grad()
def output(pipeline: Any) -> Tensor:
    """The prediction of the pipeline's transformer for the prompts at some noise."""
    embeds, pooled = encoded(pipeline)
    family = find_family("flux" if isinstance(pipeline, FluxPipeline) else "sd3")
    noisy = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    text = {"embeds": embeds, "pooled": pooled}
    return family.predict(pipeline.transformer, noisy, torch.tensor([700.0, 200.0]), text, torch.zeros(2, 6))


def apart(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


@torch.no_grad()
def test_captions_are_encoded_as_the_pipeline_does(folder: Path) -> None:
    family = find_family(family_of(folder))
    text = family.load_text(folder, None, torch.float32)
    ours = family.encode_text(text, text.tokenizers.ids(PROMPTS))
    embeds, pooled = encoded(pipeline_of(folder))
    assert torch.equal(ours["embeds"], embeds)
    assert torch.equal(ours["pooled"], pooled)


def test_a_caption_is_too_long_when_no_encoder_reads_its_end(
    sd3_folder: Path, sd35_folder: Path, flux_folder: Path
) -> None:
    long = "a " * 200  # CLIP reads 77 tokens
    for folder, limit in ((sd3_folder, 256), (sd35_folder, 77), (flux_folder, 512)):
        tokenizers = find_family(family_of(folder)).load_tokenizers(folder)
        assert tokenizers.limit == limit
        assert tokenizers.too_long(["a red circle", long]) == ([long] if limit < 200 else [])
        assert tokenizers.too_long(["a " * limit]) == ["a " * limit]
        assert [ids.shape[1] for ids in tokenizers.ids([long])] == tokenizers.lengths


def test_packed_latents_are_those_of_the_pipeline() -> None:
    latents = torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(0))
    tokens = flux.packed(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(flux.unpacked(tokens, 6, 10), latents)


@pytest.mark.parametrize("distilled", [True, False])
@torch.no_grad()
def test_only_a_distilled_model_is_told_a_guidance(flux_folder: Path, distilled: bool) -> None:
    config = FluxTransformer2DModel.load_config(flux_folder / "transformer") | {"guidance_embeds": distilled}
    denoiser = FluxTransformer2DModel.from_config(config).eval()
    told: dict[str, Any] = {}
    denoiser.register_forward_pre_hook(lambda _, __, given: told.update(given), with_kwargs=True)
    text = {"embeds": torch.zeros(2, 512, 64), "pooled": torch.zeros(2, 32)}
    flux.predict(denoiser, torch.zeros(2, 16, 16, 16), torch.tensor([700, 200]), text, torch.zeros(2, 6))
    assert told["timestep"].tolist() == pytest.approx([0.7, 0.2])
    guidance = told["guidance"]
    assert guidance is None if not distilled else (guidance.tolist(), guidance.dtype) == ([1.0, 1.0], torch.float32)


def test_sd3_has_places_for_so_many_patches(sd3_folder: Path, sdxl_folder: Path) -> None:
    settings = ModelSettings(path=str(sd3_folder), family="sd3")
    assert resolution_faults(settings, 128) == []
    (fault,) = resolution_faults(settings, 144)
    assert fault.startswith("resolution = 144") and "up to 128 px" in fault
    assert resolution_faults(settings, 96, longest_px=128) == []
    (fault,) = resolution_faults(settings, 96, longest_px=144)
    assert fault.startswith("dataset.buckets = true") and "the longest bucket has 144; lower" in fault
    assert resolution_faults(ModelSettings(path=str(sdxl_folder)), 4096) == []
    assert resolution_faults(ModelSettings(path="owner/name", family="sd3"), 4096) == []
    with pytest.raises(SettingsError, match=r"resolution = 144: .* supports images of up to 128 px; lower it"):
        Checker(sd3_folder).job({"model": {"path": str(sd3_folder), "family": "sd3"}, "resolution": 144})


def test_presets_name_layers_of_the_blocks(folder: Path) -> None:
    family = find_family(family_of(folder))
    denoiser = family.load_denoiser(folder, None, torch.float32)
    found = {}
    for name in ("attention", "attention_ff", "linear"):
        sites = find_sites(LoraSettings(targets=name), {"transformer": denoiser}, family.target_presets)
        found[name] = {site.name for site in sites}
    assert found["attention"] < found["attention_ff"] < found["linear"]
    assert all("transformer_blocks." in layer for layer in found["linear"])
    in_blocks = {
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, torch.nn.Linear) and "transformer_blocks." in name
    }
    assert found["linear"] == in_blocks


def test_it_trains_saves_and_draws(job: Job) -> None:
    assert state_of(job.folder) is State.COMPLETED, read_manifest(job.folder)["error"]
    losses = records(job, "validation/loss")
    assert set(losses) == {0, 3} and losses[3] != losses[0]
    assert set(records(job, "validation/loss_t0250")) == {0, 3}
    drawn = [Image.open(job.paths.samples_at(step) / "p00-s0.png") for step in (0, 3)]
    assert [image.size for image in drawn] == [(64, 64)] * 2
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_both_files_mean_what_was_trained(job: Job, folder: Path) -> None:
    bare, by_diffusers, merged = (pipeline_of(folder) for _ in range(3))
    by_diffusers.load_lora_weights(job.paths.lora, weight_name=DIFFUSERS)
    wanted = output(by_diffusers)
    assert apart(output(bare), wanted) > 1e-3, "the adapter does nothing"
    # As ComfyUI reads it: up @ down without a scale, found by diffusers' names for the layers.
    (file,) = [each for each in job.paths.lora.glob("*.safetensors") if each.name != DIFFUSERS]
    tensors = load_file(file)
    for component in ("transformer", "text_encoder", "text_encoder_2"):
        part = getattr(merged, component, None)
        for path, module in part.named_modules() if part is not None else ():
            published = path if component == "transformer" or "text_model." in path else f"text_model.{path}"
            if (up := tensors.pop(f"{component}.{published}.lora_B.weight", None)) is not None:
                module.weight.data += up @ tensors.pop(f"{component}.{published}.lora_A.weight")
    assert not tensors, f"no layer for {min(tensors)}"
    assert apart(output(merged), wanted) < 1e-5


def test_samples_are_those_of_the_plain_pipeline(job: Job, folder: Path) -> None:
    pipeline = pipeline_of(folder)
    pipeline.load_lora_weights(job.paths.lora, weight_name=DIFFUSERS)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(  # with its default guidance
        PROMPTS[0],
        height=64,
        width=64,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images[0]
    drawn = torch.frombuffer(
        bytearray(Image.open(job.paths.samples_at(3) / "p00-s0.png").tobytes()), dtype=torch.uint8
    ).view(64, 64, 3)
    assert (image.permute(1, 2, 0) * 255 - drawn).abs().max() <= 1.0
