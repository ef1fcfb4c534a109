"""Connections: refusals in plain words without passwords, settings that end with a transaction."""

import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from pydantic import SecretStr

from assetclass_pipeline.database.connections import connect, open_database, transaction
from assetclass_pipeline.database.embedded.binaries import Binaries
from assetclass_pipeline.errors import DatabaseUnavailableError
from assetclass_pipeline.settings import SessionLimits, Settings

SETTINGS = Settings()


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    with connect(database_url, SETTINGS, purpose="test") as opened:
        yield opened


def setting(cursor: psycopg.Cursor[TupleRow] | psycopg.Connection[TupleRow], name: str) -> str:
    return str(cursor.execute("SELECT current_setting(%s)", (name,)).fetchall()[0][0])


def refusal(dsn: str, settings: Settings = SETTINGS) -> str:
    with pytest.raises(DatabaseUnavailableError) as caught:
        connect(dsn, settings, purpose="test")
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_connection_says_who_it_is(connection: psycopg.Connection[TupleRow]) -> None:
    assert setting(connection, "application_name") == "assetclass: test"
    assert setting(connection, "client_encoding") == "UTF8"
    assert connection.autocommit
    assert connection.prepare_threshold is None


def test_long_purpose_is_cut_without_a_warning(database_url: str) -> None:
    notices: list[str] = []
    with connect(database_url, SETTINGS, purpose="ü" * 80) as connection:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        assert setting(connection, "application_name").startswith("assetclass: ")
    assert notices == []


def test_sqlalchemy_form_is_understood(database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    assert url != database_url
    connect(url, SETTINGS, purpose="test").close()


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql//u:secret@127.0.0.1/db",
        "mysql://u:secret@127.0.0.1/db",
        "postgresql://u:sec@ret@127.0.0.1:1/db",
        "postgresql://u:sec/ret@127.0.0.1:1/db",
        "postgresql://u:12/secret@127.0.0.1:1/db",
        "postgresql://u:sec%zzret@127.0.0.1:1/db",
        "just secret words",
    ],
)
def test_malformed_address_is_not_repeated(dsn: str) -> None:
    said = refusal(dsn)
    assert "ASSETCLASS_DATABASE_URL" in said
    assert "sec" not in said
    assert "ret@" not in said


def test_empty_address_does_not_fall_back_to_the_local_server() -> None:
    assert "is empty" in refusal(" ")


def test_server_down() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        said = refusal(f"postgresql://u:secret@127.0.0.1:{nobody.getsockname()[1]}/db")
    assert "Is the server up" in said
    assert "ASSETCLASS_DATABASE_URL" in said
    assert "secret" not in said


def test_short_password_does_not_garble_the_reason() -> None:
    said = refusal("postgresql://u:p@127.0.0.1:1/db")
    assert "port 1 failed: Connection refused" in said


def test_server_that_never_answers() -> None:
    # connect_timeout counts whole seconds, and libpq takes no less than two.
    impatient = Settings(session=SessionLimits(connect_timeout=1))
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        said = refusal(f"postgresql://u:secret@127.0.0.1:{mute.getsockname()[1]}/db", impatient)
    assert "Is the server up" in said


def test_wrong_password(database_url: str) -> None:
    said = refusal(make_conninfo(database_url, password="not-the-secret"))
    assert "password or the user name is wrong" in said
    assert "not-the-secret" not in said


def test_unknown_role(database_url: str) -> None:
    assert "user name is wrong" in refusal(make_conninfo(database_url, user="nobody here"))


def test_unknown_database(database_url: str) -> None:
    said = refusal(make_conninfo(database_url, dbname="not there"))
    assert "Create that database" in said
    assert str(conninfo_to_dict(database_url)["password"]) not in said


def test_unknown_host() -> None:
    assert "host name is unknown" in refusal("postgresql://u:secret@host.invalid/db")


def test_unusable_parameter_of_the_address(database_url: str) -> None:
    assert "bad value" in refusal(f"{database_url}?connect_timeout=soon")


def test_settings_end_with_the_transaction(connection: psycopg.Connection[TupleRow]) -> None:
    before = {name: setting(connection, name) for name in ("lock_timeout", "jit", "work_mem")}
    with transaction(connection, SETTINGS, work_mem="33MB") as cursor:
        assert setting(cursor, "lock_timeout") == "800ms"
        assert setting(cursor, "statement_timeout") == "5min"
        assert setting(cursor, "idle_in_transaction_session_timeout") == "1min"
        assert setting(cursor, "timezone") == "UTC"
        assert setting(cursor, "datestyle") == "ISO, YMD"
        assert setting(cursor, "jit") == "off"
        assert setting(cursor, "row_security") == "off"
        assert setting(cursor, "work_mem") == "33MB"
    after = {name: setting(connection, name) for name in ("lock_timeout", "jit", "work_mem")}
    assert after == before


def test_own_limits_win(connection: psycopg.Connection[TupleRow]) -> None:
    with transaction(connection, SETTINGS, lock_timeout="3s") as cursor:
        assert setting(cursor, "lock_timeout") == "3s"


def test_a_role_s_limit_on_whole_transactions_ends_none_of_ours(
    database_url: str, postgres_binaries: Binaries
) -> None:
    """Guard: each statement has its own limit; a scan, or the plan's index, may need longer."""
    if postgres_binaries.major < 17:
        pytest.skip("PostgreSQL 14 to 16 have no such limit")
    dsn = make_conninfo(database_url, options="-c transaction_timeout=1s")
    with (
        connect(dsn, SETTINGS, purpose="test") as connection,
        transaction(connection, SETTINGS) as cursor,
    ):
        cursor.execute("SELECT pg_sleep(1.5)")
        assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_isolation_does_not_depend_on_the_role(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    name = sql.Identifier(connection.info.dbname)
    for default in (
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
    ):
        connection.execute(sql.SQL(f"ALTER DATABASE {{}} SET {default}").format(name))
    with connect(database_url, SETTINGS, purpose="test") as fresh:
        assert setting(fresh, "transaction_isolation") == "serializable"
        with transaction(fresh, SETTINGS) as cursor:
            assert setting(cursor, "transaction_isolation") == "read committed"
            cursor.execute("CREATE TABLE written ()")
        with transaction(fresh, SETTINGS, snapshot=True, read_only=True) as cursor:
            assert setting(cursor, "transaction_isolation") == "repeatable read"
            assert setting(cursor, "transaction_read_only") == "on"
        with transaction(fresh, SETTINGS) as cursor:
            assert setting(cursor, "transaction_isolation") == "read committed"
            assert setting(cursor, "transaction_read_only") == "off"


def test_error_rolls_back(connection: psycopg.Connection[TupleRow]) -> None:
    connection.execute("CREATE TABLE numbers (n int)")

    def insert_and_fail() -> None:
        with transaction(connection, SETTINGS) as cursor:
            cursor.execute("INSERT INTO numbers VALUES (1)")
            raise KeyError

    with pytest.raises(KeyError):
        insert_and_fail()
    assert connection.execute("SELECT * FROM numbers").fetchall() == []


def test_transaction_in_a_transaction_is_refused(connection: psycopg.Connection[TupleRow]) -> None:
    with (
        transaction(connection, SETTINGS),
        pytest.raises(psycopg.ProgrammingError),
        transaction(connection, SETTINGS),
    ):
        pass


def test_hidden_rows_are_an_error(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    role = f"tenant {connection.info.dbname}"
    connection.execute("CREATE TABLE rows (n int)")
    connection.execute("ALTER TABLE rows ENABLE ROW LEVEL SECURITY")
    connection.execute(
        sql.SQL("CREATE ROLE {0} LOGIN PASSWORD 'x'; GRANT SELECT ON rows TO {0}").format(
            sql.Identifier(role)
        )
    )
    try:
        tenant = connect(
            make_conninfo(database_url, user=role, password="x"), SETTINGS, purpose="test"
        )
        with (
            tenant,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            transaction(tenant, SETTINGS) as cursor,
        ):
            cursor.execute("SELECT * FROM rows")
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_waiting_for_a_lock_ends(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    connection.execute("CREATE TABLE numbers (n int)")
    impatient = Settings(session=SessionLimits(lock_timeout=0.05))
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE numbers")
        with (
            pytest.raises(psycopg.errors.LockNotAvailable),
            transaction(connection, impatient) as cursor,
        ):
            cursor.execute("SELECT * FROM numbers")


def test_triggers_keep_the_search_path_of_their_role(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    # A trigger of the market table may call unqualified names: they must be found in our sessions.
    connection.execute("CREATE SCHEMA application; CREATE TABLE application.log (n int)")
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("ALTER DATABASE {} SET search_path = application").format(name))
    with (
        connect(database_url, SETTINGS, purpose="test") as fresh,
        transaction(fresh, SETTINGS) as cursor,
    ):
        assert cursor.execute("SELECT * FROM log").fetchall() == []


def test_given_address_is_used_as_it_is(tmp_path: Path) -> None:
    settings = Settings(database_url=SecretStr("postgresql://u:p@h/d"), home=tmp_path)
    with open_database(settings) as dsn:
        assert dsn == "postgresql://u:p@h/d"
    assert list(tmp_path.iterdir()) == []


def test_without_address_the_embedded_server_runs_as_long_as_it_is_open(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with open_database(settings) as dsn:
        connect(dsn, settings, purpose="test").close()
    assert "Is the server up" in refusal(dsn)
