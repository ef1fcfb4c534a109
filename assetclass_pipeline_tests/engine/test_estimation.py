"""Estimates: a pure range from a rehearsed batch, history and a scan's time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assetclass_pipeline.engine.estimation import (
    PLAN_RATE,
    estimate_from_rehearsal,
    estimate_seconds,
)
from assetclass_pipeline.model.preflight import Rehearsal

RECORDS = st.integers(1, 10**10)
SECONDS = st.floats(1e-4, 100)
RATES = st.none() | st.floats(1, 1e6)


def of_batch(seconds: float, records: int = 500) -> Rehearsal:
    return Rehearsal(records=records, seconds=seconds, wal_bytes=None)


@given(RECORDS, SECONDS, st.integers(1, 16), RATES, st.none() | st.floats(0, 1e4))
def test_more_rows_never_take_less_time(
    records: int, seconds: float, workers: int, rate: float | None, scan: float | None
) -> None:
    one, two = (
        estimate_from_rehearsal(count, of_batch(seconds), workers, rate, scan_seconds=scan)
        for count in (records, 2 * records)
    )
    assert 0 <= one.low < one.high
    assert one.low <= two.low
    assert one.high < two.high


@given(RECORDS, SECONDS, st.integers(1, 15), st.floats(0, 1e4))
def test_it_holds_what_the_rehearsal_says_itself(
    records: int, seconds: float, workers: int, scan: float
) -> None:
    """One worker that goes on as the rehearsed batch did, with four scans, is inside."""
    estimate = estimate_from_rehearsal(records, of_batch(seconds), workers, None, scan_seconds=scan)
    exactly = records * seconds / 500 + records / PLAN_RATE + 4 * scan
    assert estimate.low <= exactly <= estimate.high
    more = estimate_from_rehearsal(records, of_batch(seconds), workers + 1, None, scan_seconds=scan)
    assert (more.low, more.high) <= (estimate.low, estimate.high)


def test_agreeing_history_narrows_and_contradicting_history_widens() -> None:
    alone = estimate_from_rehearsal(1_000_000, of_batch(0.01), 2, None, scan_seconds=1)
    agreed = estimate_from_rehearsal(1_000_000, of_batch(0.01), 2, 100_000, scan_seconds=1)
    slow = estimate_from_rehearsal(1_000_000, of_batch(0.01), 2, 1_000, scan_seconds=1)
    assert alone.low < agreed.low < agreed.high < alone.high
    assert slow.high > 1_000 > alone.high


def test_pauses_take_their_time() -> None:
    estimates = [
        estimate_from_rehearsal(10**6, of_batch(0.01), 1, None, scan_seconds=0, pause_share=share)
        for share in (0.0, 1.0)
    ]
    # A million rows of 20 us each, the second time with as much pause.
    assert estimates[1].high - estimates[0].high == pytest.approx(2 * 20)


def test_the_measured_run_of_the_design_is_inside() -> None:
    """903,000 of 3 M rows with 2 workers: 13.7 s; a scan takes 0.6 s, one worker 20 us a row."""
    estimate = estimate_from_rehearsal(903_000, of_batch(0.01), 2, None, scan_seconds=0.6)
    assert estimate.low <= 13.7 <= estimate.high


@pytest.mark.parametrize("rehearsal", [None, of_batch(0.1, records=0)])
def test_without_a_rehearsal_it_is_what_it_was(rehearsal: Rehearsal | None) -> None:
    for records, rate in ((0, None), (1_000, None), (1_000, 10_000.0)):
        found = estimate_from_rehearsal(records, rehearsal, 2, rate)
        assert found == estimate_seconds(records, rate)
