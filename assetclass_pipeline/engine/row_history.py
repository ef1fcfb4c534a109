"""How a row came by its value: looked up in all that operations leave behind.

Belongs here: finding the row in backup tables, rollback tables and archives, what the ledger says
of it, and when an index for that pays. Does not: what follows from it (model/row_history.py).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow, class_row, dict_row

from assetclass_pipeline.database.connections import set_local, transaction
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine.archive import ArchivedRow, find_rows
from assetclass_pipeline.engine.row_events import (
    PlannedRow,
    PlanningOperation,
    conflict_event,
    gone_rows,
    planned_event,
    quarantine_event,
)
from assetclass_pipeline.errors import (
    AssetClassError,
    InvalidOptionsError,
    MarketTablesError,
    RowNotFoundError,
)
from assetclass_pipeline.model.row_history import (
    GoneRows,
    Present,
    RowEvent,
    RowHistory,
    RowNow,
    RowTrail,
    make_trail,
)
from assetclass_pipeline.settings import Settings

# Measured (docs/decisions/0011): thirty nights of so many rows are scanned in 27 to 44 ms.
RECORDS_THAT_PAY = 20_000
# One statement over hundreds of tables plans for longer than it runs, and locks all of them.
_TABLES_AT_A_TIME = 50
_MOST_ARCHIVES = 100
_MOST_ROWS = 100
_MOST_GONE = 20
# Where no index of the market table begins with the id, a look would read all of it.
_LONGEST_LOOK = "5s"
_TRIES = 3


Found = TypeVar("Found")


FindArchived = Callable[[str, str], Iterable[ArchivedRow]]
"""Rows of an operation's archive by correctionId and id; called outside of transactions."""


def index_when_it_pays(cursor: Cursor[TupleRow], table: sql.Identifier, records: int) -> bool:
    """Give a backup or rollback table an index on its ids, if it is worth one and has none yet.

    Its table must be complete. Returns whether it was made.
    """
    if records < RECORDS_THAT_PAY:
        return False
    named = {"table": table.as_string(cursor)}
    row = cursor.execute(query("row_history", "has_key_index"), named).fetchone()
    if row is not None and row[0]:
        return False
    cursor.execute(query("row_history", "index_key", table=table))
    return True


def row_history(
    connection: Connection[TupleRow],
    settings: Settings,
    key: str,
    *,
    symbol: str | None = None,
    timestamp: str | None = None,
    find_archived: FindArchived | None = None,
) -> RowHistory:
    """Everything known about the rows whose id is `key`, narrowed by symbol and time.

    `find_archived` reads an archive, by default the registered file. Raises RowNotFoundError,
    MarketTablesError, and InvalidOptionsError for a key or time that the table cannot hold.
    """
    tries = _TRIES
    while True:
        try:
            look = _begin(connection, settings, _Wanted(key, symbol, timestamp))
            return look.history(find_archived or partial(find_rows, settings, connection))
        except errors.UndefinedTable:
            # A clean-up dropped it between our list and our look.
            tries -= 1
            if not tries:
                raise


@dataclass(frozen=True)
class _Wanted:
    """Which rows: key and time as somebody wrote them, then as PostgreSQL writes them."""

    key: str
    symbol: str | None
    timestamp: str | None

    def is_meant(self, symbol: str | None, timestamp: str | None) -> bool:
        """Whether a row with this id is one of them."""
        return self.symbol in {None, symbol} and self.timestamp in {None, timestamp}


@dataclass(frozen=True)
class _MarketKey:
    """How the market table can be asked for a row."""

    is_indexed: bool
    is_unique: bool
    id_type: str
    symbol_type: str
    timestamp_type: str
    has_updated_at: bool


@dataclass(frozen=True)
class _Table(PlanningOperation):
    """An operation whose rows stand in a table."""

    schema_name: str
    table_name: str
    id_type: str


@dataclass(frozen=True)
class _RowNow:
    """The row in the market table."""

    symbol: str | None
    timestamp: str | None
    asset_class: str | None
    updated_at: str | None


@dataclass(frozen=True)
class _Placed:
    """An event, and of which row it is."""

    symbol: str | None
    timestamp: str | None
    event: RowEvent


_Lists = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class _Elsewhere:
    """Operations without a table: archives that may hold the row, and what is gone for good.

    `archives` are the newest of so many `archives_in_all`.
    """

    archives: Sequence[PlanningOperation]
    archives_in_all: int
    gone: Sequence[GoneRows]
    operations_gone: int


def _begin(connection: Connection[TupleRow], settings: Settings, said: _Wanted) -> "_Look":
    """What can be looked into, and the key as PostgreSQL writes it."""
    names = {"schema": settings.market_schema, "table": settings.market_table}
    # Types are spelled with their schemas only where nothing is on the search path.
    with transaction(connection, settings, read_only=True, search_path="pg_catalog") as cursor:
        found = _all(cursor, _MarketKey, query("row_history", "market_key"), names)
        if found:
            market = found[0]
            key = _as_written(cursor, "id", said.key, market.id_type)
            timestamp = said.timestamp and _as_written(
                cursor, "timestamp", said.timestamp, market.timestamp_type
            )
            tables = _all(cursor, _Table, _planning("tables"), names)
            wanted = _Wanted(key, said.symbol, timestamp)
            return _Look(connection, settings, market, tables, wanted)
    inspect_market_tables(connection, settings, for_writing=False)
    raise MarketTablesError(
        f"{settings.market_table} has changed while it was looked at: try again."
    )


@dataclass(frozen=True)
class _Look:
    """One look for a row."""

    connection: Connection[TupleRow]
    settings: Settings
    market: _MarketKey
    tables: Sequence[_Table]
    wanted: _Wanted

    def history(self, find_archived: FindArchived) -> RowHistory:
        """Look everywhere, the archives last: only there it helps to know the row's symbol."""
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            planned = self._in_tables(cursor)
            noted = {name: self._in_list(cursor, name) for name in ("quarantined", "conflicts")}
            now = self._now(cursor, planned)
            symbols = {
                self.wanted.symbol,
                *(r.symbol for r in planned),
                *(r.symbol for r in now or []),
            }
            elsewhere = self._elsewhere(cursor, sorted(s for s in symbols if s is not None))
        archived, not_read = self._in_archives(find_archived, elsewhere)
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            events = self._events(cursor, [*planned, *self._meant(cursor, archived)], noted)
        trails = [*self._trails(events, now)]
        if not trails:
            raise self._nothing(looked=now is not None)
        return RowHistory(
            id=self.wanted.key,
            rows=trails,
            operations_without_rows=elsewhere.operations_gone,
            gone=[*elsewhere.gone],
            archives_not_read=not_read,
        )

    def _in_tables(self, cursor: Cursor[TupleRow]) -> list[PlannedRow]:
        fitting = {name for name in {t.id_type for t in self.tables} if self._fits(cursor, name)}
        blocks = [
            query(
                "row_history",
                "rows_of_table",
                operation=sql.Literal(table.correction_id),
                table=sql.Identifier(table.schema_name, table.table_name),
                id_type=sql.SQL(table.id_type),
            )
            for table in self.tables
            if table.id_type in fitting
        ]
        found: list[PlannedRow] = []
        for first in range(0, len(blocks), _TABLES_AT_A_TIME):
            some = sql.SQL("\nUNION ALL\n").join(blocks[first : first + _TABLES_AT_A_TIME])
            found += _all(cursor, PlannedRow, Statement([*some]), {"id": self.wanted.key})
        names = {t.correction_id: f"{t.schema_name}.{t.table_name}" for t in self.tables}
        return self._meant(cursor, [replace(row, table=names[row.correction_id]) for row in found])

    def _meant(self, cursor: Cursor[TupleRow], found: Sequence[PlannedRow]) -> list[PlannedRow]:
        """Those of the wanted rows, their times as the market table of today writes them."""
        times = self._as_of_today(cursor, [row.timestamp for row in found])
        rows = [replace(row, timestamp=times[row.timestamp]) for row in found]
        return [row for row in rows if self.wanted.is_meant(row.symbol, row.timestamp)]

    def _as_of_today(
        self, cursor: Cursor[TupleRow], times: Iterable[str | None]
    ) -> dict[str | None, str | None]:
        """Each of these times as a column of today's type writes it; it had perhaps another one."""
        said = [*{*times}]
        statement = query(
            "row_history", "times_as_written", type=sql.SQL(self.market.timestamp_type)
        )
        try:
            with cursor.connection.transaction():
                return dict(cursor.execute(statement, {"times": said}).fetchall())
        except psycopg.DataError:
            # Beyond what today's type can hold.
            return {time: time for time in said}

    def _fits(self, cursor: Cursor[TupleRow], column_type: str) -> bool:
        """Whether the key can be of the type that an older table has."""
        if column_type == self.market.id_type:
            return True
        try:
            with cursor.connection.transaction():
                _as_written(cursor, "id", self.wanted.key, column_type)
        except InvalidOptionsError:
            return False
        return True

    def _in_list(self, cursor: Cursor[TupleRow], name: str) -> list[dict[str, Any]]:
        """Rows in quarantine, or conflicts: these lists outlive the tables."""
        with cursor.connection.cursor(row_factory=dict_row) as rows:
            found = rows.execute(query("row_history", name), {"id": self.wanted.key}).fetchall()
        times = self._as_of_today(cursor, [row["timestamp"] for row in found])
        listed = [{**row, "timestamp": times[row["timestamp"]]} for row in found]
        return [row for row in listed if self.wanted.is_meant(row["symbol"], row["timestamp"])]

    def _now(self, cursor: Cursor[TupleRow], planned: Sequence[PlannedRow]) -> list[_RowNow] | None:
        """The rows of this id in the market table; None when it would have to be read whole."""
        wanted = self.wanted
        symbols = {wanted.symbol} if wanted.symbol else {row.symbol for row in planned}
        times = {wanted.timestamp} if wanted.timestamp else {row.timestamp for row in planned}
        narrows = not self.market.is_indexed and symbols and times and None not in symbols | times
        statement = query(
            "row_history",
            "row_now",
            market=sql.Identifier(self.settings.market_schema, self.settings.market_table),
            id_type=sql.SQL(self.market.id_type),
            updated_at=query(
                "row_history", "updated_at" if self.market.has_updated_at else "no_updated_at"
            ),
            narrowed=query(
                "row_history",
                "narrowed",
                symbol_type=sql.SQL(self.market.symbol_type),
                timestamp_type=sql.SQL(self.market.timestamp_type),
            )
            if narrows
            else sql.SQL(""),
        )
        values = {
            "id": wanted.key,
            "symbols": [*symbols],
            "timestamps": [*times],
            "most": _MOST_ROWS,
        }
        try:
            with cursor.connection.transaction():
                set_local(cursor, self.settings, statement_timeout=_LONGEST_LOOK)
                found = _all(cursor, _RowNow, statement, values)
        except errors.QueryCanceled:
            return None
        finally:
            set_local(cursor, self.settings)
        return [row for row in found if wanted.is_meant(row.symbol, row.timestamp)]

    def _elsewhere(self, cursor: Cursor[TupleRow], symbols: list[str]) -> _Elsewhere:
        values = {
            "schema": self.settings.market_schema,
            "symbols": symbols,
            "most": _MOST_ARCHIVES,
        }
        with cursor.connection.cursor(row_factory=dict_row) as found:
            rows = found.execute(_planning("elsewhere"), values).fetchall()
        listed = [(_operation(row), row) for row in rows if row["correction_id"] is not None]
        return _Elsewhere(
            archives=[operation for operation, row in listed if row["is_archived"]],
            archives_in_all=max(
                (row["alike"] for _, row in listed if row["is_archived"]), default=0
            ),
            gone=[
                gone_rows(operation, row["records"], row["gone_because"])
                for operation, row in listed
                if not row["is_archived"]
            ][:_MOST_GONE],
            operations_gone=rows[0]["operations_gone"],
        )

    def _in_archives(
        self, find_archived: FindArchived, elsewhere: _Elsewhere
    ) -> tuple[list[PlannedRow], int]:
        """(rows, files not read)."""
        found: list[PlannedRow] = []
        not_read = elsewhere.archives_in_all - len(elsewhere.archives)
        for operation in elsewhere.archives:
            try:
                rows = [*find_archived(operation.correction_id, self.wanted.key)]
            except AssetClassError:
                # Missing or damaged: it is counted, and the rest of the history is shown.
                not_read += 1
                continue
            found += [_archived(operation, row) for row in rows]
        return found, not_read

    def _events(
        self, cursor: Cursor[TupleRow], planned: Sequence[PlannedRow], noted: _Lists
    ) -> list[_Placed]:
        quarantined = {(row["correction_id"], row["seq"]): row for row in noted["quarantined"]}
        facts = _facts(cursor, planned)
        rows = [*noted["quarantined"], *noted["conflicts"]]
        ids = {row.correction_id for row in planned} | {row["correction_id"] for row in rows}
        operations = {
            operation.correction_id: operation
            for operation in _all(
                cursor, PlanningOperation, _planning("operations"), {"ids": [*ids]}
            )
        }
        events = []
        for row in planned:
            place = (row.correction_id, row.seq)
            refused = quarantined.pop(place, None)
            event = planned_event(operations[row.correction_id], row, facts.get(place, {}), refused)
            events.append(_Placed(row.symbol, row.timestamp, event))
        for refused in quarantined.values():
            event = quarantine_event(operations[refused["correction_id"]], refused)
            events.append(_Placed(refused["symbol"], refused["timestamp"], event))
        conflicts = [
            _Placed(
                row["symbol"],
                row["timestamp"],
                conflict_event(operations[row["correction_id"]], row),
            )
            for row in noted["conflicts"]
        ]
        return [*_without_conflicts(events, conflicts), *conflicts]

    def _trails(
        self, events: Sequence[_Placed], now: Sequence[_RowNow] | None
    ) -> Iterator[RowTrail]:
        """One for each row: where the id alone is no key, rows differ by symbol and time."""
        by_row: defaultdict[object, list[_Placed]] = defaultdict(list)
        for placed in events:
            by_row[self._row_of(placed)].append(placed)
        held = {self._row_of(row): row for row in now or []}
        for same in dict.fromkeys([*by_row, *held]):
            placed_here, row_now = by_row.get(same, []), held.get(same)
            shown: _RowNow | _Placed = row_now or placed_here[-1]
            holds = None
            if row_now is not None:
                holds = RowNow(asset_class=row_now.asset_class, updated_at=row_now.updated_at)
            yield make_trail(
                self.wanted.key,
                shown.symbol,
                shown.timestamp,
                [placed.event for placed in placed_here],
                Present(holds, looked=now is not None),
            )

    def _row_of(self, row: _Placed | _RowNow) -> object:
        return None if self.market.is_unique else (row.symbol, row.timestamp)

    def _nothing(self, *, looked: bool) -> AssetClassError:
        table = f"{self.settings.market_schema}.{self.settings.market_table}"
        if not looked:
            return InvalidOptionsError(
                f"No operation knows a row {self.wanted.key!r}, and no index of {table} begins "
                "with the id: name symbol and timestamp too."
            )
        return RowNotFoundError(
            f"{table} holds no row {self.wanted.key!r} like that, and no operation knows one."
        )


def _planning(name: str) -> Statement:
    columns = query("row_history", "operation_columns")
    planning = query("row_history", "planning")
    return query("row_history", name, operation_columns=columns, planning=planning)


def _all(
    cursor: Cursor[TupleRow], kind: type[Found], statement: Statement, values: Mapping[str, object]
) -> list[Found]:
    with cursor.connection.cursor(row_factory=class_row(kind)) as rows:
        return rows.execute(statement, values).fetchall()


def _as_written(cursor: Cursor[TupleRow], name: str, value: str, column_type: str) -> str:
    statement = query("row_history", "as_written", type=sql.SQL(column_type))
    try:
        row = cursor.execute(statement, {"value": value}).fetchone()
    except (psycopg.DataError, psycopg.IntegrityError):
        raise InvalidOptionsError(
            f"{name} {value[:60]!r} is no {column_type}, which that column of the table is."
        ) from None
    return str(row[0]) if row else value


def _operation(row: Mapping[str, Any]) -> PlanningOperation:
    return PlanningOperation(**{f.name: row[f.name] for f in fields(PlanningOperation)})


def _archived(operation: PlanningOperation, row: ArchivedRow) -> PlannedRow:
    return PlannedRow(
        operation.correction_id,
        int(row.seq),
        row.symbol,
        row.timestamp,
        row.asset_class,
        row.corrected_asset_class,
    )


def _facts(
    cursor: Cursor[TupleRow], planned: Sequence[PlannedRow]
) -> dict[tuple[str, int], dict[str, Any]]:
    values = {"ids": [row.correction_id for row in planned], "seqs": [row.seq for row in planned]}
    with cursor.connection.cursor(row_factory=dict_row) as rows:
        found = rows.execute(query("row_history", "facts"), values)
        return {(row["correction_id"], row["seq"]): row for row in found}


def _without_conflicts(
    events: Sequence[_Placed], conflicts: Sequence[_Placed]
) -> Iterator[_Placed]:
    """A conflict says more than that the rollback skipped the row."""
    listed = {(c.event.correction_id, c.symbol, c.timestamp) for c in conflicts}
    for placed in events:
        same = (placed.event.correction_id, placed.symbol, placed.timestamp)
        if same not in listed or placed.event.has_changed:
            yield placed
