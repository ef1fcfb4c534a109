"""The weekly report's numbers, against SQL of the test's own and by hand."""

from datetime import UTC, datetime, timedelta

import pytest

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.errors import CorrectionFailedError, InvalidOptionsError
from assetclass_pipeline.model.quality import Thresholds
from assetclass_pipeline.reports.performance import PerformanceReport, performance_report
from assetclass_pipeline_tests.engine.runs import broken_after, correct_now, request_of
from assetclass_pipeline_tests.market import Market
from assetclass_pipeline_tests.reports.seeds import Seed, add_operations, operation_id

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def report_of(market: Market, since: datetime | None = None) -> PerformanceReport:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return performance_report(connection, market.settings, since=since, until=NOW)


@pytest.fixture
def history(market: Market) -> Market:
    """This week four operations that count, before it three; and some that do not."""
    add_operations(
        market,
        Seed("small", NOW - DAY, seconds=10, planned=1000, batch=500, rolled_back_by="undo"),
        Seed("undo", NOW - HOUR, kind="rollback", rollback_of="small", seconds=20),
        Seed(
            "large",
            NOW - 3 * DAY,
            seconds=8000,
            planned=200_000,
            corrected=150_000,
            failed=50,
            batch=1000,
            status="timed_out",
            waits={"replication_lag": 3000.5, "window": 7.0},
            error="its time was up",
        ),
        Seed("none", NOW - 4 * DAY, seconds=1, planned=0, corrected=0),
        Seed("dry", NOW - 2 * DAY, dry_run=True, waits={"window": 1e6}),
        Seed("parked", NOW - 2 * DAY, status="planned", corrected=0),
        Seed("active", NOW - HOUR, status="running", seconds=None, corrected=10),
        Seed("b1", NOW - 8 * DAY, seconds=30, waits={"window": 40.0}),
        Seed("b2", NOW - 20 * DAY, seconds=50, planned=50_000, corrected=50_000, batch=1500),
        # The first moment of the periods before, and the last one that is too early.
        Seed("b3", NOW - 35 * DAY, seconds=90, status="failed"),
        Seed("old", NOW - 35 * DAY - timedelta(microseconds=1), status="failed"),
    )
    return market


def test_the_week_and_what_came_before(history: Market) -> None:
    report = report_of(history)
    counted, succeeded, corrected, longest = history.rows(
        "SELECT count(*), count(*) FILTER (WHERE status = 'succeeded'),"
        " sum((SELECT coalesce(sum(records_corrected), 0) FROM assetclass.operation_batch b"
        "      WHERE b.correction_id = o.correction_id)) FILTER (WHERE kind = 'correction'),"
        " max(extract(epoch FROM finished_at - started_at))"
        " FROM assetclass.operation o WHERE NOT dry_run"
        " AND status NOT IN ('planned', 'running')"
        " AND requested_at >= '2026-11-16 08:00+00' AND requested_at < '2026-11-23 08:00+00'"
    )[0]
    outcome = report.now
    assert (outcome.operations, outcome.success_rate) == (counted, 100 * succeeded / counted)
    assert (counted, succeeded) == (4, 3)
    assert outcome.records_corrected == corrected == 151_000
    assert outcome.records_restored == 1000
    assert outcome.duration_longest == longest == 8000
    assert outcome.duration_median == 15
    assert (outcome.records_failed, outcome.rolled_back) == (50, 1)
    assert outcome.error_rate == pytest.approx(100 * 50 / 152_050)
    assert outcome.by_status == {"succeeded": 3, "timed_out": 1}
    assert outcome.waited_seconds == 3007.5
    before = report.before
    assert (before.operations, report.operations_before_average) == (3, 0.75)
    assert before.success_rate == pytest.approx(200 / 3)
    assert (before.duration_median, before.duration_longest) == (50, 90)


def test_by_size_with_the_guides_batches(history: Market) -> None:
    small, medium, large = report_of(history).sizes
    assert [each.now.operations for each in (small, medium, large)] == [3, 0, 1]
    assert [each.before.operations for each in (small, medium, large)] == [2, 1, 0]
    assert [each.advised_batch for each in (small, medium, large)] == [
        (500, 1000),
        (1000, 2000),
        (2000, 5000),
    ]
    assert (small.used_batch, small.outside) == (500, 0)
    assert (medium.used_batch, medium.now.success_rate) == (None, None)
    assert (large.used_batch, large.outside) == (1000, 1)
    # The ledger says 150,050 rows in 8,000 s without a pause.
    assert large.now.records_per_second == pytest.approx(150_000 / 8000, rel=0.01)


def test_waits_days_and_the_slowest(history: Market) -> None:
    report = report_of(history)
    waits = [(each.signal, each.seconds, each.seconds_before) for each in report.waits]
    assert waits == [("replication_lag", 3000.5, 0), ("window", 7, 10)]
    days = {day.day: (day.operations, day.succeeded, day.records_corrected) for day in report.days}
    assert days["2026-11-20"] == (1, 0, 150_000)
    assert days["2026-11-22"] == (1, 1, 1000)
    # What a rollback restores is no correction.
    assert days["2026-11-23"] == (1, 1, 0)
    assert days["2026-11-18"] == (0, 0, 0)
    assert sum(count for count, _, _ in days.values()) == 4
    names = [operation_id(name) for name in ("large", "undo", "small", "none")]
    assert [line.correction_id for line in report.slowest] == names
    (failure,) = report.failures
    assert (failure.correction_id, failure.error) == (operation_id("large"), "its time was up")


def test_what_to_look_at(history: Market) -> None:
    said = "\n".join(report_of(history).findings)
    for words in ("75.0 %", "8,000 s, longer than the limit", "waited", "2,000 to 5,000 rows"):
        assert words in said
    assert "refused" not in said


def test_the_success_rate_is_held_against_the_limit_of_the_settings(history: Market) -> None:
    limits = Thresholds(success_rate=75)
    settings = history.settings.model_copy(update={"thresholds": limits})
    with connect(history.dsn, settings, purpose="test") as connection:
        report = performance_report(connection, settings, until=NOW)
    assert (report.success_rate_limit, report.now.success_rate) == (75, 75)
    assert not any("succeeded" in finding for finding in report.findings)


def test_the_error_rate_is_of_all_rows_that_batches_dealt_with(market: Market) -> None:
    seed = Seed(
        "picky", NOW - DAY, planned=1000, corrected=100, failed=100, skipped=800, batch=1000
    )
    add_operations(market, seed)
    outcome = report_of(market).now
    assert (outcome.records_failed, outcome.error_rate) == (100, 10)


def test_a_night_between_an_end_and_its_resume_is_no_duration(market: Market) -> None:
    market.fill(30)
    request = request_of(batch_size=10, workers=1)
    with broken_after(market, 1), pytest.raises(CorrectionFailedError):
        correct_now(market, request)
    market.execute(
        "UPDATE assetclass.operation SET started_at = started_at - interval '20 hours',"
        " finished_at = finished_at - interval '20 hours'"
    )
    market.execute(
        "UPDATE assetclass.operation_total SET started_at = started_at - interval '20 hours',"
        " ended_at = ended_at - interval '20 hours'"
    )
    market.execute(
        "UPDATE assetclass.operation_heartbeat SET beat_at = beat_at - interval '20 hours'"
    )
    correct_now(market, request)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        report = performance_report(connection, market.settings)
    [(waited,)] = market.rows(
        "SELECT seconds FROM assetclass.operation_wait WHERE signal = 'next_process'"
    )
    assert waited > 20 * 3600
    assert report.now.duration_longest is not None
    assert report.now.duration_longest < 3600
    assert report.now.waited_seconds < 3600
    assert "next_process" not in {each.signal for each in report.waits}
    assert not any("longer than the limit" in finding for finding in report.findings)


def test_an_empty_history_has_nothing_to_tell(market: Market) -> None:
    report = report_of(market)
    assert (report.now.operations, report.now.success_rate, report.now.error_rate) == (
        0,
        None,
        None,
    )
    assert (report.now.duration_median, report.now.records_per_second) == (None, None)
    assert (report.waits, report.slowest, report.failures, report.findings) == ([], [], [], [])
    assert len(report.days) == 8


def test_another_period(history: Market) -> None:
    report = report_of(history, since=NOW - 2 * HOUR)
    assert (report.now.operations, report.before.operations) == (1, 0)
    assert report.period.since == NOW - 2 * HOUR
    with pytest.raises(InvalidOptionsError, match="earlier moment"):
        report_of(history, since=NOW)
