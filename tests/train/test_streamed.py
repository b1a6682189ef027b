"""Training on a data set that stays on the Hub: the same weights as with a full copy, within a bound on disk use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from runner.data.sources.streamed import streamed_folder
from runner.errors import Interrupted
from runner.jobs.job import Job
from runner.train.inputs.on_disk import Stored
from runner.train.inputs.text import StoredText
from tests.data.hub_data_sets import DataSets, giving
from tests.train.bench import SIZES, Bench, records, weights

NAME = "ann/circles"
SETTINGS: dict[str, Any] = {
    "steps": 2,
    "batch_size": 2,
    "dataset": {"path": NAME, "caption_dropout": 0.3},
    "validation": {"prompts": ["a red circle"], "timesteps": 2, "max_images": 2, "held_out": 0.2},
}
BUCKETS = {"buckets": True, "bucket_step": 8}


@pytest.fixture
def here(bench: Bench, tmp_path: Path) -> Bench:
    """A bench with its own cache: nothing is encoded yet."""
    return Bench(tmp_path / "here")


@pytest.fixture
def hub(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataSets]:
    """Twelve images in six shards, each with mixed shapes."""
    with giving(monkeypatch, str(tmp_path / "hub")) as found:
        rows = []
        for number in range(12):
            file = bench.images / f"{number % len(SIZES)}.png"
            # The same picture for two captions: encoded once.
            rows.append({"image": {"bytes": file.read_bytes(), "path": None}, "text": f"a circle {number}"})
        found.files[NAME] = {}
        for shard in range(6):
            file = tmp_path / "shard.parquet"
            pq.write_table(pa.Table.from_pylist(rows[2 * shard : 2 * shard + 2]), file)
            found.files[NAME][f"data/train-{shard:05d}-of-00006.parquet"] = file.read_bytes()
        yield found


def streamed(hub: DataSets, **changes: Any) -> dict[str, Any]:
    bound = 2 * max(len(content) for content in hub.files[NAME].values())
    return SETTINGS | {"dataset": SETTINGS["dataset"] | {"stream": True, "max_cache_gb": bound / 1e9} | changes}


def same(left: Job, right: Job) -> bool:
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_weights_are_those_of_the_downloaded_data_set(
    hub: DataSets, here: Bench, tmp_path: Path, sd15_folder: Path
) -> None:
    """Even if training was interrupted; each shard is read once for its index, and once for its pixels."""
    there = here.job(sd15_folder, **streamed(hub, **BUCKETS), checkpoint={"every": 1})
    assert hub.fetched() == list(hub.files[NAME]), "indexed"
    with pytest.raises(Interrupted):
        here.train(there, stop=there.paths.checkpoints.exists)
    fetched = hub.fetched()
    assert 4 <= len(fetched) == len(set(fetched)), "encoded in the order of the shards, whatever their shapes"
    assert here.train(there)
    assert hub.fetched() == []
    with here.own_cache():
        shards = [file.stat().st_size for file in (streamed_folder() / "shards").rglob("*.parquet")]
    assert 0 < sum(shards) <= there.experiment.dataset.max_cache_gb * 1e9

    elsewhere = Bench(tmp_path / "elsewhere")
    downloaded = elsewhere.job(sd15_folder, **SETTINGS | {"dataset": SETTINGS["dataset"] | BUCKETS})
    assert elsewhere.train(downloaded)

    assert there.id == downloaded.id
    assert same(there, downloaded)
    assert records(there, "validation/loss") == records(downloaded, "validation/loss")


def test_another_job_fetches_nothing_and_reads_its_encodings_from_the_disk(
    hub: DataSets, here: Bench, sd15_folder: Path
) -> None:
    job = here.job(sd15_folder, **streamed(hub))
    base = here.base(job)
    first = here.materials(job, base)
    hub.fetched()

    again = here.materials(here.job(sd15_folder, **streamed(hub)), base)
    posteriors = again.samples.posteriors  # type: ignore[attr-defined]
    kept = first.samples.batch(1, range(2)).latents
    assert torch.equal(again.samples.batch(1, range(2)).latents, kept)
    assert hub.fetched() == []
    assert isinstance(posteriors, Stored)
    assert isinstance(again.conditioner, StoredText)

    # Entries that somebody has deleted are made again on demand.
    with here.own_cache():
        for file in here.cache.glob("posteriors/*/*.safetensors"):
            file.unlink()
        assert torch.allclose(again.samples.batch(1, range(2)).latents, kept, atol=1e-5)
    assert 0 < len(hub.fetched()) <= 2
