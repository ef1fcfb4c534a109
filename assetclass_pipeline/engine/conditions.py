"""Which rows are meant: the scope, the damage and the targets of an operation as SQL conditions.

Belongs here: the few conditions that analysis, plan and preview share. Does not: statements.
"""

from dataclasses import dataclass, field

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.options import CorrectionOptions

# White_Space of Unicode 16 (PropList.txt); a class made of these only is no class.
BLANKS = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
BLANKS += "\u2028\u2029\u202f\u205f\u3000"
ASCII_BLANKS = "\t\n\x0b\x0c\r "


@dataclass(frozen=True)
class Condition:
    """A piece of SQL and the values bound to it."""

    text: sql.Composable
    values: dict[str, object] = field(default_factory=dict)


def blanks_of(connection: Connection[TupleRow]) -> str:
    """Blank characters that the database can hold: not every encoding has the wide ones."""
    encoding = connection.info.parameter_status("server_encoding")
    return BLANKS if encoding == "UTF8" else ASCII_BLANKS


def in_scope(scope: TimeRange = EVERYTHING, name: str = "scope") -> Condition:
    """True for rows of `scope`; a scope open at the start takes rows without a timestamp too.

    Its values are bound under `name`, so that one statement can ask for several ranges.
    """
    if scope.is_everything:
        return Condition(sql.SQL("true"))
    parts: list[sql.Composable] = []
    values: dict[str, object] = {}
    if scope.start is not None:
        start = sql.Placeholder(f"{name}_start")
        parts.append(sql.SQL('m."timestamp" >= {}').format(start))
        values[f"{name}_start"] = scope.start.isoformat()
    if scope.end is not None:
        before = sql.SQL('m."timestamp" < {}').format(sql.Placeholder(f"{name}_end"))
        without_time = sql.SQL('({} OR m."timestamp" IS NULL)').format(before)
        parts.append(without_time if scope.start is None else before)
        values[f"{name}_end"] = scope.end.isoformat()
    return Condition(sql.SQL(" AND ").join(parts), values)


def is_damaged(options: CorrectionOptions) -> Condition:
    """True for rows that the options ask to change; the mapping is joined as `mapping`."""
    name = "is_missing_or_mismatched" if options.overwrite_existing_values else "is_missing"
    return Condition(query("plan", name))


def is_targeted(options: CorrectionOptions) -> Condition:
    """True for rows of the target symbols, or of all."""
    if options.target_symbols is None:
        return Condition(sql.SQL("true"))
    return Condition(query("plan", "is_target"), {"target_symbols": options.target_symbols})


def correctable_rows(
    tables: MarketTables,
    options: CorrectionOptions,
    scope: TimeRange,
    *,
    columns: str,
    table: sql.Composable | None = None,
    mismatched_only: bool = False,
) -> Condition:
    """SELECT of the rows that a correction would change: `columns` names a block of plan.sql."""
    scoped, targeted = in_scope(scope), is_targeted(options)
    damaged = Condition(query("plan", "is_mismatched")) if mismatched_only else is_damaged(options)
    text = query(
        "plan",
        "correctable_rows",
        columns=query("plan", columns, asset_class_cast=class_cast(tables)),
        table=table or tables.market,
        mapping=query("reference", "mapping", symbols=tables.symbols),
        in_scope=scoped.text,
        is_damaged=damaged.text,
        is_targeted=targeted.text,
    )
    return Condition(text, scoped.values | targeted.values)


def class_cast(tables: MarketTables) -> sql.Composable:
    """Cast of a derived class to the column: only an enum needs one.

    Everything else is assigned: a cast to varchar(n) would cut a long class without a word, an
    assignment fails.
    """
    if tables.asset_class_is_enum:
        return sql.SQL("::") + sql.SQL(tables.asset_class_type)
    return sql.SQL("")
