"""Writing the audit log, and reading it: entries, the check of its chain.

Belongs here: what each action of an operation leaves in the log. Does not: what an entry is
(model/audit.py), and how a row of the market table came by its value (row_history.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, class_row, dict_row

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.errors import (
    AssetClassError,
    AuditTamperedError,
    DatabaseUnavailableError,
)
from assetclass_pipeline.model.audit import (
    Action,
    Actor,
    AuditEntry,
    AuditRecord,
    Head,
    Link,
    Verification,
    check_chain,
)
from assetclass_pipeline.model.operation import RESUMABLE, Status
from assetclass_pipeline.settings import Settings

# Rows that are in memory at a time, whatever the length of the log.
ROWS_AT_A_TIME = 2000
_MOST = 2**62


class Asks(Protocol):
    """Who asks for something and why, as every request says it."""

    @property
    def correction_id(self) -> str | None:
        """The operation; None where there is none yet."""

    @property
    def requested_by(self) -> str:
        """Who asks, as `Actor.of_requester` reads it."""

    @property
    def reason(self) -> str | None:
        """Why."""

    @property
    def ticket(self) -> str | None:
        """Which ticket asks for it."""

    @property
    def run_id(self) -> str | None:
        """The Dagster run that works on it."""


@dataclass(frozen=True)
class Asker:
    """Somebody who asks before there is a request; over HTTP with the id of that exchange."""

    requested_by: str
    reason: str | None = None
    ticket: str | None = None
    correction_id: str | None = None
    run_id: str | None = None
    correlation_id: str | None = None


def record(cursor: Cursor[TupleRow], entry: AuditEntry) -> int:
    """Append an entry within the caller's transaction; returns its number.

    Last in a transaction: other entries wait for its COMMIT. What is rolled back leaves no gap.
    """
    row = cursor.execute(query("audit", "append"), entry.values).fetchone()
    return int(row[0]) if row else 0


def record_claim(
    cursor: Cursor[TupleRow],
    correction_id: UUID,
    request: Asks,
    *,
    before: Status | None,
    epoch: int,
) -> None:
    """An operation was claimed; `before` is how it stood, None when it is new."""
    found = cursor.execute(query("audit", "claimed"), {"correction_id": correction_id}).fetchone()
    parameters: dict[str, object] = {**(found[0] if found else {}), "epoch": epoch}
    said = {"reason": request.reason, "ticket": request.ticket, "runId": request.run_id}
    parameters |= {name: value for name, value in said.items() if value}
    if before is None or before is Status.REQUESTED:
        outcome = "begun"
    else:
        outcome = "resumed" if before in RESUMABLE else "continued"
    record(
        cursor,
        AuditEntry(
            Actor.of_requester(request.requested_by),
            Action.CLAIM_OPERATION,
            outcome,
            parameters,
            correction_id=str(correction_id),
            correlation_id=request.run_id,
        ),
    )


def record_end(cursor: Cursor[TupleRow], correction_id: UUID, actor: Actor) -> None:
    """An operation ended, or was parked, in this transaction: its status and its sums."""
    row = cursor.execute(query("audit", "ended"), {"correction_id": correction_id}).fetchone()
    if row is not None:
        entry = AuditEntry(actor, Action.END_OPERATION, row[0], row[1], str(correction_id))
        record(cursor, entry)


def record_wish(
    cursor: Cursor[TupleRow],
    correction_id: str,
    action: Action,
    by: str,
    parameters: Mapping[str, object],
    *,
    correlation_id: str | None = None,
) -> None:
    """Somebody asked for an operation, or something of one."""
    actor = Actor.of_requester(by)
    entry = AuditEntry(actor, action, "asked", parameters, correction_id, correlation_id)
    record(cursor, entry)


@contextmanager
def refusals_recorded(
    dsn: str, settings: Settings, request: Asks, action: str, **parameters: object
) -> Iterator[None]:
    """Whatever is refused in here is recorded with its error code, and raised on.

    On a connection of its own, for that of the one who was refused may be anywhere.
    """
    try:
        yield
    except DatabaseUnavailableError:
        raise
    except AssetClassError as error:
        with (
            suppress(AssetClassError),
            connect(dsn, settings, purpose="audit") as connection,
        ):
            record_refusal(connection, settings, error, request, action, **parameters)
        raise


def record_refusal(
    connection: Connection[TupleRow],
    settings: Settings,
    error: AssetClassError,
    request: Asks,
    action: str,
    **parameters: object,
) -> None:
    """Something was refused, outside of any transaction: that one is rolled back.

    What cannot be recorded (no schema yet, a standby, a log that others hold) is not, for it must
    not hide the refusal.
    """
    with suppress(psycopg.Error), transaction(connection, settings) as cursor:
        record(cursor, _refusal(error, request, action, parameters))


def _refusal(
    error: AssetClassError, request: Asks, action: str, parameters: Mapping[str, object]
) -> AuditEntry:
    said = {
        "message": str(error),
        "otherOperation": getattr(error, "correction_id", None),
        "reason": request.reason,
        "ticket": request.ticket,
        "runId": request.run_id,
    }
    known = {name: value for name, value in said.items() if value}
    return AuditEntry(
        Actor.of_requester(request.requested_by),
        action,
        error.code,
        {**parameters, **known},
        correction_id=request.correction_id,
        correlation_id=getattr(request, "correlation_id", None) or request.run_id,
    )


@dataclass(frozen=True)
class AuditFilter:
    """Which entries: times are `since` <= t < `until`; what is None does not restrict."""

    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    action: str | None = None
    operation: str | None = None


def newest_entries(
    connection: Connection[TupleRow], settings: Settings, chosen: AuditFilter, *, most: int
) -> list[AuditRecord]:
    """The `most` newest entries, the newest first. Raises OperationNotFoundError for a bad id."""
    with transaction(connection, settings, read_only=True) as opened:
        statement = query("audit", "entries", direction=sql.SQL("DESC"))
        with opened.connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(statement, _values(chosen, most)).fetchall()
    return [AuditRecord.model_validate(row) for row in rows]


@contextmanager
def all_entries(
    connection: Connection[TupleRow], settings: Settings, chosen: AuditFilter
) -> Iterator[Iterator[AuditRecord]]:
    """Every chosen entry of one snapshot, the oldest first, some at a time."""
    statement = query("audit", "entries", direction=sql.SQL("ASC"))
    values = _values(chosen, _MOST)
    with (
        transaction(connection, settings, read_only=True),
        connection.cursor("audit_entries", row_factory=dict_row) as cursor,
    ):
        cursor.itersize = ROWS_AT_A_TIME
        yield (AuditRecord.model_validate(row) for row in cursor.execute(statement, values))


def _values(chosen: AuditFilter, most: int) -> dict[str, object]:
    return {
        "since": chosen.since,
        "until": chosen.until,
        "actor": chosen.actor,
        "action": chosen.action,
        "correction_id": None if chosen.operation is None else as_uuid(chosen.operation),
        "most": most,
    }


def check(
    connection: Connection[TupleRow], settings: Settings, noted: Head | None = None
) -> Verification:
    """Recompute the hash chain up to its first break; memory does not grow with the log."""
    with (
        transaction(connection, settings, read_only=True),
        connection.cursor("audit_links", row_factory=class_row(Link)) as cursor,
    ):
        cursor.itersize = ROWS_AT_A_TIME
        return check_chain(cursor.execute(query("audit", "links")), noted)


def verify(
    connection: Connection[TupleRow], settings: Settings, noted: Head | None = None
) -> Verification:
    """Return when the chain is whole. Raises AuditTamperedError naming the first break."""
    found = check(connection, settings, noted)
    if found.broken is not None:
        raise AuditTamperedError(
            f"The audit log was tampered with: {found.broken}. The {found.entries:,} entries "
            "before it are whole. Compare with an export or a backup of the database, and ask who "
            "may alter schema assetclass."
        )
    return found
