from __future__ import annotations

import math

from runner.system.amounts import count, duration, moment, number


def test_numbers_and_times_read_well() -> None:
    assert [number(v) for v in (0.13034, 1200.0, 1e-4, 0.0, 29.02, 1.5e7, math.nan, None)] == [
        "0.1303", "1,200", "1e-4", "0", "29.02", "1.5e7", "nan", "–",
    ]  # fmt: skip
    assert [duration(v) for v in (0.42, 9.97, 38.2, 250, 7500, None)] == [
        "0.4 s", "10 s", "38 s", "4 min 10 s", "2 h 05 min", "–",
    ]  # fmt: skip
    assert (count(1, "job"), count(4, "job")) == ("1 job", "4 jobs")
    assert moment("2026-11-20T09:00:02+00:00") == "2026-11-20 09:00:02 UTC"
    assert moment("soon") == "soon"
