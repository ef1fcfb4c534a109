"""The pipeline's own schema `assetclass`: bringing it up and down, and where it stands.

Belongs here: running the migrations, one at a time and all or nothing. Does not: what they
contain (`migrations/versions`), and the indexes on the market tables.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, set_local, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import (
    AssetClassError,
    DatabaseUnavailableError,
    InvalidOptionsError,
    OperationInProgressError,
    SchemaNotReadyError,
)
from assetclass_pipeline.model.audit import Action, Actor, AuditEntry
from assetclass_pipeline.settings import Settings

if TYPE_CHECKING:
    from assetclass_pipeline.database.migration_steps import Steps

SCHEMA: Final = "assetclass"

# Revisions are numbered; that of the audit log.
_AUDIT_SINCE: Final = "0005"
# Another upgrade may be at work; its tables are small and ours wait behind nothing else.
_WAIT_FOR_OTHERS = "60s"
# Readers queue behind a waiting ALTER TABLE, so it may not wait for long.
_WAIT_FOR_TABLES = "5s"


@dataclass(frozen=True)
class SchemaStatus:
    """Revisions: where the database stands (None: nowhere yet), the newest, those in between."""

    current: str | None
    head: str
    pending: tuple[str, ...]

    @property
    def at_head(self) -> bool:
        """Whether nothing is left to do."""
        return not self.pending


def upgrade(dsn: str, settings: Settings, *, by: str = "") -> SchemaStatus:
    """Bring the schema to the newest revision in one transaction; returns where it stands then.

    Safe to run twice at once: the second waits for the first. `by` stands in the audit log. Raises
    DatabaseUnavailableError, and SchemaNotReadyError that says which right is missing or what is
    in the way.
    """
    with _migrating(dsn, settings, "db upgrade") as (steps, connection):
        before = _status(connection)
        if before.at_head:
            return before
        _require_rights(connection)
        steps.upgrade()
        after = _status(connection)
        _record(connection, Action.UPGRADE_SCHEMA, by, before, after)
        return after


def downgrade(dsn: str, settings: Settings, revision: str, *, by: str = "") -> SchemaStatus:
    """Go back to `revision` ("base": drop all our tables); the schema itself and backups stay.

    Raises OperationInProgressError while an operation is active, InvalidOptionsError for an
    unknown revision, otherwise as `upgrade`.
    """
    with _migrating(dsn, settings, "db downgrade") as (steps, connection):
        before = _status(connection)
        _require_known(revision, before)
        if before.current is not None:
            _refuse_active_operation(connection)
            steps.downgrade(revision)
        after = _status(connection)
        if after != before:
            _record(connection, Action.DOWNGRADE_SCHEMA, by, before, after)
        return after


def status(dsn: str, settings: Settings) -> SchemaStatus:
    """Where the schema stands.

    Raises SchemaNotReadyError when a newer version of this program has made it, and
    DatabaseUnavailableError.
    """
    with (
        connect(dsn, settings, purpose="db status") as connection,
        _explained(),
        transaction(connection, settings, read_only=True),
    ):
        return _status(connection)


def require_schema(connection: psycopg.Connection[TupleRow]) -> None:
    """Return when the schema is at the newest revision; one cheap query.

    Raises SchemaNotReadyError that says what to run.
    """
    try:
        row = connection.execute(query("schema", "current_revision")).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        row = None
    except psycopg.errors.InsufficientPrivilege:
        raise SchemaNotReadyError(
            f"Role {connection.info.user} may not read schema {SCHEMA}: run "
            "`assetclass db upgrade` as this role, or grant it the rights of the role that ran it."
        ) from None
    current = None if row is None else str(row[0])
    if current == _head():
        return
    if current is not None and current not in _revisions():
        raise _newer(current)
    raise SchemaNotReadyError(
        f"Schema {SCHEMA} is {'missing' if current is None else 'at an older revision'}: run "
        "`assetclass db upgrade`."
    )


@contextmanager
def _migrating(
    dsn: str, settings: Settings, purpose: str
) -> Iterator[tuple["Steps", psycopg.Connection[TupleRow]]]:
    """One connection in one transaction, for alembic and for us, while nobody else migrates."""
    # Most commands only ask where the schema stands, and need not wait for alembic.
    from assetclass_pipeline.database.migration_steps import steps_on

    connection = connect(dsn, settings, purpose=purpose)
    connection.autocommit = False
    with closing(connection), _explained(), steps_on(connection) as steps:
        with connection.cursor() as cursor:
            set_local(cursor, settings, lock_timeout=_WAIT_FOR_OTHERS, search_path="pg_catalog")
            cursor.execute(query("schema", "lock_migrations"))
            cursor.execute(
                query("schema", "lower_lock_timeout"), {"lock_timeout": _WAIT_FOR_TABLES}
            )
        yield steps, connection


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the server or alembic refuses into an error that says what to do."""
    try:
        yield
    except AssetClassError:
        raise
    except psycopg.Error as error:
        raise _explanation(error) from error


def _explanation(error: psycopg.Error) -> AssetClassError:
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return SchemaNotReadyError(
            f"Another session is using or migrating schema {SCHEMA} ({said}): nothing was changed. "
            "Let running operations finish, then try again."
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SchemaNotReadyError(
            f"This role may not change schema {SCHEMA} ({said}): nothing was changed. Run "
            "`assetclass db upgrade` as the role that ran it first."
        )
    if isinstance(error, psycopg.OperationalError):
        return DatabaseUnavailableError(
            f"PostgreSQL gave up at work on schema {SCHEMA} ({said}): nothing was changed. "
            "Try again."
        )
    return SchemaNotReadyError(
        f"PostgreSQL refuses a step on schema {SCHEMA} ({said}): nothing was changed. Something "
        "of that name that is not ours may be in the way."
    )


def _require_rights(connection: psycopg.Connection[TupleRow]) -> None:
    """Create the schema where it is missing; check the rights to fill it."""
    row = connection.execute(query("schema", "schema_rights"), {"schema": SCHEMA}).fetchall()[0]
    role, database, may_create_schema, may_create_tables = row
    grantee = sql.Identifier(role).as_string()
    if may_create_tables is None:
        if not may_create_schema:
            raise SchemaNotReadyError(
                f"Schema {SCHEMA} is missing and role {role} may not create it. Let an "
                f"administrator run: CREATE SCHEMA {SCHEMA} AUTHORIZATION {grantee}; (or GRANT "
                f"CREATE ON DATABASE {sql.Identifier(database).as_string()} TO {grantee};)"
            )
        connection.execute(query("schema", "create_schema", schema=sql.Identifier(SCHEMA)))
    elif not may_create_tables:
        raise SchemaNotReadyError(
            f"Role {role} may not create tables in schema {SCHEMA}: "
            f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {grantee};"
        )


def _record(
    connection: psycopg.Connection[TupleRow],
    action: Action,
    by: str,
    before: SchemaStatus,
    after: SchemaStatus,
) -> None:
    """In the transaction of the change; a downgrade may have taken the log itself away."""
    if after.current is None or after.current < _AUDIT_SINCE:
        return
    moved = {"from": before.current, "to": after.current}
    entry = AuditEntry(Actor.of_requester(by), action, "done", moved)
    connection.execute(query("audit", "append"), entry.values)


def _refuse_active_operation(connection: psycopg.Connection[TupleRow]) -> None:
    connection.execute(query("schema", "lock_operations"))
    active = connection.execute(query("schema", "active_operation")).fetchone()
    if active is not None:
        correction_id, kind, state = active
        raise OperationInProgressError(
            f"The {kind} {correction_id} is {state}: cancel it or let it finish before its tables "
            "are taken away.",
            correction_id=correction_id,
        )


def _require_known(revision: str, before: SchemaStatus) -> None:
    if revision != "base" and revision not in _revisions():
        raise InvalidOptionsError(
            f"There is no revision {revision}: name one of base, {', '.join(_revisions())}."
        )
    behind = () if before.current is None else _up_to(before.current)
    if revision != "base" and revision not in behind:
        raise InvalidOptionsError(
            f"Revision {revision} lies ahead of where the schema stands "
            f"({before.current or 'base'}): run `assetclass db upgrade`."
        )


def _status(connection: psycopg.Connection[TupleRow]) -> SchemaStatus:
    current = _current(connection)
    if current is not None and current not in _revisions():
        raise _newer(current)
    done = 0 if current is None else len(_up_to(current))
    return SchemaStatus(current=current, head=_head(), pending=_revisions()[done:])


def _newer(current: str) -> SchemaNotReadyError:
    return SchemaNotReadyError(
        f"Schema {SCHEMA} is at revision {current}, which this version does not know (it knows up "
        f"to {_head()}): install the newer version of assetclass-pipeline that made it."
    )


def _current(connection: psycopg.Connection[TupleRow]) -> str | None:
    exists = connection.execute(query("schema", "version_table_exists"), {"schema": SCHEMA})
    if not exists.fetchall()[0][0]:
        return None
    row = connection.execute(query("schema", "current_revision")).fetchone()
    return None if row is None else str(row[0])


@cache
def _revisions() -> tuple[str, ...]:
    """All revisions, the oldest first: the numbers with which the names of their files begin."""
    steps = files("assetclass_pipeline.database") / "migrations" / "versions"
    numbers = (step.name.partition("_")[0] for step in steps.iterdir())
    return tuple(sorted(number for number in numbers if number.isdigit()))


def _head() -> str:
    return _revisions()[-1]


def _up_to(revision: str) -> tuple[str, ...]:
    return _revisions()[: _revisions().index(revision) + 1]
