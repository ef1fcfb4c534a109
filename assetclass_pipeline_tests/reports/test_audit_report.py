"""The monthly report's numbers, against the guide's SQL, SQL of the test's own, and by hand."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.analysis import remember_quality
from assetclass_pipeline.model.quality import Thresholds
from assetclass_pipeline.reports.audit import AuditReport, Use, advice_on, audit_report, monthly
from assetclass_pipeline_tests.engine.runs import report_of as measure
from assetclass_pipeline_tests.engine.runs import tables_of
from assetclass_pipeline_tests.market import Bar, Market
from assetclass_pipeline_tests.reports.seeds import (
    Seed,
    add_alert,
    add_measurement,
    add_operations,
    operation_id,
)

DAY = timedelta(days=1)
GUIDES_SQL = """
SELECT
    COUNT(*) as total_records,
    COUNT(*) FILTER (WHERE asset_class IS NULL) as null_asset_class,
    COUNT(*) FILTER (WHERE asset_class = '') as empty_asset_class,
    COUNT(*) FILTER (WHERE asset_class IS NOT NULL AND asset_class != '') as valid_asset_class,
    ROUND(
        (COUNT(*) FILTER (WHERE asset_class IS NOT NULL AND asset_class != '')::DECIMAL
            / COUNT(*)) * 100,
        2
    ) as completeness_percentage
FROM market_data
"""


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


def report_of(market: Market) -> AuditReport:
    tables = tables_of(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return audit_report(connection, tables, market.settings, by="ada")


@pytest.mark.parametrize(("valid", "empty", "null"), [(1, 0, 2), (249, 1, 1750), (13, 3, 0)])
def test_the_guides_sql_gives_the_same_numbers(
    market: Market, valid: int, empty: int, null: int
) -> None:
    market.list_symbols(("A", "X"))
    classes = ["X"] * valid + [""] * empty + [None] * null
    market.add(Bar(number, "A", asset_class=each) for number, each in enumerate(classes))
    guide = report_of(market).guide
    (expected,) = market.rows(GUIDES_SQL)
    assert tuple(Decimal(str(value)) for value in guide.model_dump().values()) == tuple(
        Decimal(value) for value in expected
    )


def test_the_measurement_is_stored_and_ends_the_trend(market: Market, now: datetime) -> None:
    market.fill(100, missing_every=2)
    add_measurement(market, now - 400 * DAY, quality_score=1.0)
    add_measurement(market, now - 200 * DAY, quality_score=70.0)
    add_measurement(market, now - 200 * DAY, quality_score=80.0, total_records=77)
    report = report_of(market)
    stored = market.value(
        "SELECT quality_score FROM assetclass.quality_measurement WHERE source = 'monthly_audit'"
    )
    assert report.integrity.quality_score == stored == 50
    assert [(each.quality_score, each.measurements) for each in report.scores] == [(80, 2), (50, 1)]
    assert [each.total_records for each in monthly(report.scores)] == [77, 100]


def test_changes_operations_and_what_was_undone(market: Market, now: datetime) -> None:
    add_operations(
        market,
        Seed(
            "one",
            now - 5 * DAY,
            reason="new feed",
            ticket="T-1",
            changes=(("A", None, "X", 600), ("B", "", "X", 400)),
            rolled_back_by="undo",
        ),
        Seed("two", now - 3 * DAY, by="grace", changes=(("A", None, "X", 1000),)),
        Seed(
            "undo", now - DAY, kind="rollback", rollback_of="one", changes=(("A", "X", None, 600),)
        ),
        Seed("dry", now - DAY, dry_run=True, changes=(("A", None, "X", 5000),)),
        Seed("old", now - 40 * DAY, changes=(("A", None, "X", 70),)),
    )
    report = report_of(market)
    assert [
        (each.kind, each.from_, each.to, each.records, each.symbols, each.operations)
        for each in report.changes_by_class
    ] == [
        ("correction", None, "X", 1600, 1, 2),
        ("rollback", "X", None, 600, 1, 1),
        ("correction", "", "X", 400, 1, 1),
    ]
    assert [(each.symbol, each.records) for each in report.changes_by_symbol] == [
        ("A", 1600),
        ("A", 600),
        ("B", 400),
    ]
    lines = {line.correction_id: line for line in report.operations}
    assert set(lines) == {operation_id(name) for name in ("one", "two", "undo", "dry")}
    one = lines[operation_id("one")]
    assert (one.requested_by, one.reason, one.ticket) == ("ada", "new feed", "T-1")
    assert one.rolled_back_by == operation_id("undo")
    assert (report.operations_total, report.outcome.operations) == (4, 3)


def test_alerts_with_the_time_that_people_took(market: Market, now: datetime) -> None:
    kind = "LOW_DATA_QUALITY"
    add_alert(market, now - DAY, kind, acknowledged=100, resolved=1000, occurrences=5)
    add_alert(market, now - 2 * DAY, kind, acknowledged=300, resolved=5000, reopened=2)
    add_alert(market, now - 3 * DAY, kind)
    add_alert(market, now - 3 * DAY, "RUN_FAILED", resolved=60)
    add_alert(market, now - 40 * DAY, "RUN_FAILED", resolved=9)
    low, failed = report_of(market).alerts
    assert low.model_dump() == {
        "alert_type": kind,
        "opened": 3,
        "repeats": 4,
        "reopened": 2,
        "acknowledged": 2,
        "resolved": 2,
        "unresolved": 1,
        "seconds_to_acknowledge": 200,
        "seconds_to_resolve": 3000,
    }
    assert (failed.opened, failed.seconds_to_acknowledge, failed.seconds_to_resolve) == (
        1,
        None,
        60,
    )


def test_the_log_is_recomputed_and_limits_that_changed_are_listed(market: Market) -> None:
    report = report_of(market)
    log = report.audit_log
    last = market.rows(
        "SELECT number, hash FROM assetclass.audit_log ORDER BY number DESC LIMIT 1"
    )[0]
    assert log.whole
    assert log.head == f"{last[0]}:{last[1]}"
    assert log.entries == log.entries_in_period == last[0]
    (first,) = report.limit_changes
    assert (first.actor, first.before, first.after["completeness"]) == ("ada", {}, 95)
    settings = market.settings.model_copy(update={"thresholds": Thresholds(completeness=97)})
    with connect(market.dsn, settings, purpose="test") as connection:
        remember_quality(connection, settings, measure(market), source="test", by="grace")
    market.execute("ALTER TABLE assetclass.audit_log DISABLE TRIGGER refuse")
    again = report_of(market)
    changed = [(each.actor, each.before, each.after) for each in again.limit_changes[1:]]
    assert changed == [
        ("grace", {"completeness": 95}, {"completeness": 97}),
        ("ada", {"completeness": 97}, {"completeness": 95}),
    ]
    market.execute("UPDATE assetclass.audit_log SET actor = 'nobody' WHERE number = 2")
    broken = report_of(market).audit_log
    assert not broken.whole
    assert "entry 2 was changed" in str(broken.broken)


def test_how_often_each_limit_was_not_kept(market: Market, now: datetime) -> None:
    market.fill(10)
    market.execute("UPDATE market_data SET asset_class = 'CLASS_' || right(symbol, 1)::int % 2")
    for number in range(24):
        at = now - (number + 1) * DAY
        add_measurement(market, at, completeness=94.0, quality_score=89.0 + number / 10)
    found = {each.threshold: each for each in report_of(market).limits}
    low = found["completeness"]
    # The audit's own measurement is the 25th, and is whole.
    assert (low.measurements, low.violations, low.worst, low.best) == (25, 24, 94, 100)
    quality = found["quality_score"]
    expected = market.value(
        "SELECT count(*) FROM assetclass.quality_measurement WHERE quality_score < 90"
    )
    assert quality.violations == expected == 10
    assert (quality.advice, low.advice) == (None, None)
    assert "worst was 0.00 %" in (found["correctable"].advice or "")
    assert "lower ASSETCLASS_THRESHOLDS__CORRECTABLE" in (found["correctable"].advice or "")


@pytest.mark.parametrize(
    ("name", "use", "says"),
    [
        ("completeness", Use(19, 19, 80, 90), None),
        ("completeness", Use(20, 20, 80, 90.5), "best with 90.50 %"),
        ("completeness", Use(20, 19, 80, 96), None),
        ("completeness", Use(20, 0, 95.9, 100), None),
        ("completeness", Use(20, 0, 98, 100), "higher ASSETCLASS_THRESHOLDS__COMPLETENESS"),
        ("orphaned", Use(20, 0, 4.5, 0), None),
        ("orphaned", Use(20, 0, 0.5, 0), "lower ASSETCLASS_THRESHOLDS__ORPHANED"),
        ("orphaned", Use(0, 0, None, None), None),
    ],
)
def test_advice_on_a_limit(name: str, use: Use, says: str | None) -> None:
    advice = advice_on(name, Thresholds(), use)
    assert (advice is None) == (says is None)
    assert (says or "") in (advice or "")


def test_an_empty_table_and_an_empty_history(market: Market) -> None:
    report = report_of(market)
    assert report.guide.completeness_percentage == 100
    assert (report.operations, report.changes_by_class, report.alerts) == ([], [], [])
    assert [each.measurements for each in report.limits] == [1] * 5
