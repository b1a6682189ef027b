"""Charts place points at their values, and report what they left out."""

from __future__ import annotations

import math
import re

import pytest

from runner.report.charts import Axis, Series, draw, smoothed, sparkline, thinned
from runner.report.words import plain


def test_an_axis_places_values_and_has_round_ticks() -> None:
    axis = Axis(low=0.0, high=200.0, start_px=50, end_px=450)
    assert [axis.place(value) for value in (0, 100, 200, 999)] == [50, 250, 450, 450]
    assert axis.ticks(5) == [0, 50, 100, 150, 200]
    assert Axis(low=0.113, high=0.241, start_px=0, end_px=1).ticks(4) == [0.15, 0.2]
    log = Axis(low=1e-3, high=10.0, start_px=0, end_px=4, log=True)
    assert log.place(0.1) == pytest.approx(2)
    assert log.ticks() == pytest.approx([1e-3, 1e-2, 1e-1, 1, 10])


@pytest.mark.parametrize(
    ("steps", "labels"),
    [((0, 1), "0 1"), ((0, 3), "0 1 2 3"), ((0, 12), "0 5 10"), ((7,), "7"), ((0, 120), "0 25 50 75 100")],
)
def test_steps_are_counted_in_whole_numbers(steps: tuple[int, ...], labels: str) -> None:
    chart = draw("Loss", [Series(label="a", points=[(step, 0.5) for step in steps])])
    assert chart is not None
    assert re.findall(r'<text[^>]*text-anchor="middle"[^>]*>(.*?)</text>', chart.svg) == labels.split()


def test_smoothing_keeps_a_constant_and_skips_nan() -> None:
    points = [(float(step), 2.0 if step % 7 else math.nan) for step in range(200)]
    out = smoothed(points)
    assert {round(y, 9) for _, y in out} == {2.0}
    assert len(out) < 200
    assert smoothed([]) == []
    assert smoothed([(1, 3.0)]) == [(1, 3.0)]


def test_thinning_keeps_ends_and_extremes() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    points[5_003] = (5_003.0, 9.0)
    points[7_001] = (7_001.0, -9.0)
    out = thinned(points)
    assert len(out) <= 410
    assert out[0] == points[0]
    assert out[-1] == points[-1]
    assert points[5_003] in out
    assert points[7_001] in out
    assert [x for x, _ in out] == sorted(x for x, _ in out)


def test_a_chart_without_a_finite_point_is_none() -> None:
    assert draw("Loss", []) is None
    assert draw("Loss", [Series(label="a", points=[(1, math.nan), (2, math.inf)])]) is None


@pytest.mark.parametrize("points", [[(5.0, 0.3)], [(0.0, 0.0), (9.0, 0.0)], [(0.0, -4.0), (1.0, 1e9)], [(1.0, 1e-12)]])
def test_odd_ranges_still_draw_inside_the_frame(points: list[tuple[float, float]]) -> None:
    chart = draw("Loss", [Series(label="a", points=points, dots=True)])
    assert chart is not None
    places = [float(y) for y in re.findall(r'cy="([-\d.]+)"', chart.svg)]
    assert len(places) == len(points)
    assert all(0 <= y <= 236 for y in places)
    assert "nan" not in chart.svg
    assert "inf" not in chart.svg


def test_a_chart_tells_what_it_shows_to_those_who_cannot_see_it() -> None:
    held = Series(label="held-out <b>", points=[(0, 0.24), (100, 0.13), (200, math.nan)], style="held", dots=True)
    chart = draw("Loss", [held])
    assert chart is not None
    assert chart.note.startswith("1 value left out")
    assert 'role="img"' in chart.svg
    assert "Loss over steps: held-out &lt;b&gt; from 0.24 to 0.13" in chart.svg
    assert "<title>held-out &lt;b&gt;, step 100: 0.13</title>" in chart.svg
    assert "<b>" not in chart.svg


def test_a_sparkline_needs_two_points() -> None:
    assert sparkline([(1, 0.5)]) == ""
    assert "<polyline" in sparkline([(1, 0.5), (2, 0.4)])


def test_values_of_settings_read_well() -> None:
    assert (plain(True), plain(["a", 1]), plain(None), plain({"a": 1})) == ("yes", "a, 1", "–", '{"a": 1}')
