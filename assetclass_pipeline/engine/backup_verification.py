"""Proving that a backup table can restore, without changing anything.

Belongs here: its checksum, its keys and old values against the market table of today. Does not:
restoring.
"""

import time
from dataclasses import dataclass, field

from psycopg import Connection, Cursor, errors
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import scan, transaction
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.archive import archives
from assetclass_pipeline.engine.backups import (
    Content,
    Registered,
    content_of,
    get_registered,
    registered,
    remember,
    require_table,
    store_seal,
    take_stock,
    was_altered,
)
from assetclass_pipeline.engine.class_fit import MOST_NAMED, Misfit, misfits_of
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.errors import BackupExpiredError, OperationStateError
from assetclass_pipeline.model.backup import Verification, VerificationReport
from assetclass_pipeline.model.operation import ACTIVE, Kind
from assetclass_pipeline.settings import Settings

# A column of one of the two tables was dropped, or has another type now.
OTHER_SHAPE = (errors.UndefinedColumn, errors.UndefinedFunction, errors.DatatypeMismatch)


@dataclass
class _Findings:
    """What was found so far; figures are rows."""

    content: Content | None = None
    old_classes: dict[str | None, int] = field(default_factory=dict)
    restorable: int = 0
    already_restored: int = 0
    changed: int = 0
    missing: int = 0
    seals: bool = False
    intact: bool = True
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def verify_backup(
    connection: Connection[TupleRow], settings: Settings, correction_id: str, *, by: str
) -> Verification:
    """Prove that an operation's backup can restore; what was found is kept in the registry.

    A backup whose rows differ from what was written, or whose old values the column refuses today,
    does not pass: `problems` say why. Raises OperationNotFoundError, NotUndoableError,
    BackupExpiredError, MarketTablesError, and OperationStateError while it is being written.
    """
    take_stock(connection, settings)
    return verify_registered(
        connection, settings, get_registered(connection, settings, correction_id), by=by
    )


def verify_all(
    connection: Connection[TupleRow], settings: Settings, *, by: str
) -> VerificationReport:
    """Verify every backup table that is there and not being written, and every archive."""
    take_stock(connection, settings)
    with transaction(connection, settings, read_only=True) as cursor:
        found = registered(cursor)
    done = []
    for entry in found:
        if entry.facts.dropped_at is not None or entry.facts.status in ACTIVE:
            continue
        try:
            done.append(verify_registered(connection, settings, entry, by=by))
        except (BackupExpiredError, OperationStateError):
            # Dropped, or taken up again, since the list was read.
            continue
    with transaction(connection, settings, read_only=True) as cursor:
        files = archives(cursor, settings, thoroughly=True)
    return VerificationReport(verifications=done, archives=files)


def verify_registered(
    connection: Connection[TupleRow], settings: Settings, backup: Registered, *, by: str
) -> Verification:
    """The same for a row of the registry that was just read."""
    require_table(backup)
    if backup.facts.status in ACTIVE:
        raise OperationStateError(
            f"Operation {backup.correction_id} is {backup.facts.status} and still writes its "
            "backup. Wait for its end, then verify again."
        )
    started = time.monotonic()
    tables = inspect_market_tables(connection, settings, for_writing=False)
    found = _Findings()
    try:
        with scan(connection, settings, snapshot=True) as cursor:
            _read(cursor, tables, backup, found)
        if backup.facts.kind is Kind.CORRECTION and found.content is not None:
            _check_values(connection, settings, tables, found)
    except errors.UndefinedTable:
        take_stock(connection, settings)
        require_table(get_registered(connection, settings, backup.correction_id))
        raise
    except OTHER_SHAPE as error:
        found.intact = found.intact and found.content is not None
        found.problems.append(
            f"It does not fit the market table of today: {error.diag.message_primary}."
        )
    return _store(connection, settings, backup, found, seconds=time.monotonic() - started, by=by)


def _read(
    cursor: Cursor[TupleRow], tables: MarketTables, backup: Registered, found: _Findings
) -> None:
    row = cursor.execute(
        query("backups", "planned"), {"correction_id": as_uuid(backup.correction_id)}
    ).fetchone()
    planned, is_complete, seqs = row or (None, False, "{}")
    if not is_complete:
        found.intact = False
        found.problems.append(
            f"Its plan was never completed (the operation is {backup.facts.status}): it holds a "
            "part of the rows, and none of them was changed."
        )
        return
    content = found.content = content_of(cursor, backup.identifier)
    _check_content(backup, content, planned, found)
    if backup.facts.kind is Kind.CORRECTION:
        rows = cursor.execute(query("backups", "old_classes", backup=backup.identifier)).fetchall()
        found.old_classes = dict(rows)
        _compare(cursor, tables, backup, has_every_id=content.has_every_id, seqs=seqs, found=found)


def _check_content(
    backup: Registered, content: Content, planned: int | None, found: _Findings
) -> None:
    """The table against what was noted when it was complete."""
    expected = planned if backup.records is None else backup.records
    if content.records != expected:
        found.problems.append(
            f"It holds {content.records:,} rows where {expected or 0:,} were written: rows were "
            "removed or added."
        )
    elif (altered := was_altered(backup.checksum, content)) is None:
        found.seals = True
        found.remarks.append(
            "It has no checksum, or one of an older PostgreSQL; a new one was taken now: whether "
            "its values were altered before nobody can tell; the number of rows is right."
        )
    elif altered:
        found.problems.append(
            "Its checksum differs: somebody altered rows after they were written."
        )
    found.intact = not found.problems


def _compare(
    cursor: Cursor[TupleRow],
    tables: MarketTables,
    backup: Registered,
    *,
    has_every_id: bool,
    seqs: str,
    found: _Findings,
) -> None:
    # A plan of nested loops would look each of a million rows up by itself. There is nothing to
    # merge in the end, so the leader joins in.
    limits = {"enable_nestloop": "off", "parallel_leader_participation": "on"}
    cursor.execute(
        query("catalogue", "set_local"), {"names": [*limits], "values": [*limits.values()]}
    )
    by = "same_row_by_id" if has_every_id else "same_row_by_time"
    row = cursor.execute(
        query(
            "backups",
            "compare",
            backup=backup.identifier,
            market=tables.market,
            same_row=query("backups", by),
        ),
        {"seqs": seqs},
    ).fetchone()
    found.missing, found.already_restored, found.restorable, written = row or (0, 0, 0, 0)
    found.changed = written - found.missing - found.already_restored - found.restorable
    if found.missing:
        found.remarks.append(f"{found.missing:,} of its rows were deleted since.")
    if found.changed:
        found.remarks.append(
            f"{found.changed:,} of its rows were changed since: a rollback leaves them alone."
        )


def _check_values(
    connection: Connection[TupleRow],
    settings: Settings,
    tables: MarketTables,
    found: _Findings,
) -> None:
    """Old values against the column as it is now: its type, NOT NULL, checks, foreign keys."""
    records = found.old_classes
    with transaction(connection, settings, read_only=True) as cursor:
        misfits, remarks = misfits_of(cursor, tables, [*records])
    found.problems += [_sentence(misfit, records) for misfit in misfits]
    found.remarks += [remark.message for remark in remarks]


def _sentence(misfit: Misfit, records: dict[str | None, int]) -> str:
    ranked = sorted(misfit.classes, key=lambda value: (-records[value], value or ""))
    named = ", ".join(
        f"{'NULL' if value is None else repr(value)} ({records[value]:,} rows)"
        for value in ranked[:MOST_NAMED]
    )
    more = f" and {len(ranked) - MOST_NAMED:,} more" if len(ranked) > MOST_NAMED else ""
    return f"Old values {misfit.why}: {named}{more}. {misfit.advice}"


def _store(
    connection: Connection[TupleRow],
    settings: Settings,
    backup: Registered,
    found: _Findings,
    *,
    seconds: float,
    by: str,
) -> Verification:
    content = found.content
    result = Verification(
        correction_id=backup.correction_id,
        table=backup.name,
        verified_at=backup.now,
        passed=not found.problems,
        intact=found.intact,
        records=content.records if content else None,
        checksum=content.checksum if content else None,
        registered_records=backup.records,
        registered_checksum=backup.checksum,
        restorable=found.restorable,
        already_restored=found.already_restored,
        changed=found.changed,
        missing=found.missing,
        problems=found.problems,
        remarks=found.remarks,
        duration_seconds=seconds,
    )
    key = as_uuid(backup.correction_id)
    with transaction(connection, settings) as cursor:
        if found.seals and content is not None:
            store_seal(cursor, key, content)
        cursor.execute(
            query("backups", "set_verification"),
            {
                "correction_id": key,
                "verification": Jsonb(result.model_dump(mode="json", by_alias=True)),
            },
        )
        remember(cursor, key, "backup_verified", by, {"passed": result.passed})
    return result
