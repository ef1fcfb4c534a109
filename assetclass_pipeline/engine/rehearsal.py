"""A rehearsal: one batch, written by the very statements of a real one, timed and rolled back.

Belongs here: finding rows to rehearse with, the batch, what it tells about triggers. Does not: the
estimate that is made of it. What a rollback does not undo stays: dead row versions of the batch,
numbers that a trigger drew from a sequence.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psycopg
from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import set_local, transaction
from assetclass_pipeline.database.market_tables import Leaf, MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.batches import BATCH_SETTINGS
from assetclass_pipeline.engine.conditions import blanks_of, correctable_rows
from assetclass_pipeline.engine.plan import PAGES_PER_CHUNK
from assetclass_pipeline.engine.retry import what_it_said
from assetclass_pipeline.model.months import TimeRange
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preflight import Finding, Rehearsal, Severity
from assetclass_pipeline.settings import Settings

RECORDS = 500
# Damaged rows may be rare in a huge table: what is not found by then is not rehearsed.
LOOKING_SECONDS = 5.0
# The rows are locked for so long at most.
MOST_SECONDS = "10s"
# Others may wait for these rows: where the first few cost so much that all would be locked for
# longer than that, they are enough.
FIRST_RECORDS = 25
PATIENT_SECONDS = 1.0
_TABLE = sql.Identifier("pg_temp", "assetclass_rehearsal")


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal measured, and what it found: why there was none, too."""

    rehearsal: Rehearsal | None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Place:
    """Pages [first_page, end_page) of one leaf, with so many rows to rehearse with."""

    leaf: Leaf
    first_page: int
    end_page: int
    records: int = 0

    @property
    def addresses(self) -> dict[str, str]:
        return {"first_address": f"({self.first_page},0)", "end_address": f"({self.end_page},0)"}


@dataclass(frozen=True)
class _Written:
    """What became of the rows of a rehearsed batch."""

    planned: int
    as_planned: int
    rewritten: int
    seconds: float
    wal_bytes: int | None


@dataclass(frozen=True)
class _Stage:
    """What every step of a rehearsal needs."""

    connection: Connection[TupleRow]
    tables: MarketTables
    settings: Settings
    options: CorrectionOptions
    scope: TimeRange
    records: int

    def chosen(self, leaf: Leaf) -> tuple[sql.Composable, dict[str, object]]:
        """The correctable rows of a leaf, as the plan selects them."""
        rows = correctable_rows(
            self.tables,
            self.options,
            self.scope,
            columns="planned_columns",
            table=sql.SQL("ONLY ") + leaf.identifier,
        )
        return rows.text, {**rows.values, "blanks": blanks_of(self.connection)}


def rehearse(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    options: CorrectionOptions,
    scope: TimeRange,
    *,
    records: int = RECORDS,
) -> Rehearsed:
    """Write up to `records` correctable rows of one heap leaf, and roll back.

    None where it is not possible (a standby, rights, foreign tables only, no damaged rows found in
    a few seconds), with a finding that says why. Errors of the batch are findings, too; only a lost
    connection is raised.
    """
    stage = _Stage(connection, tables, settings, options, scope, records)
    if reason := _why_not(stage):
        return _skipped(reason)
    try:
        place = _find_rows(stage)
    except (errors.LockNotAvailable, errors.QueryCanceled, errors.UndefinedTable) as error:
        # The last: a partition was dropped meanwhile.
        return Rehearsed(None, (_failed(tables, error),))
    if place is None:
        return _skipped(
            f"no correctable row that this role may update was found within {LOOKING_SECONDS:g} "
            "seconds, from the end of the table on"
        )
    try:
        written = _write(stage, place)
    except psycopg.Error as error:
        if connection.broken:
            raise
        return Rehearsed(None, (_failed(tables, error),))
    return _judged(tables, written)


def _skipped(reason: str) -> Rehearsed:
    message = (
        f"No batch was rehearsed: {reason}. The estimate is from earlier corrections or usual "
        "figures, and what triggers do to the values is not known."
    )
    return Rehearsed(
        None, (Finding(code="REHEARSAL_SKIPPED", severity=Severity.INFO, message=message),)
    )


def _failed(tables: MarketTables, error: psycopg.Error) -> Finding:
    # The server refuses every UPDATE of the table, whatever the row (publications, for example).
    refused = isinstance(error, errors.ObjectNotInPrerequisiteState | errors.InvalidColumnReference)
    advice = (
        "Every batch would fail like this: remove the cause first."
        if refused
        else "A correction may meet the same; rows that the database refuses are not corrected."
    )
    return Finding(
        code="REHEARSAL_FAILED",
        severity=Severity.REFUSE if refused else Severity.WARN,
        message=(
            f"A rehearsed batch on {tables.market_name} failed and was rolled back: "
            f"{what_it_said(error)}. {advice}"
        ),
    )


def _why_not(stage: _Stage) -> str | None:
    """Why this role on this server cannot rehearse."""
    if not any(leaf.kind == "heap" for leaf in stage.tables.leaves):
        return "another server holds all rows"
    with transaction(stage.connection, stage.settings, read_only=True) as cursor:
        session = cursor.execute(query("preflight", "may_rehearse")).fetchone()
    in_recovery, role, may_create = session or (False, "", False)
    if in_recovery:
        return "the server is a standby and cannot be written to"
    if not may_create:
        return f"role {role} lacks the right TEMPORARY on the database"
    return None


def _find_rows(stage: _Stage) -> _Place | None:
    """The first chunk of pages with enough rows, or else the best one seen in the time there is.

    The largest leaf first, from its end: there the newest rows are. Each look is a short
    transaction of its own. A leaf that this role may not update is none.
    """
    until = time.monotonic() + LOOKING_SECONDS
    best: _Place | None = None
    for place in _chunks(stage):
        text, values = stage.chosen(place.leaf)
        values |= {**place.addresses, "most": stage.records}
        with transaction(
            stage.connection,
            stage.settings,
            read_only=True,
            max_parallel_workers_per_gather="0",
        ) as cursor:
            row = cursor.execute(
                query("preflight", "count_in_pages", correctable_rows=text), values
            ).fetchone()
        found = replace(place, records=row[0] if row else 0)
        if found.records and (best is None or found.records > best.records):
            best = found
        if found.records == stage.records or time.monotonic() > until:
            break
    return best


def _chunks(stage: _Stage) -> Iterator[_Place]:
    leaves = {leaf.oid: leaf for leaf in stage.tables.leaves if leaf.kind == "heap"}
    written = ["asset_class", *(["updated_at"] if stage.tables.has_updated_at else [])]
    with transaction(stage.connection, stage.settings, read_only=True) as cursor:
        sizes = cursor.execute(
            query("preflight", "writable_leaves"), {"leaves": [*leaves], "written": written}
        ).fetchall()
    for oid, pages in sizes:
        for end in range(pages, 0, -PAGES_PER_CHUNK):
            yield _Place(leaves[oid], max(0, end - PAGES_PER_CHUNK), end)


def _write(stage: _Stage, place: _Place) -> _Written:
    """Plan, index, analyse and write the batch as a real one is; nothing of it stays."""
    with (
        transaction(
            stage.connection, stage.settings, random_page_cost="1.1", statement_timeout=MOST_SECONDS
        ) as cursor,
        stage.connection.transaction(force_rollback=True),
    ):
        planned = _plan(stage, cursor, place)
        return _correct(stage, cursor, place.leaf, planned)


def _plan(stage: _Stage, cursor: Cursor[TupleRow], place: _Place) -> int:
    tables = stage.tables
    cursor.execute(
        query(
            "plan",
            "create_table",
            persistence=sql.SQL("TEMPORARY"),
            backup=_TABLE,
            id_type=sql.SQL(tables.id_type),
            symbol_type=sql.SQL(tables.symbol_type),
            timestamp_type=sql.SQL(tables.timestamp_type),
            asset_class_type=sql.SQL(tables.asset_class_type),
        )
    )
    text, values = stage.chosen(place.leaf)
    statement = query(
        "plan",
        "add_chunk",
        backup=_TABLE,
        correctable_rows=text,
        not_planned=sql.SQL(""),
        limited=query("plan", "first_rows"),
    )
    values |= {
        **place.addresses,
        "most": stage.records,
        "last_seq": 0,
        "leaf": place.leaf.oid,
        "can_reuse_space": False,
        "visits": 1,
        "pages": place.end_page - place.first_page,
    }
    row = cursor.execute(statement, values).fetchone()
    cursor.execute(query("plan", "number_rows", backup=_TABLE))
    cursor.execute(query("plan", "analyze_table", backup=_TABLE))
    return int(row[0]) if row else 0


def _correct(stage: _Stage, cursor: Cursor[TupleRow], leaf: Leaf, planned: int) -> _Written:
    set_local(
        cursor,
        stage.settings,
        random_page_cost="1.1",
        statement_timeout=MOST_SECONDS,
        **BATCH_SETTINGS,
    )
    statement = query(
        "batch",
        "correct_by_address",
        backup=_TABLE,
        leaf=leaf.identifier,
        set_updated_at=(
            query("batch", "set_updated_at") if stage.tables.has_updated_at else sql.SQL("")
        ),
    )
    position = _wal_position(cursor)
    started = time.monotonic()
    tried = as_planned = rewritten = 0
    addresses: list[str] = []
    while tried < planned:
        last = planned if tried else min(FIRST_RECORDS, planned)
        values = {"first_seq": tried + 1, "last_seq": last, "stale_symbols": [], "read_back": True}
        row = cursor.execute(statement, values).fetchone() or (0, 0, "{}", None)
        cursor.execute(query("preflight", "fire_deferred"))
        as_planned, rewritten, tried = as_planned + row[0], rewritten + row[1], last
        addresses += row[3] or []
        if (time.monotonic() - started) * planned / tried > PATIENT_SECONDS:
            break
    seconds = time.monotonic() - started
    wal = _wal_since(cursor, position)
    stands = cursor.execute(
        query("batch", "read_back", leaf=leaf.identifier), {"addresses": addresses}
    ).fetchone()
    # A version that is gone was replaced by an AFTER trigger.
    replaced = as_planned + rewritten - (stands[0] if stands else 0)
    return _Written(tried, as_planned, max(rewritten, replaced), seconds, wal)


def _wal_position(cursor: Cursor[TupleRow]) -> str | None:
    """Where the server's WAL stands; None where this role may not know."""
    try:
        with cursor.connection.transaction():
            row = cursor.execute(query("preflight", "wal_position")).fetchone()
    except psycopg.DatabaseError:
        if cursor.connection.broken:
            raise
        return None
    return row[0] if row else None


def _wal_since(cursor: Cursor[TupleRow], position: str | None) -> int | None:
    """WAL bytes since then, of everybody: the least wrong figure that there is."""
    if position is None:
        return None
    row = cursor.execute(query("preflight", "wal_since"), {"position": position}).fetchone()
    return int(row[0]) if row else None


def _judged(tables: MarketTables, written: _Written) -> Rehearsed:
    rehearsal = Rehearsal(
        records=written.as_planned, seconds=written.seconds, wal_bytes=written.wal_bytes
    )
    if written.rewritten:
        finding = Finding(
            code="TRIGGER_REWRITES",
            severity=Severity.REFUSE,
            message=(
                f"{written.rewritten:,} of {written.planned:,} rehearsed rows got another version "
                f"than planned: a trigger on {tables.market_name} rewrites them. Change it for "
                "this role, or disable it for the correction."
            ),
        )
        return Rehearsed(None, (finding,))
    if not written.as_planned:
        finding = Finding(
            code="REHEARSAL_WROTE_NOTHING",
            severity=Severity.WARN,
            message=(
                f"None of {written.planned:,} rehearsed rows could be written: a trigger on "
                f"{tables.market_name} prevents it, or others hold them locked. Look at the "
                "triggers and locks named here; such rows are skipped."
            ),
        )
        return Rehearsed(None, (finding,))
    if unwritten := written.planned - written.as_planned:
        finding = Finding(
            code="REHEARSAL_SKIPPED_ROWS",
            severity=Severity.WARN,
            message=(
                f"{unwritten:,} of {written.planned:,} rehearsed rows could not be written: others "
                "hold them locked, or a trigger prevents it. Such rows are skipped, tried again at "
                "the end, and listed if they stay."
            ),
        )
        return Rehearsed(rehearsal, (finding,))
    return Rehearsed(rehearsal)
