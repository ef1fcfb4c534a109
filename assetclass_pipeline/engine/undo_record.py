"""What became of the rows of a rollback: restored, in conflict, or left with a reason.

Belongs here: judging what batches and sweep had to leave, and the record of what was put back.
Does not: writing rows of the market table.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.by_key import by_key
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.plan import PlanState
from assetclass_pipeline.engine.running import summarise
from assetclass_pipeline.engine.sweeping import tables_here
from assetclass_pipeline.engine.undo_check import Undoing, Undone, changed, standing
from assetclass_pipeline.engine.work import Work
from assetclass_pipeline.errors import LaterCorrectionError
from assetclass_pipeline.model.operation import SkipReason
from assetclass_pipeline.settings import Settings

_ROWS_AT_ONCE = 5000


@dataclass
class _Fates:
    """Planned rows by what stands under their key now."""

    restored: list[int] = field(default_factory=list)
    changed: dict[int, str | None] = field(default_factory=dict)
    deleted: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)


def settle_left(work: Work, undone: Undone) -> None:
    """Judge the planned rows that were not found as planned: restored by others, changed, gone.

    Those that a lock, a trigger or the database itself kept from being written keep that reason.
    """
    if work.holder.epoch > 1:
        work.holder.attempt(_forget_conflicts, work, undone)

    def left(cursor: Cursor[TupleRow], after: int) -> list[int]:
        return _seqs(cursor, "left_rows", work, after)

    _judge(work, undone, left, _settle)


def settle_unfound(work: Work, undone: Undone) -> int:
    """The same for the rows of a dry run that its scan has not met; returns how many it leaves."""

    def unfound(cursor: Cursor[TupleRow], after: int) -> list[int]:
        return _seqs(cursor, "unfound_rows", work, after)

    def settle(cursor: Cursor[TupleRow], work: Work, undone: Undone, fates: _Fates) -> None:
        _record_conflicts(cursor, work, undone, fates)
        values = {**undone.key, "records": len(fates.restored)}
        cursor.execute(query("rollback", "count_restored"), values)
        gone = [*fates.restored, *fates.changed, *fates.deleted, *fates.unknown]
        statement = query("rollback", "unplan", undo=work.plan.identifier)
        cursor.execute(statement, {"seqs": gone})

    def count() -> int:
        with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
            statement = query("rollback", "count_unfound", undo=work.plan.identifier)
            row = cursor.execute(statement).fetchone()
        return int(row[0]) if row else 0

    _judge(work, undone, unfound, settle)
    return work.holder.attempt(count)


def _judge(
    work: Work,
    undone: Undone,
    next_seqs: Callable[[Cursor[TupleRow], int], list[int]],
    settle: Callable[[Cursor[TupleRow], Work, Undone, _Fates], None],
) -> None:
    after = 0

    def once() -> int:
        with transaction(work.holder.connection, work.holder.settings) as cursor:
            seqs = next_seqs(cursor, after)
            if not seqs:
                return 0
            settle(cursor, work, undone, _look_up(cursor, work, seqs))
            work.holder.require_ours(cursor)
            return seqs[-1]

    while last := work.holder.attempt(once):
        work.holder.stop.check()
        after = last


def _seqs(cursor: Cursor[TupleRow], block: str, work: Work, after: int) -> list[int]:
    values = {**work.holder.key, "after": after, "most": _ROWS_AT_ONCE}
    rows = cursor.execute(query("rollback", block, undo=work.plan.identifier), values).fetchall()
    return [row[0] for row in rows]


def _look_up(cursor: Cursor[TupleRow], work: Work, seqs: list[int]) -> _Fates:
    """What stands under the keys of these rows, wherever they may be."""
    found: dict[int, list[tuple[bool, str | None, bool, bool]]] = {}
    values = {"seqs": seqs, "stale_symbols": []}
    for place in _places(work):
        statement = query(
            "rollback",
            "holds_now",
            wanted=query("by_key", "wanted", backup=work.plan.identifier),
            leaf=place,
            restricted=by_key(cursor, work, seqs),
            same_row=query("by_key", "same_row"),
            value=query("by_key", "as_planned"),
            as_corrected=query("by_key", "as_corrected"),
        )
        for seq, *rest in cursor.execute(statement, values):
            found.setdefault(seq, []).append((rest[0], rest[1], rest[2], rest[3]))
    fates = _Fates()
    for seq in seqs:
        _add(fates, seq, found.get(seq, []))
    return fates


def _places(work: Work) -> Iterable[sql.Composable]:
    yield from tables_here(work)
    yield from (leaf.identifier for leaf in work.tables.foreign_leaves)


def _add(fates: _Fates, seq: int, found: list[tuple[bool, str | None, bool, bool]]) -> None:
    if not found:
        fates.deleted.append(seq)
    elif any(as_planned for _, _, as_planned, _ in found):
        # It came back after the sweep: another rollback can restore it.
        return
    elif any(without_id for without_id, *_ in found):
        fates.unknown.append(seq)
    elif any(as_before for *_, as_before in found):
        fates.restored.append(seq)
    else:
        fates.changed[seq] = found[0][1]


def _settle(cursor: Cursor[TupleRow], work: Work, undone: Undone, fates: _Fates) -> None:
    reasons = {
        SkipReason.ALREADY_RESTORED: fates.restored,
        SkipReason.CHANGED_BY_OTHERS: [*fates.changed],
        SkipReason.DELETED: fates.deleted,
    }
    for reason, seqs in reasons.items():
        values = {**work.holder.key, "seqs": seqs, "reason": reason.value}
        cursor.execute(query("batch", "set_skip_reason"), values)
    _record_conflicts(cursor, work, undone, fates)


def _record_conflicts(cursor: Cursor[TupleRow], work: Work, undone: Undone, fates: _Fates) -> None:
    conflicts: dict[SkipReason, dict[int, str | None]] = {
        SkipReason.CHANGED_BY_OTHERS: fates.changed,
        SkipReason.DELETED: dict.fromkeys(fates.deleted),
        SkipReason.MOVED_OR_CHANGED: dict.fromkeys(fates.unknown),
    }
    for reason, rows in conflicts.items():
        if rows:
            values = {"seqs": [*rows], "classes_now": [*rows.values()], "reason": reason.value}
            statement = query("rollback", "record_conflicts", undo=work.plan.identifier)
            cursor.execute(statement, {**undone.key, **values})


def _forget_conflicts(work: Work, undone: Undone) -> None:
    with transaction(work.holder.connection, work.holder.settings) as cursor:
        statement = query("rollback", "forget_conflicts", undo=work.plan.identifier)
        cursor.execute(statement, undone.key)
        work.holder.require_ours(cursor)


def record_undone(
    cursor: Cursor[TupleRow], key: Mapping[str, object], undo: PlanState, *, is_partial: bool
) -> None:
    """Keep which rows of the correction have their old value back by a rollback's batches.

    `key` names both operations; `undo` is the rollback's plan.
    """
    if not undo.complete:
        return
    written = query(
        "rollback",
        "written_of_some" if is_partial else "written_of_all",
        undo=undo.identifier,
        changed_seqs=changed("correction_id"),
        standing_seqs=standing("undone", besides="correction_id"),
    )
    cursor.execute(query("rollback", "record_undone", written=written), key)


def mark_rolled_back(cursor: Cursor[TupleRow], undone: Undone, undo: PlanState) -> None:
    """Say of the correction that it is undone, if none of its rows stands any more."""
    standing_seqs = standing("undone")
    statement = query(
        "rollback", "mark_rolled_back", standing_seqs=standing_seqs, undo=undo.identifier
    )
    cursor.execute(statement, undone.key)


def look_at(connection: Connection[TupleRow], settings: Settings, undoing: Undoing) -> Undone:
    """What can be undone. Raises each refusal as its own error, like `Undoing.look`.

    Where a later correction stands in the way, what killed rollbacks have put back is put on record
    first: what came after them wrote those rows anew, and is no reason to stop.
    """
    try:
        return undoing.look(connection)
    except LaterCorrectionError:
        timeout = f"{round(settings.session.scan_timeout * 1000)}ms"
        with transaction(connection, settings, statement_timeout=timeout) as cursor:
            found = [*_record_cut_off(cursor, undoing.key)]
        if not found:
            raise
    return undoing.look(connection)


def record_cut_off(holder: Holder, undone: Undone) -> None:
    """Keep what earlier rollbacks of the correction put back that could not say so themselves."""
    with transaction(holder.connection, holder.settings, statement_timeout="0") as cursor:
        for rollback_id, undo in _record_cut_off(cursor, undone.key):
            summarise(cursor, rollback_id, undo, dry_run=False)
        holder.require_ours(cursor)


def _record_cut_off(
    cursor: Cursor[TupleRow], key: Mapping[str, object]
) -> Iterator[tuple[UUID, PlanState]]:
    """Record them one after the other: (rollback, its plan)."""
    for rollback_id, plan in cursor.execute(query("rollback", "cut_off"), key).fetchall():
        undo = PlanState.model_validate(plan)
        names = {"schema": undo.schema_name, "table": undo.table_name}
        exists = cursor.execute(query("plan", "table_exists"), names).fetchone()
        if exists is not None and exists[0]:
            record_undone(cursor, {**key, "correction_id": rollback_id}, undo, is_partial=True)
            yield rollback_id, undo
