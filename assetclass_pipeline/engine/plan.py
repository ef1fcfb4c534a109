"""The plan: one scan writes every correctable row, before and after, into the backup table.

Belongs here: the backup table's birth, the chunked scan, its numbering, how far it came. Does not:
batches, which only read ranges of `seq`.
"""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

import psycopg
from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict

from assetclass_pipeline.database.catalogue import parts_left
from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import Leaf, MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine import backups
from assetclass_pipeline.engine.backups import BACKUP_PREFIX
from assetclass_pipeline.engine.claiming import fenced
from assetclass_pipeline.engine.conditions import blanks_of, correctable_rows
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.months import TimeRange
from assetclass_pipeline.model.options import CorrectionOptions, Pace
from assetclass_pipeline.model.pacing import PROFILES, pause_seconds, size_range

# 32 MB of the table: short enough that nobody queues for long behind a chunk (measured: 0.3 s
# where one statement for all made readers behind a waiting ALTER TABLE wait 5.3 s).
PAGES_PER_CHUNK = 4096
# Visits of a page with many damaged rows; measured: of the new versions 70 % stay on their page,
# which halves the time of the batches, and the growth of the indexes.
VISITS = 4


class Segment(BaseModel):
    """Seqs [first_seq, last_seq] of one leaf; physical addresses mean nothing elsewhere."""

    model_config = ConfigDict(frozen=True)

    leaf: int
    first_seq: int
    last_seq: int


class PlanState(BaseModel):
    """How far planning came; stored with the operation after every chunk."""

    schema_name: str
    table_name: str
    batch_size: int | None = None
    segments: list[Segment] = []
    scanned: dict[int, int] = {}
    reusing: list[int] = []
    file_nodes: dict[int, int | None] = {}
    complete: bool = False

    @property
    def planned(self) -> int:
        """Rows planned so far."""
        return self.segments[-1].last_seq if self.segments else 0

    @property
    def identifier(self) -> sql.Identifier:
        """The plan's table."""
        return sql.Identifier(self.schema_name, self.table_name)

    @property
    def stored(self) -> dict[str, object]:
        """What the operation's row keeps of it."""
        return {"plan": Jsonb(self.model_dump()), "planned": self.planned}

    def was_rewritten(self, leaf: int, file_node: int | None) -> bool:
        """Whether a leaf has another file than when the addresses of its rows were taken."""
        planned_from = self.file_nodes.get(leaf)
        return None not in (planned_from, file_node) and planned_from != file_node

    def add(self, leaf: int, records: int) -> None:
        """Append the seqs that one chunk of `leaf` added."""
        if not records:
            return
        first = self.planned + 1
        last = self.segments[-1] if self.segments else None
        if last is not None and last.leaf == leaf:
            first = last.first_seq
            self.segments.pop()
        self.segments.append(
            Segment(leaf=leaf, first_seq=first, last_seq=(last.last_seq if last else 0) + records)
        )


class Planning(Protocol):
    """What every plan is made with, that of a correction or of a rollback."""

    @property
    def holder(self) -> Holder:
        """Who holds the operation."""

    @property
    def tables(self) -> MarketTables:
        """Where the rows are."""

    @property
    def batch_size(self) -> int | None:
        """Rows of a batch, where the caller wants a number of them."""

    @property
    def connection(self) -> Connection[TupleRow]:
        """The operation's own."""


@dataclass(frozen=True)
class PlanScan:
    """What every chunk of one scan has in common."""

    holder: Holder
    tables: MarketTables
    options: CorrectionOptions
    scope: TimeRange
    skip_planned: bool = False

    @property
    def batch_size(self) -> int | None:
        """Rows of a batch, where the caller wants a number of them."""
        return self.options.batch_size

    @property
    def connection(self) -> Connection[TupleRow]:
        """The operation's own."""
        return self.holder.connection


def load_plan(holder: Holder) -> PlanState | None:
    """The plan that the operation has so far.

    A crash of the server empties an unlogged plan, and somebody may drop a backup table: a plan
    that no batch has used yet is made anew. Raises CorrectionFailedError when some rows were
    corrected from it.
    """
    by_key = {"correction_id": holder.correction_id}
    with transaction(holder.connection, holder.settings) as cursor:
        row = cursor.execute(query("operation", "plan_of"), by_key).fetchone()
        state = PlanState.model_validate(row[0]) if row and row[0] else None
        if state is None or _is_usable(cursor, state):
            return state
        used = cursor.execute(query("operation", "covered_seqs"), by_key).fetchone()
        if used is not None and used[0]:
            raise plan_lost(holder)
        holder.require_ours(cursor)
        drop_plan(cursor, state)
    return None


def plan_lost(holder: Holder) -> CorrectionFailedError:
    """The error of a correction whose plan is gone or empty, after some rows were corrected."""
    return CorrectionFailedError(
        f"The plan of operation {holder.correction_id} was lost: its table was dropped or, "
        "unlogged for want of a backup, emptied when the server crashed. What was "
        "corrected stays corrected; start a new correction for the rest."
    )


def _is_usable(cursor: psycopg.Cursor[TupleRow], state: PlanState) -> bool:
    """Whether its table is there, with rows where rows were planned."""
    names = {"schema": state.schema_name, "table": state.table_name}
    exists = cursor.execute(query("plan", "table_exists"), names).fetchone()
    if exists is None or not exists[0]:
        return False
    if not state.planned:
        return True
    kept = cursor.execute(query("plan", "has_rows", backup=state.identifier)).fetchone()
    return kept is not None and bool(kept[0])


def make_plan(scan: PlanScan, state: PlanState | None) -> PlanState:
    """Write the plan, or the rest of it after an interruption; numbered and analysed at the end.

    Raises CorrectionFailedError where a derived class does not fit the column.
    """
    if state is None:
        # A second try looks first: COMMIT may have arrived, and one backup table is enough.
        state = scan.holder.attempt(lambda: load_plan(scan.holder) or _create_table(scan))
    if state.complete:
        return state
    scan_leaves(scan, state)
    scan.holder.attempt(complete_plan, scan, state)
    return state


def complete_plan(scan: Planning, state: PlanState) -> None:
    """Number and analyse a plan whose scan is over: batches may read it from now on."""
    with transaction(scan.connection, scan.holder.settings, statement_timeout="0") as cursor:
        cursor.execute(query("plan", "number_rows", backup=state.identifier))
        cursor.execute(query("plan", "analyze_table", backup=state.identifier))
        size = scan.batch_size or size_range(state.planned)[0]
        complete = state.model_copy(update={"complete": True, "batch_size": size})
        backups.seal(cursor, scan.holder.correction_id, state.identifier)
        store_plan(scan.holder, cursor, state, complete)
    state.complete, state.batch_size = True, size


@dataclass(frozen=True)
class _Chunk:
    """Pages [page, end) of the file that a leaf had when its scan began."""

    leaf: Leaf
    page: int
    end: int
    file_node: int | None


class _LeafRewrittenError(Exception):
    """The leaf got another file while it was scanned: its planned addresses are of the old one."""


def scan_leaves(scan: PlanScan, state: PlanState) -> None:
    """Add the correctable rows of every leaf, chunk by chunk, each in its own transaction."""
    for leaf in scan.tables.leaves:
        while not _is_full(scan.options, state) and scan.holder.attempt(_is_there, scan, leaf):
            try:
                _scan_leaf(scan, state, leaf)
            except _LeafRewrittenError:
                # Nothing of that chunk was kept; the new file is scanned from its beginning.
                scan.holder.attempt(_begin_again, scan, state, leaf)
            except errors.UndefinedTable:
                # Dropped between two chunks; or what is gone is the plan.
                if scan.holder.attempt(_is_there, scan, leaf):
                    raise
            else:
                break


def _is_there(scan: PlanScan, leaf: Leaf) -> bool:
    """Whether it is still a part of the market table: of one that is none, no row is planned."""
    with transaction(scan.connection, scan.holder.settings, read_only=True) as cursor:
        return bool(parts_left(cursor, scan.tables.market_oid, [leaf.oid]))


def _scan_leaf(scan: PlanScan, state: PlanState, leaf: Leaf) -> None:
    pages, reuses, file_node = scan.holder.attempt(look_at, scan, leaf)
    state.file_nodes.setdefault(leaf.oid, file_node)
    if reuses and leaf.oid not in state.reusing:
        state.reusing.append(leaf.oid)
    if not scan.skip_planned and state.was_rewritten(leaf.oid, file_node):
        # Its file stays the old one's, so that the first batch takes all addresses afresh.
        scan = replace(scan, skip_planned=True)
        scan.holder.attempt(_begin_again, scan, state, leaf)
    for page in range(state.scanned.get(leaf.oid, 0), pages, PAGES_PER_CHUNK):
        scan.holder.stop.check()
        if _is_full(scan.options, state):
            return
        chunk = _Chunk(leaf, page, min(page + PAGES_PER_CHUNK, pages), file_node)
        add = partial(_add_chunk, scan, state, chunk)
        began = time.monotonic()
        if leaf.kind == "foreign":
            # All that another server holds is one chunk, however long it takes to read.
            scan.holder.attempt(add)
        else:
            scan.holder.attempt_to_write(None, add)
        rest_after_chunk(scan.holder, scan.options.pace, time.monotonic() - began)


def rest_after_chunk(holder: Holder, pace: Pace, seconds: float) -> None:
    """Rest after a chunk that took so long, as the pace wants it after a batch."""
    holder.stop.wait(pause_seconds(seconds, PROFILES[holder.tuning.pace or pace]))


def _begin_again(scan: PlanScan, state: PlanState, leaf: Leaf) -> None:
    after = state.model_copy(deep=True)
    after.scanned.pop(leaf.oid, None)
    with transaction(scan.connection, scan.holder.settings, statement_timeout="0") as cursor:
        index_keys(cursor, state)
        store_plan(scan.holder, cursor, state, after)
    state.scanned = after.scanned


def add_late_rows(scan: PlanScan, state: PlanState) -> None:
    """Scan all leaves again for correctable rows that the plan does not know."""
    scan.holder.attempt(_begin_late_pass, scan, state)
    scan_leaves(replace(scan, skip_planned=True), state)


def _begin_late_pass(scan: PlanScan, state: PlanState) -> None:
    after = state.model_copy(update={"scanned": {}})
    with transaction(scan.connection, scan.holder.settings, statement_timeout="0") as cursor:
        index_keys(cursor, state)
        backups.unseal(cursor, scan.holder.correction_id)
        store_plan(scan.holder, cursor, state, after)
    state.scanned = after.scanned


def index_keys(cursor: psycopg.Cursor[TupleRow], state: PlanState) -> None:
    """Let planned rows be found by their key."""
    index = sql.Identifier(f"{state.table_name}_id_idx")
    cursor.execute(query("plan", "index_keys", backup=state.identifier, index=index))


def drop_plan(cursor: psycopg.Cursor[TupleRow], state: PlanState) -> None:
    """Remove the plan's table."""
    cursor.execute(query("plan", "drop_table", backup=state.identifier))
    backups.forget(cursor, schema_name=state.schema_name, table_name=state.table_name)


def _is_full(options: CorrectionOptions, state: PlanState) -> bool:
    most = options.max_records_to_process
    return most is not None and state.planned >= most


def look_at(scan: Planning, leaf: Leaf) -> tuple[int, bool, int | None]:
    """Pages of a leaf, whether its new versions may stay on their page, and its file.

    What another server holds is read in one go, as if it were one page.
    """
    if leaf.kind == "foreign":
        return 1, False, None
    with transaction(scan.connection, scan.holder.settings, read_only=True) as cursor:
        pages, file_node = look_at_file(cursor, leaf)
        reuses = cursor.execute(query("plan", "can_reuse_space"), {"leaf": leaf.oid}).fetchone()
    return pages, bool(reuses and reuses[0]), file_node


def look_at_file(cursor: psycopg.Cursor[TupleRow], leaf: Leaf) -> tuple[int, int | None]:
    """(pages, file node) of a leaf."""
    row = cursor.execute(query("plan", "leaf_file"), {"leaf": leaf.oid}).fetchone()
    return (int(row[0] or 0), row[1]) if row else (0, None)


def _add_chunk(scan: PlanScan, state: PlanState, chunk: _Chunk) -> None:
    leaf = chunk.leaf
    is_foreign = leaf.kind == "foreign"
    rows = correctable_rows(
        scan.tables,
        scan.options,
        scan.scope,
        columns="planned_columns",
        table=leaf.identifier if is_foreign else sql.SQL("ONLY ") + leaf.identifier,
    )
    not_planned = query("plan", "not_planned", backup=state.identifier)
    most = scan.options.max_records_to_process
    statement = query(
        *(("by_key", "add_rows") if is_foreign else ("plan", "add_chunk")),
        backup=state.identifier,
        correctable_rows=rows.text,
        not_planned=not_planned if scan.skip_planned else sql.SQL(""),
        limited=sql.SQL("") if most is None else query("plan", "first_rows"),
    )
    values: dict[str, Any] = {
        **rows.values,
        "blanks": blanks_of(scan.connection),
        "first_address": f"({chunk.page},0)",
        "end_address": f"({chunk.end},0)",
        "last_seq": state.planned,
        "leaf": leaf.oid,
        "can_reuse_space": leaf.oid in state.reusing,
        "visits": VISITS,
        "pages": chunk.end - chunk.page,
        "most": None if most is None else most - state.planned,
    }
    after = state.model_copy(deep=True)
    session = scan.holder.settings.session
    seconds = session.scan_timeout if is_foreign else session.statement_timeout
    try:
        with transaction(
            scan.connection, scan.holder.settings, statement_timeout=f"{round(seconds * 1000)}ms"
        ) as cursor:
            if (stored := landed(scan.holder, cursor, leaf.oid, chunk.end)) is not None:
                state.segments, state.scanned = stored.segments, stored.scanned
                return
            row = cursor.execute(statement, values).fetchone()
            # The statement locked the leaf: from here on it keeps its file.
            if not is_foreign and look_at_file(cursor, leaf)[1] != chunk.file_node:
                raise _LeafRewrittenError
            after.add(leaf.oid, int(row[0]) if row else 0)
            after.scanned[leaf.oid] = chunk.end
            store_plan(scan.holder, cursor, state, after)
    except (errors.DataError, errors.IntegrityError) as error:
        # The second is a domain's own check.
        raise CorrectionFailedError(
            f"A class of {scan.tables.symbols_name} does not fit asset_class of "
            f"{scan.tables.market_name} ({scan.tables.asset_class_type}): "
            f"{error.diag.message_primary}. Nothing was changed; correct that class in symbols or "
            "widen the column, then run it again."
        ) from None
    state.segments, state.scanned = after.segments, after.scanned


def landed(
    holder: Holder, cursor: psycopg.Cursor[TupleRow], leaf: int, end: int
) -> PlanState | None:
    """The stored plan, when it holds this chunk already: COMMIT arrived, its answer did not."""
    key = {"correction_id": holder.correction_id}
    row = cursor.execute(query("operation", "scanned_pages"), {**key, "leaf": str(leaf)}).fetchone()
    if row is None or row[0] < end:
        return None
    stored = cursor.execute(query("operation", "plan_of"), key).fetchone()
    return PlanState.model_validate(stored[0]) if stored else None


def store_plan(
    holder: Holder, cursor: psycopg.Cursor[TupleRow], before: PlanState, after: PlanState
) -> None:
    """Keep how far the plan came. Raises CorrectionFailedError where the server forgot a part."""
    require_stored(holder, cursor, before)
    holder.update_with(cursor, "set_plan", after.stored)


def require_stored(holder: Holder, cursor: psycopg.Cursor[TupleRow], state: PlanState) -> None:
    """The database must know of every row that we planned, and of no other.

    Raises CorrectionFailedError, and OperationFencedError where another process plans by now.
    """
    row = cursor.execute(query("operation", "stored_records"), holder.key).fetchone()
    if row is None:
        raise fenced(holder.correction_id)
    stored = int(row[0])
    if stored != state.planned:
        raise CorrectionFailedError(
            f"The server lost a part of the plan of operation {holder.correction_id} after it had "
            f"confirmed it (a crash, or a standby that took over): {stored:,} of "
            f"{state.planned:,} planned rows are left. Run it again to go on where it stopped."
        )


def _create_table(scan: PlanScan) -> PlanState:
    """A backup table of a name that nobody has, or an unlogged one that never outlives its run."""
    if scan.options.dry_run or not scan.options.create_backup:
        return create_unlogged(scan)
    return create_named(scan, scan.tables.market_schema, BACKUP_PREFIX)


def create_unlogged(scan: Planning, *, of_rollback: bool = False) -> PlanState:
    """A plan's table that ends with its operation."""
    # Not beside the backups: the guide's manual recovery takes the newest table of that name.
    state = PlanState(
        schema_name="assetclass",
        table_name=f"plan_{scan.holder.correction_id.hex}",
    )
    create_table(scan, state, "UNLOGGED", of_rollback=of_rollback)
    return state


def create_named(
    scan: Planning, schema: str, prefix: str, *, of_rollback: bool = False
) -> PlanState:
    """A plan's table that stays, named after `prefix` and the second in which it was made."""
    moment = datetime.now(UTC)
    while True:
        state = PlanState(schema_name=schema, table_name=f"{prefix}{moment:%Y%m%d_%H%M%S}")
        try:
            create_table(scan, state, "", of_rollback=of_rollback)
        except (errors.DuplicateTable, errors.UniqueViolation):
            # Another database operation took this second's name; seconds ahead are still unique.
            moment += timedelta(seconds=1)
        else:
            return state


def create_table(
    scan: Planning, state: PlanState, persistence: str, *, of_rollback: bool = False
) -> None:
    """Make the plan's table, empty. Raises psycopg.Error where its name is taken."""
    tables = scan.tables
    backed_up = state.table_name if persistence == "" else None
    with transaction(scan.connection, scan.holder.settings) as cursor:
        if backed_up is not None:
            backups.register(
                cursor,
                scan.holder.settings,
                scan.holder.correction_id,
                schema_name=state.schema_name,
                table_name=state.table_name,
            )
        cursor.execute(
            query(
                "plan",
                "create_table",
                persistence=sql.SQL(persistence),
                backup=state.identifier,
                id_type=sql.SQL(tables.id_type),
                symbol_type=sql.SQL(tables.symbol_type),
                timestamp_type=sql.SQL(tables.timestamp_type),
                asset_class_type=sql.SQL(tables.asset_class_type),
            )
        )
        if of_rollback:
            cursor.execute(query("rollback", "shape_plan", undo=state.identifier))
        scan.holder.update_with(
            cursor,
            "set_backup_table",
            {"backup_table": backed_up, "plan": Jsonb(state.model_dump())},
        )
