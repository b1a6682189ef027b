"""Processes of one pack that lack the same parts: each part is done once per disk, and none is left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from runner.train.inputs.shared_out import SharedWork, share_out
from runner.train.place import Place
from tests.train.ranks import Rank, in_both


class Disk:
    """The place of the parts, and which process did which."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[tuple[int, list[int]]] = []

    @property
    def there(self) -> list[int]:
        return sorted(part for _, parts in self.done for part in parts)

    def work(self, place: Place) -> SharedWork[int]:
        def is_there(part: int) -> bool:
            time.sleep(0.01 * place.rank)  # the other process looks later
            return part in self.there

        def do(parts: Sequence[int]) -> None:
            self.done.append((place.rank, list(parts)))

        return SharedWork(
            folder=self.folder,
            per_turn=2,
            lock=lambda _: self.folder / "turn.lock",
            is_there=is_there,
            do=do,
            begin=lambda _: None,
            so_far=lambda _: None,
            what="count",
            doing="counting",
        )


@pytest.fixture
def meets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rank, "wait", lambda rank: rank._exchanged(None) and None)


@pytest.mark.usefixtures("meets")
def test_processes_of_one_disk_do_a_part_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rank, "beside", lambda *_: [0, 1])
    disk = Disk(tmp_path)
    disk.done.append((9, [2]))
    in_both(lambda place: share_out(range(8), disk.work(place), place))
    assert sorted(disk.done) == [(0, [0, 1]), (0, [3, 4]), (1, [5, 6]), (1, [7]), (9, [2])]


@pytest.mark.usefixtures("meets")
def test_processes_of_two_disks_do_what_each_of_them_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rank, "beside", lambda rank, _: [rank.rank])
    disks = [Disk(tmp_path / str(rank)) for rank in range(2)]
    disks[0].done.append((9, list(range(5))))
    in_both(lambda place: share_out(range(5), disks[place.rank].work(place), place))
    assert [disk.there for disk in disks] == [list(range(5))] * 2
    assert [(disk.folder / "turn.lock").exists() for disk in disks] == [True, True], "others may lack it there, too"
