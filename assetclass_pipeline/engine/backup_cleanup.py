"""Dropping backup tables that nobody needs any more.

Belongs here: archive, drop and record of one table, so that no rollback ever finds its backup gone
under its hands. Does not: the decision (model/backup.py).
"""

from dataclasses import dataclass

import psycopg
from psycopg import Connection, errors
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import scan, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.archive import (
    ArchiveFile,
    Source,
    register_archive,
    remove_expired,
    write_archive,
)
from assetclass_pipeline.engine.backup_verification import verify_registered
from assetclass_pipeline.engine.backups import (
    Registered,
    content_of,
    find_unregistered,
    registered,
    remember,
    take_stock,
    was_altered,
)
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.row_history import index_when_it_pays
from assetclass_pipeline.errors import ArchiveError, BackupDamagedError, BackupExpiredError
from assetclass_pipeline.model.backup import CleanedUp, CleanupReport, Decision, Verdict, decide
from assetclass_pipeline.model.operation import ACTIVE
from assetclass_pipeline.settings import Settings


def clean_up(
    connection: Connection[TupleRow], settings: Settings, *, by: str, dry_run: bool = False
) -> CleanupReport:
    """Drop what is expired, proved and not needed, each table by itself; say what was kept and why.

    The rows of a table are archived before it goes. One that cannot be locked, archived or proved
    is kept for the next time; a kept one gets an index on its ids where that pays. Expired archives
    are removed; tables that nobody registered are reported and left. A dry run drops and verifies
    nothing.
    """
    noticed = take_stock(connection, settings)
    with transaction(connection, settings, read_only=True) as cursor:
        found = [entry for entry in registered(cursor) if entry.facts.dropped_at is None]
        unregistered = find_unregistered(cursor, settings)
    cleanup = _Cleanup(connection, settings, by=by, dry_run=dry_run)
    outcomes = [(entry, *cleanup.consider(entry)) for entry in found]
    for entry, decision, _ in outcomes:
        if decision.verdict is not Verdict.DROP:
            cleanup.index(entry)
    return CleanupReport(
        dry_run=dry_run,
        dropped=[_shown(*outcome) for outcome in outcomes if outcome[1].verdict is Verdict.DROP],
        kept=[_shown(*outcome) for outcome in outcomes if outcome[1].verdict is not Verdict.DROP],
        noticed=noticed,
        unregistered=unregistered,
        archives_removed=remove_expired(connection, settings, dry_run=dry_run),
    )


def _shown(entry: Registered, decision: Decision, file: ArchiveFile | None) -> CleanedUp:
    return CleanedUp(
        correction_id=entry.correction_id,
        table=entry.name,
        bytes=entry.columns["bytes"],
        why=decision.why,
        failed=decision.failed,
        archive=file.file_name if file else None,
    )


@dataclass(frozen=True)
class _Cleanup:
    """One pass over the registry."""

    connection: Connection[TupleRow]
    settings: Settings
    by: str
    dry_run: bool

    def consider(self, entry: Registered) -> tuple[Decision, ArchiveFile | None]:
        """Drop a table, or say why not; an error about one table ends nothing for the others."""
        decision = decide(entry.facts, entry.now)
        if decision.verdict is Verdict.KEEP or self.dry_run:
            return decision, None
        try:
            if decision.verdict is Verdict.VERIFY_FIRST:
                verify_registered(self.connection, self.settings, entry, by=self.by)
                entry = self._read_again(entry)
                decision = decide(entry.facts, entry.now)
            if decision.verdict is Verdict.DROP:
                return self._drop(entry, self._archive(entry))
        except errors.LockNotAvailable:
            why = f"{decision.why}, but somebody uses it: the next cleanup tries again"
            return Decision(Verdict.KEEP, why), None
        except (ArchiveError, BackupDamagedError, BackupExpiredError) as error:
            why = f"{decision.why}, but: {error}"
        except psycopg.DatabaseError as error:
            if self.connection.broken:
                raise
            why = f"{decision.why}, but cannot be dropped: {error.diag.message_primary}"
        else:
            return decision, None
        return self._failed(entry, why), None

    def _failed(self, entry: Registered, why: str) -> Decision:
        """Something stood in the way; no failure where another cleanup was quicker."""
        fresh = self._read_again(entry)
        if fresh.facts.dropped_at is not None:
            return decide(fresh.facts, fresh.now)
        return Decision(Verdict.KEEP, why, failed=True)

    def index(self, entry: Registered) -> None:
        """Let a kept table be asked for one row, where that pays and nobody is in the way.

        Without its index a look is slower, and no more: a table may be somebody else's, or full.
        """
        if self.dry_run or entry.facts.status in ACTIVE or not entry.records:
            return
        try:
            with transaction(self.connection, self.settings, statement_timeout="0") as cursor:
                index_when_it_pays(cursor, entry.identifier, entry.records)
        except psycopg.DatabaseError:
            if self.connection.broken:
                raise

    def _read_again(self, entry: Registered) -> Registered:
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            return registered(cursor, as_uuid(entry.correction_id))[0]

    def _archive(self, entry: Registered) -> ArchiveFile:
        """The file that keeps its rows, which are those that were written into the table."""
        source = Source(
            as_uuid(entry.correction_id), entry.facts.kind, entry.schema_name, entry.table_name
        )
        file = write_archive(self.connection, self.settings, source)
        if entry.facts.is_superseded or entry.facts.is_unused:
            return file
        # After the file was proved: whatever was altered before or meanwhile shows in it.
        with scan(self.connection, self.settings) as cursor:
            content = content_of(cursor, entry.identifier)
        if content.records != entry.records or was_altered(entry.checksum, content):
            verify_registered(self.connection, self.settings, entry, by=self.by)
            raise BackupDamagedError(
                "somebody altered it since it was verified. Look at it, then drop it by hand"
            )
        return file

    def _drop(self, entry: Registered, file: ArchiveFile) -> tuple[Decision, ArchiveFile | None]:
        """Decide again behind the lock that a rollback takes while it begins, then drop."""
        key = as_uuid(entry.correction_id)
        with transaction(self.connection, self.settings) as cursor:
            cursor.execute(query("backups", "lock"), {"ids": [key]})
            cursor.execute(query("backups", "lock_operation"), {"correction_id": key})
            fresh = registered(cursor, key)[0]
            decision = decide(fresh.facts, fresh.now)
            if decision.verdict is not Verdict.DROP or fresh.identifier != entry.identifier:
                return Decision(Verdict.KEEP, decision.why), None
            cursor.execute(query("plan", "drop_table", backup=fresh.identifier))
            cursor.execute(
                query("backups", "note_dropped"),
                {"correction_id": key, "by": self.by, "reason": decision.why},
            )
            register_archive(cursor, self.settings, key, file)
            remember(
                cursor,
                key,
                "backup_dropped",
                self.by,
                {"table": fresh.name, "reason": decision.why, "archive": file.file_name},
            )
        return decision, file
