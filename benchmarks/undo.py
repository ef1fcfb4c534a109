"""What undoing costs: a rollback, proving a backup, asking for the history of a row.

Belongs here: work on corrected rows. Does not: the correction (correction.py).
"""

import random
import uuid
from dataclasses import dataclass

import psycopg
from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.backup_verification import verify_backup
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.engine.row_history import row_history
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.model.options import CorrectionOptions, Pace
from assetclass_pipeline.model.rollback import RollbackOptions
from benchmarks.bench import Bench
from benchmarks.contest import Contestant, PhaseClock, Written, compete, correct_all, median_time
from benchmarks.data import CORRECTABLE_ROWS
from benchmarks.databases import settings_for
from benchmarks.measures import (
    Findings,
    Measure,
    limited_ratio,
    median_seconds,
    milliseconds,
    seconds,
)

ROWS = 3_000_000
LONGEST: dict[Pace, float | None] = {Pace.BALANCED: 0.75, Pace.FAST: None}
MOST_JOINS = 3.0
HISTORY_MILLISECONDS = 100.0
_TIMES = 5

# No look at what others changed since, no record of what was undone.
_REVERSE_UPDATE = """
UPDATE market_data m SET asset_class = b.asset_class, updated_at = now()
FROM {backup} b WHERE m.id = b.id
"""
_JOIN = "SELECT count(*) FROM {backup} b JOIN market_data m ON m.id = b.id"


@dataclass(frozen=True)
class _Corrected:
    """A database whose rows a correction has changed; `damaged` were correctable before."""

    template: str
    correction_id: str
    backup: sql.Identifier
    damaged: int


def measure(bench: Bench) -> Findings:
    """Everything about one correction with default options."""
    rows = bench.size(ROWS)
    corrected = _corrected(bench, rows)
    try:
        found = [*_measure_rollback(bench, rows, corrected), *_measure_looks(bench, corrected)]
    finally:
        bench.databases.drop(corrected.template)
    return Findings(found)


def _corrected(bench: Bench, rows: int) -> _Corrected:
    name = f"corrected_{rows}"
    dsn = bench.databases.copy(bench.template(rows), name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        damaged = connection.execute(CORRECTABLE_ROWS).fetchall()[0][0]
        operation = correct_all(dsn, CorrectionOptions(), PhaseClock())
        # Autovacuum, which is off here, would have been there before anybody undoes something.
        connection.execute("VACUUM (ANALYZE) market_data")
    backup = sql.Identifier("public", operation.backup_table or "")
    bench.progress(f"{rows:,} rows, undo: corrected")
    return _Corrected(name, operation.correction_id, backup, damaged)


def _measure_rollback(bench: Bench, rows: int, corrected: _Corrected) -> list[Measure]:
    """A rollback with its look for conflicts and its validation against one UPDATE by key."""

    def bare(dsn: str) -> Written:
        with psycopg.connect(dsn, autocommit=True) as connection:
            statement = sql.SQL(_REVERSE_UPDATE).format(backup=corrected.backup)
            return Written(connection.execute(statement).rowcount)

    baseline = Contestant("bare reverse UPDATE", bare)
    ours = {pace: _engine(corrected, pace) for pace in LONGEST}
    runs = compete(
        bench,
        rows,
        [baseline, *ours.values()],
        bench.rounds,
        template=corrected.template,
        left=corrected.damaged,
    )
    return [
        limited_ratio(
            f"{contestant.name}, {corrected.damaged:,} rows, against a reverse UPDATE by key",
            median_time(runs, contestant.name),
            median_time(runs, baseline.name),
            LONGEST[pace],
            seconds,
        )
        for pace, contestant in ours.items()
    ]


def _engine(corrected: _Corrected, pace: Pace) -> Contestant:
    def write(dsn: str) -> Written:
        clock = PhaseClock()
        request = RollbackRequest(
            str(uuid.uuid4()),
            rollback_of=corrected.correction_id,
            options=RollbackOptions(pace=pace),
            requested_by="benchmark",
        )
        operation = roll_back(dsn, settings_for(dsn), request, observe=clock)
        if operation.status is not Status.SUCCEEDED:
            raise RuntimeError(f"The rollback ended as {operation.status}: {operation.error}")
        return Written(operation.records_restored or 0, clock.seconds())

    return Contestant(f"rollback under {pace}", write)


def _measure_looks(bench: Bench, corrected: _Corrected) -> list[Measure]:
    """Verifying the backup against a join of it, and the histories of some rows."""
    with bench.databases.clone(corrected.template) as dsn:
        settings = settings_for(dsn)
        with connect(dsn, settings, purpose="benchmark") as connection:
            join = sql.SQL(_JOIN).format(backup=corrected.backup)
            joining = median_seconds(lambda: connection.execute(join).fetchone(), _TIMES)
            verifying = median_seconds(
                lambda: verify_backup(
                    connection, settings, corrected.correction_id, by="benchmark"
                ),
                _TIMES,
            )
            chosen = sql.SQL("SELECT id::text FROM {} ORDER BY seq").format(corrected.backup)
            ids = [row[0] for row in connection.execute(chosen).fetchall()]
            some = iter(random.Random(1).sample(ids, min(len(ids), 100)))  # noqa: S311 - no secret
            asking = median_seconds(lambda: row_history(connection, settings, next(some)), _TIMES)
    return [
        limited_ratio(
            f"verify of a backup, {corrected.damaged:,} rows, against count(*) of its join",
            verifying,
            joining,
            MOST_JOINS,
            seconds,
        ),
        Measure(
            f"history of a row, backup of {corrected.damaged:,} rows",
            milliseconds(asking),
            judged=asking * 1000,
            limit=HISTORY_MILLISECONDS,
            unit=" ms",
        ),
    ]
