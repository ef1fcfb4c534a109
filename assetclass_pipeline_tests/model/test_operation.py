"""Progress arithmetic, the states' groups, and the sums that prove an operation."""

import pytest

from assetclass_pipeline.model.operation import (
    ACTIVE,
    RESUMABLE,
    Phase,
    Proof,
    Status,
    progress_percent,
    remaining_seconds,
    too_many_failures,
)


@pytest.mark.parametrize(
    ("done", "planned", "phase", "percent"),
    [
        (0, None, Phase.PLANNING, 0),
        (0, 0, Phase.CORRECTING, 0),
        (0, 0, Phase.DONE, 100),
        (25, 100, Phase.CORRECTING, 25),
        (100, 100, Phase.CORRECTING, 99),
        (100, 100, Phase.VERIFYING, 99),
        (999_999, 1_000_000, Phase.CORRECTING, 99),
        (100, 100, Phase.DONE, 100),
    ],
)
def test_a_hundred_percent_is_done_and_nothing_else(
    done: int, planned: int | None, phase: Phase, percent: float
) -> None:
    assert progress_percent(done, planned, phase) == percent


@pytest.mark.parametrize("rate", [None, 0])
def test_no_estimate_without_a_rate(rate: float | None) -> None:
    assert remaining_seconds(100, rate) is None


@pytest.mark.parametrize(("left", "low", "high"), [(75, 22.5, 37.5), (0, 0, 0), (-10, 0, 0)])
def test_the_estimate_is_a_range_around_the_rate_and_never_negative(
    left: int, low: float, high: float
) -> None:
    estimate = remaining_seconds(left, 2.5)
    assert estimate is not None
    assert (estimate.low, estimate.high) == (low, high)


def test_every_status_but_the_last_word_is_active_or_resumable() -> None:
    assert set(Status) - ACTIVE - RESUMABLE == {Status.SUCCEEDED}
    assert not ACTIVE & RESUMABLE


@pytest.mark.parametrize(
    ("corrected", "skipped", "failed", "left", "unaccounted"),
    [
        (100, 0, 0, 0, 0),
        (90, 7, 3, 0, 0),
        (50, 10, 0, 40, 0),
        (99, 0, 0, 0, 1),
        (101, 0, 0, 0, -1),
    ],
)
def test_a_lost_or_invented_row_is_unaccounted(
    corrected: int, skipped: int, failed: int, left: int, unaccounted: int
) -> None:
    proof = Proof(planned=100, corrected=corrected, skipped=skipped, failed=failed, open=left)
    assert proof.unaccounted == unaccounted


@pytest.mark.parametrize(
    ("failed", "done", "planned", "too_many"),
    [
        (50, 50, 1_000_000, False),
        (51, 51, 1_000_000, True),
        (50, 1000, 1_000_000, False),
        (500, 10_000, 1_000_000, False),
        (501, 10_000, 1_000_000, True),
        (5, 5, 100, False),
        (6, 6, 100, True),
        (1, 1, 1, True),
        (0, 0, 0, False),
    ],
)
def test_failures_are_too_many_above_their_share_of_a_thousand_rows_or_the_plan(
    failed: int, done: int, planned: int, too_many: bool
) -> None:
    assert too_many_failures(failed, done=done, planned=planned, limit=5) is too_many
