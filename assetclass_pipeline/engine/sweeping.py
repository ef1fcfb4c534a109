"""The sweep: rows that batches left are found again by key, and what stays is explained.

Belongs here: passes over the skipped rows, rows that came after the plan. Does not: ordinary
batches (batches.py), which only ever work by physical address.
"""

import time

from psycopg import Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.batches import (
    Batch,
    Work,
    look_ahead,
    record,
    refuse_rewritten,
)
from assetclass_pipeline.engine.conditions import Condition
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
    for number in range(first_pass, first_pass + MOST_PASSES):
        still_locked = _one_pass(work, number)
        if not still_locked:
            return
        work.holder.stop.wait(PAUSE)


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
        seqs = work.holder.retrying(work.options)(_skipped_after, work, after)
        if not seqs:
            return locked
        locked += work.holder.retrying(work.options)(_sweep_batch, work, number, seqs)
        after = seqs[-1]


def _skipped_after(work: Work, after: int) -> list[int]:
    with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
        rows = cursor.execute(
            query("batch", "skipped_seqs"),
            {**work.holder.key, "after": after, "most": work.plan.batch_size},
        ).fetchall()
    return [row[0] for row in rows]


def _sweep_batch(work: Work, number: int, seqs: list[int]) -> int:
    started = time.monotonic()
    batch = Batch(leaf=0, first_seq=seqs[0], last_seq=seqs[-1])
    with transaction(work.holder.connection, work.holder.settings) as cursor:
        in_list = Condition(query("batch", "in_list"), {"seqs": seqs})
        ahead = look_ahead(cursor, work, in_list)
        values = {"seqs": seqs, "stale_symbols": ahead.stale_symbols}
        row = cursor.execute(
            query(
                "batch",
                "correct_by_key",
                backup=work.plan.identifier,
                market=work.tables.market,
                set_updated_at=work.set_updated_at,
            ),
            values,
        ).fetchone()
        corrected, rewritten, written, refused = row or (0, 0, [], [])
        refuse_rewritten(work, rewritten)
        left = sorted({*seqs} - {*written})
        locked = _give_reasons(cursor, work, {"seqs": left, "stale_symbols": ahead.stale_symbols})
        if ahead.has_triggers:
            _set_reason(cursor, work, SkipReason.VETOED, refused)
        cursor.execute(query("batch", "remove_skipped"), {**work.holder.key, "seqs": written})
        record(
            cursor,
            work,
            batch,
            worker=SWEEPER,
            sweep=number,
            corrected=corrected,
            skipped=len(left),
            started=started,
        )
    # A row that changed while we looked is like a locked one: worth another pass.
    return max(locked, len(refused))


def _give_reasons(
    cursor: Cursor[TupleRow], work: Work, values: dict[str, list[int] | list[str]]
) -> int:
    cursor.execute(
        query("batch", "explain_skipped", backup=work.plan.identifier, market=work.tables.market),
        values,
    )
    by_reason: dict[str, list[int]] = {}
    for seq, reason in cursor.fetchall():
        by_reason.setdefault(reason, []).append(seq)
    for reason, seqs in by_reason.items():
        _set_reason(cursor, work, SkipReason(reason), seqs)
    return len(by_reason.get(SkipReason.LOCKED, []))


def _set_reason(cursor: Cursor[TupleRow], work: Work, reason: SkipReason, seqs: list[int]) -> None:
    cursor.execute(
        query("batch", "set_skip_reason"),
        {**work.holder.key, "seqs": seqs, "reason": reason.value},
    )
