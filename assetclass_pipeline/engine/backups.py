"""The registry of backup tables: what is made, sealed, held, noticed.

Belongs here: rows of assetclass.backup. Does not: proving that a backup can restore
(backup_verification.py), dropping one (backup_cleanup.py), the files of dropped ones (archive.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, dict_row
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import ALL_CORES, set_also, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.archive import archives
from assetclass_pipeline.engine.audit import record
from assetclass_pipeline.engine.conditions import Condition
from assetclass_pipeline.engine.operations import as_uuid, get_operation
from assetclass_pipeline.errors import BackupExpiredError, NotUndoableError
from assetclass_pipeline.model.audit import Actor, AuditEntry
from assetclass_pipeline.model.backup import (
    BY_HAND,
    Archive,
    ArchiveState,
    Backup,
    BackupFacts,
    BackupList,
    UnregisteredTable,
    decide,
    state_of,
)
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.settings import Settings

BACKUP_PREFIX = "market_data_backup_"
# What a checksum was made of; raised when that changes. PostgreSQL promises the values of its hash
# functions for one major version only.
_METHOD = "1-{major}"
# Of these types every value has one form; of others the text is what must come back.
_HASHED_AS_THEY_ARE = {"bigint", "integer", "smallint", "uuid"}


@dataclass(frozen=True)
class Content:
    """What a table holds: rows, and their checksum whatever their order."""

    records: int
    checksum: str
    has_every_id: bool


@dataclass(frozen=True)
class Registered:
    """A row of the registry, with what decides about its table; `now` is the database's clock."""

    correction_id: str
    facts: BackupFacts
    schema_name: str
    table_name: str
    records: int | None
    checksum: str | None
    now: datetime
    columns: Mapping[str, Any]

    @property
    def identifier(self) -> sql.Identifier:
        """The table."""
        return sql.Identifier(self.schema_name, self.table_name)

    @property
    def name(self) -> str:
        """The table, for people."""
        return f"{self.schema_name}.{self.table_name}"


def register(
    cursor: Cursor[TupleRow],
    settings: Settings,
    correction_id: UUID,
    *,
    schema_name: str,
    table_name: str,
) -> None:
    """Note a table in the transaction that makes it; it may be dropped after the retention."""
    cursor.execute(
        query("backups", "register"),
        {
            "correction_id": correction_id,
            "schema": schema_name,
            "table": table_name,
            "days": settings.backup_retention_days,
        },
    )


def forget(cursor: Cursor[TupleRow], *, schema_name: str, table_name: str) -> None:
    """Strike a table off in the transaction that drops it before anything was done from it."""
    cursor.execute(query("backups", "forget"), {"schema": schema_name, "table": table_name})


def seal(cursor: Cursor[TupleRow], correction_id: UUID, table: sql.Identifier) -> None:
    """Note rows, bytes and checksum of a complete table, unless that is done; else nothing."""
    row = cursor.execute(query("backups", "is_sealed"), {"correction_id": correction_id}).fetchone()
    if row is not None and not row[0]:
        store_seal(cursor, correction_id, content_of(cursor, table))


def unseal(cursor: Cursor[TupleRow], correction_id: UUID) -> None:
    """Take the seal off a table that gets more rows."""
    cursor.execute(query("backups", "unseal"), {"correction_id": correction_id})


def store_seal(cursor: Cursor[TupleRow], correction_id: UUID, content: Content) -> None:
    """Note what a table holds."""
    cursor.execute(
        query("backups", "seal"),
        {
            "correction_id": correction_id,
            "records": content.records,
            "checksum": content.checksum,
        },
    )


def content_of(cursor: Cursor[TupleRow], table: sql.Identifier) -> Content:
    """Rows and checksum of a backup table, read by all cores.

    It stands in the way of the first batch (measured on two cores: 0.11 s for 1 M rows).
    """
    set_also(cursor, ALL_CORES)
    id_type = cursor.execute(
        query("backups", "id_type"), {"table": table.as_string(cursor)}
    ).fetchone()
    by_text = id_type is None or id_type[0] not in _HASHED_AS_THEY_ARE
    row = cursor.execute(
        query(
            "backups",
            "checksum",
            backup=table,
            id_cast=sql.SQL("::text" if by_text else ""),
        )
    ).fetchone()
    records, total, has_every_id = row or (0, "0", True)
    method = _METHOD.format(major=cursor.connection.info.server_version // 10_000)
    return Content(records, f"{method}:{total}", has_every_id)


def was_altered(noted: str | None, content: Content) -> bool | None:
    """Whether a table differs from its noted checksum; None where the two cannot be compared."""
    if noted is None or noted.partition(":")[0] != content.checksum.partition(":")[0]:
        return None
    return noted != content.checksum


def take_stock(connection: Connection[TupleRow], settings: Settings) -> list[str]:
    """Register backups from before the registry, and notice those that somebody dropped.

    One that was dropped and stands there again counts as if it had never been away. Returns
    correctionIds of dropped ones that nobody had noticed before.
    """
    with transaction(connection, settings) as cursor:
        cursor.execute(query("backups", "bring_in"), {"days": settings.backup_retention_days})
        exists = query("backups", "exists")
        cursor.execute(query("backups", "note_back", exists=exists), {"reason": BY_HAND})
        is_gone = query("backups", "is_gone", exists=exists)
        gone = [row[0] for row in cursor.execute(query("backups", "gone", is_gone=is_gone))]
        if not gone:
            return []
        # Behind the lock the next statement sees what whoever held the row has done.
        cursor.execute(query("backups", "lock"), {"ids": gone})
        noted = cursor.execute(
            query("backups", "note_gone", is_gone=is_gone), {"ids": gone, "reason": BY_HAND}
        )
        return [row[0] for row in noted]


def registered(cursor: Cursor[TupleRow], correction_id: UUID | None = None) -> list[Registered]:
    """Rows of the registry, newest first, or the one of an operation."""
    chosen = Condition(query("backups", "every"))
    if correction_id is not None:
        chosen = Condition(query("backups", "one"), {"correction_id": correction_id})
    with cursor.connection.cursor(row_factory=dict_row) as named:
        rows = named.execute(query("backups", "show", chosen=chosen.text), chosen.values).fetchall()
    return [_registered(row) for row in rows]


def _registered(row: dict[str, Any]) -> Registered:
    verification = row["verification"]
    rollback_id = row.pop("rollback_id")
    rollback_status = row.pop("rollback_status")
    facts = BackupFacts(
        kind=Kind(row["kind"]),
        status=Status(row["status"]),
        expires_at=row["expires_at"],
        has_batches=row.pop("has_batches"),
        is_complete=row.pop("is_complete"),
        is_overtaken=row.pop("is_overtaken"),
        intact=None if verification is None else bool(verification.get("intact")),
        rolled_back_by=row.pop("rolled_back_by"),
        held_by=row["held_by"],
        hold_reason=row["hold_reason"],
        dropped_at=row["dropped_at"],
        drop_reason=row["drop_reason"],
        rollback=(rollback_id, Status(rollback_status)) if rollback_id else None,
    )
    return Registered(
        correction_id=row["correction_id"],
        facts=facts,
        schema_name=row["schema_name"],
        table_name=row["table_name"],
        records=row["records"],
        checksum=row["checksum"],
        now=row.pop("now"),
        columns=row,
    )


def get_registered(
    connection: Connection[TupleRow], settings: Settings, correction_id: str
) -> Registered:
    """The backup of an operation, which may have been dropped.

    Raises OperationNotFoundError for an unknown id, NotUndoableError when the operation has none.
    """
    with transaction(connection, settings, read_only=True) as cursor:
        found = registered(cursor, as_uuid(correction_id))
    if found:
        return found[0]
    operation = get_operation(connection, settings, correction_id)
    why = "it was a dry run" if operation.dry_run else "it changed nothing, or made no backup"
    raise NotUndoableError(
        f"Operation {correction_id} has no backup table: {why}. `assetclass backups list` shows "
        "the operations that have one."
    )


def require_table(found: Registered) -> None:
    """Raises BackupExpiredError for one that was dropped."""
    if found.facts.dropped_at is None:
        return
    if found.facts.drop_reason == BY_HAND:
        raise BackupExpiredError(
            f"The backup table {found.name} of operation {found.correction_id} was dropped by "
            f"hand, as was noticed at {found.facts.dropped_at:%Y-%m-%d %H:%M} UTC: nothing can be "
            "restored from it. Bring that table back from a backup of the database if its rows "
            "are needed."
        )
    raise BackupExpiredError(
        f"The backup table {found.name} of operation {found.correction_id} was dropped at "
        f"{found.facts.dropped_at:%Y-%m-%d %H:%M} UTC ({found.facts.drop_reason}). `assetclass "
        f"backups restore-archive {found.correction_id}` makes a table of its archived rows."
    )


def list_backups(connection: Connection[TupleRow], settings: Settings) -> BackupList:
    """Every table that the registry knows, newest first, and tables that only look like one.

    Backups from before the registry are registered, and one dropped by hand is noted as such.
    """
    take_stock(connection, settings)
    with transaction(connection, settings, read_only=True, snapshot=True) as cursor:
        found = registered(cursor)
        unregistered = find_unregistered(cursor, settings)
        files = {file.correction_id: file for file in archives(cursor, settings)}
    return BackupList(
        backups=[backup_of(entry, files.pop(entry.correction_id, None)) for entry in found],
        archives=list(files.values()),
        unregistered=unregistered,
    )


def backup_of(found: Registered, archive: Archive | None = None) -> Backup:
    """A row of the registry as people see it, with the file that keeps its rows, if any."""
    why = decide(found.facts, found.now).why
    if found.facts.dropped_at is not None:
        why += f"; its rows are {_in_archive(archive)}"
    return Backup(**found.columns, state=state_of(found.facts, found.now), why=why, archive=archive)


def _in_archive(archive: Archive | None) -> str:
    if archive is None:
        return "in no archive"
    if archive.state is ArchiveState.PRESENT:
        return f"archived in {archive.file_name}"
    return f"gone: its archive {archive.file_name} is {archive.state}"


def find_unregistered(cursor: Cursor[TupleRow], settings: Settings) -> list[UnregisteredTable]:
    """Tables in the market table's schema whose name says backup and that nobody registered."""
    with cursor.connection.cursor(row_factory=dict_row) as named:
        rows = named.execute(
            query("backups", "unregistered"),
            {"schema": settings.market_schema, "prefix": BACKUP_PREFIX},
        ).fetchall()
    return [UnregisteredTable(**row) for row in rows]


def hold(
    connection: Connection[TupleRow],
    settings: Settings,
    correction_id: str,
    *,
    by: str,
    reason: str,
) -> Backup:
    """Keep a backup table beyond its retention until it is released.

    Raises OperationNotFoundError, NotUndoableError and BackupExpiredError.
    """
    take_stock(connection, settings)
    require_table(get_registered(connection, settings, correction_id))
    key = as_uuid(correction_id)
    with transaction(connection, settings) as cursor:
        cursor.execute(query("backups", "lock"), {"ids": [key]})
        require_table(registered(cursor, key)[0])
        cursor.execute(query("backups", "hold"), {"correction_id": key, "by": by, "reason": reason})
        remember(cursor, key, "backup_held", by, {"reason": reason})
    return backup_of(get_registered(connection, settings, correction_id))


def release(
    connection: Connection[TupleRow], settings: Settings, correction_id: str, *, by: str
) -> Backup:
    """Let a held backup table expire again. Raises what `hold` raises."""
    require_table(get_registered(connection, settings, correction_id))
    key = as_uuid(correction_id)
    with transaction(connection, settings) as cursor:
        cursor.execute(query("backups", "release"), {"correction_id": key})
        remember(cursor, key, "backup_released", by, {})
    return backup_of(get_registered(connection, settings, correction_id))


def remember(
    cursor: Cursor[TupleRow],
    correction_id: UUID,
    event: str,
    actor: str,
    details: dict[str, object],
) -> None:
    """Write down what became of an operation's backup, last in the transaction that does it.

    It stands with the operation, and in the audit log.
    """
    cursor.execute(
        query("control", "remember"),
        {
            "correction_id": correction_id,
            "event": event,
            "actor": actor,
            "details": Jsonb(details),
        },
    )
    entry = AuditEntry(Actor.of_requester(actor), event, "done", details, str(correction_id))
    record(cursor, entry)
