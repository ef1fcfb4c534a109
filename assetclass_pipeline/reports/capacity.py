"""The quarterly report: how fast things grow, and what that means for disks and nights.

Belongs here: its numbers and forecasts, each as a range. Does not: how it looks.
"""

import statistics
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Final

from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import PlainSerializer

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.embedded.data_directory import DataDirectory
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.disk_space import WAL_BYTES_A_ROW, free_disk
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.throttle import in_bytes
from assetclass_pipeline.model.wire import Moment, Seconds, WireModel
from assetclass_pipeline.reports.history import (
    OperationLine,
    Period,
    daily_scores,
    middle,
    now,
    operations_of,
    rows_of,
)
from assetclass_pipeline.reports.trend import LEAST_POINTS, Line, robust_line
from assetclass_pipeline.settings import Settings

HISTORY: Final = timedelta(days=365)
AHEAD: Final = (3, 6, 12)
"""Months that are forecast."""

_DAYS_OF_A_MONTH = 365 / 12
_SOON = 90


Amount = Annotated[float, PlainSerializer(lambda value: round(value, 2), when_used="json")]
"""Of anything; two decimals are kept in JSON."""


class Range(WireModel):
    """An estimate: the likely value, and what holds it nine times out of ten."""

    low: Amount
    likely: Amount
    high: Amount


class Forecast(WireModel):
    """Where growth leads in so many months."""

    months: int
    records: Range
    table_bytes: Range | None


class GrowthPoint(WireModel):
    """Rows of the market table at the last measurement of a day."""

    measured_at: Moment
    total_records: int


class DayOfCorrections(WireModel):
    """Corrections of one day (UTC) that succeeded and changed rows: medians of them."""

    day: Moment
    corrections: int
    duration_seconds: Seconds
    records_per_second: Amount | None


class CapacityReport(WireModel):
    """Growth within `period`, from measurements; sizes as they are now; forecasts.

    `days_until_full` counts what the data disk has left at the present growth of the market table
    and its indexes; None where the disk cannot be seen or nothing grows. `wal_of_largest` is what
    the largest operation of the period wrote, at 1.2 kB a row.
    """

    generated_at: Moment
    period: Period
    total_records: int | None
    table_bytes: int
    index_bytes: int
    bytes_a_row: float | None
    backups: int
    backup_bytes: int
    archives: int
    archive_bytes: int
    max_wal_bytes: int
    largest_operation: int
    wal_of_largest: int
    wal_of_median: int
    disk_free_bytes: int | None
    wal_disk_free_bytes: int | None
    records_a_month: Range | None
    bytes_a_month: Range | None
    days_until_full: Range | None
    seconds_a_month: Range | None
    rate_a_month: Range | None
    points: list[GrowthPoint]
    corrections: list[DayOfCorrections]
    forecasts: list[Forecast]
    findings: list[str]


def capacity_report(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> CapacityReport:
    """Growth since `since` (a year), sizes now.

    Raises InvalidOptionsError for a `since` that is not before `until`.
    """
    period = Period.of(since, until or now(), usual=HISTORY)
    leaves = [leaf.oid for leaf in tables.leaves if leaf.kind != "foreign"]
    with transaction(connection, settings, read_only=True, snapshot=True) as cursor:
        scores = daily_scores(cursor, period)
        lines = operations_of(cursor, period)
        (sizes,) = rows_of(connection, query("reports", "sizes"), {"leaves": leaves})
        free = free_disk(cursor, DataDirectory(settings.home / "postgres").data)
    written = [line for line in lines if line.records_corrected and not line.dry_run]
    largest = max((line.records_corrected for line in written), default=0)
    usual = statistics.median(line.records_corrected for line in written) if written else 0
    line = robust_line(_days([(point.measured_at, point.total_records) for point in scores]))
    growth = _range(line, _DAYS_OF_A_MONTH) if line else None
    records = scores[-1].total_records if scores else None
    used = sizes["table_bytes"] + sizes["index_bytes"]
    each = used / records if records and used else None
    bytes_a_month = _times(growth, each) if growth and each else None
    days = _by_day(written)
    free_bytes = free.data if free else None
    facts = {
        **sizes,
        "total_records": records,
        "bytes_a_row": each,
        "largest_operation": largest,
        "wal_of_largest": largest * WAL_BYTES_A_ROW,
        "wal_of_median": round(usual * WAL_BYTES_A_ROW),
        "disk_free_bytes": free_bytes,
        "wal_disk_free_bytes": free.wal if free else None,
        "records_a_month": growth,
        "bytes_a_month": bytes_a_month,
        "days_until_full": _days_until(free_bytes, bytes_a_month),
        "seconds_a_month": _a_month([(on.day, on.duration_seconds) for on in days]),
        "rate_a_month": _a_month(
            [(on.day, on.records_per_second) for on in days if on.records_per_second]
        ),
    }
    report = CapacityReport(
        generated_at=now(),
        period=period,
        points=[
            GrowthPoint(measured_at=point.measured_at, total_records=point.total_records)
            for point in scores
        ],
        corrections=days,
        forecasts=_forecasts(records, line, used, each),
        findings=[],
        **facts,
    )
    return report.model_copy(update={"findings": _findings(report)})


def _days(moments: Sequence[tuple[datetime, float]]) -> list[tuple[float, float]]:
    first = moments[0][0] if moments else None
    return [
        ((moment - first).total_seconds() / 86_400, value) for moment, value in moments if first
    ]


def _a_month(moments: Sequence[tuple[datetime, float]]) -> Range | None:
    """Growth a month of what was measured at these moments."""
    line = robust_line(_days(moments))
    return _range(line, _DAYS_OF_A_MONTH) if line else None


def _range(line: Line, factor: float) -> Range:
    return Range(low=line.low * factor, likely=line.slope * factor, high=line.high * factor)


def _times(found: Range, factor: float) -> Range:
    return Range(low=found.low * factor, likely=found.likely * factor, high=found.high * factor)


def _by_day(lines: Sequence[OperationLine]) -> list[DayOfCorrections]:
    """Days with corrections that ended well, oldest first."""
    days: dict[date, list[OperationLine]] = {}
    for line in reversed(lines):
        if line.kind is Kind.CORRECTION and line.status is Status.SUCCEEDED:
            days.setdefault(line.requested_at.date(), []).append(line)
    return [
        DayOfCorrections(
            day=datetime.combine(day, time(), tzinfo=UTC),
            corrections=len(these),
            duration_seconds=statistics.median(line.duration_seconds or 0 for line in these),
            records_per_second=middle(
                [line.records_per_second for line in these if line.records_per_second]
            ),
        )
        for day, these in days.items()
    ]


def _days_until(free: int | None, bytes_a_month: Range | None) -> Range | None:
    """Days; a table that may as well not grow at all has no end, which is no number."""
    if free is None or bytes_a_month is None or bytes_a_month.low <= 0:
        return None
    months = {
        "low": free / bytes_a_month.high,
        "likely": free / bytes_a_month.likely,
        "high": free / bytes_a_month.low,
    }
    return Range(**{name: value * _DAYS_OF_A_MONTH for name, value in months.items()})


def _forecasts(
    records: int | None, line: Line | None, used: int, each: float | None
) -> list[Forecast]:
    """Onwards from the last measurement; the range also holds how much measurements scatter."""
    if records is None or line is None:
        return []
    made = []
    for months in AHEAD:
        days = months * _DAYS_OF_A_MONTH
        more = Range(
            low=line.low * days - line.scatter,
            likely=line.slope * days,
            high=line.high * days + line.scatter,
        )
        made.append(
            Forecast(
                months=months,
                records=_onto(records, more),
                table_bytes=_onto(used, _times(more, each)) if each else None,
            )
        )
    return made


def _onto(start: float, more: Range) -> Range:
    """What grows from `start`; nothing shrinks below nothing."""
    return Range(
        low=max(0.0, start + more.low),
        likely=max(0.0, start + more.likely),
        high=max(0.0, start + more.high),
    )


def _findings(report: CapacityReport) -> list[str]:
    said = []
    days = report.days_until_full
    if days is not None and days.low < _SOON:
        said.append(
            f"At this growth the data disk is full in {days.low:,.0f} to {days.high:,.0f} days: "
            "add room, or move old partitions."
        )
    if report.disk_free_bytes is None:
        said.append(
            "The server's disk cannot be seen from here: compare this growth with what it has free."
        )
    if report.wal_of_largest > report.max_wal_bytes:
        said.append(
            f"The largest operation wrote about {in_bytes(report.wal_of_largest)} of WAL, more "
            f"than max_wal_size ({in_bytes(report.max_wal_bytes)}): the WAL disk needs room for "
            "what slots and the archiver hold back meanwhile."
        )
    room = report.wal_disk_free_bytes
    room = report.disk_free_bytes if room is None else room
    if room is not None and report.wal_of_largest > room:
        said.append(
            f"Another operation as large would need {in_bytes(report.wal_of_largest)} of WAL where "
            f"{in_bytes(room)} are free."
        )
    rate = report.rate_a_month
    if rate is not None and rate.high < 0:
        said.append(
            f"Batches become slower: {-rate.likely:,.0f} rows a second less each month. The weekly "
            "report shows what operations wait for."
        )
    if report.records_a_month is None:
        said.append(
            f"No forecast: it needs measurements of at least {LEAST_POINTS} days, and there are "
            f"{len(report.points)}. The daily quality report makes them."
        )
    return said
