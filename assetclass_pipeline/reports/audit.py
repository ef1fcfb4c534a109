"""The monthly report: the data in full, how it came there, and who did what.

Belongs here: its numbers and what they suggest. Does not: how it looks, and the rows behind it
(`assetclass audit`).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final, NamedTuple

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow
from pydantic import Field

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.analysis import analyse, remember_quality
from assetclass_pipeline.engine.audit import check
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.operation import Kind
from assetclass_pipeline.model.quality import IntegrityReport, Thresholds
from assetclass_pipeline.model.wire import Moment, Percent, Seconds, WireModel
from assetclass_pipeline.reports.history import (
    OperationLine,
    Outcome,
    Period,
    ScorePoint,
    daily_scores,
    now,
    operations_of,
    outcome_of,
    rows_of,
)
from assetclass_pipeline.settings import Settings

SOURCE: Final = "monthly_audit"
MONTH: Final = timedelta(days=31)
YEAR: Final = timedelta(days=365)

_MOST_CHANGES = 50
_MOST_OPERATIONS = 200
# Fewer measurements say nothing about a limit.
_LEAST_MEASUREMENTS = 20
# A limit that is nearer to what happens may as well stay.
_WORTH_A_CHANGE = 1.0


class GuideNumbers(WireModel):
    """The answer of the guide's SQL of a full audit, under its names; percents as it rounds them.

    Of an empty table, where that SQL divides by zero, completeness is 100.
    """

    total_records: int
    null_asset_class: int
    empty_asset_class: int
    valid_asset_class: int
    completeness_percentage: Percent


class ClassChange(WireModel):
    """Rows that operations of one kind changed from one class to another."""

    kind: Kind
    from_: str | None = Field(alias="from")
    to: str | None
    records: int
    symbols: int
    operations: int


class SymbolChange(WireModel):
    """The same of one symbol."""

    kind: Kind
    symbol: str | None
    from_: str | None = Field(alias="from")
    to: str | None
    records: int
    operations: int


class LogState(WireModel):
    """The audit log: its entries, whether its chain is whole, and the head to note elsewhere."""

    entries: int
    entries_in_period: int
    head: str | None
    whole: bool
    broken: str | None


class LimitChange(WireModel):
    """Limits that were changed at one time; of the first record, every limit stands in `after`."""

    happened_at: Moment
    actor: str
    before: dict[str, float | None]
    after: dict[str, float | None]


class AlertFigures(WireModel):
    """Alerts of one type that opened in the period; times are medians, from their opening."""

    alert_type: AlertType | str
    opened: int
    repeats: int
    reopened: int
    acknowledged: int
    resolved: int
    unresolved: int
    seconds_to_acknowledge: Seconds | None
    seconds_to_resolve: Seconds | None


class LimitUse(WireModel):
    """How often measurements of the last year did not keep a limit, and what one could do."""

    threshold: str
    limit: float
    measurements: int
    violations: int
    worst: Percent | None
    best: Percent | None
    advice: str | None


class AuditReport(WireModel):
    """The data in full by a fresh scan, and what happened to them in `period`.

    `scores` are of a year, one point a day; lists hold the largest or newest entries, beside which
    their totals stand.
    """

    generated_at: Moment
    period: Period
    guide: GuideNumbers
    integrity: IntegrityReport
    scores: list[ScorePoint]
    outcome: Outcome
    operations_total: int
    operations: list[OperationLine]
    changes_by_class: list[ClassChange]
    changes_by_symbol: list[SymbolChange]
    audit_log: LogState
    limit_changes: list[LimitChange]
    alerts: list[AlertFigures]
    limits: list[LimitUse]


def audit_report(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    run_id: str | None = None,
    by: str = "",
) -> AuditReport:
    """Measure the data, remember that, and report on the period from `since` (31 days) until now.

    Raises InvalidOptionsError for a `since` that is not before `until`, DatabaseUnavailableError.
    """
    Period.of(since, until or now(), usual=MONTH)
    report = analyse(connection, tables, settings)
    remember_quality(connection, settings, report, source=SOURCE, run_id=run_id, by=by)
    # From here on, so that the measurement just made is the last point of the trend.
    period = Period.of(since, until or now(), usual=MONTH)
    year = Period(since=min(period.since, period.until - YEAR), until=period.until)
    verification = check(connection, settings)
    with transaction(connection, settings, read_only=True, snapshot=True) as cursor:
        lines = operations_of(cursor, period)
        entries = cursor.execute(query("reports", "entries_in_period"), period.values).fetchone()
        return AuditReport(
            generated_at=now(),
            period=period,
            guide=guide_numbers(report),
            integrity=report,
            scores=daily_scores(cursor, year),
            outcome=outcome_of(lines),
            operations_total=len(lines),
            operations=lines[:_MOST_OPERATIONS],
            changes_by_class=[
                ClassChange.model_validate(row)
                for row in _changes(cursor, "changes_by_class", period)
            ],
            changes_by_symbol=[
                SymbolChange.model_validate(row)
                for row in _changes(cursor, "changes_by_symbol", period)
            ],
            audit_log=LogState(
                entries=verification.entries,
                entries_in_period=entries[0] if entries else 0,
                head=str(verification.head) if verification.head else None,
                whole=verification.broken is None,
                broken=str(verification.broken) if verification.broken else None,
            ),
            limit_changes=_limit_changes(cursor, period),
            alerts=[
                AlertFigures.model_validate(row)
                for row in rows_of(connection, query("reports", "alerts"), period.values)
            ],
            limits=_limits(cursor, year, settings.thresholds),
        )


def guide_numbers(report: IntegrityReport) -> GuideNumbers:
    """What the guide's SQL would answer; rounded half up, as PostgreSQL rounds numbers."""
    total, valid = report.total_records, report.valid_asset_class
    exact = Decimal(100 * valid) / total if total else Decimal(100)
    return GuideNumbers(
        total_records=total,
        null_asset_class=report.null_asset_class,
        empty_asset_class=report.empty_asset_class,
        valid_asset_class=valid,
        completeness_percentage=float(exact.quantize(Decimal("0.01"), ROUND_HALF_UP)),
    )


def _changes(cursor: Cursor[TupleRow], name: str, period: Period) -> list[dict[str, Any]]:
    values = {**period.values, "most": _MOST_CHANGES}
    return rows_of(cursor.connection, query("reports", name), values)


def _limit_changes(cursor: Cursor[TupleRow], period: Period) -> list[LimitChange]:
    made = []
    rows = rows_of(cursor.connection, query("reports", "threshold_changes"), period.values)
    for row in rows:
        before, after = row["parameters"]["before"] or {}, row["parameters"]["after"]
        changed = [name for name in after if before.get(name) != after[name]]
        made.append(
            LimitChange(
                happened_at=row["happened_at"],
                actor=row["actor"],
                before={name: before.get(name) for name in changed if before},
                after={name: after[name] for name in changed},
            )
        )
    return made


def _limits(cursor: Cursor[TupleRow], year: Period, limits: Thresholds) -> list[LimitUse]:
    names = ("completeness", "integrity", "orphaned", "quality_score", "correctable")
    values = {**year.values, **{name: getattr(limits, name) for name in names}}
    (row,) = rows_of(cursor.connection, query("reports", "violations"), values)
    uses = []
    for name in names:
        violations, worst, best = row["by_threshold"][name]
        use = Use(row["measurements"], violations, worst, best)
        uses.append(
            LimitUse(
                threshold=name,
                limit=getattr(limits, name),
                measurements=use.measurements,
                violations=violations,
                worst=worst,
                best=best,
                advice=advice_on(name, limits, use),
            )
        )
    return uses


class Use(NamedTuple):
    """How measurements stood to one limit; `worst` and `best` are None where there is none."""

    measurements: int
    violations: int
    worst: float | None
    best: float | None


def advice_on(name: str, limits: Thresholds, use: Use) -> str | None:
    """What to do about a limit that is never kept, or never of use; None where it does its work.

    A limit that always fails tells nothing new, one that is far from every value tells it late.
    """
    if use.measurements < _LEAST_MEASUREMENTS or use.worst is None or use.best is None:
        return None
    limit = limits.limits(name)
    setting = f"ASSETCLASS_THRESHOLDS__{name.upper()}"
    if use.violations == use.measurements:
        return (
            f"All {use.measurements} measurements violate it, the best with {use.best:.2f} %: mend "
            f"the data, or set {setting} to what can be reached, so that a change shows."
        )
    if use.violations == 0 and abs(use.worst - limit.guide) > _WORTH_A_CHANGE:
        return (
            f"None of {use.measurements} measurements came near: the worst was {use.worst:.2f} %. "
            f"A {'higher' if limit.comparison == '>=' else 'lower'} {setting} would tell of "
            "trouble earlier."
        )
    return None


def monthly(scores: Sequence[ScorePoint]) -> list[ScorePoint]:
    """The last point of each month, oldest first."""
    by_month = {f"{point.measured_at:%Y-%m}": point for point in scores}
    return list(by_month.values())
