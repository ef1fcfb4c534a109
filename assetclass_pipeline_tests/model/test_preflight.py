"""The preflight's pure part: what is refused, and how far an estimate was off."""

from datetime import UTC, datetime

import pytest

from assetclass_pipeline.model.preflight import (
    Finding,
    Preflight,
    Severity,
    estimate_error_percent,
    ranked,
)


@pytest.mark.parametrize(
    ("low", "high", "actual", "error"),
    [
        (10, 20, 10, 0),
        (10, 20, 15, 0),
        (10, 20, 20, 0),
        (10, 20, 30, 50),
        (10, 20, 5, -50),
        (10, 20, 0, -100),
        (0, 1, 0, 0),
        (0, 0, 1, 100_000),
    ],
)
def test_estimate_error_is_in_percent_of_the_nearer_bound(
    low: float, high: float, actual: float, error: float
) -> None:
    assert estimate_error_percent(low, high, actual) == pytest.approx(error)


def test_the_gravest_finding_comes_first_and_refuses() -> None:
    found = [
        Finding(code=code, severity=severity, message="It is so.")
        for code, severity in (
            ("A", Severity.INFO),
            ("B", Severity.REFUSE),
            ("C", Severity.WARN),
            ("D", Severity.REFUSE),
        )
    ]
    assert [finding.code for finding in ranked(found)] == ["B", "D", "C", "A"]
    checked = Preflight(
        checked_at=datetime.now(UTC),
        findings=ranked(found),
        indexes_on_asset_class=[],
        triggers=[],
        replica_identity={},
        publications=[],
        rows_to_change=None,
        disk_needed_bytes=None,
        disk_free_bytes=None,
        wal_bytes=None,
        oldest_transaction_seconds=None,
        waiting_locks=0,
    )
    assert [finding.code for finding in checked.refusals] == ["B", "D"]
