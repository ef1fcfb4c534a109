"""What a rollback would do to the scores, and whether the columns still take the old classes.

Belongs here: looking ahead of a rollback. Does not: whether the correction may be undone
(undo_check.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import scan
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.class_fit import check_classes
from assetclass_pipeline.engine.conditions import blanks_of
from assetclass_pipeline.engine.preflight import check_market
from assetclass_pipeline.errors import PreflightRefusedError
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preflight import Finding, Preflight, Severity, ranked
from assetclass_pipeline.model.quality import IntegrityReport, judge, percent
from assetclass_pipeline.settings import Settings


@dataclass(frozen=True)
class Move:
    """Rows that change from one class to another; `expected` is what their symbol says."""

    old: str | None
    new: str | None
    expected: str | None
    records: int


def look_for_harm(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    records_by_class: Mapping[str | None, int],
) -> Preflight:
    """What the catalogue says about putting these classes back (rows by class)."""
    records = sum(records_by_class.values())
    classes = {name: count for name, count in records_by_class.items() if name is not None}
    # The rollback's own plan is no table of the market's schema, so no backup is published.
    options = CorrectionOptions(create_backup=False)
    found = check_market(connection, tables, settings, options, new_classes=None, records=records)
    with scan(connection, settings) as cursor:
        fit = check_classes(cursor, tables, classes) if classes else []
        if None in records_by_class:
            fit += _null_findings(cursor, tables, records_by_class)
    return found.model_copy(
        update={"findings": ranked([*_strictly_published(found.findings, settings), *fit])}
    )


def refuse_harm(found: Preflight) -> None:
    """Raises PreflightRefusedError where putting the old classes back would do harm."""
    if found.refusals:
        raise PreflightRefusedError(" ".join(finding.message for finding in found.refusals))


def _strictly_published(findings: list[Finding], settings: Settings) -> Iterable[Finding]:
    """A rollback makes a table of its own in our schema; subscribers that lack it stop."""
    for finding in findings:
        if finding.code == "OWN_TABLES_PUBLISHED" and settings.backup_in_publication != "allow":
            yield finding.model_copy(
                update={
                    "severity": Severity.REFUSE,
                    "message": f"{finding.message} A rollback makes a new one: "
                    "ASSETCLASS_BACKUP_IN_PUBLICATION=allow says that subscribers get it first.",
                }
            )
        else:
            yield finding


def _null_findings(
    cursor: Cursor[TupleRow], tables: MarketTables, records_by_class: Mapping[str | None, int]
) -> list[Finding]:
    leaves = {"leaves": [leaf.oid for leaf in tables.leaves]}
    strict = [name for (name,) in cursor.execute(query("rollback", "null_refused"), leaves)]
    if not strict:
        return []
    rows, everything = records_by_class[None], len(records_by_class) == 1
    return [
        Finding(
            code="NULL_REFUSED",
            severity=Severity.REFUSE if everything else Severity.WARN,
            message=f"{rows:,} rows held NULL before the correction, and asset_class of "
            f"{strict[0]} takes no NULL any more: those rows cannot be put back. Drop its NOT "
            "NULL, or leave them corrected.",
        )
    ]


def moves_of(
    cursor: Cursor[TupleRow], tables: MarketTables, rollback_id: UUID, *, backwards: bool
) -> list[Move]:
    """What a rollback's summary says that it changed, or would: forwards, or to what was before."""
    mapping = query("reference", "mapping", symbols=tables.symbols)
    rows = cursor.execute(
        query("rollback", "effect", mapping=mapping),
        {"correction_id": rollback_id, "blanks": blanks_of(cursor.connection)},
    ).fetchall()
    moves = [Move(old, new, expected, int(records)) for old, new, expected, records in rows]
    return [replace(move, old=move.new, new=move.old) for move in moves] if backwards else moves


def after_moves(
    before: IntegrityReport, moves: Iterable[Move], settings: Settings
) -> IntegrityReport:
    """The report as it would be: what a class counts for does not depend on other rows."""
    totals = {
        name: getattr(before, name)
        for name in ("null_asset_class", "empty_asset_class", "mismatched", "correctable")
    }
    for move in moves:
        for name in _counted_as(move.old, move.expected):
            totals[name] -= move.records
        for name in _counted_as(move.new, move.expected):
            totals[name] += move.records
    total, mappable = before.total_records, before.mappable
    missing = totals["null_asset_class"] + totals["empty_asset_class"]
    equal = mappable - totals["correctable"] - totals["mismatched"]
    scores = {
        "completeness": percent(total - missing, total, of_nothing=100.0),
        "quality_score": percent(equal, mappable, of_nothing=100.0),
    }
    correctable_percent = percent(totals["correctable"], total, of_nothing=0.0)
    thresholds = judge(
        settings.thresholds,
        integrity=before.integrity,
        orphaned_percent=before.orphaned_percent,
        correctable_percent=correctable_percent,
        **scores,
    )
    values = {**totals, **scores, "valid_asset_class": total - missing, "thresholds": thresholds}
    return before.model_copy(update=values)


def _counted_as(asset_class: str | None, expected: str | None) -> Iterable[str]:
    if asset_class is None:
        yield "null_asset_class"
    elif asset_class == "":
        yield "empty_asset_class"
    if expected is None:
        return
    if not asset_class:
        yield "correctable"
    elif asset_class != expected:
        yield "mismatched"
