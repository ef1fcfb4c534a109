"""The history that all reports share: periods, ended operations, scores of each day.

Belongs here: reading it. Does not: what one report makes of it.
"""

import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.quality import percent
from assetclass_pipeline.model.wire import Moment, Percent, Seconds, WireModel

# Long before this program; reports look back for several times as long as their period.
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


class Period(WireModel):
    """What a report is about: `since` <= t < `until`."""

    since: Moment
    until: Moment

    @classmethod
    def of(cls, since: datetime | None, until: datetime, *, usual: timedelta) -> Self:
        """From `since`, or for as long as `usual`. Raises InvalidOptionsError."""
        if since is not None and since >= until:
            raise InvalidOptionsError(
                f"since: {since:%Y-%m-%d %H:%M} is not in the past; name an earlier moment"
            )
        if since is not None and since < _EARLIEST:
            raise InvalidOptionsError(
                f"since: nothing can be of {since:%Y-%m-%d}; name a moment after "
                f"{_EARLIEST:%Y-%m-%d}"
            )
        return cls(since=since or until - usual, until=until)

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.until - self.since

    @property
    def values(self) -> dict[str, object]:
        """What a statement is bound to."""
        return {"since": self.since, "until": self.until}


class OperationLine(WireModel):
    """One ended operation in a list: who asked for it and why, what it did, whether it stands."""

    correction_id: str
    kind: Kind
    status: Status
    dry_run: bool
    requested_by: str
    reason: str | None
    ticket: str | None
    requested_at: Moment
    duration_seconds: Seconds | None
    records_planned: int | None
    records_attempted: int
    records_corrected: int
    records_failed: int
    batches: int
    median_batch: int | None
    records_per_second: float | None
    waits: dict[str, Seconds]
    error: str | None
    rollback_of: str | None
    rolled_back_by: str | None

    @property
    def counts(self) -> bool:
        """Whether it tells how operations fare: dry runs and parked plans do not."""
        return not self.dry_run and self.status is not Status.PLANNED


class Outcome(WireModel):
    """How operations of a period fared; None where there is nothing to tell.

    `success_rate` is the percentage of `operations` that succeeded; `error_rate` that of attempted
    rows (planned ones that batches dealt with) that the database refused. Corrections correct rows,
    rollbacks restore them. Durations are medians and the longest one.
    """

    operations: int
    by_status: dict[Status, int]
    rolled_back: int
    success_rate: Percent | None
    records_corrected: int
    records_restored: int
    records_failed: int
    error_rate: Percent | None
    duration_median: Seconds | None
    duration_longest: Seconds | None
    duration_sum: Seconds
    records_per_second: float | None
    waited_seconds: Seconds


def outcome_of(lines: Iterable[OperationLine]) -> Outcome:
    """The sums; dry runs and parked plans are left out."""
    counted = [line for line in lines if line.counts]
    by_status = {status: _having(counted, status) for status in Status if _having(counted, status)}
    failed = sum(line.records_failed for line in counted)
    attempted = sum(line.records_attempted for line in counted)
    durations = [line.duration_seconds for line in counted if line.duration_seconds is not None]
    rates = [line.records_per_second for line in counted if line.records_per_second]
    succeeded = by_status.get(Status.SUCCEEDED, 0)
    return Outcome(
        operations=len(counted),
        by_status=by_status,
        rolled_back=sum(line.rolled_back_by is not None for line in counted),
        success_rate=percent(succeeded, len(counted), of_nothing=0) if counted else None,
        records_corrected=_written(counted, Kind.CORRECTION),
        records_restored=_written(counted, Kind.ROLLBACK),
        records_failed=failed,
        error_rate=percent(failed, attempted, of_nothing=0) if attempted else None,
        duration_median=middle(durations),
        duration_longest=max(durations, default=None),
        duration_sum=sum(durations),
        records_per_second=middle(rates),
        waited_seconds=sum(sum(line.waits.values()) for line in counted),
    )


def _having(lines: Sequence[OperationLine], status: Status) -> int:
    return sum(line.status is status for line in lines)


def _written(lines: Sequence[OperationLine], kind: Kind) -> int:
    return sum(line.records_corrected for line in lines if line.kind is kind)


def middle(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(values) if values else None


class ScorePoint(WireModel):
    """The last measurement of one day, and how many there were."""

    measured_at: Moment
    source: str
    total_records: int
    completeness: Percent
    integrity: Percent
    orphaned_percent: Percent
    quality_score: Percent
    correctable: int
    measurements: int


def operations_of(cursor: Cursor[TupleRow], period: Period) -> list[OperationLine]:
    """Ended operations that were asked for in the period, the newest first."""
    statement = query("reports", "operations", flow=query("operation", "flow"))
    return [
        OperationLine.model_validate(row)
        for row in rows_of(cursor.connection, statement, period.values)
    ]


def daily_scores(cursor: Cursor[TupleRow], period: Period) -> list[ScorePoint]:
    """One point for each day of the period on which anything was measured, oldest first."""
    statement = query("reports", "daily_scores")
    return [
        ScorePoint.model_validate(row)
        for row in rows_of(cursor.connection, statement, period.values)
    ]


def rows_of(
    connection: Connection[TupleRow], statement: Statement, values: dict[str, object]
) -> list[dict[str, Any]]:
    """All rows by column, in the transaction that is open."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchall()


def now() -> datetime:
    """This moment."""
    return datetime.now(UTC)
