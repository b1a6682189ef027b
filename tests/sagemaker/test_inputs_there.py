"""What a method needs beside its images travels along: images of a class, and an adapter to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import runner
from tests.launch.running import assert_bitwise_equal, manifests, outputs
from tests.sagemaker.stand_in import StandIn
from tests.sagemaker.test_launch import launcher_settings
from tests.train.bench import write_images


def test_a_class_and_a_start_travel_along(
    aws: StandIn, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, of_class = write_images(tmp_path / "subject"), write_images(tmp_path / "class", seed=5)
    common = [
        *(f"model.path={sdxl_folder}", "dataset=folder", f"dataset.path={subject}", "logger=none"),
        *("validation.prompts=[]", "lora.rank=2", "batch_size=1"),
    ]
    first = runner(*common, "name=first", "steps=2")
    assert first.code == 0, first.output
    (first_id,) = manifests("first")

    second = [
        *(*common, "steps=3", f"lora.init_from={outputs()}/first/{first_id}", "method=dreambooth"),
        *("method.class_prompt='a photo of a cat'", f"method.class_data_dir={of_class}"),
        *("method.num_class_images=8", "method.class_inference_steps=1"),
    ]
    # What is encoded together is what the last digits of encodings depend on: both begin with nothing.
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "fresh"))
    here = runner(*second, "name=here")
    assert here.code == 0, here.output
    there = runner(*second, "name=there", *launcher_settings(aws))
    assert there.code == 0, there.output

    (found_here,), (found_there,) = manifests("here"), manifests("there")
    assert found_here == found_there, "where it runs is no part of what a job is"
    assert_bitwise_equal(outputs() / "here" / found_here, outputs() / "there" / found_there)
    about = manifests("there")[found_there]["dataset"]
    assert about["class_images"] == 8, "seven that were sent, and one that was drawn there"
    assert "kept_of_earlier" in manifests("here")[found_here]
