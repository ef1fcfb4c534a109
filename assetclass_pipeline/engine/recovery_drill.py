"""Recovery drill: a backup restored into a scratch copy, and proved equal row by row.

Belongs here: the copy, the restore as the operators' guide has it, the comparison, the time it
took. Does not: a real rollback; the market table is only read.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.backup_verification import OTHER_SHAPE, verify_registered
from assetclass_pipeline.engine.backups import (
    Registered,
    get_registered,
    registered,
    remember,
    require_table,
    take_stock,
)
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.errors import BackupDamagedError, NotUndoableError
from assetclass_pipeline.model.backup import DrillReport, Verification, whole_restore
from assetclass_pipeline.model.operation import ACTIVE, Kind
from assetclass_pipeline.settings import Settings

_OF_A_KILLED_DRILL = timedelta(days=1)


@dataclass
class _Measured:
    """What was found so far; rows and seconds."""

    copied: int = 0
    restored: int = 0
    compared: int = 0
    different: int = 0
    restore_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def drill_recovery(
    dsn: str, settings: Settings, *, by: str, correction_id: str | None = None
) -> DrillReport | None:
    """Restore the newest backup, or one operation's, into a scratch copy; None where there is none.

    The copy is dropped whatever happens. What was found is kept in the registry. Raises
    BackupDamagedError when the copy does not hold the old values then, or the backup cannot
    restore; OperationNotFoundError, NotUndoableError, BackupExpiredError and OperationStateError
    for an operation that has none that could be tried.
    """
    with connect(dsn, settings, purpose="recovery drill") as connection:
        take_stock(connection, settings)
        backup = _chosen(connection, settings, correction_id)
        if backup is None:
            return None
        report = _drill(dsn, connection, settings, backup, by=by)
        key = as_uuid(backup.correction_id)
        with transaction(connection, settings) as cursor:
            stored = Jsonb(report.model_dump(mode="json", by_alias=True))
            cursor.execute(query("backups", "set_drill"), {"correction_id": key, "drill": stored})
            remember(cursor, key, "recovery_drilled", by, {"passed": report.passed})
    if not report.passed:
        raise BackupDamagedError(
            f"The recovery drill of {report.table} (operation {report.correction_id}) failed: "
            f"{' '.join(report.problems)} `assetclass backups verify {report.correction_id}` tells "
            "what can still be restored."
        )
    return report


def _chosen(
    connection: Connection[TupleRow], settings: Settings, correction_id: str | None
) -> Registered | None:
    if correction_id is not None:
        named = get_registered(connection, settings, correction_id)
        require_table(named)
        if named.facts.kind is not Kind.CORRECTION:
            raise NotUndoableError(
                f"Operation {correction_id} is a rollback: nothing is restored from its table. "
                "Name the correction."
            )
        return named
    with transaction(connection, settings, read_only=True) as cursor:
        found = registered(cursor)
    return next((entry for entry in found if _can_be_tried(entry)), None)


def _can_be_tried(entry: Registered) -> bool:
    facts = entry.facts
    return (
        facts.kind is Kind.CORRECTION
        and facts.dropped_at is None
        and facts.status not in ACTIVE
        and facts.has_batches
    )


def _drill(
    dsn: str, connection: Connection[TupleRow], settings: Settings, backup: Registered, *, by: str
) -> DrillReport:
    started = time.monotonic()
    verified = verify_registered(connection, settings, backup, by=by)
    tables = inspect_market_tables(connection, settings, for_writing=False)
    measured = _Measured(problems=[*verified.problems])
    _drop_old_copies(connection, settings)
    with _scratch_copy(dsn, settings) as scratch:
        try:
            _restore(_Drill(connection, settings, tables, backup, scratch), measured)
        except (psycopg.DataError, psycopg.IntegrityError, *OTHER_SHAPE) as error:
            measured.problems.append(f"The restore was refused: {error.diag.message_primary}.")
    with transaction(connection, settings, read_only=True) as cursor:
        market_records = _count(
            cursor.execute(
                query("backups", "market_records"), {"leaves": [leaf.oid for leaf in tables.leaves]}
            )
        )
    return _report(settings, verified, measured, market_records, time.monotonic() - started)


@contextmanager
def _scratch_copy(dsn: str, settings: Settings) -> Iterator[sql.Identifier]:
    """The name of a table that is gone afterwards, also when our connection is."""
    name = f"drill_{datetime.now(UTC):%Y%m%d_%H%M%S}_{secrets.token_hex(4)}"
    scratch = sql.Identifier("assetclass", name)
    try:
        yield scratch
    finally:
        with connect(dsn, settings, purpose="end of a drill") as connection:
            _drop(connection, settings, scratch)


def _drop(connection: Connection[TupleRow], settings: Settings, scratch: sql.Identifier) -> None:
    # Whoever looks at it (a dump of the database) is waited for: nobody waits for us.
    with transaction(connection, settings, lock_timeout="60s") as cursor:
        cursor.execute(query("backups", "drop_scratch", scratch=scratch))


def _drop_old_copies(connection: Connection[TupleRow], settings: Settings) -> None:
    before = f"drill_{datetime.now(UTC) - _OF_A_KILLED_DRILL:%Y%m%d_%H%M%S}"
    with transaction(connection, settings, read_only=True) as cursor:
        names = cursor.execute(query("backups", "old_drills"), {"before": before}).fetchall()
    for (name,) in names:
        with suppress(psycopg.errors.LockNotAvailable):
            _drop(connection, settings, sql.Identifier("assetclass", name))


@dataclass(frozen=True)
class _Drill:
    """One backup and its scratch copy."""

    connection: Connection[TupleRow]
    settings: Settings
    tables: MarketTables
    backup: Registered
    scratch: sql.Identifier

    @contextmanager
    def long_step(self) -> Iterator[Cursor[TupleRow]]:
        """A transaction whose statements may read whole tables."""
        timeout = f"{round(self.settings.session.scan_timeout * 1000)}ms"
        with transaction(self.connection, self.settings, statement_timeout=timeout) as cursor:
            yield cursor


def _restore(drill: _Drill, measured: _Measured) -> None:
    same_row = query("backups", "same_row_by_id")
    backup, scratch = drill.backup.identifier, drill.scratch
    # Apart from the rest: its lock on the market table would make an ALTER TABLE wait, and behind
    # that every reader.
    with drill.long_step() as cursor:
        copied = cursor.execute(
            query(
                "backups",
                "copy_market_rows",
                scratch=scratch,
                backup=backup,
                market=drill.tables.market,
                same_row=same_row,
            )
        )
        measured.copied = copied.rowcount
    with drill.long_step() as cursor:
        cursor.execute(query("backups", "index_scratch", scratch=scratch))
        cursor.execute(query("backups", "analyze_scratch", scratch=scratch))
    started = time.monotonic()
    with drill.long_step() as cursor:
        cursor.execute(query("backups", "restore", scratch=scratch, backup=backup))
        measured.restored = cursor.rowcount
    measured.restore_seconds = time.monotonic() - started
    with drill.long_step() as cursor:
        row = cursor.execute(
            query("backups", "differences", scratch=scratch, backup=backup, same_row=same_row)
        ).fetchone()
    measured.compared, measured.different = row or (0, 0)


def _count(cursor: Cursor[TupleRow]) -> int:
    row = cursor.fetchone()
    return int(row[0]) if row else 0


def _report(
    settings: Settings,
    verified: Verification,
    measured: _Measured,
    market_records: int,
    seconds: float,
) -> DrillReport:
    records = verified.records or 0
    problems = [*measured.problems]
    if not problems:
        problems += _mismatches(measured)
    whole = whole_restore(measured.restored, measured.restore_seconds, market_records)
    return DrillReport(
        correction_id=verified.correction_id,
        table=verified.table,
        drilled_at=datetime.now(UTC),
        passed=not problems,
        records=records,
        restored=measured.restored,
        missing=records - measured.copied,
        different=measured.different,
        duration_seconds=seconds,
        restore_seconds=measured.restore_seconds,
        records_per_second=(
            measured.restored / measured.restore_seconds if measured.restore_seconds else None
        ),
        market_records=market_records,
        whole_restore_seconds=whole,
        limit_seconds=settings.recovery_limit_seconds,
        within_limit=whole is None or whole <= settings.recovery_limit_seconds,
        problems=problems,
    )


def _mismatches(measured: _Measured) -> Iterator[str]:
    if measured.different:
        yield (
            f"{measured.different:,} of {measured.copied:,} rows did not hold their old value "
            "after the restore."
        )
    if not measured.copied == measured.restored == measured.compared:
        yield (
            f"{measured.copied:,} rows were copied, {measured.restored:,} restored and "
            f"{measured.compared:,} compared: the id alone does not name one row of the market "
            "table, so that the restore by hand mixes rows up; `assetclass rollback` does not."
        )
