"""Migrations: up and down and up again, twice at once, with and without rights."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import psycopg
import pytest
from alembic.script import ScriptDirectory
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.errors import (
    DatabaseUnavailableError,
    InvalidOptionsError,
    OperationInProgressError,
    SchemaNotReadyError,
)
from assetclass_pipeline.settings import Settings

SETTINGS = Settings()
NEWEST = "0010"
TABLES = {
    "alembic_version",
    "alert",
    "alert_event",
    "archive",
    "audit_log",
    "backup",
    "maintenance_window",
    "notification",
    "operation",
    "operation_attempt",
    "operation_batch",
    "operation_change",
    "operation_conflict",
    "operation_control",
    "operation_event",
    "operation_heartbeat",
    "operation_quarantined_row",
    "operation_skipped_row",
    "operation_total",
    "api_token",
    "idempotency_key",
    "operation_request",
    "operation_undone",
    "operation_wait",
    "quality_measurement",
    "watch_position",
}


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    with connect(database_url, SETTINGS, purpose="test") as opened:
        yield opened


@contextmanager
def role_in(database_url: str, connection: psycopg.Connection[TupleRow]) -> Iterator[str]:
    """The DSN of a role without any right but to connect."""
    name = f"clerk {connection.info.dbname}"
    role = sql.Identifier(name)
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
    try:
        yield make_conninfo(database_url, user=name, password="x")
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def clerk(connection: psycopg.Connection[TupleRow]) -> sql.Identifier:
    return sql.Identifier(f"clerk {connection.info.dbname}")


def catalogue(connection: psycopg.Connection[TupleRow]) -> list[tuple[object, ...]]:
    """Every column, constraint, index and comment of our schema."""
    return connection.execute(
        """
        SELECT 'column', attrelid::regclass::text, attname::text,
               format_type(atttypid, atttypmod), attnotnull::text, attidentity::text,
               pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
        FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid AND relkind IN ('r', 'i')
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'assetclass'::regnamespace AND attnum > 0
        UNION ALL
        SELECT 'constraint', conrelid::regclass::text, conname::text, pg_get_constraintdef(oid),
               contype::text, NULL, NULL, NULL
        FROM pg_constraint WHERE connamespace = 'assetclass'::regnamespace
        UNION ALL
        SELECT 'relation', relname::text, relkind::text, obj_description(pg_class.oid, 'pg_class'),
               CASE WHEN relkind = 'i' THEN pg_get_indexdef(pg_class.oid) END, NULL, NULL, NULL
        FROM pg_class WHERE relnamespace = 'assetclass'::regnamespace
        ORDER BY 1, 2, 3, 4
        """
    ).fetchall()


def tables(connection: psycopg.Connection[TupleRow]) -> set[str]:
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'assetclass'")
    return {str(row[0]) for row in rows}


def add_operation(connection: psycopg.Connection[TupleRow], status: str) -> str:
    correction_id = str(uuid.uuid4())
    connection.execute(
        "INSERT INTO assetclass.operation"
        " (correction_id, kind, status, phase, dry_run, options, requested_by)"
        " VALUES (%s, 'correction', %s, 'starting', false, '{}', 'test')",
        (correction_id, status),
    )
    return correction_id


def test_status_of_an_empty_database(database_url: str) -> None:
    found = schema.status(database_url, SETTINGS)
    assert found == schema.SchemaStatus(
        current=None,
        head=NEWEST,
        pending=("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", NEWEST),
    )
    assert not found.at_head


def test_the_names_of_its_files_tell_the_revisions(database_url: str) -> None:
    steps = ScriptDirectory(str(files("assetclass_pipeline.database") / "migrations"))
    revisions = [step.revision for step in steps.walk_revisions()]
    assert schema.status(database_url, SETTINGS).pending == tuple(reversed(revisions))


@pytest.mark.every_postgres
def test_up_down_up_is_the_same_as_up(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    assert schema.upgrade(database_url, SETTINGS).at_head
    first = catalogue(connection)
    assert tables(connection) == TABLES

    assert schema.downgrade(database_url, SETTINGS, "base").current is None
    assert tables(connection) == {"alembic_version"}

    schema.upgrade(database_url, SETTINGS)
    assert catalogue(connection) == first
    assert schema.status(database_url, SETTINGS) == schema.SchemaStatus(NEWEST, NEWEST, ())


def test_nothing_outside_our_schema_is_made(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    schema.upgrade(database_url, SETTINGS)
    others = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )
    assert others.fetchall() == []


def test_upgrade_again_changes_nothing(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    schema.upgrade(database_url, SETTINGS)
    add_operation(connection, "succeeded")
    before = catalogue(connection)
    schema.upgrade(database_url, SETTINGS)
    assert catalogue(connection) == before
    assert connection.execute("SELECT count(*) FROM assetclass.operation").fetchone() == (1,)


@pytest.mark.every_postgres
def test_two_upgrades_at_once(database_url: str, connection: psycopg.Connection[TupleRow]) -> None:
    found: list[object] = []
    together = threading.Barrier(3)

    def run() -> None:
        together.wait()
        try:
            found.append(schema.upgrade(database_url, SETTINGS))
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [schema.SchemaStatus(NEWEST, NEWEST, ())] * 3
    assert tables(connection) == TABLES


def test_second_upgrade_waits_for_the_first(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    found: list[schema.SchemaStatus] = []
    with psycopg.connect(database_url) as first:
        first.execute("SELECT pg_advisory_xact_lock(hashtextextended('assetclass migrations', 0))")
        second = threading.Thread(
            target=lambda: found.append(schema.upgrade(database_url, SETTINGS))
        )
        second.start()
        # Longer than the lock_timeout of every other session of ours.
        second.join(SETTINGS.session.lock_timeout + 0.5)
        assert second.is_alive()
        assert tables(connection) == set()
    second.join()
    assert [status.at_head for status in found] == [True]


def test_failed_step_leaves_nothing(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    connection.execute(
        "CREATE SCHEMA assetclass; CREATE VIEW assetclass.operation_change AS SELECT"
    )
    with pytest.raises(SchemaNotReadyError, match=r"already exists.*nothing was changed"):
        schema.upgrade(database_url, SETTINGS)
    assert tables(connection) == set()


@pytest.mark.every_postgres
def test_role_without_rights_is_told_what_to_ask_for(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    with role_in(database_url, connection) as dsn:
        with pytest.raises(SchemaNotReadyError, match=r"CREATE SCHEMA assetclass AUTHORIZATION"):
            schema.upgrade(dsn, SETTINGS)
        connection.execute("CREATE SCHEMA assetclass")
        with pytest.raises(SchemaNotReadyError, match=r"GRANT USAGE, CREATE ON SCHEMA assetclass"):
            schema.upgrade(dsn, SETTINGS)
        connection.execute(
            sql.SQL("GRANT USAGE, CREATE ON SCHEMA assetclass TO {}").format(clerk(connection))
        )
        assert schema.upgrade(dsn, SETTINGS).at_head
        with connect(dsn, SETTINGS, purpose="test") as own:
            schema.require_schema(own)


def test_role_that_did_not_make_the_schema(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    schema.upgrade(database_url, SETTINGS)
    with role_in(database_url, connection) as dsn:
        with pytest.raises(SchemaNotReadyError, match="as the role that ran it first"):
            schema.upgrade(dsn, SETTINGS)
        with (
            connect(dsn, SETTINGS, purpose="test") as own,
            pytest.raises(SchemaNotReadyError, match="may not read schema assetclass"),
        ):
            schema.require_schema(own)


def test_schema_is_required_in_one_sentence(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    with pytest.raises(SchemaNotReadyError, match=r"is missing: run `assetclass db upgrade`"):
        schema.require_schema(connection)
    schema.upgrade(database_url, SETTINGS)
    schema.require_schema(connection)
    schema.downgrade(database_url, SETTINGS, "base")
    with pytest.raises(SchemaNotReadyError, match="run `assetclass db upgrade`"):
        schema.require_schema(connection)


def test_schema_of_a_newer_version_is_left_alone(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    schema.upgrade(database_url, SETTINGS)
    connection.execute("UPDATE assetclass.alembic_version SET version_num = '9999'")
    for use in (
        lambda: schema.require_schema(connection),
        lambda: schema.status(database_url, SETTINGS),
        lambda: schema.upgrade(database_url, SETTINGS),
        lambda: schema.downgrade(database_url, SETTINGS, "base"),
    ):
        with pytest.raises(SchemaNotReadyError, match="install the newer version"):
            use()
    assert tables(connection) == TABLES


def test_downgrade_waits_for_no_active_operation(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    schema.upgrade(database_url, SETTINGS)
    correction_id = add_operation(connection, "running")
    with pytest.raises(OperationInProgressError, match="cancel it") as caught:
        schema.downgrade(database_url, SETTINGS, "base")
    assert caught.value.correction_id == correction_id
    assert tables(connection) == TABLES


def test_downgrade_to_nowhere(database_url: str) -> None:
    with pytest.raises(InvalidOptionsError, match="no revision 7777"):
        schema.downgrade(database_url, SETTINGS, "7777")
    with pytest.raises(InvalidOptionsError, match="lies ahead"):
        schema.downgrade(database_url, SETTINGS, NEWEST)


def test_one_active_operation_at_a_time(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    schema.upgrade(database_url, SETTINGS)
    add_operation(connection, "succeeded")
    add_operation(connection, "planned")
    add_operation(connection, "paused")
    with pytest.raises(psycopg.errors.UniqueViolation, match="operation_one_active"):
        add_operation(connection, "requested")


def test_server_down() -> None:
    with pytest.raises(DatabaseUnavailableError):
        schema.upgrade("postgresql://u:p@127.0.0.1:1/db", SETTINGS)
