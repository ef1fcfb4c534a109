"""The weekly report: how operations fared, beside the four weeks before.

Belongs here: its numbers and what they suggest. Does not: how it looks.
"""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.pacing import size_range
from assetclass_pipeline.model.wire import Moment, Percent, Seconds, WireModel
from assetclass_pipeline.reports.history import (
    OperationLine,
    Outcome,
    Period,
    middle,
    now,
    operations_of,
    outcome_of,
)
from assetclass_pipeline.settings import Settings

WEEK: Final = timedelta(days=7)
BEFORE: Final = 4
"""Periods before the reported one that it is compared with."""

_MOST_SLOWEST = 10
_MOST_FAILURES = 20
_SLOWER = 0.75
_MUCH_WAITING = 0.2

# The guide's table: rows that an operation planned, and its largest class has no upper bound.
_SIZES: Final = (
    ("below 10,000 rows", 0),
    ("10,000 to 100,000 rows", 10_000),
    ("above 100,000 rows", 100_001),
)


class SizeFigures(WireModel):
    """Operations of one size class, and the same of the periods before.

    `advised_batch` is the guide's range of batch sizes for such plans; `used_batch` the median of
    what operations used; `outside` counts those that used another size.
    """

    size: str
    now: Outcome
    before: Outcome
    advised_batch: tuple[int, int]
    used_batch: float | None
    outside: int


class WaitFigures(WireModel):
    """Seconds that one signal held operations, and its average in the periods before."""

    signal: str
    seconds: Seconds
    seconds_before: Seconds


class DayFigures(WireModel):
    """Operations that were asked for on one day (UTC)."""

    day: str
    operations: int
    succeeded: int
    records_corrected: int


class PerformanceReport(WireModel):
    """How operations fared in `period`; `before` sums up the `periods_before` just before it."""

    generated_at: Moment
    period: Period
    periods_before: int
    now: Outcome
    before: Outcome
    operations_before_average: float
    success_rate_limit: Percent
    sizes: list[SizeFigures]
    waits: list[WaitFigures]
    days: list[DayFigures]
    slowest: list[OperationLine]
    failures: list[OperationLine]
    findings: list[str]


def performance_report(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> PerformanceReport:
    """The period from `since` (seven days) beside four of the same length before it.

    Raises InvalidOptionsError for a `since` that is not before `until`.
    """
    period = Period.of(since, until or now(), usual=WEEK)
    earlier = Period(since=period.since - BEFORE * period.length, until=period.since)
    with transaction(connection, settings, read_only=True, snapshot=True) as cursor:
        lines, lines_before = operations_of(cursor, period), operations_of(cursor, earlier)
    counted = [line for line in lines if line.counts]
    outcome, before = outcome_of(counted), outcome_of(lines_before)
    sizes = _sizes(counted, lines_before)
    return PerformanceReport(
        generated_at=now(),
        period=period,
        periods_before=BEFORE,
        now=outcome,
        before=before,
        operations_before_average=before.operations / BEFORE,
        success_rate_limit=settings.thresholds.success_rate,
        sizes=sizes,
        waits=_waits(counted, lines_before),
        days=_days(counted, period),
        slowest=_slowest(counted),
        failures=[line for line in counted if line.status is not Status.SUCCEEDED][:_MOST_FAILURES],
        findings=_findings(outcome, before, sizes, settings),
    )


def _class_of(line: OperationLine) -> int:
    planned = line.records_planned or 0
    return max(number for number, (_, least) in enumerate(_SIZES) if planned >= least)


def _sizes(
    lines: Sequence[OperationLine], lines_before: Sequence[OperationLine]
) -> list[SizeFigures]:
    made = []
    for number, (name, least) in enumerate(_SIZES):
        these = [line for line in lines if _class_of(line) == number]
        advised = size_range(least)
        used = [line.median_batch for line in these if line.median_batch]
        made.append(
            SizeFigures(
                size=name,
                now=outcome_of(these),
                before=outcome_of(line for line in lines_before if _class_of(line) == number),
                advised_batch=advised,
                used_batch=middle(used),
                outside=sum(not _is_advised(line, advised) for line in these),
            )
        )
    return made


def _is_advised(line: OperationLine, advised: tuple[int, int]) -> bool:
    """Whether its usual batch was of an advised size, or its plan smaller than any of them."""
    if not line.median_batch or (line.records_planned or 0) < advised[0]:
        return True
    return advised[0] <= line.median_batch <= advised[1]


def _waits(
    lines: Sequence[OperationLine], lines_before: Sequence[OperationLine]
) -> list[WaitFigures]:
    waited, waited_before = _by_signal(lines), _by_signal(lines_before)
    figures = [
        WaitFigures(
            signal=signal,
            seconds=waited.get(signal, 0),
            seconds_before=waited_before.get(signal, 0) / BEFORE,
        )
        for signal in waited | waited_before
    ]
    return sorted(figures, key=lambda each: (-each.seconds, -each.seconds_before, each.signal))


def _by_signal(lines: Iterable[OperationLine]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for line in lines:
        for signal, seconds in line.waits.items() if line.counts else ():
            sums[signal] = sums.get(signal, 0) + seconds
    return sums


def _days(lines: Sequence[OperationLine], period: Period) -> list[DayFigures]:
    first, last = period.since.date(), (period.until - timedelta(microseconds=1)).date()
    by_day: dict[date, list[OperationLine]] = {}
    for line in lines:
        by_day.setdefault(line.requested_at.date(), []).append(line)
    made = []
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        these = by_day.get(day, [])
        made.append(
            DayFigures(
                day=day.isoformat(),
                operations=len(these),
                succeeded=sum(line.status is Status.SUCCEEDED for line in these),
                records_corrected=sum(
                    line.records_corrected for line in these if line.kind is Kind.CORRECTION
                ),
            )
        )
    return made


def _slowest(lines: Iterable[OperationLine]) -> list[OperationLine]:
    timed = [line for line in lines if line.duration_seconds is not None]
    timed.sort(key=lambda line: line.duration_seconds or 0, reverse=True)
    return timed[:_MOST_SLOWEST]


def _findings(
    outcome: Outcome, before: Outcome, sizes: Sequence[SizeFigures], settings: Settings
) -> list[str]:
    """What a person should look at, by the guide's limits and the periods before."""
    limits = settings.thresholds
    said = []
    if outcome.success_rate is not None and outcome.success_rate < limits.success_rate:
        said.append(
            f"Only {outcome.success_rate:.1f} % of the operations succeeded, and at least "
            f"{limits.success_rate:g} % should: look at the failures below."
        )
    if outcome.error_rate is not None and outcome.error_rate > limits.error_rate:
        said.append(
            f"The database refused {outcome.error_rate:.2f} % of the attempted rows, more than "
            f"{limits.error_rate:g} %: `assetclass status ID` shows each with its error."
        )
    if (outcome.duration_longest or 0) > limits.duration:
        said.append(
            f"An operation took {outcome.duration_longest:,.0f} s, longer than the limit of "
            f"{limits.duration:,.0f} s: narrow it with maxRecordsToProcess, or give it a window."
        )
    rate, rate_before = outcome.records_per_second, before.records_per_second
    if rate and rate_before and rate < _SLOWER * rate_before:
        said.append(
            f"Batches wrote {rate:,.0f} rows a second where they wrote {rate_before:,.0f} before: "
            "look for new indexes or triggers on the market table, bloat, a busy disk."
        )
    if outcome.waited_seconds > _MUCH_WAITING * outcome.duration_sum:
        said.append(
            f"Operations waited {outcome.waited_seconds:,.0f} s in all: the signals below say for "
            "what."
        )
    said += [
        f"{_operations(each.outside)} ({each.size}) used batches outside of the guide's "
        f"{each.advised_batch[0]:,} to {each.advised_batch[1]:,} rows: leave batchSize out, or set "
        "it there."
        for each in sizes
        if each.outside
    ]
    return said


def _operations(number: int) -> str:
    return "1 operation" if number == 1 else f"{number} operations"
