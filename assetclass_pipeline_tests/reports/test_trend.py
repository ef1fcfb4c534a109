"""The robust line: exact on a line, unmoved by odd days, honest about what it does not know."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assetclass_pipeline.reports.trend import robust_line

_NUMBERS = st.integers(-1000, 1000)


@given(slope=_NUMBERS, intercept=_NUMBERS, count=st.integers(5, 40))
def test_of_a_line_it_is_the_line(slope: int, intercept: int, count: int) -> None:
    line = robust_line([(x, intercept + slope * x) for x in range(count)])
    assert line is not None
    assert (line.low, line.slope, line.high, line.scatter) == (slope, slope, slope, 0)


def test_a_quarter_of_odd_days_does_not_bend_it() -> None:
    points = [(float(x), 5.0 * x) for x in range(40)]
    for odd in range(0, 40, 4):
        points[odd] = (float(odd), 1e6)
    line = robust_line(points)
    assert line is not None
    assert line.slope == pytest.approx(5)


def test_the_range_holds_the_true_slope_about_nine_times_of_ten() -> None:
    noise = random.Random(7)  # noqa: S311 - a seed, so that it is the same each time
    held = 0
    for _ in range(200):
        line = robust_line([(x, 3.0 * x + noise.gauss(0, 10)) for x in range(30)])
        assert line is not None
        held += line.low <= 3.0 <= line.high
    assert 175 <= held <= 200


def test_it_is_widened_to_the_last_third() -> None:
    points = [(float(x), 1.0 * x if x < 40 else 40 + 9.0 * (x - 40)) for x in range(60)]
    line = robust_line(points)
    assert line is not None
    assert line.slope < 9
    assert line.high == 9
    flat = robust_line([(float(x), 1.0 * x if x < 40 else 40.0) for x in range(60)])
    assert flat is not None
    assert flat.low == 0


def test_scatter_is_that_of_nine_points_of_ten() -> None:
    noise = random.Random(3)  # noqa: S311
    points = [(float(x), 2.0 * x + noise.gauss(0, 10)) for x in range(300)]
    line = robust_line(points)
    assert line is not None
    inside = [abs(y - 2.0 * x) <= line.scatter for x, y in points]
    assert statistics.mean(inside) == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("points", [[], [(1, 1)] * 9, [(x, x) for x in range(4)]])
def test_too_little_to_say(points: list[tuple[float, float]]) -> None:
    assert robust_line(points) is None
