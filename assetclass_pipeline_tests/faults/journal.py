"""What really happened to the rows: every committed change, read from the server's own log.

Belongs here: the logical replication slot, its output in typed form. Does not: judgement. No
trigger and no query of ours stands between, so the engine runs as it does in production, and what
it believes of itself plays no part.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import LiteralString
from uuid import uuid4

from psycopg import sql

from assetclass_pipeline_tests.market import Market, MarketConnection

Row = Mapping[str, str | None]

# "updated_at" is ours to set; every other column is the application's.
COLUMNS = ("id", "symbol", "timestamp", "close", "asset_class")
_XIDS = 2**32
_COLUMN = re.compile(r"""("[^"]+"|\w+)\[[^\]]*\]:(null|'(?:[^']|'')*'|[^ ]+)""")
_CHANGES: LiteralString = (
    "SELECT xid::text::bigint, data FROM pg_logical_slot_get_changes(%s, NULL, NULL,"
    " 'skip-empty-xacts', '1', 'include-xids', '0')"
    r" WHERE data ~ '^table public\.market_data(_part_\d+)?: '"
)
_STATE: LiteralString = (
    'SELECT id::text, symbol::text, "timestamp"::text, close::text, asset_class::text FROM {}'
)


@dataclass(frozen=True)
class Change:
    """One row version, in commit order; `old` is None for an insert, `new` for a delete."""

    xid: int
    old: Row | None
    new: Row | None


@dataclass
class Journal:
    """Everything committed to the market table since `open_journal`."""

    slot: str
    start: dict[str, Row]
    _changes: list[Change] = field(default_factory=list)

    def read(self, connection: MarketConnection) -> list[Change]:
        """All changes so far."""
        for xid, data in connection.execute(_CHANGES, (self.slot,)).fetchall():
            self._changes.append(_parse(xid, data))
        return self._changes

    def close(self, connection: MarketConnection) -> None:
        """Give the slot back; a database with one cannot be dropped."""
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE slot_name = %s",
            (self.slot,),
        )


def open_journal(market: Market) -> Journal:
    """Begin to write down; nobody else may be writing at this moment."""
    for (leaf,) in market.rows(
        r"SELECT relname::text FROM pg_class WHERE relkind = 'r'"
        r" AND relname ~ '^market_data(_part_\d+)?$'"
    ):
        market.execute("ALTER TABLE {} REPLICA IDENTITY FULL", sql.Identifier(leaf))
    journal = Journal(f"journal_{uuid4().hex}", state_of(market))
    market.execute(
        "SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", values=(journal.slot,)
    )
    return journal


def state_of(market: Market) -> dict[str, Row]:
    """Every row as it stands, by id."""
    return {
        str(values[0]): dict(zip(COLUMNS, values, strict=True))
        for values in market.rows(_STATE, market.market_identifier)
    }


def xid_of(connection: MarketConnection) -> int:
    """The open transaction, as the journal will name it."""
    row = connection.execute("SELECT pg_current_xact_id()::text::numeric").fetchone()
    assert row is not None
    return int(row[0]) % _XIDS


def _parse(xid: int, data: str) -> Change:
    _, what, rest = data.split(": ", maxsplit=2)
    if what == "INSERT":
        return Change(xid, None, _row(rest))
    if what == "DELETE":
        return Change(xid, _row(rest), None)
    old, new = rest.removeprefix("old-key: ").split(" new-tuple: ", maxsplit=1)
    return Change(xid, _row(old), _row(new))


def _row(text: str) -> Row:
    # Columns that are NULL are left out of an old row.
    values = dict.fromkeys(COLUMNS)
    row: dict[str, str | None] = {**values}
    for match in _COLUMN.finditer(text):
        name, value = match[1].strip('"'), match[2]
        if name in row and value != "null":
            row[name] = value[1:-1].replace("''", "'") if value.startswith("'") else value
    return row
