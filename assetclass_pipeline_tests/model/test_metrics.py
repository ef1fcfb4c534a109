"""The guide's table of key metrics: at the limit is met, beyond it is not, unknown is neither."""

from datetime import UTC, datetime
from typing import Any

import pytest

from assetclass_pipeline.model.metrics import (
    ActiveOperation,
    DataQuality,
    KeyMetric,
    Window,
    key_metrics,
)
from assetclass_pipeline.model.operation import Kind, Phase, Status
from assetclass_pipeline.model.quality import Thresholds

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def week(**values: Any) -> Window:
    usual: dict[str, Any] = {
        "window": "7d",
        "kind": None,
        "ended": 20,
        "completed": 20,
        "success_rate": 100,
        "mean_seconds": 60,
        "p95_seconds": 60,
        "longest_seconds": 60,
        "mean_records": 5,
        "error_rate": 0,
    }
    return Window(**{**usual, **values})


def quality(**values: Any) -> DataQuality:
    usual: dict[str, Any] = {
        "measured_at": NOW,
        "total_records": 1000,
        "completeness": 99,
        "integrity": 99,
        "orphaned_percent": 1,
        "quality_score": 99,
        "correctable": 10,
        "correctable_percent": 1,
        "estimated_seconds": None,
    }
    return DataQuality(**{**usual, **values})


def active(seconds: float, status: Status = Status.RUNNING) -> ActiveOperation:
    return ActiveOperation(
        correction_id="x",
        kind=Kind.CORRECTION,
        status=status,
        phase=Phase.CORRECTING,
        dry_run=False,
        seconds=seconds,
        heartbeat_age_seconds=1,
        progress_percent=5,
        throttle=[],
    )


def judged(
    window: Window | None = None,
    measured: DataQuality | None = None,
    running: ActiveOperation | None = None,
) -> dict[str, KeyMetric]:
    windows = [week(window="24h", success_rate=0), week(kind=Kind.ROLLBACK, success_rate=0)]
    found = key_metrics(Thresholds(), [*windows, window or week()], measured, running)
    return {metric.name: metric for metric in found}


@pytest.mark.parametrize(
    ("name", "at_limit", "beyond", "limit", "action"),
    [
        (
            "Operation Success Rate",
            {"window": week(success_rate=95)},
            {"window": week(success_rate=94.9)},
            95,
            "Investigate failures",
        ),
        (
            "Data Quality Score",
            {"measured": quality(quality_score=90)},
            {"measured": quality(quality_score=89.9)},
            90,
            "Schedule correction",
        ),
        (
            "Operation Duration",
            {"window": week(longest_seconds=7200)},
            {"window": week(longest_seconds=7200.1)},
            7200,
            "Check performance",
        ),
        (
            "Operation Duration",
            {"running": active(7200)},
            {"running": active(7201)},
            7200,
            "Check performance",
        ),
        (
            "Error Rate",
            {"window": week(error_rate=5)},
            {"window": week(error_rate=5.1)},
            5,
            "Review error patterns",
        ),
        (
            "Records Needing Correction",
            {"measured": quality(correctable_percent=10)},
            {"measured": quality(correctable_percent=10.1)},
            10,
            "Plan correction run",
        ),
    ],
)
def test_each_metric_against_its_limit(
    name: str, at_limit: dict[str, Any], beyond: dict[str, Any], limit: float, action: str
) -> None:
    met, missed = judged(**at_limit)[name], judged(**beyond)[name]
    assert (met.met, missed.met) == (True, False)
    assert (missed.limit, missed.action) == (limit, action)


def test_what_was_never_measured_is_neither_met_nor_missed() -> None:
    never = week(ended=0, completed=0, success_rate=None, longest_seconds=None, error_rate=None)
    found = judged(window=never)
    assert {metric.met for metric in found.values()} == {None}
    assert len(found) == 5


def test_a_request_that_waits_takes_no_time_of_work() -> None:
    found = judged(running=active(10_000, Status.REQUESTED))
    assert found["Operation Duration"].value == 60
