"""Market tables for tests: builders for `symbols` and `market_data`, plain or partitioned.

Belongs here: creating, filling and reading the two tables. Does not: expectations about them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.queries import Statement
from assetclass_pipeline.settings import SessionLimits, Settings, load_settings

MarketConnection = psycopg.Connection[TupleRow]

# Each entry: the PARTITION BY clause, then the partitions of `{table}`; `{part}` names its number.
PARTITIONINGS: dict[str, tuple[LiteralString, ...]] = {
    "plain": (),
    "range": (
        'PARTITION BY RANGE ("timestamp")',
        "PARTITION OF {table} FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')",
        "PARTITION OF {table} FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
        "PARTITION OF {table} DEFAULT",
    ),
    "list": (
        "PARTITION BY LIST (symbol)",
        "PARTITION OF {table} FOR VALUES IN ('AAPL', 'MSFT', NULL)",
        "PARTITION OF {table} DEFAULT",
    ),
    "hash": (
        "PARTITION BY HASH (id)",
        "PARTITION OF {table} FOR VALUES WITH (MODULUS 3, REMAINDER 0)",
        "PARTITION OF {table} FOR VALUES WITH (MODULUS 3, REMAINDER 1)",
        "PARTITION OF {table} FOR VALUES WITH (MODULUS 3, REMAINDER 2)",
    ),
    "nested": (
        'PARTITION BY RANGE ("timestamp")',
        (
            "PARTITION OF {table} FOR VALUES FROM ('2023-01-01') TO ('2025-01-01') "
            "PARTITION BY HASH (id)"
        ),
        "PARTITION OF {table} DEFAULT",
        "PARTITION OF {first} FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "PARTITION OF {first} FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    ),
}

# As above; a part that begins with FOREIGN stands in the database of `remote_dsn`.
FOREIGN_PARTITIONINGS: dict[str, tuple[LiteralString, ...]] = {
    "foreign": ("FOREIGN",),
    "mixed": (
        'PARTITION BY RANGE ("timestamp")',
        "PARTITION OF {table} FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')",
        "FOREIGN PARTITION OF {table} FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
        "PARTITION OF {table} DEFAULT",
    ),
    "mixed nested": (
        "PARTITION BY LIST (symbol)",
        (
            "PARTITION OF {table} FOR VALUES IN ('AAPL', 'BTC', 'MSFT', NULL) "
            'PARTITION BY RANGE ("timestamp")'
        ),
        "FOREIGN PARTITION OF {table} DEFAULT",
        "FOREIGN PARTITION OF {first} FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
        "PARTITION OF {first} DEFAULT",
    ),
}


@dataclass(frozen=True)
class Bar:
    """One row of the market table; times are written as PostgreSQL reads them."""

    id: object
    symbol: str | None
    timestamp: str | None = "2024-03-01 12:00:00+00"
    asset_class: str | None = None


@dataclass(frozen=True)
class Market:
    """The two tables under any names and with any types; `connection` is autocommit."""

    connection: MarketConnection
    dsn: str
    schema: str = "public"
    table: str = "market_data"
    symbols: str = "symbols"
    id_type: str = "bigint"
    symbol_type: str = "text"
    timestamp_type: str = "timestamptz"
    class_type: str = "text"
    key: LiteralString = "PRIMARY KEY (id)"
    has_updated_at: bool = True
    partitioning: str = "plain"
    remote_dsn: str | None = None
    session: SessionLimits = field(default_factory=SessionLimits)
    patience: float = 30
    throttle: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        """Settings that name these tables; short waits, so that a dead operation is noticed."""
        return load_settings(
            market_schema=self.schema,
            market_table=self.table,
            symbols_schema=self.schema,
            symbols_table=self.symbols,
            first_month="2023-01-01",
            heartbeat_interval=0.5,
            heartbeat_stale_after=2,
            patience=self.patience,
            throttle={"free_disk_bytes": None, "poll_seconds": 0.1, **self.throttle},
            retry={"tries": 3, "first_wait": 0.05, "longest_wait": 0.2},
            session=self.session,
        )

    @property
    def market_identifier(self) -> sql.Identifier:
        """Quoted name of the market table."""
        return sql.Identifier(self.schema, self.table)

    @property
    def symbols_identifier(self) -> sql.Identifier:
        """Quoted name of the reference table."""
        return sql.Identifier(self.schema, self.symbols)

    def create(self) -> "Market":
        """Make both tables, empty; those of an earlier call are dropped."""
        self.execute("CREATE SCHEMA IF NOT EXISTS {}", sql.Identifier(self.schema))
        self.drop()
        self.execute(
            "CREATE TABLE {} (ticker text, asset_class text, venue text)", self.symbols_identifier
        )
        clause, *parts = self._shape
        foreign = clause == "FOREIGN"
        if foreign:
            self._create_remote(self.market_identifier)
        statement = sql.SQL("CREATE FOREIGN TABLE {} ({}) " if foreign else "CREATE TABLE {} ({}) ")
        columns = self._columns(self.key if self.partitioning == "plain" else "")
        self.connection.execute(
            statement.format(self.market_identifier, columns)
            + sql.SQL("SERVER far_away" if foreign else clause)
        )
        for number, part in enumerate(parts, start=1):
            self._create_part(self.part(number), part)
        return self

    @property
    def _shape(self) -> tuple[LiteralString, ...]:
        """The clause behind the market table's columns, then its parts."""
        return (PARTITIONINGS | FOREIGN_PARTITIONINGS)[self.partitioning] or ("",)

    def _columns(self, key: LiteralString) -> sql.Composed:
        columns: list[LiteralString] = ["id {id}", "symbol {symbol}", '"timestamp" {time}']
        columns += ["close numeric DEFAULT 1.5", "asset_class {klass}"]
        columns += ["updated_at timestamptz"] if self.has_updated_at else []
        columns += [key] if key else []
        return sql.SQL(", ".join(columns)).format(
            id=sql.SQL(self.id_type),
            symbol=sql.SQL(self.symbol_type),
            time=sql.SQL(self.timestamp_type),
            klass=sql.SQL(self.class_type),
        )

    def _create_part(self, name: sql.Identifier, part: LiteralString) -> None:
        body = sql.SQL(part).format(table=self.market_identifier, first=self.part(1))
        if part.startswith("FOREIGN "):
            self._create_remote(name)
            _, _, partition_of = part.partition(" ")
            body = sql.SQL(partition_of).format(table=self.market_identifier, first=self.part(1))
            statement = sql.SQL("CREATE FOREIGN TABLE {} {} SERVER far_away")
            self.connection.execute(statement.format(name, body))
            return
        self.connection.execute(sql.SQL("CREATE TABLE {} {}").format(name, body))
        if self.key and "PARTITION BY" not in part:
            self.connection.execute(sql.SQL("ALTER TABLE {} ADD ").format(name) + sql.SQL(self.key))

    def _create_remote(self, name: sql.Identifier) -> None:
        """The table behind a foreign one, and the way there."""
        assert self.remote_dsn is not None
        add_server(self.connection, self.remote_dsn)
        self.remote("CREATE SCHEMA IF NOT EXISTS {}", sql.Identifier(self.schema))
        self.remote("DROP TABLE IF EXISTS {}", name)
        self.remote("CREATE TABLE {} ({})", name, self._columns(self.key))

    def remote(
        self, statement: LiteralString, *parts: sql.Composable, **named: sql.Composable
    ) -> list[tuple[Any, ...]]:
        """Run one statement in the other database; its rows."""
        assert self.remote_dsn is not None
        with psycopg.connect(self.remote_dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement).format(*parts, **named))
            return cursor.fetchall() if cursor.description else []

    def drop(self) -> None:
        """Drop both tables, all backups and plans, and forget all operations."""
        backups = [sql.Identifier(self.schema, name) for name in self.backup_tables()]
        own = [*self.plan_tables(), *self.rollback_tables()]
        plans = [sql.Identifier("assetclass", name) for name in own]
        is_foreign = self.execute(
            "SELECT FROM information_schema.foreign_tables "
            "WHERE foreign_table_schema = %s AND foreign_table_name = %s",
            values=(self.schema, self.table),
        )
        if is_foreign.fetchone() is not None:
            self.execute("DROP FOREIGN TABLE {}", self.market_identifier)
        for table in [self.market_identifier, self.symbols_identifier, *backups, *plans]:
            self.execute("DROP TABLE IF EXISTS {} CASCADE", table)
        # Nearly every database is fresh: no need to make the files of 16 tables anew.
        if self.value("SELECT EXISTS (SELECT FROM assetclass.operation)"):
            self.execute("TRUNCATE assetclass.operation CASCADE")

    def part(self, number: int) -> sql.Identifier:
        """Name of one partition."""
        return sql.Identifier(self.schema, f"{self.table}_part_{number}")

    def list_symbols(self, *rows: tuple[str | None, str | None]) -> "Market":
        """Add (ticker, asset_class) rows to the reference; the n-th is of venue n."""
        statement = sql.SQL(
            "INSERT INTO {} (ticker, asset_class, venue) VALUES (%(ticker)s, %(klass)s, %(venue)s)"
        )
        with self.connection.cursor() as cursor:
            cursor.executemany(
                Statement([*statement.format(self.symbols_identifier)]),
                [
                    {"ticker": ticker, "klass": klass, "venue": f"venue {number}"}
                    for number, (ticker, klass) in enumerate(rows)
                ],
            )
        return self

    def add(self, bars: Iterable[Bar]) -> "Market":
        """Add rows to the market table."""
        statement = sql.SQL(
            'INSERT INTO {} (id, symbol, "timestamp", asset_class) '
            "VALUES (%(id)s, %(symbol)s, %(timestamp)s, %(asset_class)s)"
        )
        with self.connection.cursor() as cursor:
            cursor.executemany(
                Statement([*statement.format(self.market_identifier)]), [vars(bar) for bar in bars]
            )
        return self

    def fill(self, records: int, *, symbols: int = 20, missing_every: int = 1) -> "Market":
        """Symbols S0.. of two classes and `records` bars, each `missing_every`-th without class."""
        self.list_symbols(*((f"S{n}", f"CLASS_{n % 2}") for n in range(symbols)))
        self.execute(
            'INSERT INTO {} (id, symbol, "timestamp", asset_class) '
            "SELECT n, 'S' || n %% %s, timestamp '2023-01-01' + n * interval '1 minute', "
            "CASE WHEN n %% %s <> 0 THEN 'CLASS_' || (n %% %s) %% 2 END "
            "FROM generate_series(1, %s) n",
            self.market_identifier,
            values=(symbols, missing_every, symbols, records),
        )
        self.execute("ANALYZE {}", self.market_identifier)
        return self

    def execute(
        self, statement: LiteralString, *parts: sql.Composable, values: Sequence[object] = ()
    ) -> psycopg.Cursor[TupleRow]:
        """Run one statement; `{}` takes the identifiers."""
        return self.connection.execute(sql.SQL(statement).format(*parts), values or None)

    def rows(self, statement: LiteralString, *parts: sql.Composable) -> list[tuple[Any, ...]]:
        """All rows of one query."""
        return self.execute(statement, *parts).fetchall()

    def value(self, statement: LiteralString, *parts: sql.Composable) -> Any:
        """The first value of one query."""
        return self.rows(statement, *parts)[0][0]

    def classes(self) -> dict[Any, str | None]:
        """asset_class by id."""
        return dict(self.rows("SELECT id, asset_class::text FROM {}", self.market_identifier))

    def versions(self) -> dict[tuple[int, str], tuple[Any, ...]]:
        """Every row as it is stored, whole: a row that anybody wrote has another address."""
        return {
            (leaf, address): tuple(rest)
            for leaf, address, *rest in self.rows(
                "SELECT tableoid::bigint, ctid::text, xmin::text, m::text FROM {} m",
                self.market_identifier,
            )
        }

    def everything(self) -> dict[str, set[tuple[str, ...]]]:
        """Every row of every table as it is stored, with its locks, and every sequence.

        Equal only where nobody left anything behind. Counters of the server would tell less surely:
        sessions that have ended add to them later.
        """
        tables = self.rows(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' "
            "AND n.nspname <> 'information_schema'"
        )
        found = {
            f"{schema}.{name}": {
                *self.rows(
                    "SELECT ctid::text, xmin::text, xmax::text, t::text FROM {} t",
                    sql.Identifier(schema, name),
                )
            }
            for schema, name in tables
        }
        numbers = self.rows(
            "SELECT schemaname::text, sequencename::text, last_value::text FROM pg_sequences"
        )
        return found | {"(sequences)": {*numbers}}

    def backup_tables(self) -> list[str]:
        """Names with the backups' prefix, newest first, wherever they are."""
        return [
            name
            for (name,) in self.rows(
                "SELECT tablename::text FROM pg_tables "
                "WHERE tablename LIKE 'market\\_data\\_backup\\_%' ORDER BY 1 DESC"
            )
        ]

    def plan_tables(self) -> list[str]:
        """Unlogged plans that somebody left behind."""
        return self._own_tables("plan\\_%")

    def rollback_tables(self) -> list[str]:
        """Plans of rollbacks."""
        return self._own_tables("rollback\\_%")

    def _own_tables(self, pattern: str) -> list[str]:
        return [
            name
            for (name,) in self.execute(
                "SELECT tablename::text FROM pg_tables "
                "WHERE schemaname = 'assetclass' AND tablename LIKE %s ORDER BY 1",
                values=(pattern,),
            )
        ]


def add_server(connection: MarketConnection, dsn: str, name: str = "far_away") -> None:
    """Let `connection`'s database reach the one of `dsn` through postgres_fdw, as a server."""
    at = conninfo_to_dict(dsn)
    server = sql.Identifier(name)
    connection.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    connection.execute(
        sql.SQL(
            "CREATE SERVER IF NOT EXISTS {} FOREIGN DATA WRAPPER postgres_fdw"
            " OPTIONS (host {}, port {}, dbname {})"
        ).format(server, str(at["host"]), str(at.get("port", 5432)), str(at["dbname"]))
    )
    connection.execute(
        sql.SQL(
            "CREATE USER MAPPING IF NOT EXISTS FOR CURRENT_USER SERVER {}"
            " OPTIONS (user {}, password {})"
        ).format(server, str(at["user"]), str(at.get("password", "")))
    )


@contextmanager
def open_market(dsn: str, **shape: Any) -> Iterator[Market]:
    """A market in the database, and the pipeline's schema beside it."""
    settings = load_settings()
    if not schema.status(dsn, settings).at_head:
        schema.upgrade(dsn, settings)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET TimeZone TO 'UTC'")
        yield Market(connection, dsn, **shape).create()
