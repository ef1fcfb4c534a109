"""Builds the demo's two tables in PostgreSQL and fills them by COPY.

Belongs here: creating, marking, filling and replacing those tables, and refusing to replace any
others. Does not: where the data come from (`sources.py`), and the story that the demo tells.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import pandas as pd
import psycopg
from psycopg import sql

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.demo.bars import BAR_COLUMNS, read_bars
from assetclass_pipeline.demo.reference import SYMBOL_COLUMNS, read_symbols
from assetclass_pipeline.demo.sources import SourceFiles
from assetclass_pipeline.errors import DatabaseUnavailableError, DemoDataError
from assetclass_pipeline.settings import Settings

MARK = "assetclass demo data; every `assetclass demo` drops and creates this table"
"""Comment on both tables: only tables that carry it are ever dropped."""

_LOCK_TIMEOUT = "10s"
_ROWS_PER_WRITE = 20_000

_NEXT_STEPS: dict[type[psycopg.Error], str] = {
    psycopg.errors.LockNotAvailable: (
        "Another session is using the demo's tables: let it finish or end it, then try again."
    ),
    psycopg.errors.DependentObjectsStillExist: (
        "Something of yours depends on the demo's tables: drop that first."
    ),
    psycopg.errors.InvalidSchemaName: (
        "Create the schema, or correct ASSETCLASS_MARKET_SCHEMA and ASSETCLASS_SYMBOLS_SCHEMA."
    ),
    psycopg.errors.InsufficientPrivilege: (
        "Grant CREATE on the schema to this role, and let it own the demo's tables."
    ),
    psycopg.errors.DiskFull: "Free some space on the database server: the demo takes 100 MB.",
}


@dataclass(frozen=True)
class LoadedDemo:
    """What was loaded: rows of both tables, days of the first and last bar, seconds in all."""

    symbols: int
    bars: int
    first: date
    last: date
    seconds: float


def load_demo(
    connection_url: str, settings: Settings, sources: SourceFiles, *, report: Callable[[str], None]
) -> LoadedDemo:
    """Drop, create and fill both market tables in one transaction: all of it happens or nothing.

    `report` gets a line for people at each step. Indexes are the primary keys and one unique
    index on (symbol, "timestamp"); the ones that the pipeline wants are made by `db indexes`.

    Raises DatabaseUnavailableError when the server cannot be reached, and DemoDataError when a
    table in the way is not the demo's own or the server refuses a statement.
    """
    started = time.perf_counter()
    report("Reading symbols and bars from the fetched packages")
    symbols, bars = read_symbols(sources), read_bars(sources)
    with _connect(connection_url, settings) as connection:
        try:
            _replace_tables(connection, settings)
            report(f"Loading {len(symbols):,} symbols and {len(bars):,} bars")
            _fill_tables(connection, settings, symbols, bars)
            connection.commit()
        except psycopg.Error as error:
            raise DemoDataError(_refusal(error)) from error
    return LoadedDemo(
        symbols=len(symbols),
        bars=len(bars),
        first=bars["timestamp"].min().date(),
        last=bars["timestamp"].max().date(),
        seconds=time.perf_counter() - started,
    )


def _connect(connection_url: str, settings: Settings) -> psycopg.Connection:
    try:
        connection = psycopg.connect(
            connection_url,
            connect_timeout=settings.session.connect_timeout,
            application_name="assetclass demo",
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnavailableError(
            f"The demo cannot reach PostgreSQL: {str(error).strip()}. Check that the server is up "
            "and ASSETCLASS_DATABASE_URL, or unset it to use the embedded PostgreSQL."
        ) from error
    # A role's default may be repeatable read, which would not see what we waited for.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def _tables(settings: Settings) -> dict[str, sql.Composable]:
    return {
        "market": sql.Identifier(settings.market_schema, settings.market_table),
        "symbols": sql.Identifier(settings.symbols_schema, settings.symbols_table),
    }


def _replace_tables(connection: psycopg.Connection, settings: Settings) -> None:
    connection.execute(query("demo", "wait_for_locks_at_most"), {"lock_timeout": _LOCK_TIMEOUT})
    connection.execute(query("demo", "one_load_at_a_time"))
    _refuse_foreign_tables(connection, settings)
    tables = _tables(settings)
    for name in ("drop_tables", "create_symbols", "create_market"):
        connection.execute(query("demo", name, **tables))
    for table in tables.values():
        connection.execute(query("demo", "mark_table", table=table, mark=sql.Literal(MARK)))


def _refuse_foreign_tables(connection: psycopg.Connection, settings: Settings) -> None:
    names = {
        "market_schema": settings.market_schema,
        "market_table": settings.market_table,
        "symbols_schema": settings.symbols_schema,
        "symbols_table": settings.symbols_table,
        "mark": MARK,
    }
    found = connection.execute(query("demo", "relations_in_the_way"), names).fetchall()
    if found:
        listed = ", ".join(f"{schema}.{table}" for schema, table in found)
        raise DemoDataError(
            f"The demo would replace {listed}, which it did not create: nothing was changed. "
            "Give the demo a database of its own: unset ASSETCLASS_DATABASE_URL to use the "
            "embedded PostgreSQL, or name an empty database there."
        )


def _fill_tables(
    connection: psycopg.Connection, settings: Settings, symbols: pd.DataFrame, bars: pd.DataFrame
) -> None:
    tables = _tables(settings)
    _copy(connection, tables["symbols"], symbols[list(SYMBOL_COLUMNS)])
    _copy(connection, tables["market"], bars[list(BAR_COLUMNS)])
    for name in ("index_symbols", "index_market", "analyze_tables"):
        connection.execute(query("demo", name, **tables))


def _copy(connection: psycopg.Connection, table: sql.Composable, rows: pd.DataFrame) -> None:
    """Send the rows as CSV, where an empty unquoted field is NULL; no text in them is empty."""
    columns = sql.SQL(", ").join(sql.Identifier(column) for column in rows.columns)
    statement = query("demo", "copy_rows", table=table, columns=columns)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for start in range(0, len(rows), _ROWS_PER_WRITE):
            part = rows.iloc[start : start + _ROWS_PER_WRITE]
            copy.write(part.to_csv(header=False, index=False))


def _refusal(error: psycopg.Error) -> str:
    said = error.diag.message_primary or str(error).strip() or type(error).__name__
    advice = next(
        (step for kind, step in _NEXT_STEPS.items() if isinstance(error, kind)),
        "Look into the server's log, then try again.",
    )
    return f"The demo data could not be loaded, nothing was changed: {said}. {advice}"
