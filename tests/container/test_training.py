"""A container trains what the same jobs train anywhere, and leaves it where it is expected."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from runner.job import read_job, read_manifest
from runner.parcel import CODE_FILE
from tests.command_line import ROOT
from tests.container.opt_ml import OptMl, same_bits
from tests.train.bench import Bench, difference, weights

GPUS = "0, GPU-aaaa, NVIDIA L4, 23034\n1, GPU-bbbb, NVIDIA L4, 23034\n"


def send_package(tree: OptMl) -> None:
    """Send the package along, as it is in this checkout."""
    (tree.data / "code").mkdir()
    with zipfile.ZipFile(tree.data / "code" / CODE_FILE, "w") as archive:
        for file in (ROOT / "runner").rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(ROOT))


def test_a_tuners_job_gives_what_the_same_settings_give_here(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    sent = bench.job(sdxl_folder, steps=4, seed=11)
    here = bench.job(sdxl_folder, steps=4, seed=11, lora={"rank": 3}, optimizer={"lr": 2.5e-3})
    tree = OptMl(tmp_path / "ml").send(sent)
    tree.hyperparameters(
        lora__rank="3", optimizer__lr="2.5e-3", _tuning_objective_metric="validation/loss", sagemaker_region="x"
    )
    send_package(tree)
    answer = tree.run()
    assert bench.train(here)

    assert answer.code == 0, answer.output
    assert not tree.failure.exists()
    assert [folder.name for folder in tree.jobs.iterdir() if folder.is_dir()] == [here.id]
    there = tree.trained(here)
    assert same_bits(there, here)
    manifest = read_manifest(there.folder)
    assert manifest["state"] == "completed"
    assert manifest["overrides"] == ["lora.rank=3", "optimizer.lr=2.5e-3"]
    assert answer.output.splitlines().count(f"validation/loss={manifest['objective']!r}") == 1
    assert answer.output.count("\nvalidation/loss=") == 1
    assert read_job(there.folder).experiment.dataset.path == str(tree.data / "images")
    model = tree.root / "model" / here.id
    assert sorted(file.name for file in model.iterdir()) == ["config.yaml", "lora"]
    assert {file.name for file in (model / "lora").iterdir()} == {file.name for file in there.paths.lora.iterdir()}
    # What was encoded and measured is kept for later jobs; seven images and their captions, the empty one too.
    kept = tree.root / "checkpoints" / "cache"
    assert len(list(kept.glob("posteriors/*/*.safetensors"))) == 7
    assert len(list(kept.glob("captions/*/*.safetensors"))) == 8
    assert [file for file in kept.rglob("*") if file.name.startswith(".")] == []
    # It ran from the package that was sent, not from this checkout, which has a commit.
    assert manifest["git_commit"] is None


def test_jobs_are_packed_on_every_gpu_and_one_that_fails_is_named(
    bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nprintf '{GPUS}'\n")
    tool.chmod(0o755)
    jobs = [bench.job(sdxl_folder, steps=3, seed=seed) for seed in (21, 22, 23)]
    bad = bench.job(sdxl_folder, steps=3, seed=24, optimizer={"lr": 1e30})
    assert bench.train(jobs[0])
    tree = OptMl(tmp_path / "ml").send(*jobs, bad, at_once=2, device="auto")
    shutil.copytree(bench.cache, tree.data / "cache")
    before = {file: file.stat().st_mtime_ns for file in (tree.data / "cache").rglob("*")}
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    answer = tree.run({"PATH": path})

    assert answer.code == 1, answer.output
    assert [tree.state(job) for job in jobs] == ["completed"] * 3
    assert difference(weights(tree.trained(jobs[0])), weights(jobs[0])) < 1e-5
    assert tree.failure.read_text().startswith(f"1 of 4 jobs failed\n{bad.id}: the loss is ")
    assert sorted(each.name for each in (tree.root / "model").iterdir()) == sorted(job.id for job in jobs)
    said = answer.output.splitlines()
    for place in ("0", "1"):
        assert any(line.startswith(f"[{place}] ") and "saved and read back" in line for line in said), answer.output
    # What was there already is used, and neither changed nor copied again.
    assert {file: file.stat().st_mtime_ns for file in (tree.data / "cache").rglob("*")} == before
    assert list((tree.root / "checkpoints" / "cache").rglob("*.safetensors")) == []
