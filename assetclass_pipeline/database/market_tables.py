"""What the two market tables are: names, leaves, column types, and whether we can work on them.

Belongs here: refusing, with every reason at once, what cannot be used. Does not: reading the
catalogue itself, anything that reads rows, and how a batch finds its rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.catalogue import (
    KEY_COLUMNS,
    Column,
    LeafRelation,
    Relation,
    RemoteTable,
    TableInCatalogue,
    read_remote_table,
    read_session,
    read_table,
)
from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import MarketTablesError
from assetclass_pipeline.settings import Settings

TimestampKind = Literal["timestamp", "timestamptz", "date"]
LeafKind = Literal["heap", "foreign"]
"""How rows are found again: by their physical address, or by key on the server that holds them."""

_MARKET_COLUMNS = ("id", "symbol", "timestamp", "asset_class")
_SYMBOLS_COLUMNS = ("ticker", "asset_class")
_TEXT_TYPES = ("text", "varchar", "bpchar", "citext")
_TIMESTAMP_KINDS: Mapping[str, TimestampKind] = {
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "date": "date",
}
_UNSUPPORTED_KINDS = {
    "v": "a view, and its rows have no address of their own. Name the table below it instead.",
    "m": "a materialized view, which cannot be updated. Name the table below it instead.",
    "f": "a foreign table, and every batch reads it: make a materialized view of it.",
}


@dataclass(frozen=True)
class Leaf:
    """One table that holds rows: the market table itself, or a partition without partitions."""

    oid: int
    schema: str
    table: str
    kind: LeafKind = "heap"

    @property
    def identifier(self) -> sql.Identifier:
        """Its schema-qualified name."""
        return sql.Identifier(self.schema, self.table)


@dataclass(frozen=True)
class MarketTables:
    """Both tables as they stood when they were inspected.

    `leaves` are ordered by name: the market table itself when it is plain, all leaf partitions when
    it is partitioned (none when it has no partitions yet). Types are spelled as SQL that means the
    same under every search path; `timestamp_kind` and `asset_class_is_enum` look below domains.
    `has_updated_at` says whether there is an `updated_at` that can be set, and `ids_are_indexed`
    whether each leaf of this server has an index that begins with the id.
    """

    market: sql.Identifier
    symbols: sql.Identifier
    market_schema: str
    market_name: str
    symbols_name: str
    market_oid: int
    symbols_oid: int
    leaves: tuple[Leaf, ...]
    is_partitioned: bool
    id_type: str
    symbol_type: str
    timestamp_type: str
    timestamp_kind: TimestampKind
    asset_class_type: str
    asset_class_is_enum: bool
    has_updated_at: bool
    updated_at_type: str | None
    ids_are_indexed: bool

    @property
    def foreign_leaves(self) -> tuple[Leaf, ...]:
        """Leaves whose rows another server holds."""
        return tuple(leaf for leaf in self.leaves if leaf.kind == "foreign")


def inspect_market_tables(
    connection: psycopg.Connection[TupleRow],
    settings: Settings,
    *,
    for_writing: bool,
    ask_other_servers: bool = True,
) -> MarketTables:
    """What the catalogue says about both tables; rows are not read and nothing is locked.

    Must be called outside a transaction. Raises MarketTablesError that names every missing table,
    column and right, and everything about the tables that we cannot work with, one per line;
    `for_writing` asks for what a correction needs too, of foreign tables also on their own servers
    (unless `ask_other_servers` is off): there it tries an UPDATE that hits no row.
    """
    # Under this path every type of the database's own is spelled with its schema.
    with transaction(connection, settings, read_only=True, snapshot=True, search_path="pg_catalog"):
        session = read_session(connection)
        market = read_table(connection, session, settings.market_schema, settings.market_table)
        symbols = read_table(connection, session, settings.symbols_schema, settings.symbols_table)
    problems = [
        *_table_problems(market, _MARKET_COLUMNS, session.role, setting="MARKET"),
        *_market_problems(market, session.role, for_writing=for_writing),
        *_table_problems(symbols, _SYMBOLS_COLUMNS, session.role, setting="SYMBOLS"),
    ]
    is_empty = market.relation is None and symbols.relation is None
    if is_empty and settings.database_url is None:
        problems.append(
            "The embedded PostgreSQL is empty: `assetclass demo --load-only` loads real data, and "
            "ASSETCLASS_DATABASE_URL names a database of your own."
        )
    if for_writing and session.in_recovery:
        problems.append(
            "The server is a standby and cannot be written to: name the primary in "
            "ASSETCLASS_DATABASE_URL."
        )
    if for_writing and ask_other_servers and not problems:
        # Only now: asking other servers takes time, and needs the rights that were checked above.
        problems += _remote_problems(connection, settings, market)
    if problems or market.relation is None or symbols.relation is None:
        raise MarketTablesError("\n".join(problems))
    return _described(market, market.relation, symbols, symbols.relation)


def _described(
    market: TableInCatalogue,
    market_relation: Relation,
    symbols: TableInCatalogue,
    symbols_relation: Relation,
) -> MarketTables:
    columns = market.columns
    updated_at = columns.get("updated_at")
    asset_class = columns["asset_class"]
    return MarketTables(
        market=market.identifier,
        symbols=symbols.identifier,
        market_schema=market.schema,
        market_name=market.name,
        symbols_name=symbols.name,
        market_oid=market_relation.oid,
        symbols_oid=symbols_relation.oid,
        leaves=tuple(
            Leaf(leaf.oid, leaf.schema, leaf.table, "foreign" if leaf.kind == "f" else "heap")
            for leaf in market.leaves
        ),
        is_partitioned=market_relation.kind == "p",
        id_type=columns["id"].type,
        symbol_type=columns["symbol"].type,
        timestamp_type=columns["timestamp"].type,
        timestamp_kind=_TIMESTAMP_KINDS[columns["timestamp"].base_type],
        asset_class_type=asset_class.type,
        asset_class_is_enum=asset_class.is_enum,
        has_updated_at=updated_at is not None and not updated_at.is_generated,
        updated_at_type=None if updated_at is None else updated_at.type,
        ids_are_indexed=all(leaf.has_id_index for leaf in market.leaves if leaf.kind != "f"),
    )


def _table_problems(
    found: TableInCatalogue, needed: tuple[str, ...], role: str, *, setting: str
) -> Iterator[str]:
    """What both tables must be: there, readable, of a kind that holds rows, with their columns."""
    relation = found.relation
    if relation is None:
        yield _missing_table(found, setting)
        return
    if relation.kind == "f" if setting == "SYMBOLS" else relation.kind in ("v", "m"):
        yield f"{found.name} is {_UNSUPPORTED_KINDS[relation.kind]}"
    if relation.persistence == "t":
        yield f"{found.name} is a temporary table, which no other session sees: make it a real one."
    if relation.row_security:
        yield _hidden_rows(found.name, role)
    yield from _missing_columns(found, needed)
    if "asset_class" in found.columns:
        yield from _class_type_problems(found.name, found.columns["asset_class"])
    if not relation.may_use_schema:
        yield _missing_right(found.name, "read", "USAGE", _schema(found.schema), role)
    readable = [found.columns[name].may_select for name in needed if name in found.columns]
    if not relation.may_select and (setting == "MARKET" or not all(readable)):
        yield _missing_right(found.name, "read", "SELECT", found.identifier.as_string(), role)


def _missing_table(found: TableInCatalogue, setting: str) -> str:
    hint = f" There is {' and '.join(found.similar)}: is that the one?" if found.similar else ""
    return (
        f"Table {found.name} does not exist.{hint} Create it, or correct "
        f"ASSETCLASS_{setting}_SCHEMA and ASSETCLASS_{setting}_TABLE."
    )


def _missing_columns(found: TableInCatalogue, needed: tuple[str, ...]) -> Iterator[str]:
    for name in needed:
        if name in found.columns:
            continue
        similar = [other for other in found.columns if other.lower() == name]
        hint = f" It has {similar[0]}: letter case counts." if similar else ""
        yield f"Table {found.name} has no column {name}.{hint} Add or rename it."


def _hidden_rows(name: str, role: str) -> str:
    return (
        f"Row security of {name} may hide rows from role {role}: use a role that it does not apply "
        f"to (ALTER ROLE {sql.Identifier(role).as_string()} BYPASSRLS;)."
    )


def _class_type_problems(name: str, column: Column) -> Iterator[str]:
    if not column.is_enum and column.base_type not in _TEXT_TYPES:
        yield (
            f"Column asset_class of {name} is of type {column.type}: only text, varchar, char, "
            "citext, enums and domains over them are supported."
        )


def _market_problems(found: TableInCatalogue, role: str, *, for_writing: bool) -> Iterator[str]:
    """What only the market table must be."""
    relation = found.relation
    if relation is None:
        return
    yield from _tree_problems(found, relation)
    timestamp = found.columns.get("timestamp")
    if timestamp is not None and timestamp.base_type not in _TIMESTAMP_KINDS:
        yield (
            f'Column "timestamp" of {found.name} is of type {timestamp.type}: only timestamp, '
            "timestamptz and date are supported."
        )
    if for_writing:
        yield from _written_column_problems(found)
        yield from _missing_writing_rights(found, relation, role)
        yield from _leaf_right_problems(found, role)
        if relation.kind in ("r", "p", "f") and not relation.has_inheriting_tables:
            for leaf in found.leaves:
                yield from _leaf_writing_problems(found, leaf, role)


def _tree_problems(found: TableInCatalogue, relation: Relation) -> Iterator[str]:
    """Where rows would change their table under our hands, or be elsewhere than it says."""
    name = found.name
    if relation.has_inheriting_tables:
        yield f"{name} has tables that inherit from it (not partitions): not supported yet."
    if relation.has_update_rules:
        yield f"{name} has a rule that rewrites updates: not supported; use a trigger instead."
    if found.is_distributed:
        yield f"{name} is distributed over several servers by Citus: not supported yet."
    for table in found.keyed_by_class:
        yield (
            f"{table} is partitioned by asset_class, so that a correction would move rows between "
            "partitions: not supported yet."
        )
    for leaf in found.leaves:
        if leaf.kind == "r" and leaf.access_method != "heap":
            yield f"{leaf.name} is stored by {leaf.access_method}, not heap: not supported yet."


def _leaf_writing_problems(found: TableInCatalogue, leaf: LeafRelation, role: str) -> Iterator[str]:
    """What a batch that addresses the leaf itself meets there."""
    name = leaf.name if leaf.name == found.name else f"Partition {leaf.name}"
    if leaf.has_update_rules and leaf.name != found.name:
        yield f"{name} has a rule that rewrites updates: not supported; use a trigger instead."
    if leaf.kind == "f":
        yield from _foreign_problems(name, leaf, role)
    elif not leaf.has_key and all(column in found.columns for column in KEY_COLUMNS):
        yield (
            f"{name} has no key by which a row that moved could be found again: a unique index on "
            'columns of id, symbol and "timestamp" only, not partial and not deferrable. Add one: '
            f"CREATE UNIQUE INDEX CONCURRENTLY ON {leaf.identifier.as_string()} (id);"
        )


def _foreign_problems(name: str, leaf: LeafRelation, role: str) -> Iterator[str]:
    if not leaf.is_on_postgres:
        yield (
            f"{name} is a foreign table that postgres_fdw does not serve: nothing is known of how "
            "its server locks and commits. Correct it there, or detach it."
        )
    elif not leaf.is_updatable:
        yield (
            f"{name} is a foreign table with the option updatable off: switch it on for the table "
            "(ALTER FOREIGN TABLE) or its server, or detach it."
        )
    elif not leaf.may_use_server:
        target = f"FOREIGN SERVER {sql.Identifier(str(leaf.server)).as_string()}"
        yield _missing_right(f"the server of {leaf.name}", "look at", "USAGE", target, role)


def _remote_problems(
    connection: psycopg.Connection[TupleRow], settings: Settings, found: TableInCatalogue
) -> list[str]:
    """What foreign leaves lack on their own servers."""
    problems = []
    for leaf in found.leaves:
        if leaf.kind != "f":
            continue
        try:
            problem = _problem_there(connection, settings, found, leaf)
        except psycopg.Error as error:
            if connection.broken:
                raise
            problem = f"said: {error.diag.message_primary}. Correct its column types, options, "
            problem += "user mapping or rights there, or detach it."
        if problem is not None:
            problems.append(f"{leaf.name} is a foreign table whose server {leaf.server} {problem}")
    return problems


def _problem_there(
    connection: psycopg.Connection[TupleRow],
    settings: Settings,
    found: TableInCatalogue,
    leaf: LeafRelation,
) -> str | None:
    written = {column.name for column in _written_columns(found)}
    updated_at = sql.SQL(", updated_at = m.updated_at" if "updated_at" in written else "")
    attempt = query("catalogue", "try_remote_update", leaf=leaf.identifier, updated_at=updated_at)
    there = RemoteTable(None)
    with suppress(psycopg.Rollback), transaction(connection, settings) as cursor:
        there = read_remote_table(cursor, leaf, schema=found.schema)
        if there.kind == "r":
            cursor.execute(attempt)
        raise psycopg.Rollback
    return _refused_there(leaf, there)


def _refused_there(leaf: LeafRelation, there: RemoteTable) -> str | None:
    """Rows of a foreign table are written by their address there: it must be that of one table."""
    name = f"{leaf.remote_schema}.{leaf.remote_table}"
    if there.kind is None:
        return f"has no table {name}: correct its options schema_name and table_name."
    if there.kind == "p":
        return (
            f"holds a partitioned table {name}: name each of its partitions in a foreign table of "
            "its own."
        )
    if there.kind != "r":
        return f"holds no plain table under the name {name}: name the table below it."
    if there.has_inheriting_tables:
        return f"holds a table {name} from which others inherit: not supported."
    if there.has_row_security:
        # Whom it applies to there cannot be asked from here.
        return f"holds a table {name} whose row security may hide rows: not supported."
    return None


def _written_column_problems(found: TableInCatalogue) -> Iterator[str]:
    asset_class, updated_at = found.columns.get("asset_class"), found.columns.get("updated_at")
    if asset_class is not None and asset_class.is_generated:
        yield (
            f"Column asset_class of {found.name} is generated from others and cannot be corrected: "
            "correct what it is generated from."
        )
    if (
        updated_at is not None
        and not updated_at.is_generated
        and updated_at.base_type not in _TIMESTAMP_KINDS
    ):
        yield (
            f"Column updated_at of {found.name} is of type {updated_at.type}: only timestamp, "
            "timestamptz and date are supported."
        )


def _written_columns(found: TableInCatalogue) -> list[Column]:
    columns = [found.columns.get(name) for name in ("asset_class", "updated_at")]
    return [column for column in columns if column is not None and not column.is_generated]


def _missing_writing_rights(
    found: TableInCatalogue, relation: Relation, role: str
) -> Iterator[str]:
    refused = [column.name for column in _written_columns(found) if not column.may_update]
    if refused:
        right = f"UPDATE ({', '.join(refused)})"
        yield _missing_right(found.name, "correct", right, found.identifier.as_string(), role)
    if not relation.may_create_in_schema:
        schema = _schema(found.schema)
        yield _missing_right(f"schema {found.schema}", "back up into", "CREATE", schema, role)


def _leaf_right_problems(found: TableInCatalogue, role: str) -> Iterator[str]:
    """Batches address the partitions themselves, where rights on the parent do not count."""
    written = ", ".join(column.name for column in _written_columns(found))
    for leaf in found.leaves:
        name = f"{leaf.schema}.{leaf.table}"
        if name == found.name:
            continue
        table = sql.Identifier(leaf.schema, leaf.table).as_string()
        if not leaf.may_use_schema:
            schema = _schema(leaf.schema)
            yield _missing_right(f"partition {name}", "read", "USAGE", schema, role)
        if not leaf.may_select:
            yield _missing_right(f"partition {name}", "read", "SELECT", table, role)
        if not leaf.may_update:
            yield _missing_right(f"partition {name}", "correct", f"UPDATE ({written})", table, role)
        if leaf.row_security:
            yield _hidden_rows(f"partition {name}", role)


def _schema(name: str) -> str:
    return f"SCHEMA {sql.Identifier(name).as_string()}"


def _missing_right(what: str, wish: str, right: str, target: str, role: str) -> str:
    grantee = sql.Identifier(role).as_string()
    return f"Role {role} may not {wish} {what}: GRANT {right} ON {target} TO {grantee};"
