"""Encodings are found by content: never another image's, never computed twice, never silently broken."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from runner.cache.encodings import encoder_hashes, posterior_cache
from runner.data import Crop, Item, read_dataset
from runner.data.address import ParquetAddress
from runner.data.export import export
from runner.data.views import View
from runner.errors import DatasetError
from runner.families import find_family
from runner.families.family import TextStack
from runner.jobs.job import State, read_manifest, state_of
from runner.schema import DatasetSettings
from runner.train.base import Base
from runner.train.inputs import encode as encoding
from runner.train.inputs import materials, shared_out
from runner.train.inputs.encode import encode_captions, encode_views
from runner.train.inputs.on_disk import Stored
from runner.train.inputs.samples import Samples
from runner.train.inputs.text import EncodedText, StoredText
from runner.train.place import Place
from tests.train.bench import CPU, Bench, write_images


class Counted:
    """Loads the VAE, and counts what it is given to encode."""

    def __init__(self, model: Path) -> None:
        self.vae = AutoencoderKL.from_pretrained(model, subfolder="vae").eval()
        self.batches: list[int] = []
        self.vae.encoder.register_forward_pre_hook(lambda module, inputs: self.batches.append(len(inputs[0])))

    def __call__(self) -> Any:
        return self.vae

    @property
    def images(self) -> int:
        return sum(self.batches)


def views_of(folder: Path) -> list[View]:
    items = read_dataset(DatasetSettings(path=str(folder))).items
    return [View(item, Crop(*_resized(item), 0, 0, 64, 64)) for item in items]


def _resized(item: Item) -> tuple[int, int]:
    scale = max(64 / item.height_px, 64 / item.width_px)
    return round(item.height_px * scale), round(item.width_px * scale)


def encode(views: list[View], model: Path, load: Any) -> dict[Any, Any]:
    return encode_views(views, vae_folder=model / "vae", load_vae=load, place=CPU)


def test_who_comes_while_another_process_encodes_the_same_waits_and_takes_it_from_the_cache(
    sdxl_folder: Path, tmp_path: Path
) -> None:
    views = views_of(write_images(tmp_path / "data"))
    slow, other = Counted(sdxl_folder), Counted(sdxl_folder)
    begun = threading.Event()

    def load() -> Any:
        begun.set()
        time.sleep(0.1)
        return slow()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(encode, views, sdxl_folder, load)
        assert begun.wait(30)
        second = encode(views, sdxl_folder, other)
    assert (slow.images, other.images) == (7, 0)
    assert first.result().keys() == second.keys()


def test_workers_that_begin_together_share_out_what_they_lack(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.train.inputs.encode.ENTRIES_PER_TURN", 1)
    views = views_of(write_images(tmp_path / "data"))
    slow, other = Counted(sdxl_folder), Counted(sdxl_folder)
    begun, helped = threading.Event(), threading.Event()
    other.vae.encoder.register_forward_hook(lambda *_: helped.set())

    def load() -> Any:
        begun.set()
        assert helped.wait(30)
        return slow()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(encode, views, sdxl_folder, load)
        assert begun.wait(30)
        second = encode(views, sdxl_folder, other)
    assert slow.images > 0 < other.images
    assert slow.images + other.images == 7
    assert first.result().keys() == second.keys()


def test_no_image_gets_anothers_latents(sdxl_folder: Path, tmp_path: Path) -> None:
    views = views_of(write_images(tmp_path / "images"))
    load = Counted(sdxl_folder)
    encoded = encode(list(reversed(views)), sdxl_folder, load)
    for view in views:
        pixels = np.asarray(
            view.item.open().resize((view.crop.resized_w, view.crop.resized_h), Image.Resampling.LANCZOS)
        )
        image = torch.from_numpy(pixels[:64, :64].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            posterior = load.vae.encode(image).latent_dist
        mean, deviation = encoded[view.key]
        # Encoded seven at a time, not one by one. Measured 2e-7.
        assert torch.allclose(mean, posterior.mean[0], atol=1e-5)
        assert torch.allclose(deviation, posterior.std[0], atol=1e-5)
    means = [mean for mean, _ in encoded.values()]
    assert min(float((means[0] - other).abs().max()) for other in means[1:]) > 0.01


def test_the_same_image_under_another_name_is_not_encoded_again(sdxl_folder: Path, tmp_path: Path) -> None:
    folder, load = write_images(tmp_path / "images"), Counted(sdxl_folder)
    encode(views_of(folder), sdxl_folder, load)
    assert load.images == 7
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (moved / "0.png").rename(moved / "renamed.png")
    (moved / "0.txt").rename(moved / "renamed.txt")
    encode(views_of(moved), sdxl_folder, load)
    assert load.images == 7


def test_a_table_is_read_from_its_beginning_to_its_end(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row group is read once, whatever order its images have by content."""
    (tmp_path / "table").mkdir()
    export(read_dataset(DatasetSettings(path=str(write_images(tmp_path / "images")))).items, tmp_path / "table")
    views = views_of(tmp_path / "table")
    rows = []
    read = ParquetAddress.read
    monkeypatch.setattr(ParquetAddress, "read", lambda address: rows.append(address.row) or read(address))
    encode(list(reversed(views)), sdxl_folder, Counted(sdxl_folder))
    assert rows == list(range(7))


def test_one_changed_pixel_is_another_image(sdxl_folder: Path, tmp_path: Path) -> None:
    folder, load = write_images(tmp_path / "images"), Counted(sdxl_folder)
    encode(views_of(folder), sdxl_folder, load)
    pixels = np.array(Image.open(folder / "2.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "2.png")
    encode(views_of(folder), sdxl_folder, load)
    assert load.images == 8


def test_another_vae_or_crop_is_another_entry(sdxl_folder: Path, sd15_folder: Path, tmp_path: Path) -> None:
    views, load = views_of(write_images(tmp_path / "images")), Counted(sdxl_folder)
    encode(views[:1], sdxl_folder, load)
    encode(views[:1], sd15_folder, load)
    shifted = View(views[0].item, Crop(*_resized(views[0].item), 0, 0, 64, 64, flip=True))
    encode([shifted], sdxl_folder, load)
    encode_views(views[:1], vae_folder=sdxl_folder / "vae", load_vae=load, place=CPU, variant="fp16")
    assert load.images == 4


def test_a_damaged_entry_is_made_again(sdxl_folder: Path, tmp_path: Path) -> None:
    views, load = views_of(write_images(tmp_path / "images")), Counted(sdxl_folder)
    first = encode(views, sdxl_folder, load)
    entries = sorted((tmp_path / "cache" / "posteriors").rglob("*.safetensors"))
    assert len(entries) == 7
    entries[0].write_bytes(entries[0].read_bytes()[:100])
    entries[1].write_bytes(b"")
    again = encode(views, sdxl_folder, load)
    assert load.images == 9
    assert all(torch.allclose(again[key][0], first[key][0], atol=1e-5) for key in first)


def test_what_else_is_missing_does_not_change_an_encoding(sdxl_folder: Path, tmp_path: Path) -> None:
    """On a CPU. So a job that was killed while its images were encoded ends with identical weights."""
    views, load = views_of(write_images(tmp_path / "data")), Counted(sdxl_folder)
    together = encode(views, sdxl_folder, load)
    assert set(load.batches) == {1}
    shutil.rmtree(posterior_cache().folder)
    apart = {key: found for view in views for key, found in encode([view], sdxl_folder, load).items()}
    assert all(
        torch.equal(one, other) for key in together for one, other in zip(together[key], apart[key], strict=True)
    )


def test_an_encoding_that_is_not_finite_names_the_file_and_is_not_kept(sdxl_folder: Path, tmp_path: Path) -> None:
    views, load = views_of(write_images(tmp_path / "images")), Counted(sdxl_folder)
    with torch.no_grad():
        load.vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(DatasetError, match=r"\d\.png is not finite"):
        encode(views, sdxl_folder, load)
    assert not list((tmp_path / "cache" / "posteriors").rglob("*.safetensors"))


def test_a_job_whose_images_vanish_fails_alone(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", seed=5)
    bad, good = bench.job(sdxl_folder, images=folder, steps=1), bench.job(sdxl_folder, steps=1)
    (folder / "3.png").unlink()
    assert not bench.train(bad, good)
    assert [state_of(job.folder) for job in (bad, good)] == [State.FAILED, State.COMPLETED]
    assert "3.txt" in read_manifest(bad.folder)["error"] or "changed" in read_manifest(bad.folder)["error"]


def test_captions_are_encoded_as_the_pipeline_does(sdxl_folder: Path, sd15_folder: Path) -> None:
    from diffusers import DiffusionPipeline

    captions = ["a red circle", "", "a house " * 60]
    for model, name in ((sdxl_folder, "sdxl"), (sd15_folder, "sd")):
        family, pipeline = find_family(name), DiffusionPipeline.from_pretrained(model)

        def load(family: Any = family, model: Path = model) -> Any:
            return family.load_text(model, None, torch.float32)

        encoded = encode_captions(captions, family=family, model_folder=model, load_text=load, place=CPU)
        for caption in captions:
            wanted = pipeline.encode_prompt(
                caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            assert torch.allclose(encoded[caption]["embeds"], wanted[0][0], atol=1e-5)
            if name == "sdxl":
                assert torch.allclose(encoded[caption]["pooled"], wanted[2][0], atol=1e-5)


def test_no_prompt_is_zeros_for_sdxl_and_the_empty_caption_for_sd(
    bench: Bench, sdxl_folder: Path, sd15_folder: Path
) -> None:
    for model, lora in ((sdxl_folder, {}), (sdxl_folder, {"text_encoder": True}), (sd15_folder, {})):
        job = bench.job(model, lora=lora)
        conditioner = bench.materials(job, bench.base(job)).conditioner
        with torch.no_grad():
            text = conditioner.text([None, "", "a red circle 0"])
        for tensor in text.values():
            none, empty, caption = tensor
            assert not torch.equal(empty, caption)
            assert torch.equal(none, torch.zeros_like(none)) if model == sdxl_folder else torch.equal(none, empty)
            assert empty.any()


def test_many_captions_stay_on_the_host_and_mean_the_same(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.train.inputs import text

    job = bench.job(sdxl_folder)
    base = bench.base(job)
    wanted = bench.materials(job, base).conditioner.text(["a red circle 0", None])
    monkeypatch.setattr(text, "LARGEST_ON_DEVICE_BYTES", 0)
    found = bench.materials(job, base).conditioner.text(["a red circle 0", None])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_encoders_that_the_index_leaves_out_count_for_nothing(sd3_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd3_folder, folder)
    whole = encoder_hashes(folder)
    index = json.loads((folder / "model_index.json").read_text())
    without = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index | without))
    assert encoder_hashes(folder) == whole[:2] + whole[3:-1], "all but the third encoder and its tokenizer"
    shutil.rmtree(folder / "text_encoder_3")
    assert encoder_hashes(folder) == whole[:2] + whole[3:-1]


def test_encodings_that_the_memory_does_not_hold_are_read_from_the_cache(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = bench.job(sdxl_folder, images=write_images(tmp_path), batch_size=5)
    in_memory = bench.materials(job, bench.base(job))
    monkeypatch.setattr(encoding, "host_memory_gb", lambda: 1e-6)
    with caplog.at_level("INFO"):
        stored = bench.materials(job, bench.base(job))
    assert caplog.text.count("they are read from the cache at every step") == 2, "images, and captions"
    assert isinstance(stored.conditioner, StoredText)
    assert isinstance(stored.samples, Samples)
    assert isinstance(stored.samples.posteriors, Stored)
    assert isinstance(in_memory.conditioner, EncodedText), "the other ones fit"
    with bench.own_cache():
        one, other = (each.samples.batch(3, range(5)) for each in (in_memory, stored))
        assert one.latents.equal(other.latents)
        texts = [each.conditioner.text([*one.captions, None]) for each in (in_memory, stored)]
    assert all(texts[0][name].equal(tensor) for name, tensor in texts[1].items())


def test_an_encoding_that_takes_long_says_how_far_it_is(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path, seed=77)
    for index in range(2):
        (images / f"{index}.txt").write_text(f"nobody has said so before, {index}")
    job = bench.job(sdxl_folder, images=images)
    monkeypatch.setattr(encoding, "ENTRIES_PER_TURN", 1)
    with caplog.at_level("INFO"):
        monkeypatch.setattr(shared_out, "SAY_EVERY_S", 0.0)
        bench.materials(job, bench.base(job))
        said = [record.getMessage() for record in caplog.records if "are encoded" in record.getMessage()]
        assert said == ["7 of 8 captions are encoded", *(f"{done} of 7 images are encoded" for done in range(1, 7))]
        caplog.clear()
        bench.materials(job, bench.base(job))
    assert "are encoded" not in caplog.text, "all is in the cache"


class _Encoder(torch.nn.Linear):
    """A text encoder that no GPU has room for; records where it was asked to go."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.places: list[str] = []

    def to(self, device: Any) -> Any:
        self.places.append(str(device))
        if str(device) != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self


def test_text_encoders_that_a_gpu_does_not_hold_encode_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    encoder = _Encoder()
    tokenizers: Any = SimpleNamespace(ids=lambda captions: [torch.ones(len(captions), 2)])
    text = TextStack(tokenizers, [encoder], zeros_for_empty=False)
    family: Any = SimpleNamespace(encode_text=lambda text, ids: {"embeds": text.encoders[0](ids[0])})
    captions = [f"caption {index}" for index in range(40)]
    gpu = Place(torch.device("meta"), 0, 1)
    found = dict(encoding.encode_at_once(captions, family, lambda: text, gpu))
    assert list(found) == captions
    assert encoder.places == ["meta", "cpu", "cpu"]
    assert dict(encoding.encode_at_once(captions[:1], family, lambda: text, gpu)).keys() == {captions[0]}
    assert encoder.places[3:] == ["cpu"], "it was tried again"
    assert caplog.text.count("captions are encoded on the CPU") == 1


def test_another_fault_of_a_gpu_does_not_send_captions_to_the_cpu() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("an illegal memory access")

    tokenizers: Any = SimpleNamespace(ids=lambda captions: [torch.ones(len(captions), 2)])
    family: Any = SimpleNamespace(encode_text=fail)
    text = TextStack(tokenizers, [], zeros_for_empty=False)
    with pytest.raises(RuntimeError, match="illegal"):
        list(encoding.encode_at_once(["a star"], family, lambda: text, Place(torch.device("meta"), 0, 1)))
    assert not text.beyond_gpu


def test_text_encoders_make_room_for_what_is_encoded_next(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, seen = bench.job(sdxl_folder), list[str]()
    base = bench.base(job)
    monkeypatch.setattr(base, "set_text_aside", lambda: seen.append("aside"))
    monkeypatch.setattr(materials, "encode_views", lambda *_, **__: seen.append("images") or {})
    with contextlib.suppress(KeyError):  # as no images were encoded
        bench.materials(job, base)
    assert seen == ["aside", "images"]
    gpu = Base.of(job.experiment, Place(torch.device("meta"), 0, 1))
    encoders = [_Encoder(), _Encoder()]
    gpu.set_text_aside()
    gpu.__dict__["text"] = SimpleNamespace(encoders=encoders)
    gpu.set_text_aside()
    assert [each.places for each in encoders] == [["cpu"], ["cpu"]]
