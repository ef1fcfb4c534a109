"""Months: every moment belongs to exactly one, and the edges hold all that lies outside."""

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assetclass_pipeline.model.months import EVERYTHING, Calendar, TimeRange

CALENDAR = Calendar(date(2023, 11, 1), date(2024, 3, 1))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_keys_are_dagsters() -> None:
    assert CALENDAR.keys == [
        "2023-11-01", "2023-12-01", "2024-01-01", "2024-02-01", "2024-03-01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "last", "start", "end"),
    [
        ("2024-01-01", "2024-01-01", "2024-01-01", "2024-02-01"),
        ("2023-12-01", "2024-02-01", "2023-12-01", "2024-03-01"),
        ("2023-11-01", "2023-11-01", None, "2023-12-01"),
        ("2024-03-01", "2024-03-01", "2024-03-01", None),
        ("2023-11-01", "2024-03-01", None, None),
    ],
)
def test_edges_are_open(first: str, last: str, start: str | None, end: str | None) -> None:
    expected = TimeRange(moment(start) if start else None, moment(end) if end else None)
    assert CALENDAR.range_of(first, last) == expected
    assert expected.is_everything is (start is None and end is None)


@pytest.mark.parametrize("keys", [("2024-04-01", "2024-04-01"), ("2024-01-01", "2024-01-02")])
def test_a_month_outside_the_calendar_is_refused(keys: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="not in list"):
        CALENDAR.range_of(*keys)


@pytest.mark.parametrize(
    ("at", "key"),
    [
        ("0001-01-01", "2023-11-01"),
        ("2023-11-30T23:59:59.999999", "2023-11-01"),
        ("2023-12-01", "2023-12-01"),
        ("2024-02-29T12:00", "2024-02-01"),
        ("2024-03-31T23:59:59.999999", "2024-03-01"),
        ("9999-12-31", "2024-03-01"),
    ],
)
def test_where_a_moment_belongs(at: str, key: str) -> None:
    assert CALENDAR.key_of(moment(at)) == key


@pytest.mark.parametrize(("position", "key"), [
    (None, "2023-11-01"), (0, "2023-11-01"), (1, "2023-11-01"), (2, "2023-12-01"),
    (5, "2024-03-01"), (99, "2024-03-01"),
])  # fmt: skip
def test_bucket_numbers(position: int | None, key: str) -> None:
    assert CALENDAR.key_at(position) == key


@given(st.datetimes())
def test_every_moment_is_in_the_range_of_exactly_its_own_month(at: datetime) -> None:
    holders = [
        key
        for key in CALENDAR.keys
        if ((r := CALENDAR.range_of(key, key)).start is None or r.start <= at)
        and (r.end is None or at < r.end)
    ]
    assert holders == [CALENDAR.key_of(at)]


@given(st.integers(0, 4), st.integers(0, 4))
def test_months_of_a_range_are_those_it_was_made_of(one: int, other: int) -> None:
    first, last = sorted((one, other))
    scope = CALENDAR.range_of(CALENDAR.keys[first], CALENDAR.keys[last])
    assert CALENDAR.months_in(scope) == CALENDAR.keys[first : last + 1]


def test_months_of_everything_and_of_a_few_days() -> None:
    assert CALENDAR.months_in(EVERYTHING) == CALENDAR.keys
    start = moment("2024-01-31")
    assert CALENDAR.months_in(TimeRange(start, start + timedelta(days=2))) == [
        "2024-01-01", "2024-02-01",
    ]  # fmt: skip


def test_a_calendar_that_starts_in_the_future_has_one_month() -> None:
    later = date(datetime.now().year + 2, 1, 1)  # noqa: DTZ005 - any clock will do
    assert Calendar.until_now(later).keys == [later.isoformat()]
