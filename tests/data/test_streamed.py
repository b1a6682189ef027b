"""A Hub data set that is never on the disk as a whole: the same images, within a bound, each shard read once."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import in_reading_order, read_dataset
from runner.data.sources.streamed import is_indexed, streamed_folder
from runner.errors import DatasetError
from tests.data.hub_data_sets import DataSets, giving

Settings = Callable[..., Any]
NAME = "ann/pictures"
SHARDS = [f"data/train-{number:05d}-of-00006.parquet" for number in range(6)]


def table(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def picture(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def row(number: int) -> dict[str, Any]:
    return {"image": {"bytes": picture(number), "path": None}, "text": f"picture {number}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataSets]:
    with giving(monkeypatch, str(tmp_path / "hub")) as found:
        shards = {name: table([row(3 * index + each) for each in range(3)]) for index, name in enumerate(SHARDS)}
        other = {"data/test-00000-of-00001.parquet": table([row(99)]), "README.md": b"pictures"}
        found.files[NAME] = shards | other
        yield found


@pytest.fixture
def bound_gb(hub: DataSets) -> float:
    """Room for two shards."""
    return 2 * max(len(hub.files[NAME][name]) for name in SHARDS) / 1e9


def on_disk() -> int:
    """Bytes of shards, whole or in part."""
    shards = (streamed_folder() / "shards").rglob("*")
    return sum(file.stat().st_size for file in shards if file.is_file() and file.suffix != ".lock")


def test_it_is_what_the_download_is(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    streamed = read_dataset(settings(NAME, stream=True, max_cache_gb=bound_gb))
    assert hub.fetched() == SHARDS, "each shard once"

    downloaded = read_dataset(settings(NAME))

    assert streamed.fingerprint == downloaded.fingerprint
    assert [(item.id, item.file, item.captions, item.width_px) for item in streamed.items] == [
        (item.id, item.file, item.captions, item.width_px) for item in downloaded.items
    ]
    assert streamed.report.counts == downloaded.report.counts
    places = [[item.id for item in in_reading_order(each.items)] for each in (streamed, downloaded)]
    assert places[0] == places[1]
    assert 0 < on_disk() <= bound_gb * 1e9


def test_a_second_look_asks_for_no_images_and_reading_them_in_order_fetches_each_shard_once(
    hub: DataSets, bound_gb: float, settings: Settings
) -> None:
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    assert not is_indexed(stream)
    read_dataset(stream)
    hub.fetched()

    assert is_indexed(stream)
    items = read_dataset(stream).items
    assert hub.fetched() == []
    most = 0
    for item in in_reading_order(items):
        assert item.open().size == (48, 64)
        most = max(most, on_disk())
    assert hub.fetched() == SHARDS, "of the first ones none was left"
    assert most <= bound_gb * 1e9


def test_the_worker_and_whoever_is_offline_ask_nothing(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    first = read_dataset(stream)
    hub.requests.clear()
    assert read_dataset(stream, refresh=False).fingerprint == first.fingerprint
    assert hub.requests == []

    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # put back by the fixture
    assert read_dataset(stream).fingerprint == first.fingerprint


def test_an_interrupted_index_goes_on(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    hub.refused[SHARDS[3]] = 403
    with pytest.raises(DatasetError, match=r"train-00003-of-00006.parquet of ann/pictures cannot be fetched"):
        read_dataset(stream)
    hub.refused.clear()
    assert hub.fetched() == SHARDS[:3]
    # What a process leaves that dies while it fetches takes no room of the others.
    left = streamed_folder() / "shards" / "incoming" / "data" / "part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"0" * 10_000)

    assert len(read_dataset(stream).items) == 18
    assert hub.fetched() == SHARDS[3:]
    assert on_disk() <= bound_gb * 1e9


def test_a_changed_data_set_is_indexed_where_it_has_changed(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    stream = settings(NAME, stream=True, max_cache_gb=2 * bound_gb)
    first = read_dataset(stream)
    hub.fetched()
    hub.files[NAME][SHARDS[4]] = table([row(50), row(51)])

    assert read_dataset(stream, refresh=False).fingerprint == first.fingerprint, "as it was planned"
    second = read_dataset(stream)

    assert hub.fetched() == [SHARDS[4]]
    assert (len(second.items), second.fingerprint == first.fingerprint) == (17, False)


def test_many_readers_fetch_a_shard_once(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    """Threads of one process and of another folder's store wait for each other."""
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    items = in_reading_order(read_dataset(stream).items)
    hub.fetched()
    start = threading.Barrier(6)

    def read(number: int) -> bytes:
        start.wait()
        # Straight to the store: addresses of one process have a lock of their own.
        with items[0].address.store.hold(items[0].address.shard) as path:  # type: ignore[attr-defined]
            return path.read_bytes()

    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(read, range(6)))
    assert found == {hub.files[NAME][SHARDS[0]]}
    assert hub.fetched() == [SHARDS[0]]


def test_bad_rows_are_told_and_remembered(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    good = row(3)
    rows = [{**good, "image": {"bytes": good["image"]["bytes"][:200], "path": None}}, {**row(4), "image": None}, row(5)]
    hub.files[NAME][SHARDS[1]] = table(rows)
    hub.files[NAME][SHARDS[2]] = table([{"image": {"bytes": None, "path": "a.png"}, "text": "x"}, row(7), row(8)])
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)

    with pytest.raises(DatasetError, match="3 faults") as raised:
        read_dataset(stream)
    assert f"{SHARDS[1]} row 0: cannot be decoded" in str(raised.value)
    assert f"{SHARDS[1]} row 1: cannot be read: the image cell is empty" in str(raised.value)
    assert "names a file, 'a.png', and streamed tables must hold the images" in str(raised.value)
    hub.fetched()
    without = read_dataset(settings(NAME, stream=True, max_cache_gb=bound_gb, skip_unreadable=True))
    assert (len(without.items), without.report.counts["dropped"], hub.fetched()) == (15, 3, [])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_cache_gb": 1e-6}, r"dataset.max_cache_gb=1e-06: data/train-\S+ alone has \S+ GB. Raise it"),
        ({"caption_column": "caption"}, r"train-00000-\S+: no column dataset.caption_column='caption'"),
        ({"split": "walks"}, r"dataset.split='walks': no file of this split.*'train'"),
        ({"revision": "v9"}, r"nothing at dataset.revision='v9'. Correct dataset.revision"),
        ({"captions_per_line": True}, r"dataset.captions_per_line=true has no effect on tables"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    hub: DataSets, bound_gb: float, settings: Settings, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        read_dataset(settings(NAME, **{"stream": True, "max_cache_gb": bound_gb, **changed}))
    assert len(hub.fetched()) <= 1


def test_what_cannot_be_streamed_is_refused(
    hub: DataSets, captioned: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, said: str) -> None:
        with pytest.raises(DatasetError, match=said):
            read_dataset(settings(name, stream=True))

    refused(str(captioned), "dataset.stream=true has no effect on files that are here. Remove it")
    refused("embedded", "dataset.stream=true has no effect on files that are here")
    refused("s3://bucket/folder/", "dataset.stream=true has no effect on files that are in S3")
    refused(str(captioned.parent / "captionde"), "not found: no 'captionde'")
    refused("ann/nothing", "no such public data set on the Hub")
    hub.files["ann/photos"] = {"a.png": picture(1), "metadata.jsonl": b"{}"}
    refused("ann/photos", r"only data sets of parquet files can be streamed, and this one has '.jsonl', '.png'")
    hub.gated.add(NAME)
    refused(NAME, "the Hub asks to accept the data set's terms. Do so on its page and set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    hub.damaged.add(SHARDS[0])
    refused(NAME, "train-00000-of-00006.parquet of ann/pictures came damaged")
    assert on_disk() == 0
    hub.damaged.clear()
    assert len(read_dataset(settings(NAME, stream=True)).items) == 18
