"""One table as PostgreSQL's catalogue describes it: kind, columns, leaves, rights of this role.

Belongs here: reading the catalogue without locks. Does not: judging what was found.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, class_row

from assetclass_pipeline.database.queries import Statement, query

KEY_COLUMNS = ("id", "symbol", "timestamp")
"""Columns by which a planned row can be found again."""


@dataclass(frozen=True)
class Session:
    """Who asks, and what kind of server answers."""

    role: str
    in_recovery: bool
    has_citus: bool


@dataclass(frozen=True)
class Relation:
    """A table or something that looks like one; kinds are those of `pg_class.relkind`."""

    oid: int
    schema_oid: int
    kind: str
    persistence: str
    access_method: str | None
    has_inheriting_tables: bool
    has_update_rules: bool
    row_security: bool
    may_use_schema: bool
    may_create_in_schema: bool
    may_select: bool


@dataclass(frozen=True)
class Column:
    """A column; `base_type` is the name of the type below its domains."""

    name: str
    type: str
    base_type: str
    is_enum: bool
    is_generated: bool
    may_select: bool
    may_update: bool


@dataclass(frozen=True)
class LeafRelation:
    """A table of a partition tree that has no partitions of its own, or the plain table itself.

    `has_key`: some unique index holds nothing but columns that the plan keeps of a row.
    `has_id_index`: some index, unique or not, finds rows by their id alone. From
    `is_on_postgres` to `remote_table`: a foreign table, and what postgres_fdw makes of it.
    """

    oid: int
    schema: str
    table: str
    kind: str
    access_method: str | None
    has_update_rules: bool
    row_security: bool
    has_key: bool
    has_id_index: bool
    is_on_postgres: bool
    is_updatable: bool
    server: str | None
    may_use_server: bool
    remote_schema: str
    remote_table: str
    may_use_schema: bool
    may_select: bool
    may_update: bool

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> sql.Identifier:
        """Its schema-qualified name."""
        return sql.Identifier(self.schema, self.table)


@dataclass(frozen=True)
class TableInCatalogue:
    """All that the catalogue says about one table; `relation` is None when there is none.

    `similar` are names that may have been meant; `keyed_by_class` are tables of its partition tree
    whose key holds `asset_class`.
    """

    schema: str
    table: str
    relation: Relation | None
    similar: tuple[str, ...] = ()
    columns: dict[str, Column] = field(default_factory=dict)
    leaves: tuple[LeafRelation, ...] = ()
    keyed_by_class: tuple[str, ...] = ()
    is_distributed: bool = False

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> sql.Identifier:
        """Its schema-qualified name."""
        return sql.Identifier(self.schema, self.table)


def read_session(connection: psycopg.Connection[TupleRow]) -> Session:
    """Facts about this session."""
    cursor = connection.cursor(row_factory=class_row(Session))
    return cursor.execute(query("catalogue", "session_facts")).fetchall()[0]


def read_table(
    connection: psycopg.Connection[TupleRow], session: Session, schema: str, table: str
) -> TableInCatalogue:
    """What is known under exactly this name; call it in a transaction of one snapshot."""
    names = {"schema": schema, "table": table}
    relation = (
        connection.cursor(row_factory=class_row(Relation))
        .execute(query("catalogue", "relation"), names)
        .fetchone()
    )
    if relation is None:
        similar = connection.execute(query("catalogue", "similar_relations"), names)
        return TableInCatalogue(schema, table, None, similar=_dotted(similar))
    of_relation = {"relation": relation.oid}
    columns = connection.cursor(row_factory=class_row(Column)).execute(
        query("catalogue", "columns"), of_relation
    )
    leaves = connection.cursor(row_factory=class_row(LeafRelation)).execute(
        query("catalogue", "leaves"),
        {**of_relation, "written": ["asset_class", "updated_at"], "key": [*KEY_COLUMNS]},
    )
    keys = connection.execute(
        query("catalogue", "partition_keys_with"), of_relation | {"column": "asset_class"}
    )
    return TableInCatalogue(
        schema,
        table,
        relation,
        columns={column.name: column for column in columns},
        leaves=tuple(leaves),
        keyed_by_class=_dotted(keys),
        is_distributed=session.has_citus and _is_distributed(connection, relation.oid),
    )


def _is_distributed(connection: psycopg.Connection[TupleRow], oid: int) -> bool:
    row = connection.execute(query("catalogue", "is_distributed"), {"relation": oid}).fetchone()
    return row is not None and bool(row[0])


def _dotted(rows: psycopg.Cursor[TupleRow]) -> tuple[str, ...]:
    return tuple(f"{schema}.{table}" for schema, table in rows)


@dataclass(frozen=True)
class RemoteTable:
    """What stands behind a foreign table on its own server; `kind` is None when nothing does."""

    kind: str | None
    has_inheriting_tables: bool = False
    has_row_security: bool = False


def read_remote_table(
    cursor: psycopg.Cursor[TupleRow], leaf: LeafRelation, *, schema: str
) -> RemoteTable:
    """Look through the leaf's server at what it stands for.

    Makes two tables in `schema`: the caller rolls its transaction back. Raises psycopg.Error with
    what the other server said.
    """
    parts = {
        "classes": sql.Identifier(schema, "assetclass_remote_class"),
        "namespaces": sql.Identifier(schema, "assetclass_remote_namespace"),
    }
    server = sql.Identifier(str(leaf.server))
    cursor.execute(query("catalogue", "open_remote_catalogue", server=server, **parts))
    names = {"schema": leaf.remote_schema, "table": leaf.remote_table}
    row = cursor.execute(query("catalogue", "remote_table", **parts), names).fetchone()
    return RemoteTable(*row) if row else RemoteTable(None)


def is_part(leaf: sql.Composable) -> Statement:
    """SQL: whether the table with the oid `leaf` is still a part of `%(market)s`."""
    return query("catalogue", "is_part", leaf=leaf)


def parts_left(cursor: psycopg.Cursor[TupleRow], market: int, leaves: Iterable[int]) -> set[int]:
    """Which of these leaves were neither dropped nor detached since they were looked up."""
    statement = query("catalogue", "parts_left", is_part=is_part(sql.SQL("leaf")))
    rows = cursor.execute(statement, {"market": market, "leaves": [*leaves]}).fetchall()
    return {int(row[0]) for row in rows}
