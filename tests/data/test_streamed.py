"""A Hub data set that is never on disk as a whole: the same images, within a bound, each shard read once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runner.data import in_reading_order, read_dataset
from runner.data.dataset import would_fetch
from runner.data.sources.streamed import streamed_folder
from runner.errors import DatasetError
from runner.schema import DatasetSettings, Experiment
from tests.data.hub_data_sets import HANGS_UP, DataSets, giving

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
        found.watched = on_disk
        shards = {name: table([row(3 * index + each) for each in range(3)]) for index, name in enumerate(SHARDS)}
        other = {"data/test-00000-of-00001.parquet": table([row(99)]), "README.md": b"pictures"}
        found.files[NAME] = shards | other
        yield found


@pytest.fixture
def bound_gb(hub: DataSets) -> float:
    """Room for two shards."""
    return 2 * max(len(hub.files[NAME][name]) for name in SHARDS) / 1e9


def on_disk() -> int:
    """Bytes of shards on disk, whole or partial."""
    size = 0
    for file in (streamed_folder() / "shards").rglob("*"):
        if file.suffix in (".parquet", ".incomplete"):
            with suppress(FileNotFoundError):  # removed by another process at this moment
                size += file.stat().st_size
    return size


def test_it_is_what_the_download_is(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    streamed = read_dataset(settings(NAME, stream=True, max_cache_gb=bound_gb))
    assert hub.fetched() == SHARDS, "each shard once"
    assert 0 < on_disk() <= hub.most <= bound_gb * 1e9

    downloaded = read_dataset(settings(NAME))

    assert streamed.fingerprint == downloaded.fingerprint
    assert [(item.id, item.file, item.captions, item.width_px) for item in streamed.items] == [
        (item.id, item.file, item.captions, item.width_px) for item in downloaded.items
    ]
    assert streamed.report.counts == downloaded.report.counts
    places = [[item.id for item in in_reading_order(each.items)] for each in (streamed, downloaded)]
    assert places[0] == places[1]


def test_folders_with_a_word_of_another_split_in_their_names_belong_to_it(hub: DataSets, settings: Settings) -> None:
    hub.files["ann/runs"] = {
        "latest-run/train-00000-of-00001.parquet": table([row(0)]),
        "other/train-00000-of-00001-0a1b2c3d4e5f6071.parquet": table([row(1)]),
        "other/test-00000-of-00001-0a1b2c3d4e5f6071.parquet": table([row(2)]),
    }
    for more in ({}, {"stream": True, "max_cache_gb": 1.0}):
        found = read_dataset(settings("ann/runs", **more))
        assert sorted(item.caption for item in found.items) == ["picture 0", "picture 1"]
    assert not any("test-" in path.rpartition("/")[2] for _, path in hub.requests), "what is not wanted stays there"


def test_a_split_may_end_like_another_one(hub: DataSets, settings: Settings) -> None:
    splits = ["train", "latest", "hard_test", "retrieval"]
    hub.files["ann/ends"] = {
        f"data/{split}-00000-of-00001.parquet": table([row(number)]) for number, split in enumerate(splits)
    }
    for more in ({}, {"stream": True, "max_cache_gb": 1.0}):
        for number, split in enumerate(splits):
            found = read_dataset(settings("ann/ends", split=split, **more))
            assert [item.caption for item in found.items] == [f"picture {number}"]


def test_another_column_of_captions_is_read_anew(hub: DataSets, settings: Settings) -> None:
    hub.files["ann/two"] = {"train.parquet": table([row(0) | {"other": "another caption"}])}
    for column, caption in (("text", "picture 0"), ("other", "another caption"), ("text", "picture 0")):
        (item,) = read_dataset(settings("ann/two", stream=True, max_cache_gb=1.0, caption_column=column)).items
        assert item.caption == caption


def test_photographs_with_names_in_capitals_are_downloaded(hub: DataSets, settings: Settings) -> None:
    hub.files["ann/photos"] = {"DSC_1.PNG": picture(1), "DSC_1.TXT": b"one", "notes.pdf": b"x"}
    assert [item.caption for item in read_dataset(settings("ann/photos")).items] == ["one"]
    assert not any("notes" in path for verb, path in hub.requests if verb == "GET" and "/resolve/" in path)


def test_a_second_look_asks_for_no_images_and_reading_them_in_order_fetches_each_shard_once(
    hub: DataSets, bound_gb: float, settings: Settings
) -> None:
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    assert would_fetch(stream)
    read_dataset(stream)
    hub.fetched()

    assert not would_fetch(stream)
    items = read_dataset(stream).items
    assert hub.fetched() == []
    for item in in_reading_order(items):
        assert item.open().size == (48, 64)
    assert hub.fetched() == SHARDS, "of the first ones none was left"
    assert hub.most <= bound_gb * 1e9


def test_the_worker_asks_nothing_and_whoever_is_offline_takes_it_as_it_was(
    hub: DataSets, bound_gb: float, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    first = read_dataset(stream)
    hub.requests.clear()
    assert read_dataset(stream, refresh=False).fingerprint == first.fingerprint
    assert hub.requests == []

    for status in (HANGS_UP, 503):
        hub.refused["/api/"] = status
        assert read_dataset(stream).fingerprint == first.fingerprint
        with pytest.raises(DatasetError, match="can be neither downloaded nor found"):
            read_dataset(settings("ann/others", stream=True))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert read_dataset(stream).fingerprint == first.fingerprint


def test_an_interrupted_index_goes_on(hub: DataSets, bound_gb: float, settings: Settings) -> None:
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    hub.refused[SHARDS[3]] = 403
    with pytest.raises(DatasetError, match=r"train-00003-of-00006.parquet of ann/pictures cannot be fetched"):
        read_dataset(stream)
    hub.refused.clear()
    assert hub.fetched() == SHARDS[:3]
    # What a process leaves behind when it dies while fetching takes no room from the others.
    left = streamed_folder() / "shards" / "incoming" / "data" / "part.incomplete"
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
    """The others wait for the one that fetches it."""
    stream = settings(NAME, stream=True, max_cache_gb=bound_gb)
    items = in_reading_order(read_dataset(stream).items)
    hub.requests.clear()
    start = threading.Barrier(6)

    def read(number: int) -> bytes:
        start.wait()
        # Directly through the store: addresses within one process have their own lock.
        with items[0].address.store.hold(items[0].address.shard) as path:  # type: ignore[attr-defined]
            return path.read_bytes()

    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(read, range(6)))
    assert found == {hub.files[NAME][SHARDS[0]]}
    assert hub.fetched() == [SHARDS[0]]


def test_what_is_held_stays_and_what_was_used_last_goes_last(
    hub: DataSets, bound_gb: float, settings: Settings
) -> None:
    items = in_reading_order(read_dataset(settings(NAME, stream=True, max_cache_gb=bound_gb)).items)
    store, shards = items[0].address.store, [item.address.shard for item in items[::3]]  # type: ignore[attr-defined]

    def here() -> list[int]:
        return [number for number, shard in enumerate(shards) if store.place(shard).is_file()]

    assert here() == [4, 5]
    with store.hold(shards[4]):
        pass
    with store.hold(shards[0]):
        assert here() == [0, 4], "the fourth was used after the fifth"
    with store.hold(shards[4]):
        # It is older than the first one, but is being read.
        os.utime(store.place(shards[4]), (1, 1))
        with ThreadPoolExecutor(1) as other:
            other.submit(items[3].open).result(60)
        assert here() == [1, 4]


def test_a_shard_that_can_no_longer_be_had_is_an_error_of_the_data_set(
    hub: DataSets, bound_gb: float, settings: Settings
) -> None:
    items = in_reading_order(read_dataset(settings(NAME, stream=True, max_cache_gb=bound_gb)).items)
    hub.gated.add(NAME)
    assert items[-1].open().size == (48, 64)
    with pytest.raises(DatasetError, match=r"train-00000-of-00006.parquet row 0: .* accept the data set's terms"):
        items[0].open()


READER = """
import sys
from runner.data import in_reading_order, read_dataset
from runner.schema import DatasetSettings
dataset = read_dataset(DatasetSettings(path=sys.argv[1], stream=True, max_cache_gb=float(sys.argv[2])))
assert all(item.open().size == (48, 64) for item in in_reading_order(dataset.items))
print(dataset.fingerprint)
"""


@pytest.mark.slow
def test_processes_share_the_work_and_go_on_after_one_that_was_killed(
    hub: DataSets, bound_gb: float, settings: Settings
) -> None:
    def start() -> subprocess.Popen[str]:
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", READER, NAME, str(bound_gb)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    hub.stuck[SHARDS[3]] = threading.Event()
    first = start()
    deadline = time.monotonic() + 60
    while not any(verb == "GET" and path.endswith(SHARDS[3]) for verb, path in list(hub.requests)):
        assert time.monotonic() < deadline, hub.requests
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.communicate()
    hub.stuck.pop(SHARDS[3]).set()
    assert hub.fetched() == SHARDS[:4]

    said = [process.communicate(timeout=120)[0].strip() for process in [start(), start(), start()]]
    asked = hub.fetched()
    assert [name for name in SHARDS if name in asked[:3]] == SHARDS[3:], "the rest of the index, once"
    dataset = read_dataset(settings(NAME, stream=True, max_cache_gb=bound_gb))
    assert said == [dataset.fingerprint] * 3
    assert hub.fetched() == []
    assert hub.most <= bound_gb * 1e9


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
    hub.files["ann/mixed"] = {SHARDS[0]: b"", "data/train-00001-of-00002.arrow": b""}
    refused("ann/mixed", r"only data sets of parquet files can be streamed, and this one has '.arrow', '.parquet'")
    hub.gated.add(NAME)
    refused(NAME, "the Hub asks to accept the data set's terms. Do so on its page and set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    hub.damaged.add(SHARDS[0])
    refused(NAME, "train-00000-of-00006.parquet of ann/pictures came damaged")
    assert on_disk() == 0
    hub.damaged.clear()
    assert len(read_dataset(settings(NAME, stream=True)).items) == 18


def test_one_of_several_sources_may_be_streamed(
    hub: DataSets, bound_gb: float, captioned: Path, settings: Settings
) -> None:
    """Each source says so itself; faults name the source."""
    hub_source = {"path": NAME, "stream": True, "repeats": 2}
    several = DatasetSettings(path=None, sources=[hub_source, str(captioned)], max_cache_gb=bound_gb)
    assert several.streams
    dataset = read_dataset(several)
    assert [share.images for share in dataset.report.sources] == [18, 4]

    with pytest.raises(DatasetError, match=r"dataset\.sources\.1\.stream=true has no effect on files that are here"):
        read_dataset(DatasetSettings(path=None, sources=[NAME, str(captioned)], stream=True, max_cache_gb=bound_gb))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_cache_gb": 3}, "max_cache_gb = 3.0: has no effect without dataset.stream=true"),
        ({"stream": True, "max_cache_gb": 0}, "greater than 0"),
        ({"stream": True, "masks": True}, "masks = true: masks are kept in memory"),
        ({"path": None, "sources": [{"path": NAME, "stream": False}], "stream": True, "max_cache_gb": 3}, "no effect"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DatasetSettings(**{"path": NAME, **given})


def test_sagemaker_is_told_another_way() -> None:
    launcher = {"name": "sagemaker"}
    with pytest.raises(ValueError, match=r"dataset\.stream = true: training jobs of launcher=sagemaker get their data"):
        Experiment.model_validate({"dataset": {"path": NAME, "stream": True}, "launcher": launcher})
