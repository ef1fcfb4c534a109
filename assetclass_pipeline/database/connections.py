"""Connections to PostgreSQL and the settings of every transaction.

Belongs here: reaching the server, its refusals in plain words, BEGIN to COMMIT. Does not: what a
transaction does, retries, and the embedded server's own life.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import DatabaseUnavailableError, NoFreeConnectionError
from assetclass_pipeline.settings import SessionLimits, Settings

_DRIVER = re.compile(r"^postgres(?:ql)?\+\w+://")
_CHECK_URL = "Check ASSETCLASS_DATABASE_URL, or unset it to use the embedded PostgreSQL."
_MALFORMED = (
    "The database's address cannot be understood. Write ASSETCLASS_DATABASE_URL like "
    "postgresql://USER:PASSWORD@HOST:5432/DATABASE, with characters such as @ : / # % in the "
    "password percent-encoded (@ is %40)."
)
_NO_FREE_CONNECTION = r"too many (?:clients|connections)|connection slots"
# The server ends sessions, starts, stops, or has no room; connection exceptions are class 08.
_AWAY = frozenset({"57P01", "57P02", "57P03", "53300"})
_LONGEST_NAME = 63
_OLDEST_SERVER = 14
_TRANSACTION_TIMEOUT_SINCE = 170_000

# A firewall drops idle connections silently, and a batch would wait for hours on one that died.
_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# libpq gives no SQLSTATE for a refused connection, only its words.
_NEXT_STEPS = (
    (
        r"password authentication failed|no password supplied|authentication failed",
        "The password or the user name is wrong: correct them in ASSETCLASS_DATABASE_URL.",
    ),
    (
        r'database ".*" does not exist',
        "Create that database, or correct its name in ASSETCLASS_DATABASE_URL.",
    ),
    (
        r'role ".*" does not exist',
        "Create that role, or correct the user name in ASSETCLASS_DATABASE_URL.",
    ),
    (
        r"could not translate host name|Name or service not known|resolve",
        "The host name is unknown: correct it in ASSETCLASS_DATABASE_URL.",
    ),
    (
        _NO_FREE_CONNECTION,
        "The server has no free connection: close some, or raise its max_connections.",
    ),
    (
        r"starting up|shutting down|recovery mode|not yet accepting",
        "The server is starting or stopping: try again in a moment.",
    ),
    (
        r"pg_hba\.conf",
        "The server does not let this user in from here: see its pg_hba.conf, or set sslmode.",
    ),
    (
        r"permission denied for database",
        "Let the role in: GRANT CONNECT ON DATABASE.",
    ),
    (
        r"SSL|certificate",
        "Correct sslmode and the certificates in ASSETCLASS_DATABASE_URL.",
    ),
    (
        r"refused|timeout|timed out|No route|unreachable|No such file|closed the connection",
        f"Is the server up, and are host and port right? {_CHECK_URL}",
    ),
)


# For statements that read a whole table. Without the two costs at 0 the planner, which cannot
# estimate how many months there are, counts on one core (measured: 1.3 to 1.6 x). The leader merges
# what the workers counted; counting too, it would hold them up (measured on two cores: 1.04 s
# instead of 1.31 s).
ALL_CORES = {
    "parallel_setup_cost": "0",
    "parallel_tuple_cost": "0",
    "parallel_leader_participation": "off",
}


@contextmanager
def open_database(settings: Settings) -> Iterator[str]:
    """The DSN of the data, for as long as the context lives.

    It is `settings.database_url`, or else the embedded server's, which is started where it does
    not run yet and left at the end. Raises EmbeddedServerError when it cannot be started.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with EmbeddedServer(
        settings.home / "postgres", start_timeout=settings.embedded_start_timeout
    ) as server:
        yield server.url()


def running_database(settings: Settings) -> str:
    """The DSN of the data as `open_database` gives it, but nothing is started.

    Raises DatabaseUnavailableError where the embedded server does not run.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    found = EmbeddedServer(settings.home / "postgres").running_url()
    if found is None:
        raise DatabaseUnavailableError(
            f"The embedded PostgreSQL in {settings.home / 'postgres'} does not run: `assetclass "
            "up` starts it with everything else. Or name another one in ASSETCLASS_DATABASE_URL."
        )
    return found


def connect(
    dsn: str, settings: Settings, *, purpose: str, to_write: bool = False
) -> psycopg.Connection[TupleRow]:
    """An autocommit connection; `purpose` shows in pg_stat_activity behind "assetclass: ".

    `dsn` is a libpq URL or conninfo; SQLAlchemy's form with a driver is understood too. What it
    says about time-outs and keepalives is kept. Nothing is prepared on the server: poolers in
    transaction mode would hand a prepared statement to another session.

    Raises DatabaseUnavailableError whose message names the next step and never a password; with
    `to_write` also for a standby, which during a failover may be there before it is promoted.
    Raises NoFreeConnectionError where the server only has no room for another session.
    """
    parameters = _parameters(dsn)
    name = f"assetclass: {purpose}".encode()[:_LONGEST_NAME].decode(errors="ignore")
    defaults = {"connect_timeout": settings.session.connect_timeout, **_KEEPALIVES}
    forced = {"client_encoding": "UTF8", "application_name": name}
    try:
        conninfo = make_conninfo("", **{**defaults, **parameters, **forced})
        connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
    except (psycopg.Error, ValueError) as error:
        # Without its cause: libpq repeats parts of what it was given.
        raise _unavailable(str(error), parameters) from None
    _refuse_old_server(connection)
    if to_write and connection.info.parameter_status("in_hot_standby") == "on":
        connection.close()
        raise DatabaseUnavailableError(
            f"PostgreSQL at {_place(parameters)} is a standby and cannot be written to: wait until "
            "it is promoted, or name the primary in ASSETCLASS_DATABASE_URL."
        )
    # A role's default of repeatable read fails batches, one of read only fails everything.
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    connection.read_only = False
    return connection


def server_is_away(error: psycopg.Error) -> bool:
    """Whether a statement failed because the connection is lost, not because of what it says."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    state = error.sqlstate
    return state is None or state.startswith("08") or state in _AWAY


@contextmanager
def transaction(
    connection: psycopg.Connection[TupleRow],
    settings: Settings,
    *,
    read_only: bool = False,
    snapshot: bool = False,
    **local_settings: str,
) -> Iterator[psycopg.Cursor[TupleRow]]:
    """One transaction on an autocommit connection: commits at the end, rolls back on an error.

    It reads committed rows, or with `snapshot` one unchanging state (REPEATABLE READ).
    `local_settings` are PostgreSQL's, for this transaction only, and win over ours: all are SET
    LOCAL, so a pooler cannot leak them. The search path stays the role's own, because triggers of
    the market table run in here and may rely on it; our statements name every schema.

    Raises psycopg.ProgrammingError when the connection is in a transaction already.
    """
    connection.isolation_level = (
        IsolationLevel.REPEATABLE_READ if snapshot else IsolationLevel.READ_COMMITTED
    )
    connection.read_only = read_only
    with connection.transaction(), connection.cursor() as cursor:
        set_local(cursor, settings, **local_settings)
        yield cursor


@contextmanager
def scan(
    connection: psycopg.Connection[TupleRow],
    settings: Settings,
    *,
    snapshot: bool = False,
    in_parallel: bool = True,
) -> Iterator[psycopg.Cursor[TupleRow]]:
    """A read-only transaction for statements that read a whole table: all cores, time, memory.

    Not `in_parallel` it leaves the other cores to the applications. 64 MB hold the counts of a few
    hundred thousand groups.
    """
    with transaction(
        connection,
        settings,
        read_only=True,
        snapshot=snapshot,
        statement_timeout=_milliseconds(settings.session.scan_timeout),
        work_mem="64MB",
        **({} if in_parallel else {"max_parallel_workers_per_gather": "0"}),
        **ALL_CORES,
    ) as cursor:
        yield cursor


def set_local(cursor: psycopg.Cursor[TupleRow], settings: Settings, **local_settings: str) -> None:
    """Apply our limits, then `local_settings`, to the transaction that is open on `cursor`."""
    ours = _session_settings(settings.session)
    if cursor.connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
        # A limit of the role's on whole transactions would end every scan that needs longer.
        ours["transaction_timeout"] = "0"
    set_also(cursor, {**ours, **local_settings})


def set_also(cursor: psycopg.Cursor[TupleRow], local_settings: Mapping[str, str]) -> None:
    """Apply settings to the transaction that is open on `cursor`, and leave all others."""
    cursor.execute(
        query("catalogue", "set_local"),
        {"names": [*local_settings], "values": [*local_settings.values()]},
    )


def _refuse_old_server(connection: psycopg.Connection[TupleRow]) -> None:
    major = connection.info.server_version // 10_000
    if major < _OLDEST_SERVER:
        connection.close()
        raise DatabaseUnavailableError(
            f"The server is PostgreSQL {major}; {_OLDEST_SERVER} or newer is needed. Upgrade it, "
            "or name another one in ASSETCLASS_DATABASE_URL."
        )


def _session_settings(limits: SessionLimits) -> dict[str, str]:
    return {
        "lock_timeout": _milliseconds(limits.lock_timeout),
        "statement_timeout": _milliseconds(limits.statement_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(limits.idle_in_transaction_timeout),
        "timezone": "UTC",
        "datestyle": "ISO, YMD",
        "intervalstyle": "postgres",
        "jit": "off",
        # Rows that a policy hides become an error instead of rows that were never there.
        "row_security": "off",
    }


def _milliseconds(seconds: float) -> str:
    # 0 would mean no limit at all.
    return f"{max(1, round(seconds * 1000))}ms"


def _parameters(dsn: str) -> dict[str, str | int]:
    """The parts of a DSN; a malformed one is not repeated, for it may hold a password."""
    if not dsn.strip():
        raise DatabaseUnavailableError(
            "The database's address is empty. Set ASSETCLASS_DATABASE_URL to "
            "postgresql://USER:PASSWORD@HOST:5432/DATABASE, or unset it to use the embedded "
            "PostgreSQL."
        )
    try:
        parsed = conninfo_to_dict(_DRIVER.sub("postgresql://", dsn.strip()))
    except (psycopg.Error, ValueError):
        raise DatabaseUnavailableError(_MALFORMED) from None
    return {name: value for name, value in parsed.items() if value is not None}


def _holds_password_parts(parameters: Mapping[str, str | int]) -> bool:
    """Whether a password that was not percent-encoded may have ended up in other parts."""
    host, database = str(parameters.get("host", "")), str(parameters.get("dbname", ""))
    port = str(parameters.get("port", ""))
    return "@" in host.lstrip("@") or "@" in database or not re.fullmatch(r"[\d,]*", port)


def _unavailable(said: str, parameters: Mapping[str, str | int]) -> DatabaseUnavailableError:
    no_room = re.search(_NO_FREE_CONNECTION, said, re.IGNORECASE)
    kind = NoFreeConnectionError if no_room else DatabaseUnavailableError
    return kind(_refusal(said, parameters))


def _refusal(said: str, parameters: Mapping[str, str | int]) -> str:
    if _holds_password_parts(parameters):
        return _MALFORMED
    password = str(parameters.get("password", ""))
    first_line = next((line for line in said.splitlines() if line.strip()), "no reason given")
    reason = re.sub(r"^connection (?:failed|is bad): ", "", first_line.strip()).rstrip(".")
    if password:
        reason = re.sub(rf"(?<!\w){re.escape(password)}(?!\w)", "********", reason)
    step = next(
        (step for words, step in _NEXT_STEPS if re.search(words, said, re.IGNORECASE)), _CHECK_URL
    )
    return f"PostgreSQL cannot be reached at {_place(parameters)}: {reason}. {step}"


def _place(parameters: Mapping[str, str | int]) -> str:
    host = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
    port = f":{parameters['port']}" if "port" in parameters else ""
    database = f", database {parameters['dbname']}" if "dbname" in parameters else ""
    user = f", user {parameters['user']}" if "user" in parameters else ""
    return f"{host}{port}{database}{user}"
