"""Predictions: arithmetic that agrees with torch's own counters, and measurements that take its place."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from runner.cache.measured import Conditions, Measurement, measurements_file, recall, record, step_s
from runner.embedded import MODEL_DIR
from runner.families.arithmetic import count_text_encoder, count_unet
from runner.families.shapes import SD15_UNET, SDXL_UNET
from runner.families.targets import UNET
from runner.jobs.job import Job, make_job
from runner.plan import Pack, Plan, Predictor, make_plan
from runner.plan.memory import QUANTIZED_BYTES
from runner.plan.predict import reached_tflops
from runner.plan.words import plan_data, plan_lines
from runner.schema import Experiment
from runner.system.machine import Device, Machine
from runner.train.adapters.quantized import quantize
from tests.plan.counted import Counted, counted
from tests.train.bench import CPU

SDXL = SDXL_UNET | {
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15 = SD15_UNET | {"attention_head_dim": 8}
EMBEDDED: dict[str, Any] = json.loads((MODEL_DIR / "unet" / "config.json").read_text())
SHAPES = {"sdxl, 1024 px": (SDXL, 128), "sd15, 512 px": (SD15, 64), "mini": (EMBEDDED, 16)}


def counted_unet(config: dict[str, Any], side: int) -> Counted:
    def predict(unet: UNet2DConditionModel) -> torch.Tensor:
        sizes = None
        if config.get("addition_embed_type"):
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            sizes = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.ones(1, 6)}
        inputs = torch.randn(1, 4, side, side), torch.zeros(1), torch.randn(1, 77, config["cross_attention_dim"])
        output: torch.Tensor = unet(*inputs, added_cond_kwargs=sizes, return_dict=False)[0]
        return output

    return counted("unet", lambda: UNet2DConditionModel.from_config(config), UNET, predict)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "sdxl, 1024 px" else name for name in SHAPES]
)
def test_arithmetic_agrees_with_what_torch_counts(name: str) -> None:
    config, side = SHAPES[name]
    work, found = count_unet(config, latent_side=side), counted_unet(config, side)
    # On the CPU, torch does not count its attention kernel. Not counted here: the adapters, and that the backward pass
    # ends at the first of them, which matters more on a miniature of three blocks.
    assert work.products == pytest.approx(found.products, rel=0.06)
    assert work.training_flop(checkpointing=False) - work.products - 3 * work.attention == pytest.approx(
        found.backward, rel=0.12 if name != "mini" else 0.15
    )
    assert work.kept == pytest.approx(found.kept, rel=0.12)
    assert work.parameters == pytest.approx(found.parameters, rel=0.01 if name != "mini" else 0.06)


def test_arithmetic_gives_the_known_figures_of_sdxl() -> None:
    """14.19 TFLOP for one image of 1024 px, 3.17 at 512, counted with attention."""
    large, small = (count_unet(SDXL, latent_side=side) for side in (128, 64))
    assert large.training_flop(checkpointing=False) == pytest.approx(14.19e12, rel=0.03)
    assert small.training_flop(checkpointing=False) == pytest.approx(3.17e12, rel=0.03)
    assert large.kept_numbers(checkpointing=True) < large.kept / 8


def test_arithmetic_gives_the_size_of_text_encoders() -> None:
    clip = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, max_position_embeddings=77
    )
    t5 = T5Config(
        d_model=4096, num_layers=24, num_heads=64, d_kv=64, d_ff=10240, vocab_size=32128, feed_forward_proj="gated-gelu"
    )
    for kind, config in ((CLIPTextModel, clip), (T5EncoderModel, t5)):
        with torch.device("meta"):
            parameters = sum(each.numel() for each in kind(config).parameters())
        assert count_text_encoder(config.to_dict()) == pytest.approx(parameters, rel=0.001)


def test_text_encoders_are_counted_in_fp32_before_training_or_beside_it_where_captions_pass_through_them() -> None:
    usual, live = packed(1).prediction, packed(1, lora={"text_encoder": True}).prediction
    assert usual is not None and live is not None
    assert usual.encoding_gb == pytest.approx(3.27, abs=0.05)
    assert (live.encoding_gb, live.memory_gb) == (0.0, pytest.approx(usual.memory_gb + 1.05 * 1.64, abs=0.05))
    flux = packed(1, model={"path": "somebody/flux", "family": "flux", "quantization": "nf4"}, resolution=512)
    assert flux.prediction is not None
    assert flux.prediction.encoding_gb > 19 > 15 > flux.prediction.memory_gb
    on_cpu = packed(1, Machine((Device("cpu", "a processor", 64.0),), cores=4)).prediction
    assert on_cpu is not None and on_cpu.memory_gb == pytest.approx(usual.memory_gb + 0.6), "beside the libraries"
    here = packed(1, model={"path": "embedded", "family": "sdxl"}, resolution=64).prediction
    assert here is not None and 0 < here.encoding_gb < 0.01


def test_what_is_drawn_may_take_more_memory_than_a_thrifty_training() -> None:
    launcher = {"name": "local", "gradient_checkpointing": True}
    drawing = packed(1, launcher=launcher).prediction
    silent = packed(1, launcher=launcher, validation={"prompts": []}).prediction
    assert drawing is not None and silent is not None
    base_gb = 1.05 * 2 * 2.57
    assert silent.memory_gb == pytest.approx(base_gb + 1, abs=0.7)
    # An image of 1024 px, decoded in fp32 by a VAE of 84 million numbers.
    assert drawing.memory_gb == pytest.approx(base_gb + 0.34 + 4.3, abs=0.1)


GPU = Machine((Device("cuda", "NVIDIA H100 80GB HBM3", 85.0, "0"),), cores=16)
COMMON: dict[str, Any] = {"model": {"path": "somebody/sdxl", "family": "sdxl"}, "resolution": 1024, "precision": "bf16"}


def job(seed: int, **settings: Any) -> Job:
    experiment = Experiment.model_validate(COMMON | {"seed": seed, "batch_size": 1, "steps": 1000} | settings)
    return make_job(experiment, model="sdxl", dataset="images", outputs=Path("outputs"))


def packed(count: int, machine: Machine = GPU, expected: int = 0, **settings: Any) -> Pack:
    jobs = [job(seed, **settings) for seed in range(count)]
    launcher = jobs[0].settings.launcher
    return make_plan(jobs, {}, launcher, machine=machine, costs=Predictor(), expected=expected).packs[0]


def test_unmeasured_packs_are_estimated_and_called_so() -> None:
    pack = packed(8)
    assert pack.prediction is not None
    assert not pack.prediction.measured
    assert pack.prediction.alone_s > pack.prediction.seconds > 60
    assert 8 * 5.6 < pack.prediction.memory_gb < 85
    # 14.19 TFLOP per image, at 200 TFLOP per second; drawing an image is half a step, and all are drawn twice.
    images = 8 * (1000 + 2 * (4 * 25 * 2 + 8 * 4) / 2)
    assert pack.prediction.seconds == pytest.approx(15 + images * 14.19 / 200, rel=0.03)
    one = packed(1).prediction
    assert one is not None and one.alone_s == pytest.approx(one.seconds), "it is alone"


def test_a_step_takes_a_gpu_some_time_however_little_there_is_to_compute() -> None:
    small, smallest = (packed(1, resolution=side).prediction for side in (128, 64))
    assert small is not None and smallest is not None
    assert small.seconds == smallest.seconds > 15 + 1000 * 0.05


def test_parts_and_processes_share_the_memory_of_a_batch() -> None:
    two = Machine((GPU.devices[0], dataclasses.replace(GPU.devices[0], selector="1")), cores=16)
    launcher = {"name": "local", "processes": 2, "concurrency": 1}
    (small, parts, spread, both) = (
        pack.prediction
        for pack in (
            packed(1, batch_size=2),
            packed(1, batch_size=8, accumulation=4),
            packed(1, two, batch_size=4, launcher=launcher),
            packed(1, two, batch_size=8, accumulation=2, launcher=launcher),
        )
    )
    assert small is not None and parts is not None and spread is not None and both is not None
    assert small.memory_gb == parts.memory_gb == spread.memory_gb == both.memory_gb
    many = packed(1, batch_size=16).prediction, packed(1, two, batch_size=16, launcher=launcher).prediction
    assert many[0] is not None and many[1] is not None
    assert many[1].seconds - 15 == pytest.approx((many[0].seconds - 15) / 2), "two do it in half the time"
    uneven = packed(1, two, batch_size=3, launcher=launcher).prediction
    assert uneven is not None and uneven.memory_gb == spread.memory_gb, "one of them has two images"
    larger = packed(1, batch_size=4).prediction
    assert larger is not None and larger.memory_gb > small.memory_gb + 2 * 5


@pytest.mark.parametrize("threads", [3, 4])
def test_a_step_that_was_measured_on_as_many_threads_of_a_cpu_counts(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    record(
        Conditions.of(job(0), device=f"a processor, {threads} threads", processes=1), [Measurement(1, 9.0, 12.0, 30.0)]
    )
    prediction = packed(1, Machine((Device("cpu", "a processor", 64.0),), cores=4)).prediction
    assert prediction is not None
    assert prediction.measured == (threads == 3), "one core is left to others"


def test_a_search_is_predicted_as_so_many_jobs_like_the_first_one() -> None:
    assert packed(1, expected=9).prediction == packed(9).prediction
    assert packed(1).prediction != packed(9).prediction


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantized_base_is_counted_as_it_is_kept(kind: str) -> None:
    work = count_unet(EMBEDDED, latent_side=16)
    unet = UNet2DConditionModel.from_config(EMBEDDED)
    quantize(unet, kind, CPU.device)
    tables = {name for name, _ in unet.named_buffers() if name.endswith("table")}  # one per layer, of any size
    kept = [each for name, each in (*unet.named_parameters(), *unet.named_buffers()) if name not in tables]
    linear = (work.parameters - work.in_convolutions) * QUANTIZED_BYTES[kind]
    assert linear + 4 * work.in_convolutions == pytest.approx(sum(each.nbytes for each in kept), rel=0.08)


def test_a_quantized_base_fits_where_a_whole_one_does_not() -> None:
    small = Machine((Device("cuda", "NVIDIA L4", 24.0, "0"),), cores=8)
    model = {"path": "somebody/flux", "family": "flux"}
    whole, nf4 = (packed(4, small, model=model | {"quantization": kind}, resolution=512) for kind in ("none", "nf4"))
    assert whole.prediction is not None and nf4.prediction is not None
    assert whole.prediction.memory_gb > 24 > nf4.prediction.memory_gb
    assert nf4.at_once > whole.at_once == 1


def test_packs_are_no_larger_than_the_memory() -> None:
    small = Machine((Device("cuda", "NVIDIA L4", 24.0, "0"),), cores=8)
    assert packed(16, small).at_once < packed(16).at_once == 11
    thrifty = packed(16, small, launcher={"name": "local", "gradient_checkpointing": True})
    assert thrifty.at_once > packed(16, small).at_once
    assert packed(16, small).why == "as far as 24 GB hold them, by estimate"
    mixed = Machine((*GPU.devices, *small.devices), cores=16)
    assert Predictor().fitting([job(0)], mixed, 1) == Predictor().fitting([job(0)], small, 1)
    costs, jobs = Predictor(), [job(0), job(1, batch_size=4)]
    assert costs.fitting(jobs, GPU, 1) == costs.fitting(jobs[1:], GPU, 1) != costs.fitting(jobs[:1], GPU, 1)


def test_packs_of_one_plan_are_each_predicted_by_their_own_size() -> None:
    small, large = job(0, resolution=512), job(1)
    both = make_plan([small, large], {}, small.settings.launcher, machine=GPU, costs=Predictor()).packs
    predicted = [each.prediction for each in both]
    assert predicted == [packed(1, resolution=512).prediction, packed(1).prediction]


def test_the_largest_jobs_of_a_pack_may_come_together() -> None:
    launcher = {"name": "local", "pack": 1}
    jobs = [job(0, launcher=launcher), job(1, batch_size=4, launcher=launcher)]
    (pack,) = make_plan(jobs, {}, jobs[0].settings.launcher, machine=GPU, costs=Predictor()).packs
    alone = packed(1, batch_size=4).prediction
    assert pack.prediction is not None and alone is not None
    assert pack.prediction.memory_gb == alone.memory_gb


def test_a_job_that_continues_takes_what_is_left_of_its_time() -> None:
    fresh, half = job(0), job(1)

    def planned(*steps_done: int) -> Plan:
        known = {each.folder: done for each, done in zip((fresh, half), steps_done, strict=True)}
        launcher = fresh.settings.launcher
        return make_plan([fresh, half], {}, launcher, machine=GPU, costs=Predictor(), steps_done=known)

    whole, plan = (planned(0, done).packs[0].prediction for done in (0, 500))
    assert whole is not None and plan is not None
    assert plan.seconds - 15 == pytest.approx((whole.seconds - 15) * 0.75)
    assert plan.alone_s - 30 == pytest.approx((whole.alone_s - 30) * 0.75)
    lines = [line for line in plan_lines(planned(0, 500), None) if "1,000 steps" in line]
    assert [line.partition("rank ")[2] for line in lines] == ["8)", "8), continues after step 500"]
    data = plan_data(planned(0, 500), None)["packs"][0]["jobs"]
    assert [each["steps_done"] for each in data] == [0, 500]


def test_a_device_is_as_fast_as_its_name_and_the_precision_say() -> None:
    def reached(name: str, precision: str = "bf16") -> float:
        return reached_tflops(Device("cuda", name, 48.0), precision, 1)

    assert reached("NVIDIA L40S") == 4 * reached("NVIDIA L4")
    assert reached("NVIDIA L40S", "fp32") == reached("NVIDIA L40S") / 4


@pytest.mark.parametrize(("every", "times"), [(0, 2), (30, 5), (50, 3), (100, 2)])
def test_what_is_drawn_while_training_takes_its_time(every: int, times: int) -> None:
    drawing = {"prompts": ["a", "b"], "seeds": [1, 2, 3], "inference_steps": 20, "timesteps": 6, "every": every}
    for guidance_scale, passes in ((5.0, 2), (1.0, 1)):
        found = packed(1, steps=100, batch_size=8, validation={**drawing, "guidance_scale": guidance_scale}).prediction
        images = 8 * 100 + times * (2 * 3 * 20 * passes + 6 * 4) / 2
        assert found is not None
        assert found.seconds == pytest.approx(15 + images * 14.19 / 200, rel=0.03)


def test_a_measured_step_takes_the_place_of_the_estimate() -> None:
    conditions = Conditions.of(job(0), device=GPU.devices[0].name, processes=1)
    record(conditions, [Measurement(1, 0.2, 12.0, 30.0), Measurement(8, 0.9, 60.0, 30.0)])
    pack = packed(8)
    assert pack.prediction is not None
    assert pack.prediction.measured
    drawing_s = 8 * 2 * (4 * 25 * 2 + 8 * 4) / 2 * 0.9 / 8
    assert pack.prediction.seconds == pytest.approx(30 + 1000 * 0.9 + drawing_s)
    assert pack.prediction.memory_gb == 60.0
    assert pack.prediction.alone_s == pytest.approx(8 * (30 + 1000 * 0.2) + drawing_s), (
        "each begins and loads by itself"
    )
    shared = packed(8, dataclasses.replace(GPU, devices=GPU.devices * 2)).prediction
    drawing_s = 8 * 2 * (4 * 25 * 2 + 8 * 4) / 2 * 0.5 / 4
    assert shared is not None
    assert shared.seconds == pytest.approx(30 + (2 * 1000 * 0.5 + drawing_s) / 2), "two workers train four each"
    other = packed(8, resolution=512).prediction
    assert other is not None
    assert not other.measured


def test_measured_drawing_takes_the_place_of_half_a_step_also_after_trainings_that_draw_nothing() -> None:
    conditions = Conditions.of(job(0), device=GPU.devices[0].name, processes=1)
    record(conditions, [Measurement(8, 0.9, 60.0, 30.0, forward_s=0.01)])
    record(conditions, [Measurement(1, 0.2, 12.0, 30.0)])
    prediction = packed(8).prediction
    assert prediction is not None
    drawing_s = 8 * 2 * (4 * 25 * 2 + 8 * 4) * 0.01
    assert prediction.seconds == pytest.approx(30 + 1000 * 0.9 + drawing_s)
    assert prediction.alone_s == pytest.approx(8 * (30 + 1000 * 0.2) + drawing_s)


def test_between_measurements_a_line_is_drawn() -> None:
    known = [Measurement(1, 0.2, 1, 1), Measurement(8, 0.9, 1, 1)]
    assert step_s(known, 1) == pytest.approx(0.2)
    assert step_s(known, 4) == pytest.approx(0.5)
    assert step_s(known, 16) == pytest.approx(1.7)
    assert step_s(known[:1], 4) == pytest.approx(0.8)
    assert step_s(known[1:], 2) == pytest.approx(0.9)


def test_no_line_leads_below_the_share_of_what_was_measured_nor_down_with_more_images() -> None:
    steep = [Measurement(4, 0.4, 1, 1), Measurement(8, 2.0, 1, 1)]
    assert step_s(steep, 1) == pytest.approx(0.1), "the line itself would be at -0.8"
    disturbed = [Measurement(1, 0.5, 1, 1), Measurement(8, 0.4, 1, 1)]
    assert step_s(disturbed, 0.5) == pytest.approx(0.45)
    assert step_s(disturbed, 100) == pytest.approx(0.5)


def test_the_newest_measurement_counts_and_damage_does_no_harm() -> None:
    conditions = Conditions.of(job(0), device="a GPU", processes=1)
    record(conditions, [Measurement(1, 0.5, 1, 1)])
    with measurements_file().open("a") as file:
        file.write('{"torn\n{"rows": 3}\n')
    record(conditions, [Measurement(4, 0.9, 2, 1), Measurement(1, 0.4, 1, 1)])
    assert [(each.rows, each.step_s) for each in recall(conditions)] == [(1, 0.4), (4, 0.9)]
    assert recall(dataclasses.replace(conditions, processes=2)) == []
    with measurements_file().open("ab") as raw:
        raw.write(b"\xb5\x00\xff\n")
    record(conditions, [Measurement(2, 0.6, 2, 1)])
    assert [each.rows for each in recall(conditions)] == [1, 2, 4]


def test_what_was_measured_in_other_conditions_is_not_taken() -> None:
    others: list[dict[str, Any]] = [
        *({"model": {**COMMON["model"], "quantization": "int8"}}, {"lora": {"text_encoder": True}}),
        *({"launcher": {"name": "local", "gradient_checkpointing": True}}, {"precision": "fp32"}, {"resolution": 512}),
    ]
    found = {Conditions.of(job(0, **changes), device="a GPU", processes=1) for changes in ({}, *others)}
    assert len(found) == 1 + len(others)
    assert Conditions.of(job(1), device="a GPU", processes=1) in found, "a seed costs nothing"


def test_the_oldest_measurements_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.cache.measured.KEPT_LINES", 3)
    conditions = Conditions.of(job(0), device="a GPU", processes=1)
    for rows in range(1, 6):
        record(conditions, [Measurement(rows, 0.5, 1, 1)])
    assert [each.rows for each in recall(conditions)] == [3, 4, 5]
    assert len(measurements_file().read_text().splitlines()) == 3


def test_workers_that_end_together_keep_what_each_has_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions, all_ready = Conditions.of(job(0), device="a GPU", processes=1), threading.Barrier(4)
    monkeypatch.setattr(os, "fsync", lambda handle: time.sleep(0.05))  # a slow disk

    def end(rows: int) -> None:
        all_ready.wait()
        record(conditions, [Measurement(rows, 0.5, 1, 1)])

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(end, range(1, 5)))
    assert [each.rows for each in recall(conditions)] == [1, 2, 3, 4]


def test_where_measurements_cannot_be_kept_what_was_trained_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    record(Conditions.of(job(0), device="a GPU", processes=1), [Measurement(1, 0.5, 1, 1)])
    assert "measured.jsonl cannot be written" in caplog.text
