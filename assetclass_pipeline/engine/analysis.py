"""Measuring the damage: one scan of the market table, every number derived from it.

Belongs here: the integrity report, the nightly question, the history of scores. Does not:
presentation, and what a correction then does about it.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import scan, transaction
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.conditions import blanks_of, in_scope
from assetclass_pipeline.engine.estimation import estimate_seconds, recent_rate
from assetclass_pipeline.engine.limits import record_limits
from assetclass_pipeline.model.findings import find_issues, recommend
from assetclass_pipeline.model.months import EVERYTHING, Calendar, TimeRange
from assetclass_pipeline.model.pacing import size_range
from assetclass_pipeline.model.quality import (
    ClassCount,
    Effort,
    IntegrityReport,
    PartitionCount,
    SymbolCount,
    judge,
    percent,
)
from assetclass_pipeline.settings import Settings


def analyse(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    *,
    scope: TimeRange = EVERYTHING,
    worst: int = 50,
    by_month: bool = True,
    in_parallel: bool = True,
) -> IntegrityReport:
    """Integrity report of the rows in `scope`, with the `worst` symbols.

    Without `by_month` its `byPartition` is empty, and it takes a third of the time; not
    `in_parallel` it uses one core. Definitions: design.md section 2. Raises
    DatabaseUnavailableError.
    """
    started = time.monotonic()
    calendar = Calendar.until_now(settings.first_month)
    scoped = in_scope(scope)
    statement = query(
        "analysis",
        "report",
        categories=query("reference", "categories", symbols=tables.symbols),
        market=tables.market,
        month=_month(tables) if by_month else sql.SQL("NULL::integer"),
        in_scope=scoped.text,
    )
    with scan(connection, settings, in_parallel=in_parallel) as cursor:
        cursor.execute(
            statement,
            {
                "months": [start.isoformat() for start in calendar.starts],
                "blanks": blanks_of(connection),
                "worst": worst,
                **scoped.values,
            },
        )
        row = cursor.fetchone()
        rate = recent_rate(cursor)
    counted: dict[str, Any] = row[0] if row else {}
    if not by_month:
        counted["months"] = []
    return _report(counted, settings, calendar, rate, time.monotonic() - started)


def _month(tables: MarketTables) -> sql.Composable:
    return query("analysis", "month", timestamp_type=sql.SQL(tables.timestamp_type))


def _report(
    counted: dict[str, Any],
    settings: Settings,
    calendar: Calendar,
    rate: float | None,
    duration: float,
) -> IntegrityReport:
    totals: dict[str, int] = counted["totals"]
    total, mappable = totals["total_records"], totals["mappable"]
    missing = totals["null_asset_class"] + totals["empty_asset_class"]
    equal = mappable - totals["correctable"] - totals["mismatched"]
    scores = {
        "completeness": percent(total - missing, total, of_nothing=100.0),
        "integrity": percent(mappable, total, of_nothing=100.0),
        "orphaned_percent": percent(totals["orphaned"], total, of_nothing=0.0),
        "quality_score": percent(equal, mappable, of_nothing=100.0),
    }
    correctable_percent = percent(totals["correctable"], total, of_nothing=0.0)
    first_size, _ = size_range(totals["correctable"])
    thresholds = judge(settings.thresholds, correctable_percent=correctable_percent, **scores)
    return IntegrityReport(
        generated_at=datetime.now(UTC),
        analysis_duration_seconds=duration,
        valid_asset_class=total - missing,
        **totals,
        **scores,
        symbols_referenced=counted["symbols_referenced"],
        symbols_without_market_data=counted["symbols_without_market_data"],
        by_asset_class=[ClassCount.model_validate(entry) for entry in counted["classes"]],
        by_symbol=[SymbolCount.model_validate(entry) for entry in counted["worst"]],
        by_partition=_by_partition(counted["months"], calendar),
        issues=find_issues(totals),
        recommendations=recommend(totals, thresholds),
        effort=Effort(
            records=totals["correctable"],
            batches=-(-totals["correctable"] // first_size),
            estimated_seconds=estimate_seconds(totals["correctable"], rate),
        ),
        thresholds=thresholds,
    )


def _by_partition(months: list[dict[str, Any]], calendar: Calendar) -> list[PartitionCount]:
    """Months with rows, oldest first; what lies outside the calendar counts to its edges."""
    sums: dict[str, dict[str, int]] = {}
    for entry in months:
        key = calendar.key_at(entry.pop("month"))
        into = sums.setdefault(key, dict.fromkeys(entry, 0))
        for name, records in entry.items():
            into[name] += records
    return [PartitionCount(partition=key, **sums[key]) for key in sorted(sums)]


def any_correctable(
    connection: Connection[TupleRow], tables: MarketTables, settings: Settings
) -> bool:
    """Whether a correction with default options would change any row: the nightly question."""
    with scan(connection, settings) as cursor:
        cursor.execute(
            _on_correctable("any_correctable", tables), {"blanks": blanks_of(connection)}
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def correctable_months(
    connection: Connection[TupleRow], tables: MarketTables, settings: Settings
) -> tuple[str, str] | None:
    """First and last partition key with correctable rows; None when there is none."""
    calendar = Calendar.until_now(settings.first_month)
    with scan(connection, settings) as cursor:
        cursor.execute(
            _on_correctable("correctable_period", tables),
            {
                "blanks": blanks_of(connection),
                "months": [start.isoformat() for start in calendar.starts],
            },
        )
        row = cursor.fetchone()
    if row is None or row[2] is None:
        return None
    first, last, without_time = row
    keys = sorted(calendar.key_at(place) for place in (first, last) if place is not None)
    if without_time:
        keys.insert(0, calendar.keys[0])
    return keys[0], keys[-1]


def _on_correctable(name: str, tables: MarketTables) -> sql.Composed:
    mapping = query("reference", "mapping", symbols=tables.symbols)
    return query(
        "analysis",
        name,
        market=tables.market,
        mapping=mapping,
        timestamp_type=sql.SQL(tables.timestamp_type),
    )


@dataclass(frozen=True)
class QualityPoint:
    """Scores of one stored measurement (percent 0..100)."""

    measured_at: datetime
    source: str
    total_records: int
    completeness: float
    integrity: float
    orphaned_percent: float
    quality_score: float
    correctable: int


def remember_quality(
    connection: Connection[TupleRow],
    settings: Settings,
    report: IntegrityReport,
    *,
    source: str,
    correction_id: str | None = None,
    run_id: str | None = None,
    by: str = "",
) -> None:
    """Add a report to the history of measurements, and record limits that changed since the last.

    `by` is who measures, as `Actor.of_requester` reads it.
    """
    with transaction(connection, settings) as cursor:
        cursor.execute(
            query("operation", "remember_quality"),
            {
                "source": source,
                "correction_id": correction_id,
                "run_id": run_id,
                "total_records": report.total_records,
                "completeness": report.completeness,
                "integrity": report.integrity,
                "orphaned_percent": report.orphaned_percent,
                "quality_score": report.quality_score,
                "correctable": report.correctable,
                "report": Jsonb(report.model_dump(mode="json", by_alias=True)),
            },
        )
        record_limits(cursor, settings.thresholds, by=by)


def quality_history(
    connection: Connection[TupleRow], settings: Settings, *, most: int
) -> list[QualityPoint]:
    """The newest `most` measurements, oldest first."""
    with transaction(connection, settings, read_only=True) as cursor:
        cursor.execute(query("operation", "quality_history"), {"most": most})
        return [QualityPoint(*row) for row in reversed(cursor.fetchall())]
