"""A study remembers trials across restarts, retries those that were cut off, and never learns from another search."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runner.command.grammar import space_of
from runner.errors import RunnerError, SettingsError
from runner.schema import ObjectiveSettings, SearchSettings
from runner.search import Choices, Interval, Parameter
from runner.search.study import Study

PAGE = 4096
"""Bytes of a page of a database."""

SPACE: tuple[Parameter, ...] = (
    Interval("optimizer.lr", 1e-5, 1e-1, log=True),
    Interval("lora.rank", 2, 32, integer=True),
    Choices("lora", ("attention", "linear")),
)


def study(
    file: Path,
    *,
    space: Sequence[Parameter] = SPACE,
    fixed: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    **settings: Any,
) -> Study:
    return Study(
        file,
        space=space,
        fixed=fixed or {"steps": 30},
        settings=SearchSettings(**settings),
        objective=ObjectiveSettings(**(objective or {})),
    )


def finish(found: Study, number: int, value: float) -> None:
    found.tell(number, state="completed", curve={10: value + 1, 20: value}, value=value)


def values(overrides: list[str]) -> dict[str, str]:
    return dict(text.split("=") for text in overrides)


def test_the_database_is_not_held_open(tmp_path: Path) -> None:
    found = study(tmp_path / "study.db")
    number, _ = found.ask()
    finish(found, number, 0.5)
    held = [Path(os.readlink(each)) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert tmp_path / "study.db" not in held


def test_of_a_long_curve_some_points_are_kept_and_the_last_is_the_value_of_a_pruned_trial(tmp_path: Path) -> None:
    found = study(tmp_path / "study.db")
    number, _ = found.ask()
    curve = {step: 1 / step for step in range(1, 301)} | {301: float("nan")}
    found.tell(number, state="pruned", curve=curve, value=None)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        points = database.execute("select step, intermediate_value from trial_intermediate_values").fetchall()
        ((value,),) = database.execute("select value from trial_values").fetchall()
    assert 20 < len(points) <= 50
    assert max(points) == (300, pytest.approx(1 / 300))
    assert value == pytest.approx(1 / 300)


def test_trials_are_within_the_space(tmp_path: Path) -> None:
    found = study(tmp_path / "study.db")
    for _ in range(30):
        number, overrides = found.ask()
        chosen = values(overrides)
        assert 1e-5 <= float(chosen["optimizer.lr"]) <= 1e-1
        assert 2 <= int(chosen["lora.rank"]) <= 32
        assert chosen["lora"] in ("attention", "linear")
        finish(found, number, abs(float(chosen["optimizer.lr"]) - 0.01))


def test_a_random_search_draws_by_the_scale_and_the_steps_of_each_interval(tmp_path: Path) -> None:
    space = (
        Interval("optimizer.lr", 1e-5, 1e-1, log=True),
        Interval("steps", 1, 10000, log=True, integer=True),
        Interval("lora.rank", 4, 32, integer=True, step=4),
    )
    found = study(tmp_path / "study.db", space=space, sampler="random")
    drawn = [values(found.ask()[1]) for _ in range(12)]
    assert 3 <= sum(float(each["optimizer.lr"]) < 1e-3 for each in drawn) <= 9
    assert 3 <= sum(int(each["steps"]) < 100 for each in drawn) <= 9
    assert all(int(each["lora.rank"]) % 4 == 0 for each in drawn)


def test_it_learns_as_soon_as_so_many_trials_as_are_asked_for_have_begun_it(tmp_path: Path) -> None:
    def ranks(best: int) -> list[str]:
        found = study(tmp_path / f"{best}.db", space=SPACE[1:2], startup_trials=1)
        asked = []
        for _ in range(5):
            number, overrides = found.ask()
            asked.append(overrides[0])
            finish(found, number, float(abs(int(values(overrides)["lora.rank"]) - best)))
        return asked

    low, high = ranks(2), ranks(32)
    assert low[0] == high[0] and low != high


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_steps_of_a_range_are_written_as_a_grid_writes_them(tmp_path: Path, sampler: str) -> None:
    """`0.30000000000000004` would be a different job from `0.3`."""
    space, _ = space_of(["dataset.caption_dropout=range(0,0.75,0.1)"])
    found = study(tmp_path / "study.db", space=space, sampler=sampler, startup_trials=50)
    chosen = {values(found.ask()[1])["dataset.caption_dropout"] for _ in range(50)}
    assert chosen == {"0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"}
    assert space[0].examples() == ("0.0", "0.7")
    assert Interval("optimizer.eps", 1e-15, 1e-8, log=True).text(3e-14) == "3e-14", "no step, no rounding"


def test_it_learns(tmp_path: Path) -> None:
    """After the random start, most trials are near the best rank."""
    found = study(tmp_path / "study.db", space=SPACE[1:2], startup_trials=10)
    ranks = []
    for _ in range(40):
        number, overrides = found.ask()
        ranks.append(int(values(overrides)["lora.rank"]))
        finish(found, number, float(abs(ranks[-1] - 24)))
    assert sum(abs(rank - 24) <= 3 for rank in ranks[20:]) > sum(abs(rank - 24) <= 3 for rank in ranks[:20])
    best = found.best()
    assert best is not None
    assert abs(int(best[1]["lora.rank"]) - 24) <= 1


def test_trials_that_run_at_the_same_time_are_not_all_where_the_best_was(tmp_path: Path) -> None:
    """Nothing is known about them yet, so a sampler that ignored them would suggest the same values each time."""
    found = study(tmp_path / "study.db", space=SPACE[2:], startup_trials=2, seed=1)
    for _ in range(3):
        number, (chosen,) = found.ask()
        finish(found, number, 0.1 if chosen == "lora=linear" else 0.5)
    assert len({found.ask()[1][0] for _ in range(2)}) == 2


def test_trials_of_earlier_runs_count_and_those_cut_off_are_tried_again(tmp_path: Path) -> None:
    first = study(tmp_path / "study.db")
    asked = [first.ask() for _ in range(4)]
    finish(first, asked[0][0], 0.3)
    first.tell(asked[1][0], state="failed", curve={}, value=None)
    first.tell(asked[2][0], state="pruned", curve={5: 0.7}, value=0.7)
    assert first.count == 4

    again = study(tmp_path / "study.db")
    again.take_up()
    assert again.count == 2, "one completed, one pruned; the failed one and the one cut off are to be tried again"
    retried = [again.ask()[1] for _ in range(2)]
    assert sorted(retried) == sorted([asked[1][1], asked[3][1]])
    assert again.count == 4
    assert again.ask()[1] not in [overrides for _, overrides in asked], "a new run draws something new"
    third = study(tmp_path / "study.db")
    third.take_up()
    third.take_up()
    assert third.count == 2
    assert len({tuple(third.ask()[1]) for _ in range(4)}) == 4, "what was tried again is tried again once"


def test_a_search_with_other_settings_is_another_study(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    found = study(file)
    finish(found, found.ask()[0], 0.1)
    assert study(file).count == 1
    assert study(file, sampler="random", seed=3, n_trials=99).count == 1
    assert study(file, fixed={"steps": 60}).count == 0
    assert study(file, space=SPACE[:2]).count == 0
    assert study(file, space=[Interval("optimizer.lr", 1e-5, 1e-2, log=True), *SPACE[1:]]).count == 0
    assert study(file, objective={"name": "train/loss"}).count == 0
    assert study(file, objective={"direction": "maximize"}).count == 0


@pytest.mark.parametrize(("direction", "best"), [("minimize", 0.1), ("maximize", 0.3)])
def test_the_direction_decides_what_is_best(tmp_path: Path, direction: str, best: float) -> None:
    found = study(tmp_path / "study.db", objective={"direction": direction})
    assert found.best() is None
    for value in (0.2, 0.1, 0.3):
        finish(found, found.ask()[0], value)
    number, _ = found.ask()
    found.tell(number, state="completed", curve={}, value=float("nan"))
    assert found.best() is not None
    assert found.best()[0] == best  # type: ignore[index]


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database, but long enough to be looked at as if it were one\n" * 20)
    with pytest.raises(SettingsError, match=r"study\.db: cannot be read as a study .*move it away"):
        study(tmp_path / "study.db")


def test_one_that_another_version_of_optuna_has_made_is_told_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    study(file)
    with sqlite3.connect(file) as older:
        older.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    older.close()
    upgrade = rf"study\.db: .*optuna storage upgrade --storage sqlite:///{re.escape(str(file))}.*Or move it away"
    with pytest.raises(SettingsError, match=upgrade):
        study(file)


def test_one_that_is_damaged_further_in_is_named_too(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    study(file).ask()
    content = file.read_bytes()
    file.write_bytes(content[: 4 * PAGE] + bytes(PAGE) + content[5 * PAGE :])
    with pytest.raises(SettingsError, match=r"study\.db: cannot be read as a study .*move it away"):
        study(file).ask()


def test_what_a_full_disk_cuts_off_is_said_in_a_line_and_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = sqlite3.dbapi2.connect  # type: ignore[attr-defined]

    def without_room(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = really(*arguments, **more)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    study(tmp_path / "study.db")
    with monkeypatch.context() as full:
        full.setattr(sqlite3.dbapi2, "connect", without_room)  # type: ignore[attr-defined]
        found = study(tmp_path / "study.db")
        number, _ = found.ask()
        for action in (lambda: found.refuse(number, "too long " * PAGE), lambda: study(tmp_path / "new.db")):
            with pytest.raises(RunnerError, match=r"database or disk is full\); fix that") as raised:
                action()
            assert not isinstance(raised.value, SettingsError), "that would mean to move it away"
    again = study(tmp_path / "study.db")
    again.take_up()
    assert again.ask()[0] > number
    assert again.count == 1


def test_one_that_is_damaged_while_it_is_used_is_named_by_whoever_asks_next(tmp_path: Path) -> None:
    found = study(tmp_path / "study.db")
    number, _ = found.ask()
    finish(found, number, 0.5)
    (tmp_path / "study.db").write_bytes(b"\0" * PAGE)
    for ask in (found.best, lambda: found.count):
        with pytest.raises(SettingsError, match=r"study\.db: cannot be read as a study .*move it away"):
            ask()
