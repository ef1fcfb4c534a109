"""The sweep: rows that batches left are found again by key, and what stays is explained.

Belongs here: passes over the skipped rows, rows that came after the plan. Does not: ordinary
batches (batches.py), which only ever work by physical address.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import Cursor, errors, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.catalogue import parts_left
from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine.batches import LEDGER_KEYS, TooLongError
from assetclass_pipeline.engine.by_key import (
    Announced,
    ForeignRows,
    Written,
    by_key,
    explain_left,
    trying,
)
from assetclass_pipeline.engine.conditions import Condition
from assetclass_pipeline.engine.ranges import Batch
from assetclass_pipeline.engine.retry import is_data_error
from assetclass_pipeline.engine.work import (
    Ahead,
    Work,
    check_error_rate,
    look_ahead,
    quarantine,
    record,
    refuse_rewritten,
    set_updated_at,
)
from assetclass_pipeline.model.operation import SkipReason

MOST_PASSES = 3
SWEEPER = 0
# Between two passes over rows that somebody holds locked.
PAUSE = 0.5


def sweep(work: Work, first_pass: int) -> None:
    """Write the skipped rows that can be written now, in at most MOST_PASSES passes.

    Rows that merely moved are found by key, symbol, time and old value; every other one keeps the
    reason why it was left in the list of skipped rows.
    """
    work = work.holder.attempt(_with_parts_left, work)
    for number in range(first_pass, first_pass + MOST_PASSES):
        still_locked = _one_pass(work, number)
        if not still_locked:
            return
        work.holder.stop.wait(PAUSE)


def _with_parts_left(work: Work) -> Work:
    """Without the leaves that were dropped or detached meanwhile: their rows are none of ours."""
    oids = [leaf.oid for leaf in work.tables.leaves]
    with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
        left = parts_left(cursor, work.tables.market_oid, oids)
    leaves = tuple(leaf for leaf in work.tables.leaves if leaf.oid in left)
    return replace(work, tables=replace(work.tables, leaves=leaves))


def next_pass(work: Work) -> int:
    """Number for the next sweep: after a resume, numbers of earlier ones are taken."""
    with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
        row = cursor.execute(
            query("batch", "last_pass"), {"correction_id": work.holder.correction_id}
        ).fetchone()
    return int(row[0]) + 1 if row else 1


def _one_pass(work: Work, number: int) -> int:
    """Try every skipped row once; returns how many were locked by others."""
    locked, after = 0, 0
    while True:
        work.holder.stop.check()
        seqs = work.holder.attempt(_skipped_after, work, after)
        if not seqs:
            return locked
        locked += _sweep(work, number, seqs)
        after = seqs[-1]


def _skipped_after(work: Work, after: int) -> list[int]:
    with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
        rows = cursor.execute(
            query("batch", "skipped_seqs"),
            {**work.holder.key, "after": after, "most": work.tempo.pacing.batch_size},
        ).fetchall()
    return [row[0] for row in rows]


def _sweep(work: Work, number: int, seqs: list[int]) -> int:
    """One batch of skipped rows; poison among them is found by halving, and quarantined."""
    try:
        return work.holder.attempt_to_write(None, _sweep_in_time, work, number, seqs)
    except TooLongError:
        return _in_halves(work, number, seqs)
    except psycopg.Error as error:
        if _was_done(error):
            return len(seqs)
        if not is_data_error(error):
            raise
        if len(seqs) == 1:
            work.holder.attempt_to_write(None, _quarantine, work, seqs[0], error)
            return 0
        return _in_halves(work, number, seqs)


def _in_halves(work: Work, number: int, seqs: list[int]) -> int:
    half = len(seqs) // 2
    return _sweep(work, number, seqs[:half]) + _sweep(work, number, seqs[half:])


def _sweep_in_time(work: Work, number: int, seqs: list[int]) -> int:
    try:
        return _sweep_batch(work, number, seqs)
    except errors.QueryCanceled:
        if len(seqs) > 1:
            raise TooLongError from None
        raise


def _was_done(error: psycopg.Error) -> bool:
    """Whether COMMIT had arrived and its answer had not: who was locked gets another pass."""
    return isinstance(error, errors.UniqueViolation) and error.diag.constraint_name in LEDGER_KEYS


def _quarantine(work: Work, seq: int, error: psycopg.Error) -> None:
    with transaction(work.holder.connection, work.holder.settings) as cursor:
        quarantine(cursor, work, seq, error)
        _set_reason(cursor, work, SkipReason.QUARANTINED, [seq])
        work.holder.require_ours(cursor)
    with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
        check_error_rate(cursor, work)


def _sweep_batch(work: Work, number: int, seqs: list[int]) -> int:
    started = time.monotonic()
    foreign = [ForeignRows(work, leaf) for leaf in work.tables.foreign_leaves]
    with trying(work, work.holder.connection, foreign, seqs, by_key) as (cursor, announced):
        ahead = look_ahead(cursor, work, Condition(query("batch", "in_list"), {"seqs": seqs}))
        rows_left = _RowsLeft(cursor, work, ahead, seqs)
        for table in tables_here(work):
            rows_left.write_here(table)
        there = [rows_left.write_there(*place) for place in zip(foreign, announced, strict=True)]
        refuse_rewritten(work, rows_left.rewritten)
        locked = _give_reasons(cursor, work, rows_left.left, ahead.stale_symbols)
        _set_reason(cursor, work, SkipReason.VETOED, rows_left.vetoed)
        written = {**work.holder.key, "seqs": rows_left.written}
        cursor.execute(query("batch", "remove_skipped"), written)
        record(
            cursor,
            work,
            Batch(leaf=0, first_seq=seqs[0], last_seq=seqs[-1]),
            worker=SWEEPER,
            sweep=number,
            corrected=len(rows_left.written),
            skipped=len(rows_left.left),
            started=started,
        )
    for rows, done in zip(foreign, there, strict=True):
        rows.tell(done)
    # A row that changed while we looked is like a locked one: worth another pass.
    return max(locked, len(rows_left.refused))


@dataclass
class _RowsLeft:
    """A batch of the sweep: `refused` were locked by us and yet not written.

    Those that only a trigger can have kept from it are `vetoed`.
    """

    cursor: Cursor[TupleRow]
    work: Work
    ahead: Ahead
    seqs: list[int]
    written: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    vetoed: list[int] = field(default_factory=list)
    rewritten: int = 0

    @property
    def left(self) -> list[int]:
        """What is not written yet."""
        return sorted({*self.seqs} - {*self.written})

    def write_here(self, table: sql.Composable) -> None:
        """Rows of a table of this server."""
        statement = sweep_statement(self.cursor, self.work, table, self.left)
        values = {"seqs": self.left, "stale_symbols": self.ahead.stale_symbols}
        row = self.cursor.execute(statement, values).fetchone()
        _, rewritten, written, refused = row or (0, 0, [], [])
        self.rewritten += rewritten
        self.written += written
        self.refused += refused
        self.vetoed += refused if self.ahead.has_triggers else []

    def write_there(self, rows: ForeignRows, announced: Announced) -> Written:
        """Rows of a foreign table."""
        done = rows.write(self.cursor, self.left, announced, self.ahead.stale_symbols)
        self.rewritten += done.rewritten
        self.written += done.corrected
        self.refused += done.refused
        self.vetoed += done.refused
        return done


def sweep_statement(
    cursor: Cursor[TupleRow], work: Work, table: sql.Composable, seqs: list[int]
) -> Statement:
    """Writes planned rows of a table of this server wherever their key finds them."""
    return query(
        "batch",
        "correct_by_key",
        market=table,
        wanted=query("by_key", "wanted", backup=work.plan.identifier),
        restricted=by_key(cursor, work, seqs),
        same_row=query("by_key", "same_row"),
        value=query("by_key", "as_planned"),
        set_updated_at=set_updated_at(work.tables),
    )


def tables_here(work: Work) -> Iterator[sql.Composable]:
    """Where rows of this server may be now: the market table, or its local leaves one by one.

    Through a parent with foreign partitions, another server's rows would be found by an address
    that means nothing here.
    """
    if not work.tables.foreign_leaves:
        yield work.tables.market
        return
    yield from (leaf.identifier for leaf in work.tables.leaves if leaf.kind != "foreign")


def _give_reasons(
    cursor: Cursor[TupleRow], work: Work, left: list[int], stale_symbols: list[str]
) -> int:
    """Write why each row was left; returns how many are locked by others."""
    places = [*tables_here(work), *(leaf.identifier for leaf in work.tables.foreign_leaves)]
    by_reason = explain_left(cursor, work, places, left, stale_symbols)
    for reason, seqs in by_reason.items():
        _set_reason(cursor, work, reason, seqs)
    return len(by_reason.get(SkipReason.LOCKED, []))


def _set_reason(cursor: Cursor[TupleRow], work: Work, reason: SkipReason, seqs: list[int]) -> None:
    cursor.execute(
        query("batch", "set_skip_reason"),
        {**work.holder.key, "seqs": seqs, "reason": reason.value},
    )
