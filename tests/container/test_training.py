"""Jobs are trained together on every GPU, and the outcome of each is reported."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.container.opt_ml import RESTORED, OptMl
from tests.train.bench import Bench, difference, weights

GPUS = "0, GPU-aaaa, NVIDIA L4, 23034\n1, GPU-bbbb, NVIDIA L4, 23034\n"


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
    done, failed = (bench.job(sdxl_folder, seed=seed) for seed in (25, 26))
    tree = OptMl(tmp_path / "ml").send(*jobs, bad, done, failed, at_once=2, device="auto")
    for job, state in ((done, "completed"), (failed, "failed")):
        tree.restore(job, state=state, error="no luck")
    shutil.copytree(bench.cache, tree.data / "cache")
    before = {file: file.stat().st_mtime_ns for file in (tree.data / "cache").rglob("*")}
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    answer = tree.run({"PATH": path})

    assert answer.code == 1, answer.output
    assert [tree.state(job) for job in jobs] == ["completed"] * 3
    assert difference(weights(tree.trained(jobs[0])), weights(jobs[0])) < 1e-5
    # Results of an earlier container are left alone, and count.
    reason = tree.failure.read_text()
    assert reason.startswith(f"2 of 6 jobs failed\n{bad.id}: the loss is ")
    assert reason.endswith(f"\n{failed.id}: no luck")
    assert sorted(each.name for each in (tree.root / "model").iterdir()) == sorted(job.id for job in (*jobs, done))
    assert (tree.root / "model" / done.id / "lora" / tree.trained(done).paths.weights.name).read_bytes() == RESTORED
    said = answer.output.splitlines()
    for place in ("0", "1"):
        assert any(line.startswith(f"[{place}] ") and "saved and read back" in line for line in said), answer.output
    # Existing entries are used, and neither changed nor copied again.
    assert {file: file.stat().st_mtime_ns for file in (tree.data / "cache").rglob("*")} == before
    assert list((tree.root / "checkpoints" / "cache").rglob("*.safetensors")) == []
