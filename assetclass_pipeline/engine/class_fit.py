"""Whether the new classes fit the column: its type, CHECK constraints and foreign keys.

Belongs here: asking PostgreSQL about classes that no row has yet. Does not: rows, and constraints
that also concern other columns, which only a rehearsal on real rows can try.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import Cursor, errors, sql
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.preflight import Finding, Severity

MOST_NAMED = 5
# Reading a constraint waits where someone holds the table; a function in it may do anything.
_NOT_ANSWERED = (psycopg.DatabaseError,)


@dataclass(frozen=True)
class Misfit:
    """Classes that one constraint or the type refuses; `why` follows "... new classes"."""

    code: str
    classes: tuple[str | None, ...]
    why: str
    advice: str


@dataclass
class _Asked:
    """What was found so far."""

    misfits: list[Misfit] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)

    def remark(self, code: str, message: str) -> None:
        self.remarks.append(Finding(code=code, severity=Severity.INFO, message=message))


def check_classes(
    cursor: Cursor[TupleRow], tables: MarketTables, new_classes: Mapping[str, int]
) -> list[Finding]:
    """Findings about `new_classes` (rows by class) in the transaction that is open on `cursor`.

    Refused when no class fits; a warning names those that do not when others do.
    """
    asked = _Asked()
    fitting = _ask_column(cursor, tables, [*new_classes], asked)
    if leaves := [leaf.oid for leaf in tables.leaves if leaf.kind == "heap"]:
        _ask_checks(cursor, tables, leaves, fitting, asked)
        _ask_foreign_keys(cursor, leaves, fitting, asked)
    refused = {name for misfit in asked.misfits for name in misfit.classes}
    severity = Severity.REFUSE if refused and refused == set(new_classes) else Severity.WARN
    found = [
        Finding(code=misfit.code, severity=severity, message=_sentence(misfit, new_classes))
        for misfit in asked.misfits
    ]
    return [*found, *asked.remarks]


def misfits_of(
    cursor: Cursor[TupleRow], tables: MarketTables, values: Sequence[str | None]
) -> tuple[list[Misfit], list[Finding]]:
    """What refuses some of `values`, NULL among them, and remarks about what could not be asked."""
    asked = _Asked()
    fitting = _ask_column(cursor, tables, values, asked)
    if leaves := [leaf.oid for leaf in tables.leaves if leaf.kind == "heap"]:
        _ask_not_null(cursor, tables, leaves, fitting, asked)
        _ask_checks(cursor, tables, leaves, fitting, asked)
        _ask_foreign_keys(cursor, leaves, fitting, asked)
    return asked.misfits, asked.remarks


def _sentence(misfit: Misfit, new_classes: Mapping[str, int]) -> str:
    names = [name for name in misfit.classes if name is not None]
    ranked = sorted(names, key=lambda name: (-new_classes[name], name))
    named = ", ".join(f"{name!r} ({new_classes[name]:,} rows)" for name in ranked[:MOST_NAMED])
    more = f" and {len(ranked) - MOST_NAMED:,} more" if len(ranked) > MOST_NAMED else ""
    share = f"{len(ranked):,} of {len(new_classes):,} new classes"
    return f"{share} {misfit.why}: {named}{more}. {misfit.advice}"


def _ask_column(
    cursor: Cursor[TupleRow], tables: MarketTables, classes: Sequence[str | None], asked: _Asked
) -> list[str | None]:
    """The classes that the column's type takes."""
    column_type = sql.SQL(tables.asset_class_type)
    statement = query("preflight", "try_column", asset_class_type=column_type)

    def refusal(of: Sequence[str | None]) -> str | None:
        try:
            with cursor.connection.transaction():
                cursor.execute(statement, {"classes": [*of]})
        except (errors.DataError, errors.IntegrityError) as error:
            return error.diag.message_primary or "refused"
        return None

    # Nearly always all of them fit: then it is one question, however many there are.
    if refusal(classes) is None:
        return [*classes]
    fitting: list[str | None] = []
    refused: dict[str, list[str | None]] = {}
    for name in classes:
        if (reason := refusal([name])) is None:
            fitting.append(name)
        else:
            refused.setdefault(reason.replace(f'"{name}"', "it"), []).append(name)
    for reason, names in refused.items():
        asked.misfits.append(
            Misfit(
                "CLASS_DOES_NOT_FIT_COLUMN",
                tuple(names),
                f"cannot be stored in asset_class of {tables.market_name} ({reason})",
                "A correction that meets one of them stops before any row is changed: correct them "
                f"in {tables.symbols_name}, or widen the column.",
            )
        )
    return fitting


def _ask_not_null(
    cursor: Cursor[TupleRow],
    tables: MarketTables,
    leaves: list[int],
    values: Sequence[str | None],
    asked: _Asked,
) -> None:
    if None not in values:
        return
    row = cursor.execute(query("preflight", "refuses_null"), {"leaves": leaves}).fetchone()
    if row is not None and row[0]:
        asked.misfits.append(
            Misfit(
                "NULL_REFUSED",
                (None,),
                f"cannot be stored in asset_class of {tables.market_name}, which is NOT NULL",
                "Allow NULL again (ALTER COLUMN asset_class DROP NOT NULL).",
            )
        )


def _ask_checks(
    cursor: Cursor[TupleRow],
    tables: MarketTables,
    leaves: list[int],
    classes: Sequence[str | None],
    asked: _Asked,
) -> None:
    for check in _constraints(cursor, "checks", leaves, asked):
        name = f"CHECK constraint {check['name']} of {check['table']}"
        if not check["is_about_class_only"]:
            asked.remark(
                "CHECK_ON_CLASS_AND_OTHERS",
                f"{name} concerns asset_class and other columns: whether the new values meet it "
                "depends on each row, and only the rehearsal has tried some. Rows that break it "
                "are not corrected.",
            )
            continue
        # Rendered with the classes written into it, because an expression may hold anything that
        # looks like a placeholder.
        statement = sql.Composed(
            [
                *query(
                    "preflight",
                    "classes_against_check",
                    classes=sql.Literal([*classes]),
                    asset_class_type=sql.SQL(tables.asset_class_type),
                    expression=sql.SQL(check["expression"]),
                )
            ]
        )
        try:
            with cursor.connection.transaction():
                breaking = [row[0] for row in cursor.execute(statement).fetchall()]
        except _NOT_ANSWERED as error:
            _refuse_broken(cursor, error)
            asked.remark("CHECK_NOT_EVALUATED", _not_answered(name, error))
            continue
        if breaking:
            asked.misfits.append(
                Misfit(
                    "CLASS_BREAKS_CHECK",
                    tuple(breaking),
                    f"cannot pass {name}",
                    f"Their rows cannot be corrected: change the constraint, or the classes in "
                    f"{tables.symbols_name}.",
                )
            )


def _ask_foreign_keys(
    cursor: Cursor[TupleRow], leaves: list[int], values: Sequence[str | None], asked: _Asked
) -> None:
    # NULL refers to nothing.
    classes = [value for value in values if value is not None]
    for key in _constraints(cursor, "foreign_keys", leaves, asked):
        name = f"foreign key {key['name']} of {key['table']}"
        other = f"{key['other_schema']}.{key['other_table']}"
        if not key["is_about_class_only"]:
            asked.remark(
                "FOREIGN_KEY_ON_CLASS_AND_OTHERS",
                f"The {name} concerns asset_class and other columns: whether {other} holds the new "
                "combinations only the rehearsal has tried. Rows without one are not corrected.",
            )
            continue
        statement = query(
            "preflight",
            "classes_not_referenced",
            other_table=sql.Identifier(key["other_schema"], key["other_table"]),
            other_column=sql.Identifier(key["other_column"]),
            other_type=sql.SQL(key["other_type"]),
        )
        try:
            with cursor.connection.transaction():
                rows = cursor.execute(statement, {"classes": [*classes]}).fetchall()
        except _NOT_ANSWERED as error:
            _refuse_broken(cursor, error)
            asked.remark("FOREIGN_KEY_NOT_EVALUATED", _not_answered(f"The {name}", error))
            continue
        if rows:
            asked.misfits.append(
                Misfit(
                    "CLASS_NOT_REFERENCED",
                    tuple(row[0] for row in rows),
                    f"cannot be found in {other}, to which the {name} refers",
                    f"Their rows cannot be corrected: add the classes to {other}.",
                )
            )


def _constraints(
    cursor: Cursor[TupleRow], block: str, leaves: list[int], asked: _Asked
) -> list[dict[str, Any]]:
    """Constraints of the leaves; none, and a remark, while the table is locked."""
    try:
        with (
            cursor.connection.transaction(),
            cursor.connection.cursor(row_factory=dict_row) as named,
        ):
            return named.execute(query("preflight", block), {"leaves": leaves}).fetchall()
    except errors.LockNotAvailable as error:
        asked.remark(
            "CONSTRAINTS_NOT_READ", _not_answered("Constraints of the market table", error)
        )
        return []


def _refuse_broken(cursor: Cursor[TupleRow], error: psycopg.Error) -> None:
    if cursor.connection.broken:
        raise error


def _not_answered(what: str, error: psycopg.Error) -> str:
    return (
        f"{what} could not be tried against the new classes: {error.diag.message_primary}. Rows "
        "that it refuses are not corrected."
    )
