"""What is usual: size classes, median and scatter, and the limit that follows from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assetclass_pipeline.model.baseline import MAD_SCALE, class_range, judge, size_class


@pytest.mark.parametrize(
    ("rows", "power", "rows_of_class"),
    [
        (0, 0, (0, 1)),
        (1, 1, (1, 10)),
        (9, 1, (1, 10)),
        (10, 2, (10, 100)),
        (999, 3, (100, 1000)),
        (1000, 4, (1000, 10_000)),
    ],
)
def test_size_classes_are_powers_of_ten(
    rows: int, power: int, rows_of_class: tuple[int, int]
) -> None:
    assert size_class(rows) == power
    assert class_range(rows) == rows_of_class


@given(st.integers(min_value=0, max_value=10**12))
def test_every_number_lies_in_its_class(rows: int) -> None:
    first, after = class_range(rows)
    assert first <= rows < after
    assert size_class(first) == size_class(after - 1) == size_class(rows)


def test_too_few_past_values_give_no_judgement() -> None:
    past = [1.0] * 4
    assert judge(100, past, worse="higher", least=5, deviations=4, floor=0) is None
    assert judge(100, [*past, 1.0], worse="higher", least=5, deviations=4, floor=0) is not None


# Median 10, absolute deviations 2 1 0 1 2, their median 1: scaled MAD 1.4826.
SCATTERED = [8.0, 9.0, 10.0, 11.0, 12.0]
MARGIN = 4 * MAD_SCALE


@pytest.mark.parametrize(
    ("worse", "value", "is_unusual"),
    [
        ("higher", 10 + MARGIN - 0.001, False),
        ("higher", 10 + MARGIN, False),
        ("higher", 10 + MARGIN + 0.001, True),
        ("higher", 0.0, False),
        ("lower", 10 - MARGIN + 0.001, False),
        ("lower", 10 - MARGIN, False),
        ("lower", 10 - MARGIN - 0.001, True),
        ("lower", 100.0, False),
    ],
)
def test_unusual_is_what_lies_beyond_the_deviations_on_the_bad_side(
    worse: str, value: float, *, is_unusual: bool
) -> None:
    found = judge(value, SCATTERED, worse=worse, least=5, deviations=4, floor=0)  # type: ignore[arg-type]
    assert found is not None
    assert found.is_unusual is is_unusual
    assert (found.median, found.runs) == (10, 5)
    assert found.mad == pytest.approx(MAD_SCALE)


@pytest.mark.parametrize(
    ("value", "is_unusual"), [(98.9, True), (99.0, False), (99.1, False), (100.0, False)]
)
def test_where_past_values_are_equal_the_floor_decides(value: float, *, is_unusual: bool) -> None:
    found = judge(value, [100.0] * 5, worse="lower", least=5, deviations=4, floor=1)
    assert found is not None
    assert (found.limit, found.is_unusual) == (99, is_unusual)


def test_one_outlier_among_the_past_values_moves_nothing() -> None:
    clean = judge(20, SCATTERED, worse="higher", least=5, deviations=4, floor=0)
    spoiled = judge(20, [*SCATTERED[:-1], 1e9], worse="higher", least=5, deviations=4, floor=0)
    assert clean is not None
    assert spoiled is not None
    assert spoiled.limit == clean.limit
    assert spoiled.is_unusual


def test_its_numbers_keep_their_meaning_when_they_are_tiny() -> None:
    found = judge(0.0000123456789, [1e-5] * 5, worse="higher", least=5, deviations=4, floor=0)
    assert found is not None
    assert found.numbers == {
        "value": 1.23457e-05,
        "limit": 1e-05,
        "baseline": {"median": 1e-05, "mad": 0.0, "runs": 5},
    }
