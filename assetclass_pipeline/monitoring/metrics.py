"""Metrics, read from the database alone: the same from any process, and after any restart.

Belongs here: reading them at one moment, and not more often than need be. Does not: what they mean
(model/metrics.py), their Prometheus form (exposition.py).
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.metrics import (
    BATCH_BOUNDS,
    OPERATION_BOUNDS,
    WINDOWS,
    ActiveOperation,
    BackupTotals,
    DataQuality,
    Day,
    Histogram,
    LastSuccess,
    Metrics,
    NotificationCounts,
    OpenAlerts,
    OperationCounts,
    RecordCounts,
    Window,
    key_metrics,
    share,
)
from assetclass_pipeline.model.operation import Kind, Phase, progress_percent
from assetclass_pipeline.model.quality import percent
from assetclass_pipeline.monitoring.exposition import exposition
from assetclass_pipeline.settings import Settings

__all__ = ["CachedMetrics", "collect", "exposition"]

_DAYS_OF_TREND: Final = 14
# Two may ask in the same second (a person and Prometheus); what is older is not worth showing.
_LONGEST_AGE: Final = 5.0

_Row = dict[str, Any]


def collect(connection: Connection[TupleRow], settings: Settings) -> Metrics:
    """All metrics of one moment.

    A few statements over one row per operation, per waiting message and per open alert; of the
    ledger only what belongs to the active operation is read.
    """
    with (
        transaction(connection, settings, read_only=True, snapshot=True) as opened,
        opened.connection.cursor(row_factory=dict_row) as cursor,
    ):
        live = [row["correction_id"] for row in _rows(cursor, "live")]
        totals = [*_totals(cursor, "ended"), *_totals(cursor, "running", live=live)]
        upkeep = _rows(cursor, "upkeep", tries=settings.alerts.delivery_tries)[0]
        windows = _windows(cursor)
        quality = _quality(cursor)
        active = _active(cursor, totals)
        real = [row for row in totals if not row["dry_run"]]
        return Metrics(
            generated_at=_rows(cursor, "now")[0]["clock_timestamp"],
            operations=_counts(real),
            by_kind={kind: _counts(_of(kind, real)) for kind in Kind},
            dry_runs=_counts(row for row in totals if row["dry_run"]),
            rolled_back=upkeep["rolled_back"],
            records=_records(real),
            operation_durations=_operation_durations(cursor, live),
            batch_durations=_batch_durations(real),
            windows=windows,
            last_successes=_last_successes(real),
            trend=[Day(**row) for row in _rows(cursor, "trend", days=_DAYS_OF_TREND)],
            throttle_seconds={
                row["signal"]: row["milliseconds"] / 1000 for row in _rows(cursor, "waits")
            },
            preview_error_percent=upkeep["preview_error_percent"],
            quality=quality,
            active=active,
            alerts=[
                OpenAlerts(
                    alert_type=row["alert_type"], severity=row["severity"], open=row["count"]
                )
                for row in _rows(cursor, "alerts")
            ],
            notifications=NotificationCounts(
                waiting=upkeep["notifications_waiting"],
                oldest_waiting_seconds=upkeep["oldest_waiting_seconds"],
                failed=upkeep["notifications_failed"],
            ),
            backups=BackupTotals(
                tables=upkeep["backup_tables"],
                bytes=upkeep["backup_bytes"],
                oldest_age_seconds=upkeep["oldest_backup_seconds"],
            ),
            thresholds=_thresholds(settings),
            key_metrics=key_metrics(settings.thresholds, windows, quality, active),
        )


class CachedMetrics:
    """Metrics that are `longest_age` seconds old at most; however many ask, one reads.

    `read` is called in the thread of who asks first; the others wait for its answer or its error.
    """

    def __init__(self, read: Callable[[], Metrics], longest_age: float = _LONGEST_AGE) -> None:
        self._read = read
        self._longest_age = longest_age
        self._guard = threading.Lock()
        self._known: tuple[float, Metrics] | None = None
        self._flight: Future[Metrics] | None = None

    def at_once(self) -> Metrics | None:
        """The metrics that are known; None when they are too old. Takes no time."""
        known = self._known
        fresh = known is not None and time.monotonic() - known[0] < self._longest_age
        return known[1] if known is not None and fresh else None

    def get(self) -> Metrics:
        """The metrics. Raises what `read` raises; an error is not kept."""
        with self._guard:
            if self._known is not None and time.monotonic() - self._known[0] < self._longest_age:
                return self._known[1]
            flight, is_ours = self._flight, self._flight is None
            if flight is None:
                flight = self._flight = Future()
        if is_ours:
            self._fly(flight)
        return flight.result()

    def _fly(self, flight: Future[Metrics]) -> None:
        began = time.monotonic()
        try:
            metrics = self._read()
        except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
            with self._guard:
                self._flight = None
            flight.set_exception(error)
            return
        with self._guard:
            self._known, self._flight = (began, metrics), None
        flight.set_result(metrics)


def _rows(cursor: Cursor[_Row], statement: str, **values: object) -> list[_Row]:
    return cursor.execute(query("metrics", statement), values or None).fetchall()


def _totals(cursor: Cursor[_Row], operations: str, **values: object) -> list[_Row]:
    statement = query("metrics", "totals", operations=query("metrics", operations))
    return cursor.execute(statement, values or None).fetchall()


def _of(kind: Kind, rows: Iterable[_Row]) -> list[_Row]:
    return [row for row in rows if row["kind"] == kind]


def _sum(rows: Iterable[_Row], column: str) -> int:
    return sum(int(row[column]) for row in rows)


def _counts(rows: Iterable[_Row]) -> OperationCounts:
    of = list(rows)
    return OperationCounts(**{name: _sum(of, name) for name in OperationCounts.model_fields})


def _records(rows: list[_Row]) -> RecordCounts:
    return RecordCounts(
        attempted=_sum(rows, "records_attempted"),
        corrected=_sum(_of(Kind.CORRECTION, rows), "records_corrected"),
        restored=_sum(_of(Kind.ROLLBACK, rows), "records_corrected"),
        skipped=_sum(rows, "records_skipped"),
        failed=_sum(rows, "records_failed"),
        conflicting=_sum(rows, "records_conflicting"),
    )


def _batch_durations(rows: list[_Row]) -> Histogram:
    buckets = zip(*(row["batch_buckets"] for row in rows), strict=True) if rows else ()
    return Histogram(
        bounds=BATCH_BOUNDS,
        counts=tuple(map(sum, buckets)) or (0,) * len(BATCH_BOUNDS),
        count=_sum(rows, "batches"),
        total_seconds=_sum(rows, "batch_milliseconds") / 1000,
    )


def _operation_durations(cursor: Cursor[_Row], live: list[object]) -> Histogram:
    descending = [-float(bound) for bound in reversed(OPERATION_BOUNDS)]
    rows = _rows(cursor, "durations", descending=descending, live=live)
    within: defaultdict[int, int] = defaultdict(int)
    for row in rows:
        within[row["within"]] += row["count"]
    size = len(OPERATION_BOUNDS)
    return Histogram(
        bounds=OPERATION_BOUNDS,
        counts=tuple(
            sum(count for bounds, count in within.items() if bounds >= size - place)
            for place in range(size)
        ),
        count=_sum(rows, "count"),
        total_seconds=_sum(rows, "milliseconds") / 1000,
    )


def _last_successes(rows: list[_Row]) -> list[LastSuccess]:
    moments: dict[str, Any] = {}
    for row in rows:
        if row["last_success_at"] is not None:
            known = moments.get(row["kind"], row["last_success_at"])
            moments[row["kind"]] = max(known, row["last_success_at"])
    return [LastSuccess(kind=Kind(kind), at=moment) for kind, moment in sorted(moments.items())]


def _windows(cursor: Cursor[_Row]) -> list[Window]:
    days = [*WINDOWS.values()]
    found = _rows(cursor, "windows", names=[*WINDOWS], days=days, longest=max(days))
    rows = {(row["name"], row["kind"]): row for row in found}
    return [
        _window(name, kind, rows.get((name, kind), {}))
        for name in WINDOWS
        for kind in (None, *Kind)
    ]


def _window(name: str, kind: Kind | None, row: Mapping[str, Any]) -> Window:
    ended, completed = row.get("ended", 0), row.get("completed", 0)
    return Window(
        window=name,
        kind=kind,
        ended=ended,
        completed=completed,
        success_rate=share(completed, ended),
        mean_seconds=row.get("mean_seconds"),
        p95_seconds=row.get("p95_seconds"),
        longest_seconds=row.get("longest_seconds"),
        mean_records=row.get("mean_records"),
        error_rate=share(row.get("records_failed", 0), row.get("records_attempted", 0)),
    )


def _quality(cursor: Cursor[_Row]) -> DataQuality | None:
    rows = _rows(cursor, "quality")
    if not rows:
        return None
    (row,) = rows
    correctable = percent(row["correctable"], row["total_records"], of_nothing=0)
    return DataQuality(**row, correctable_percent=correctable)


def _active(cursor: Cursor[_Row], totals: list[_Row]) -> ActiveOperation | None:
    rows = _rows(cursor, "active")
    if not rows:
        return None
    (row,) = rows
    done = _sum((t for t in totals if t["id"] == row["correction_id"]), "records_attempted")
    planned, phase = row.pop("records_planned"), Phase(row["phase"])
    return ActiveOperation(**row, progress_percent=progress_percent(done, planned, phase))


def _thresholds(settings: Settings) -> dict[str, float]:
    """The limits that alert rules and dashboards compare with, by the settings' own names."""
    alerts = {
        "alert_error_rate": settings.alerts.error_rate,
        "alert_orphaned": settings.alerts.orphaned,
        "alert_pickup": settings.alerts.pickup,
    }
    return {**settings.thresholds.model_dump(exclude_none=True), **alerts}
