"""How a row came by its value: looked up in all that operations leave behind.

Belongs here: finding the row in backup tables, rollback tables and archives, what the ledger says
of it, and when an index for that pays. Does not: what follows from it (model/row_history.py).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow, class_row, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine.row_events import (
    PlannedRow,
    PlanningOperation,
    conflict_event,
    gone_rows,
    planned_event,
    quarantine_event,
)
from assetclass_pipeline.errors import AssetClassError, InvalidOptionsError, RowNotFoundError
from assetclass_pipeline.model.row_history import (
    Present,
    RowEvent,
    RowHistory,
    RowNow,
    RowSource,
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


class ArchivedRow(Protocol):
    """A row of an archive; all values are text as PostgreSQL writes it, or None."""

    @property
    def seq(self) -> Any:  # noqa: ANN401 - a number, or its text
        """Its number in the plan."""

    @property
    def symbol(self) -> str | None:
        """Its symbol."""

    @property
    def timestamp(self) -> str | None:
        """Its time."""

    @property
    def asset_class(self) -> str | None:
        """Before."""

    @property
    def corrected_asset_class(self) -> str | None:
        """After."""


FindArchived = Callable[[str, str], Iterable[ArchivedRow]]
"""Rows of an operation's archive by correctionId and id; called outside of transactions."""


def index_when_it_pays(cursor: Cursor[TupleRow], table: sql.Identifier, records: int) -> bool:
    """Give a backup or rollback table an index on its ids, if it is worth one and has none yet.

    For the end of an operation, when the table is complete. Returns whether it was made.
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

    Without `find_archived` archives are counted and not read. Raises RowNotFoundError, and
    InvalidOptionsError for a key or time that the table cannot hold.
    """
    tables = inspect_market_tables(connection, settings, for_writing=False)
    tries = _TRIES
    while True:
        try:
            look = _Look(connection, settings, tables, _Wanted(key, symbol, timestamp))
            return look.history(find_archived)
        except errors.UndefinedTable:
            # A clean-up dropped it between our list and our look.
            tries -= 1
            if not tries:
                raise


@dataclass(frozen=True)
class _Wanted:
    """Which rows, as somebody wrote it."""

    key: str
    symbol: str | None
    timestamp: str | None


@dataclass(frozen=True)
class _MarketKey:
    """How the market table can be asked for a row."""

    is_indexed: bool
    is_unique: bool
    id_type: str
    symbol_type: str
    timestamp_type: str


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


class _Look:
    """One look for a row."""

    def __init__(
        self,
        connection: Connection[TupleRow],
        settings: Settings,
        tables: MarketTables,
        wanted: _Wanted,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._tables = tables
        self._symbol = wanted.symbol
        # Types are spelled with their schemas only where nothing is on the search path.
        with transaction(connection, settings, read_only=True, search_path="pg_catalog") as cursor:
            self._market = _one(cursor, _MarketKey, "market_key", {"market": tables.market_oid})
            self._operations = {
                operation.correction_id: operation
                for operation in _all(
                    cursor, PlanningOperation, "sources", {"schema": tables.market_schema}
                )
            }
        self._key = self._as_written("KEY", wanted.key, self._market.id_type)
        self._timestamp = wanted.timestamp and self._as_written(
            "--timestamp", wanted.timestamp, self._market.timestamp_type
        )

    def history(self, find_archived: FindArchived | None) -> RowHistory:
        """Look everywhere, the archives last: only there it helps to know the row's symbol."""
        with transaction(self._connection, self._settings, read_only=True) as cursor:
            planned = self._in_tables(cursor)
            noted = self._in_lists(cursor)
        now = self._now(planned)
        symbols = {
            self._symbol,
            *(row.symbol for row in planned),
            *(row.symbol for row in now or []),
        }
        named = sorted(symbol for symbol in symbols if symbol is not None)
        with transaction(self._connection, self._settings, read_only=True) as cursor:
            changed = self._changed_symbols(cursor, named)
        archived, not_read = self._in_archives(find_archived, changed if named else None)
        with transaction(self._connection, self._settings, read_only=True) as cursor:
            events = self._events(cursor, [*planned, *archived], noted)
        trails = [*self._trails(events, now)]
        if not trails:
            raise self._nothing(looked=now is not None)
        gone = [operation for operation in self._operations.values() if operation.is_gone]
        return RowHistory(
            id=self._key,
            rows=trails,
            operations_without_rows=len(gone),
            gone=[
                gone_rows(o, changed[o.correction_id]) for o in gone if o.correction_id in changed
            ][:_MOST_GONE],
            archives_not_read=not_read,
        )

    def _as_written(self, name: str, value: str, column_type: str) -> str:
        try:
            with transaction(self._connection, self._settings, read_only=True) as cursor:
                return _as_written(cursor, value, column_type)
        except (psycopg.DataError, psycopg.IntegrityError):
            raise InvalidOptionsError(
                f"{name} {value[:60]!r} is no {column_type}, which the column of "
                f"{self._tables.market_name} is."
            ) from None

    def _in_tables(self, cursor: Cursor[TupleRow]) -> list[PlannedRow]:
        standing = [o for o in self._operations.values() if o.id_type is not None]
        types = {operation.id_type for operation in standing}
        fitting = {name for name in types if name and self._fits(cursor, name)}
        blocks = [
            query(
                "row_history",
                "rows_of_table",
                operation=sql.Literal(operation.correction_id),
                table=sql.Identifier(operation.schema_name, operation.table_name),
                id_type=sql.SQL(operation.id_type),
            )
            for operation in standing
            if operation.id_type in fitting
        ]
        found: list[PlannedRow] = []
        with cursor.connection.cursor(row_factory=class_row(PlannedRow)) as planned:
            for first in range(0, len(blocks), _TABLES_AT_A_TIME):
                some = sql.SQL("\nUNION ALL\n").join(blocks[first : first + _TABLES_AT_A_TIME])
                found += planned.execute(Statement([*some]), {"id": self._key})
        return [row for row in found if self._is_meant(row.symbol, row.timestamp)]

    def _fits(self, cursor: Cursor[TupleRow], column_type: str) -> bool:
        """Whether the key can be of the type that an older table has."""
        try:
            with cursor.connection.transaction():
                _as_written(cursor, self._key, column_type)
        except (psycopg.DataError, psycopg.IntegrityError):
            return False
        return True

    def _in_lists(self, cursor: Cursor[TupleRow]) -> Mapping[str, list[dict[str, Any]]]:
        """Rows in quarantine and conflicts, which outlive the tables."""
        with cursor.connection.cursor(row_factory=dict_row) as rows:
            return {
                name: [
                    row
                    for row in rows.execute(query("row_history", name), {"id": self._key})
                    if row["correction_id"] in self._operations
                    and self._is_meant(row["symbol"], row["timestamp"])
                ]
                for name in ("quarantined", "conflicts")
            }

    def _is_meant(self, symbol: str | None, timestamp: str | None) -> bool:
        return self._symbol in {None, symbol} and self._timestamp in {None, timestamp}

    def _now(self, planned: Sequence[PlannedRow]) -> list[_RowNow] | None:
        """The rows of this id in the market table; None when it would have to be read whole."""
        symbols = {self._symbol} if self._symbol else {row.symbol for row in planned}
        times = {self._timestamp} if self._timestamp else {row.timestamp for row in planned}
        narrows = not self._market.is_indexed and None not in symbols | times
        statement = query(
            "row_history",
            "row_now",
            market=self._tables.market,
            id_type=sql.SQL(self._market.id_type),
            updated_at=query("row_history", _updated_at(self._tables)),
            narrowed=query(
                "row_history",
                "narrowed",
                symbol_type=sql.SQL(self._market.symbol_type),
                timestamp_type=sql.SQL(self._market.timestamp_type),
            )
            if narrows and symbols and times
            else sql.SQL(""),
        )
        values = {"symbols": [*symbols], "timestamps": [*times], "most": _MOST_ROWS}
        try:
            with (
                transaction(
                    self._connection,
                    self._settings,
                    read_only=True,
                    statement_timeout=_LONGEST_LOOK,
                ) as cursor,
                cursor.connection.cursor(row_factory=class_row(_RowNow)) as rows,
            ):
                found = rows.execute(statement, {"id": self._key, **values}).fetchall()
        except errors.QueryCanceled:
            return None
        return [row for row in found if self._is_meant(row.symbol, row.timestamp)]

    def _changed_symbols(self, cursor: Cursor[TupleRow], symbols: list[str]) -> dict[str, int]:
        """Rows of these symbols that operations without a table changed, by correctionId."""
        ids = [o.correction_id for o in self._operations.values() if o.id_type is None]
        values = {"ids": ids, "symbols": symbols}
        return dict(cursor.execute(query("row_history", "changed_symbols"), values).fetchall())

    def _in_archives(
        self, find_archived: FindArchived | None, changed: Mapping[str, int] | None
    ) -> tuple[list[PlannedRow], int]:
        """(rows, files not read). Files that cannot hold the symbol are passed over."""
        found: list[PlannedRow] = []
        files = [
            o
            for o in self._operations.values()
            if o.id_type is None
            and o.is_archived
            and (changed is None or o.has_skipped or o.correction_id in changed)
        ]
        read = files[:_MOST_ARCHIVES] if find_archived else []
        not_read = len(files) - len(read)
        for operation in read:
            assert find_archived is not None  # noqa: S101 - only then there is something to read
            try:
                rows = [*find_archived(operation.correction_id, self._key)]
            except AssetClassError:
                # Missing or damaged: said by its number, while the rest of the history is shown.
                not_read += 1
                continue
            found += [_archived(operation, row) for row in rows]
        meant = [row for row in found if self._is_meant(row.symbol, row.timestamp)]
        return meant, not_read

    def _events(
        self,
        cursor: Cursor[TupleRow],
        planned: Sequence[PlannedRow],
        noted: Mapping[str, list[dict[str, Any]]],
    ) -> list[_Placed]:
        quarantined = {(row["correction_id"], row["seq"]): row for row in noted["quarantined"]}
        facts = _facts(cursor, planned)
        events = []
        for row in planned:
            place = (row.correction_id, row.seq)
            refused = quarantined.pop(place, None)
            operation = self._operations[row.correction_id]
            event = planned_event(operation, row, facts.get(place, {}), refused)
            events.append(_Placed(row.symbol, row.timestamp, event))
        for refused in quarantined.values():
            event = quarantine_event(self._operations[refused["correction_id"]], refused)
            events.append(_Placed(refused["symbol"], refused["timestamp"], event))
        return [*self._without_conflicts(events, noted["conflicts"]), *self._conflicts(noted)]

    def _conflicts(self, noted: Mapping[str, list[dict[str, Any]]]) -> Iterator[_Placed]:
        for row in noted["conflicts"]:
            event = conflict_event(self._operations[row["correction_id"]], row)
            yield _Placed(row["symbol"], row["timestamp"], event)

    def _without_conflicts(
        self, events: Sequence[_Placed], conflicts: Sequence[dict[str, Any]]
    ) -> Iterator[_Placed]:
        """A conflict says more than that the rollback skipped the row."""
        listed = {(row["correction_id"], row["symbol"], row["timestamp"]) for row in conflicts}
        for placed in events:
            same = (placed.event.correction_id, placed.symbol, placed.timestamp)
            if same not in listed or placed.event.has_changed:
                yield placed

    def _trails(
        self, events: Sequence[_Placed], now: Sequence[_RowNow] | None
    ) -> Iterator[RowTrail]:
        """One for each row: where the id alone is no key, rows differ by symbol and time."""
        by_row: defaultdict[object, list[_Placed]] = defaultdict(list)
        held: dict[object, _RowNow] = {}
        for placed in events:
            by_row[self._row_of(placed)].append(placed)
        for row in now or []:
            held[self._row_of(row)] = row
        for same in dict.fromkeys([*by_row, *held]):
            placed_here, row_now = by_row.get(same, []), held.get(same)
            shown: _RowNow | _Placed = row_now or placed_here[-1]
            present = Present(
                None
                if row_now is None
                else RowNow(asset_class=row_now.asset_class, updated_at=row_now.updated_at),
                looked=now is not None,
            )
            yield make_trail(
                self._key,
                shown.symbol,
                shown.timestamp,
                [placed.event for placed in placed_here],
                present,
            )

    def _row_of(self, row: "_Placed | _RowNow") -> object:
        return None if self._market.is_unique else (row.symbol, row.timestamp)

    def _nothing(self, *, looked: bool) -> AssetClassError:
        if not looked:
            return InvalidOptionsError(
                f"No operation knows a row {self._key!r}, and no index of "
                f"{self._tables.market_name} begins with the id: name symbol and timestamp too."
            )
        return RowNotFoundError(
            f"{self._tables.market_name} holds no row {self._key!r} like that, and no operation "
            "knows one."
        )


def _one(cursor: Cursor[TupleRow], kind: type[Any], name: str, values: dict[str, object]) -> Any:  # noqa: ANN401
    return _all(cursor, kind, name, values)[0]


def _all(
    cursor: Cursor[TupleRow], kind: type[Any], name: str, values: dict[str, object]
) -> list[Any]:
    with cursor.connection.cursor(row_factory=class_row(kind)) as rows:
        return rows.execute(query("row_history", name), values).fetchall()


def _as_written(cursor: Cursor[TupleRow], value: str, column_type: str) -> str:
    statement = query("row_history", "as_written", type=sql.SQL(column_type))
    row = cursor.execute(statement, {"value": value}).fetchone()
    return str(row[0]) if row else value


def _updated_at(tables: MarketTables) -> str:
    return "updated_at" if tables.has_updated_at else "no_updated_at"


def _archived(operation: PlanningOperation, row: ArchivedRow) -> PlannedRow:
    return PlannedRow(
        operation.correction_id,
        int(row.seq),
        row.symbol,
        row.timestamp,
        row.asset_class,
        row.corrected_asset_class,
        RowSource.ARCHIVE,
    )


def _facts(
    cursor: Cursor[TupleRow], planned: Sequence[PlannedRow]
) -> dict[tuple[str, int], dict[str, Any]]:
    values = {"ids": [row.correction_id for row in planned], "seqs": [row.seq for row in planned]}
    with cursor.connection.cursor(row_factory=dict_row) as rows:
        found = rows.execute(query("row_history", "facts"), values)
        return {(row["correction_id"], row["seq"]): row for row in found}
