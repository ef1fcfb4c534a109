"""The indexes that the pipeline wants on the market tables, built while the tables are in use.

Belongs here: which they are, building, repairing and, on partitioned tables, putting them together.
Does not: indexes of our own schema, which the migrations make.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, class_row

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import DatabaseUnavailableError, MarketTablesError
from assetclass_pipeline.settings import Settings

Report = Callable[[str], None]

_LONGEST_NAME: Final = 63
# A build waits for every older transaction of its database, so for longer than a batch may.
_LOCK_WAIT: Final = 60.0
_POLL_INTERVAL: Final = 0.2
_BUSY = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    # Somebody else has made it since we looked.
    psycopg.errors.DuplicateTable,
    psycopg.errors.UniqueViolation,
)


class IndexOutcome(StrEnum):
    """What became of a wanted index."""

    PRESENT = "present"
    CREATED = "created"
    REPAIRED = "repaired"
    COMPLETED = "completed"
    DIFFERENT = "different"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class IndexResult:
    """A wanted index: its name, its table ("schema.table"), what was done, in how many seconds."""

    name: str
    table: str
    outcome: IndexOutcome
    message: str
    seconds: float


@dataclass(frozen=True)
class _Wanted:
    """An index to be: a block of indexes.sql and what the server makes of it when asked."""

    suffix: str
    block: str
    definition: re.Pattern[str]


_STORAGE = r"(?: WITH \([^)]*\))?"
_MISSING_BY_CLASS = _Wanted(
    "symbol_asset_class",
    "for_missing_by_class",
    re.compile(rf"btree \(symbol, asset_class\){_STORAGE} WHERE \(asset_class IS NULL\)"),
)
_MISSING_BY_SYMBOL = _Wanted(
    "correctable",
    "for_missing_by_symbol",
    re.compile(
        rf"btree \(symbol\){_STORAGE} WHERE \(\(asset_class IS NULL\) OR "
        r"\((?:asset_class|\(asset_class\)::text) = ''::text\)\)"
    ),
)
_CLASSES = _Wanted(
    "ticker_asset_class",
    "for_classes",
    re.compile(rf"btree \(ticker, asset_class\){_STORAGE}"),
)


@dataclass(frozen=True)
class _Table:
    """A table, partitioned table or partition; `kind` is that of `pg_class.relkind`."""

    oid: int
    schema: str
    name: str
    kind: str

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True)
class _Existing:
    """A relation that has the name that a wanted index should get."""

    oid: int
    is_index_of_table: bool
    is_valid: bool
    definition: str
    built_by: int | None


@dataclass(frozen=True)
class _Attached:
    schema: str
    name: str


class _DifferentIndexError(Exception):
    """Something else has the name; it is somebody's and stays."""


class _BusyError(Exception):
    """Another session is at the same index."""


def ensure_indexes(
    dsn: str, settings: Settings, report: Report, *, lock_wait: float = _LOCK_WAIT
) -> list[IndexResult]:
    """Build what is missing and repair what a broken build left INVALID; writers are never blocked.

    `report` gets a line for people at each step; `lock_wait` is in seconds, for one of
    `settings.retry.tries` tries. An index of a wanted name with another definition is reported as
    different and left as it is. Settings are those of the session, so name the server itself in the
    DSN, not a pooler in transaction mode.

    Raises MarketTablesError when a table cannot be used, a right is missing, or other sessions are
    in the way for too long (the next call goes on from there), and DatabaseUnavailableError.
    """
    with connect(dsn, settings, purpose="db indexes") as connection:
        tables = inspect_market_tables(connection, settings, for_writing=False)
        builder = _Builder(connection, settings, report, lock_wait)
        with builder.alone():
            market = builder.table(tables.market_oid, settings.market_schema, settings.market_table)
            symbols = builder.table(
                tables.symbols_oid, settings.symbols_schema, settings.symbols_table
            )
            return [
                builder.ensure(market, _MISSING_BY_CLASS),
                _unless_enum(tables, market, builder),
                builder.ensure(symbols, _CLASSES),
            ]


def missing_indexes(
    connection: psycopg.Connection[TupleRow], settings: Settings
) -> list[IndexResult]:
    """The wanted indexes that are missing, INVALID or other than wanted; nothing is built.

    Their outcome is what `ensure_indexes` would come to. Must be called outside a transaction.
    Raises MarketTablesError when a table cannot be used.
    """
    tables = inspect_market_tables(connection, settings, for_writing=False)
    builder = _Builder(connection, settings, lambda _: None, _LOCK_WAIT)
    with transaction(connection, settings, read_only=True, search_path="pg_catalog"):
        market = builder.table(tables.market_oid, settings.market_schema, settings.market_table)
        symbols = builder.table(tables.symbols_oid, settings.symbols_schema, settings.symbols_table)
        lacks = [
            builder.lack(market, _MISSING_BY_CLASS),
            None if tables.asset_class_is_enum else builder.lack(market, _MISSING_BY_SYMBOL),
            builder.lack(symbols, _CLASSES),
        ]
    return [lack for lack in lacks if lack is not None]


def _unless_enum(tables: MarketTables, market: _Table, builder: "_Builder") -> IndexResult:
    if not tables.asset_class_is_enum:
        return builder.ensure(market, _MISSING_BY_SYMBOL)
    return IndexResult(
        index_name(market.name, _MISSING_BY_SYMBOL.suffix),
        market.full_name,
        IndexOutcome.SKIPPED,
        "asset_class is an enum, which PostgreSQL does not compare as text in an index",
        0.0,
    )


def index_name(table: str, suffix: str) -> str:
    """`idx_<table>_<suffix>`, shortened with a checksum where PostgreSQL would cut it off."""
    name = f"idx_{table}_{suffix}"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    checksum = hashlib.sha256(table.encode()).hexdigest()[:8]
    room = _LONGEST_NAME - len(f"idx__{checksum}_{suffix}")
    shortened = table.encode()[:room].decode(errors="ignore")
    return f"idx_{shortened}_{checksum}_{suffix}"


class _Builder:
    def __init__(
        self,
        connection: psycopg.Connection[TupleRow],
        settings: Settings,
        report: Report,
        lock_wait: float,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._report = report
        self._lock_wait = lock_wait

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Set the session up and keep other callers of ours out meanwhile."""
        session = {
            "lock_timeout": f"{max(1, round(self._lock_wait * 1000))}ms",
            # A build on a big table takes as long as it takes.
            "statement_timeout": "0",
            "search_path": "pg_catalog",
        }
        self._connection.execute(
            query("indexes", "set_for_session"),
            {"names": [*session], "values": [*session.values()]},
        )
        deadline = time.monotonic() + self._lock_wait * self._settings.retry.tries
        while not self._one(query("indexes", "try_lock_indexes")):
            if time.monotonic() > deadline:
                raise MarketTablesError(
                    "Another `assetclass db indexes` is at work on this database: let it finish, "
                    "then try again."
                )
            time.sleep(_POLL_INTERVAL)
        try:
            yield
        finally:
            if not self._connection.closed:
                self._connection.execute(query("indexes", "unlock_indexes"))

    def table(self, oid: int, schema: str, name: str) -> _Table:
        return _Table(oid, schema, name, str(self._one(query("indexes", "table_kind"), table=oid)))

    def lack(self, table: _Table, wanted: _Wanted) -> IndexResult | None:
        """What `ensure` would have to do; None where there is nothing to do, or nothing can be."""
        name = index_name(table.name, wanted.suffix)
        try:
            existing = self._existing(table, wanted, table.schema, name)
        except _DifferentIndexError as found:
            return IndexResult(name, table.full_name, IndexOutcome.DIFFERENT, str(found), 0.0)
        if existing is not None and existing.is_valid:
            return None
        if table.kind not in {"r", "p"} or self._one(
            query("indexes", "has_foreign_partitions"), table=table.oid
        ):
            return None
        if existing is None:
            message = f"index {name} on {table.full_name} is missing"
            return IndexResult(name, table.full_name, IndexOutcome.CREATED, message, 0.0)
        message = f"index {name} on {table.full_name} is INVALID, and so of no use"
        return IndexResult(name, table.full_name, IndexOutcome.REPAIRED, message, 0.0)

    def ensure(self, table: _Table, wanted: _Wanted) -> IndexResult:
        """Bring one index about, with as many tries as the settings give."""
        name = index_name(table.name, wanted.suffix)
        started = time.monotonic()
        if table.kind not in {"r", "p"}:
            outcome, message = IndexOutcome.SKIPPED, "only tables have indexes, and this is none"
        else:
            try:
                outcome = self._with_tries(table, wanted, table.schema, name)
                message = f"index {name} on {table.full_name} is {outcome}"
            except _DifferentIndexError as found:
                outcome, message = IndexOutcome.DIFFERENT, str(found)
        self._report(message)
        return IndexResult(
            name, table.full_name, outcome, message, round(time.monotonic() - started, 3)
        )

    def _with_tries(self, table: _Table, wanted: _Wanted, schema: str, name: str) -> IndexOutcome:
        retry = self._settings.retry
        wait = retry.first_wait
        for number in range(1, retry.tries + 1):
            try:
                return self._bring_about(table, wanted, schema, name)
            except (*_BUSY, _BusyError) as error:
                holders = self._holders(table, error)
                if number == retry.tries:
                    raise MarketTablesError(
                        f"Index {name} on {table.full_name} could not be built: {holders}. Let "
                        "them finish or end them, then run `assetclass db indexes` again; it goes "
                        "on from here."
                    ) from error
                self._report(f"Index {name} has to wait: {holders}. Trying again in {wait:g} s")
            except psycopg.Error as error:
                raise self._explanation(error, table, wanted, name) from error
            time.sleep(wait)
            wait = min(retry.longest_wait, wait * 2)
        raise AssertionError  # tries is at least 1

    def _bring_about(self, table: _Table, wanted: _Wanted, schema: str, name: str) -> IndexOutcome:
        existing = self._existing(table, wanted, schema, name)
        if existing is not None and existing.is_valid:
            return IndexOutcome.PRESENT
        if existing is not None and existing.built_by is not None:
            raise _BusyError(f"process {existing.built_by} is building it")
        if table.kind == "p":
            if self._one(query("indexes", "has_foreign_partitions"), table=table.oid):
                return self._part_by_part(table, wanted)
            return self._put_together(table, wanted, schema, name, existing)
        if existing is not None:
            self._repair(table, schema, name)
            return IndexOutcome.REPAIRED
        self._report(f"Building index {name} on {table.full_name}")
        self._run(
            "create_index",
            index=sql.Identifier(name),
            table=table.identifier,
            definition=query("indexes", wanted.block),
        )
        return IndexOutcome.CREATED

    def _put_together(
        self,
        table: _Table,
        wanted: _Wanted,
        schema: str,
        name: str,
        existing: _Existing | None,
    ) -> IndexOutcome:
        """The index of a partitioned table: valid once every partition has its part attached."""
        parent = sql.Identifier(schema, name)
        if existing is None:
            self._run_briefly(
                "create_partitioned_index",
                index=sql.Identifier(name),
                table=table.identifier,
                definition=query("indexes", wanted.block),
            )
        parent_index = self._existing(table, wanted, schema, name)
        if parent_index is None:
            raise _BusyError("somebody has dropped it meanwhile")
        for partition in self._partitions(table):
            attached = self._attached(parent_index.oid, partition)
            if attached is not None:
                self._bring_about(partition, wanted, attached.schema, attached.name)
                continue
            part = index_name(partition.name, wanted.suffix)
            self._bring_about(partition, wanted, partition.schema, part)
            index = sql.Identifier(partition.schema, part)
            self._run_briefly("attach_index", parent=parent, index=index)
        return IndexOutcome.CREATED if existing is None else IndexOutcome.COMPLETED

    def _part_by_part(self, table: _Table, wanted: _Wanted) -> IndexOutcome:
        """One index for each partition that is here; with foreign ones no whole becomes valid."""
        self._report(
            f"{table.full_name} has partitions on other servers: each partition that is here gets "
            "an index of its own; see to the others on their servers"
        )
        outcomes = {
            self._bring_about(part, wanted, part.schema, index_name(part.name, wanted.suffix))
            for part in self._partitions(table)
            if part.kind != "f"
        } - {IndexOutcome.SKIPPED}
        if len(outcomes) > 1:
            return IndexOutcome.COMPLETED
        return next(iter(outcomes), IndexOutcome.SKIPPED)

    def _repair(self, table: _Table, schema: str, name: str) -> None:
        self._report(f"Repairing index {name} on {table.full_name}, which is INVALID")
        leftovers = self._connection.execute(
            query("indexes", "leftovers_of_reindex"), {"table": table.oid, "name": name}
        ).fetchall()
        for (leftover,) in leftovers:
            self._run("drop_index", index=sql.Identifier(schema, leftover))
        self._run("reindex", index=sql.Identifier(schema, name))

    def _existing(self, table: _Table, wanted: _Wanted, schema: str, name: str) -> _Existing | None:
        """The index of this name. Raises _DifferentIndexError when it is not the wanted one."""
        cursor = self._connection.cursor(row_factory=class_row(_Existing))
        found = cursor.execute(
            query("indexes", "relation_named"),
            {"schema": schema, "name": name, "table": table.oid},
        ).fetchone()
        if found is None:
            return None
        definition = found.definition.rpartition(" USING ")[2]
        if not found.is_index_of_table:
            raise _DifferentIndexError(
                f"{schema}.{name} is not an index on {table.full_name}: rename it, then run "
                "`assetclass db indexes` again"
            )
        is_plain = found.definition.startswith("CREATE INDEX ")
        if not is_plain or not wanted.definition.fullmatch(definition):
            raise _DifferentIndexError(
                f"index {name} on {table.full_name} has another definition and stays: "
                f"{found.definition}; drop or rename it, then run `assetclass db indexes` again"
            )
        return found

    def _partitions(self, table: _Table) -> list[_Table]:
        cursor = self._connection.cursor(row_factory=class_row(_Table))
        return cursor.execute(query("indexes", "partitions"), {"table": table.oid}).fetchall()

    def _attached(self, index: int, partition: _Table) -> _Attached | None:
        cursor = self._connection.cursor(row_factory=class_row(_Attached))
        values = {"index": index, "table": partition.oid}
        return cursor.execute(query("indexes", "attached_index"), values).fetchone()

    def _run(self, name: str, **parts: sql.Composable) -> None:
        self._connection.execute(query("indexes", name, **parts))

    def _run_briefly(self, name: str, **parts: sql.Composable) -> None:
        """Run what locks out writers for a moment: with the short time-outs of every session."""
        with transaction(self._connection, self._settings, search_path="pg_catalog") as cursor:
            cursor.execute(query("indexes", name, **parts))

    def _one(self, statement: sql.Composed, **values: object) -> object:
        return self._connection.execute(statement, values).fetchall()[0][0]

    def _holders(self, table: _Table, error: Exception) -> str:
        if isinstance(error, _BusyError):
            return str(error)
        found = self._connection.execute(
            query("indexes", "holders"), {"table": table.oid}
        ).fetchall()
        names = [f"{pid} ({name})" if name else str(pid) for pid, name in found]
        if not names:
            return "another session was in the way"
        return f"transactions of other sessions are in the way, of processes {', '.join(names)}"

    def _explanation(
        self, error: psycopg.Error, table: _Table, wanted: _Wanted, name: str
    ) -> MarketTablesError | DatabaseUnavailableError:
        said = str(error).strip().partition("\n")[0]
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            statement = query(
                "indexes",
                "create_index",
                index=sql.Identifier(name),
                table=table.identifier,
                definition=query("indexes", wanted.block),
            ).as_string()
            return MarketTablesError(
                f"Index {name} may not be built by this role ({said}). Let the owner of "
                f"{table.full_name} run `assetclass db indexes`, or: "
                f"{' '.join(_without_comments(statement).split())};"
            )
        if isinstance(error, psycopg.errors.DiskFull):
            return MarketTablesError(
                f"Index {name} does not fit on the server's disk ({said}): free some space, then "
                "run `assetclass db indexes` again."
            )
        if isinstance(error, psycopg.OperationalError):
            return DatabaseUnavailableError(
                f"PostgreSQL gave up building index {name} ({said}): run `assetclass db indexes` "
                "again; it goes on from there."
            )
        return MarketTablesError(
            f"PostgreSQL refuses to build index {name} on {table.full_name}: {said}. Correct that, "
            "then run `assetclass db indexes` again."
        )


def _without_comments(statement: str) -> str:
    return re.sub(r"--[^\n]*", "", statement)
