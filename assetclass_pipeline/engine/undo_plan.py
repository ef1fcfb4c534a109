"""The plan of a rollback: what the rows of a correction hold now, and where they stand.

Belongs here: the scan for fresh addresses, which also tells rows that are restored already and
rows that somebody changed since. Does not: whether the correction may be undone (undo_check.py),
and what is left at the end (undo_record.py).

The addresses in the correction's backup died with the correction. So each leaf is scanned again,
joined by a hash of its part of the backup; a chunk of pages is the larger the larger that part is,
or else the hash would cost more than the scan. What no leaf holds any more, or what moved while the
scan ran, is planned without an address: the sweep finds it by key, or says why not.
"""

import time
from dataclasses import dataclass

from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import set_local, transaction
from assetclass_pipeline.database.market_tables import Leaf, MarketTables
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine.conditions import class_cast
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.plan import (
    PAGES_PER_CHUNK,
    VISITS,
    PlanState,
    Segment,
    complete_plan,
    create_named,
    create_unlogged,
    landed,
    load_plan,
    look_at,
    rest_after_chunk,
    store_plan,
)
from assetclass_pipeline.engine.undo_check import HASH_JOINS, Survey, Undone
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.rollback import RollbackOptions

PLAN_PREFIX = "rollback_"
# Of a leaf's part of the backup: then all hashes together cost less than the scan of the leaf.
PAGES_PER_BACKUP_PAGE = 3
# Planned without an address.
NOWHERE = 0


@dataclass(frozen=True)
class UndoScan:
    """What every chunk of one scan has in common."""

    holder: Holder
    tables: MarketTables
    options: RollbackOptions
    undone: Undone
    survey: Survey

    @property
    def batch_size(self) -> int | None:
        """Rows of a batch, where the caller wants a number of them."""
        return self.options.batch_size

    @property
    def connection(self) -> Connection[TupleRow]:
        """The operation's own."""
        return self.holder.connection


@dataclass(frozen=True)
class _Part:
    """Chosen rows that are looked for in one leaf; `scanned` is the name of how far that came."""

    leaf: Leaf
    segments: tuple[Segment, ...]
    scanned: int
    once_more: bool = False

    @property
    def records(self) -> int:
        """Rows that the correction planned there."""
        return sum(segment.last_seq - segment.first_seq + 1 for segment in self.segments)


@dataclass(frozen=True)
class _Chunk:
    """Some pages of a leaf, and how their rows are numbered."""

    part: _Part
    first_page: int
    end_page: int
    visits: int
    stripe: int

    @property
    def values(self) -> dict[str, object]:
        """What its statement is bound to."""
        segments = self.part.segments
        ranges = ",".join(f"[{segment.first_seq},{segment.last_seq}]" for segment in segments)
        return {
            "leaf": self.part.leaf.oid,
            "first_address": f"({self.first_page},0)",
            "end_address": f"({self.end_page},0)",
            "lowest_seq": min(segment.first_seq for segment in segments),
            "highest_seq": max(segment.last_seq for segment in segments),
            "segments": f"{{{ranges}}}",
            "visits": self.visits,
            "stripe": self.stripe,
        }


def make_undo_plan(scan: UndoScan, state: PlanState | None) -> PlanState:
    """Write the plan, or the rest of it after an interruption; numbered and analysed at the end.

    Raises CorrectionFailedError where an old class does not fit the column any more.
    """
    if state is None:
        # A second try looks first: COMMIT may have arrived, and one table is enough.
        state = scan.holder.attempt(lambda: load_plan(scan.holder) or _create(scan))
    if state.complete:
        return state
    for part in _own_parts(scan):
        _scan_part(scan, state, part)
    if scan.holder.attempt(_has_rest, scan, state):
        for part in _other_parts(scan):
            _scan_part(scan, state, part)
        scan.holder.attempt(_add_rest, scan, state)
    if scan.options.dry_run:
        scan.holder.attempt(_forget_restored, scan, state)
    scan.holder.attempt(complete_plan, scan, state)
    return state


def _create(scan: UndoScan) -> PlanState:
    with transaction(scan.connection, scan.holder.settings) as cursor:
        scan.holder.require_ours(cursor)
        cursor.execute(query("rollback", "forget_plan"), scan.undone.key)
    if scan.options.dry_run:
        return create_unlogged(scan, of_rollback=True)
    return create_named(scan, "assetclass", PLAN_PREFIX, of_rollback=True)


def _own_parts(scan: UndoScan) -> list[_Part]:
    """Each leaf with the rows that stood in it, and with those of leaves that are gone."""
    present = {leaf.oid for leaf in scan.tables.leaves}
    parts = []
    for leaf in scan.tables.leaves:
        segments = tuple(
            segment
            for segment in scan.undone.plan.segments
            if segment.leaf == leaf.oid or segment.leaf not in present
        )
        if segments:
            parts.append(_Part(leaf, segments, leaf.oid))
    return parts


def _other_parts(scan: UndoScan) -> list[_Part]:
    """Each leaf with all rows that were not found in their own, where that may help.

    In the only leaf of a table the sweep finds them sooner, but only with the value that the
    correction wrote.
    """
    if len(scan.tables.leaves) == 1 and not scan.options.take_backup_value:
        return []
    segments = tuple(scan.undone.plan.segments)
    return [_Part(leaf, segments, -leaf.oid, once_more=True) for leaf in scan.tables.leaves]


def _scan_part(scan: UndoScan, state: PlanState, part: _Part) -> None:
    leaf = part.leaf
    pages, reuses, file_node = scan.holder.attempt(look_at, scan, leaf)
    state.file_nodes.setdefault(leaf.oid, file_node)
    if reuses and leaf.oid not in state.reusing:
        state.reusing.append(leaf.oid)
    size = pages if _may_be_alike(scan, leaf) else scan.holder.attempt(_chunk_pages, scan, part)
    visits, stripe = _visits(state, part, pages)
    for page in range(state.scanned.get(part.scanned, 0), pages, max(1, size)):
        scan.holder.stop.check()
        # Waits while the throttle holds writers; the chunk itself may take longer than a write.
        scan.holder.attempt_to_write(None, scan.holder.stop.check)
        chunk = _Chunk(part, page, min(page + size, pages), visits, stripe)
        began = time.monotonic()
        scan.holder.attempt(_add_chunk, scan, state, chunk)
        rest_after_chunk(scan.holder, scan.options.pace, time.monotonic() - began)


def _may_be_alike(scan: UndoScan, leaf: Leaf) -> bool:
    """Whether rows there may be alike in their whole key: then they are judged all at once."""
    return leaf.kind == "foreign" or scan.survey.has_nulls


def _chunk_pages(scan: UndoScan, part: _Part) -> int:
    backup = scan.undone.plan
    names = {"schema": backup.schema_name, "table": backup.table_name}
    with transaction(scan.connection, scan.holder.settings, read_only=True) as cursor:
        row = cursor.execute(query("rollback", "table_pages"), names).fetchone()
    pages = (row[0] if row else 0) * part.records / max(1, backup.planned)
    return max(PAGES_PER_CHUNK, round(PAGES_PER_BACKUP_PAGE * pages))


def _visits(state: PlanState, part: _Part, pages: int) -> tuple[int, int]:
    """(visits of a page, rows of a stripe), by how many rows a page is likely to hold.

    As in a correction; a stripe holds the same number of rows of each visit, but for the last one.
    """
    dense = part.records >= VISITS * pages and not part.once_more
    if not dense or part.leaf.oid not in state.reusing:
        return 1, max(1, part.records)
    rows = part.records * min(pages, PAGES_PER_CHUNK) // max(1, pages)
    return VISITS, max(1, rows // VISITS) * VISITS


def _add_chunk(scan: UndoScan, state: PlanState, chunk: _Chunk) -> None:
    part, after = chunk.part, state.model_copy(deep=True)
    try:
        with transaction(scan.connection, scan.holder.settings) as cursor:
            if (stored := landed(scan.holder, cursor, part.scanned, chunk.end_page)) is not None:
                state.segments, state.scanned = stored.segments, stored.scanned
                return
            _let_it_hash(scan, cursor)
            values = {
                **scan.undone.values,
                **chunk.values,
                "take_backup_value": scan.options.take_backup_value,
                "last_seq": state.planned,
            }
            row = cursor.execute(_chunk_statement(scan, state, chunk), values).fetchone()
            planned, restored, seqs = row or (0, 0, None)
            if restored:
                _count_restored(scan, cursor, int(restored), seqs)
            after.add(part.leaf.oid, int(planned))
            after.scanned[part.scanned] = chunk.end_page
            store_plan(scan.holder, cursor, state, after)
    except (errors.DataError, errors.IntegrityError) as error:
        raise CorrectionFailedError(
            f"A class that rows held before correction {scan.undone.correction_id} does not fit "
            f"asset_class of {scan.tables.market_name} any more "
            f"({scan.tables.asset_class_type}): {error.diag.message_primary}. Nothing was changed; "
            "widen the column, then run it again."
        ) from None
    state.segments, state.scanned = after.segments, after.scanned


def _let_it_hash(scan: UndoScan, cursor: Cursor[TupleRow]) -> None:
    seconds = scan.holder.settings.session.scan_timeout
    set_local(
        cursor,
        scan.holder.settings,
        **HASH_JOINS,
        work_mem="64MB",
        # The default of newer versions; a hash that does not fit takes several turns.
        hash_mem_multiplier="2",
        statement_timeout=f"{round(seconds * 1000)}ms",
    )


def _chunk_statement(scan: UndoScan, state: PlanState, chunk: _Chunk) -> Statement:
    part = chunk.part
    is_foreign = part.leaf.kind == "foreign"
    more: list[sql.Composable] = []
    if len(part.segments) < len(scan.undone.plan.segments):
        more.append(query("rollback", "in_segments"))
    if part.once_more or chunk.first_page:
        # A row that moves to later pages while they are scanned is met again: judged twice, it
        # would make up in the sums for one that moved the other way and is met nowhere.
        more.append(query("rollback", "not_found_yet", undo=state.identifier))
    identifier = part.leaf.identifier
    same_row = "same_row_with_nulls" if scan.survey.has_nulls else "same_row"
    found = "found_among_alike" if _may_be_alike(scan, part.leaf) else "found"
    candidates = query(
        "rollback",
        "candidates",
        leaf=identifier if is_foreign else sql.SQL("ONLY ") + identifier,
        chosen=scan.undone.chosen(*more),
        same_row=query("rollback", same_row),
        in_pages=sql.SQL("true") if is_foreign else query("rollback", "in_pages"),
    )
    return query(
        "rollback",
        "add_chunk",
        undo=state.identifier,
        backup=scan.undone.plan.identifier,
        found=query("rollback", found, candidates=candidates),
        class_cast=_class_cast(scan.tables),
        noted=query(
            "rollback",
            "note_restored",
            undo=state.identifier,
            class_cast=_class_cast(scan.tables),
        )
        if scan.options.dry_run
        else sql.SQL(""),
    )


def _class_cast(tables: MarketTables) -> sql.Composable:
    """Of what the backup holds: the column may have become an enum since, which takes no text."""
    return sql.SQL("::text") + class_cast(tables) if tables.asset_class_is_enum else sql.SQL("")


def _count_restored(scan: UndoScan, cursor: Cursor[TupleRow], records: int, seqs: str) -> None:
    """Rows that have their old value already; on record with the chunk that has found them."""
    key = scan.undone.key
    cursor.execute(query("rollback", "count_restored"), {**key, "records": records})
    if not scan.options.dry_run:
        cursor.execute(query("rollback", "remember_undone"), {**key, "seqs": seqs})


def _has_rest(scan: UndoScan, state: PlanState) -> bool:
    """Whether chosen rows were found nowhere."""
    with transaction(scan.connection, scan.holder.settings, read_only=True) as cursor:
        row = cursor.execute(query("rollback", "judged"), scan.undone.key).fetchone()
    restored, changed = row or (0, 0)
    return scan.survey.records != state.planned + int(restored) + int(changed)


def _add_rest(scan: UndoScan, state: PlanState) -> None:
    after = state.model_copy(deep=True)
    with transaction(scan.connection, scan.holder.settings) as cursor:
        if (stored := landed(scan.holder, cursor, NOWHERE, 1)) is not None:
            state.segments, state.scanned = stored.segments, stored.scanned
            return
        _let_it_hash(scan, cursor)
        chosen = scan.undone.chosen(query("rollback", "not_found_yet", undo=state.identifier))
        row = cursor.execute(
            query(
                "rollback",
                "add_rest",
                undo=state.identifier,
                chosen=chosen,
                class_cast=_class_cast(scan.tables),
            ),
            {**scan.undone.values, "last_seq": state.planned},
        ).fetchone()
        after.add(NOWHERE, int(row[0]) if row else 0)
        after.scanned[NOWHERE] = 1
        store_plan(scan.holder, cursor, state, after)
    state.segments, state.scanned = after.segments, after.scanned


def _forget_restored(scan: UndoScan, state: PlanState) -> None:
    with transaction(scan.connection, scan.holder.settings) as cursor:
        cursor.execute(query("rollback", "forget_restored", undo=state.identifier))
