"""Batches: several connections, each taking the next range of `seq`, one transaction a batch.

Belongs here: the batch's statements, its retries, the workers. Does not: what happens to the rows
that a batch had to leave (sweeping.py).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import set_local, transaction
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.conditions import Condition, blanks_of
from assetclass_pipeline.engine.holding import Holder, fenced
from assetclass_pipeline.engine.plan import PlanState, Segment
from assetclass_pipeline.engine.retry import is_transient, what_it_said
from assetclass_pipeline.errors import (
    AssetClassError,
    CorrectionFailedError,
)
from assetclass_pipeline.model.operation import SkipReason
from assetclass_pipeline.model.options import CorrectionOptions

# Only the address may drive the join of a batch: with these off no other plan is left.
_LEDGER_KEYS = {"operation_batch_pkey", "operation_skipped_row_pkey"}
BATCH_SETTINGS = {"enable_hashjoin": "off", "enable_mergejoin": "off"}


@dataclass(frozen=True)
class Batch:
    """Planned rows [first_seq, last_seq] of one leaf."""

    leaf: int
    first_seq: int
    last_seq: int

    @property
    def records(self) -> int:
        """Rows planned in it."""
        return self.last_seq - self.first_seq + 1


@dataclass(frozen=True)
class Work:
    """What all workers of one correction share."""

    holder: Holder
    tables: MarketTables
    plan: PlanState
    options: CorrectionOptions
    leaves: dict[int, sql.Identifier] = field(init=False)

    def __post_init__(self) -> None:
        leaves = {leaf.oid: leaf.identifier for leaf in self.tables.leaves}
        object.__setattr__(self, "leaves", leaves)

    @property
    def set_updated_at(self) -> sql.Composable:
        """Assignment of `updated_at` where the column exists."""
        return query("batch", "set_updated_at") if self.tables.has_updated_at else sql.SQL("")


def open_batches(work: Work) -> Iterator[Batch]:
    """The batches that the ledger lacks, in physical order: all of them, or a resume's rest.

    They are made one by one: a billion rows are a million batches.
    """
    with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
        rows = cursor.execute(
            query("batch", "open_ranges"),
            {"correction_id": work.holder.correction_id, "planned": work.plan.planned},
        ).fetchall()
    return (
        batch
        for first, last in rows
        for segment in work.plan.segments
        for batch in cut(segment, first, last, work.plan.batch_size)
    )


def cut(segment: Segment, first: int, last: int, size: int) -> Iterator[Batch]:
    """The part of `segment` within [first, last] in batches of exactly `size` rows but the last."""
    start, end = max(first, segment.first_seq), min(last, segment.last_seq)
    for first_seq in range(start, end + 1, size):
        yield Batch(segment.leaf, first_seq, min(first_seq + size - 1, end))


def run_batches(work: Work, batches: Iterator[Batch]) -> threading.Thread:
    """Start the workers; the returned thread ends when all of them have.

    What went wrong is the `cause` of the holder's `stop`.
    """
    taking = threading.Lock()

    def take() -> Batch | None:
        with taking:
            return None if work.holder.stop.is_set() else next(batches, None)

    workers = [
        threading.Thread(target=_work, args=(work, number, take), name=f"worker {number}")
        for number in range(1, work.options.worker_count + 1)
    ]

    def join_all() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    joining = threading.Thread(target=join_all, name="workers")
    joining.start()
    return joining


class Worker:
    """One connection that does batches; a lost connection is opened again by the next try."""

    def __init__(self, work: Work, number: int) -> None:
        self.work = work
        self.number = number
        self._connection: Connection[TupleRow] | None = None

    @property
    def connection(self) -> Connection[TupleRow]:
        """The connection, opened anew after it was lost."""
        if self._connection is None or self._connection.closed:
            self._connection = self.work.holder.connect(f"worker {self.number}")
        return self._connection

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._connection is not None:
            self._connection.close()

    def correct(self, batch: Batch) -> None:
        """One batch, one transaction: rows, skipped rows and ledger row commit together."""
        try:
            self._correct(batch)
        except errors.UniqueViolation as error:
            # The connection was lost while COMMIT was on its way, and it had arrived: the ledger
            # holds this batch, and this second try was rolled back.
            if error.diag.constraint_name not in _LEDGER_KEYS:
                raise

    def _correct(self, batch: Batch) -> None:
        started = time.monotonic()
        # symbols is small and always in memory: with the default cost of a random page the planner
        # reads all of it to look up the tickers of one batch.
        with transaction(
            self.connection, self.work.holder.settings, random_page_cost="1.1"
        ) as cursor:
            corrected = self._write(cursor, batch)
            record(
                cursor,
                self.work,
                batch,
                worker=self.number,
                sweep=0,
                corrected=corrected,
                skipped=batch.records - corrected,
                started=started,
            )

    def _write(self, cursor: Cursor[TupleRow], batch: Batch) -> int:
        """Write what can be written by address, note the rest as skipped; returns rows written."""
        work, values = self.work, {"first_seq": batch.first_seq, "last_seq": batch.last_seq}
        leaf = work.leaves.get(batch.leaf)
        if leaf is None:
            # Detached or dropped since the plan: the sweep looks for its rows in other leaves.
            self._skip(
                cursor, f"{{[{batch.first_seq},{batch.last_seq}]}}", SkipReason.MOVED_OR_CHANGED
            )
            return 0
        in_range = Condition(query("batch", "in_range"), dict(values))
        ahead = look_ahead(cursor, work, in_range)
        if batch.leaf in work.plan.reusing and ahead.pages <= batch.records:
            cursor.execute(query("batch", "prune", leaf=leaf), ahead.addresses)
        set_local(cursor, work.holder.settings, **BATCH_SETTINGS)
        row = cursor.execute(
            query(
                "batch",
                "correct_by_address",
                backup=work.plan.identifier,
                leaf=leaf,
                set_updated_at=work.set_updated_at,
            ),
            {
                **values,
                "stale_symbols": ahead.stale_symbols,
                "read_back": work.options.validate_after_each_batch and ahead.has_triggers,
            },
        ).fetchone()
        corrected, rewritten, skipped, addresses = row or (0, 0, "{}", None)
        refuse_rewritten(work, rewritten)
        if addresses is not None:
            read_back(cursor, work, leaf, addresses)
        if skipped != "{}":
            stale = bool(ahead.stale_symbols)
            self._skip(
                cursor, skipped, SkipReason.CLASS_CHANGED if stale else SkipReason.MOVED_OR_CHANGED
            )
        return int(corrected)

    def _skip(self, cursor: Cursor[TupleRow], seqs: str, reason: SkipReason) -> None:
        cursor.execute(
            query("batch", "record_skipped"),
            {**self.work.holder.key, "skipped": seqs, "reason": reason.value},
        )


@dataclass(frozen=True)
class Ahead:
    """What is known of a batch before its rows are touched.

    A symbol is stale when its class is derived differently now than it was planned.
    """

    stale_symbols: list[str]
    has_triggers: bool
    first_address: str
    last_address: str

    @property
    def addresses(self) -> dict[str, str]:
        """Where its rows were planned, as the statements name it."""
        return {"first_address": self.first_address, "last_address": self.last_address}

    @property
    def pages(self) -> int:
        """Pages from the first address to the last; an address is written "(page,item)"."""
        first, last = (
            int(address[1:].split(",")[0]) for address in (self.first_address, self.last_address)
        )
        return last - first + 1


def look_ahead(cursor: Cursor[TupleRow], work: Work, in_batch: Condition) -> Ahead:
    """Look at the planned rows of a batch, their symbols, and the table's triggers."""
    row = cursor.execute(
        query(
            "batch",
            "look_ahead",
            backup=work.plan.identifier,
            symbols=work.tables.symbols,
            in_batch=in_batch.text,
        ),
        {
            **in_batch.values,
            "blanks": blanks_of(cursor.connection),
            "relations": [work.tables.market_oid, *work.leaves],
        },
    ).fetchone()
    if row is None or row[2] is None:
        return Ahead([], has_triggers=True, first_address="(0,0)", last_address="(0,0)")
    return Ahead(list(row[0]), bool(row[1]), row[2], row[3])


def refuse_rewritten(work: Work, rewritten: int) -> None:
    """A trigger that writes another value than ours makes every promise void: stop."""
    if rewritten:
        raise CorrectionFailedError(
            f"{rewritten} rows of a batch got another asset_class than planned: a trigger on "
            f"{work.tables.market_name} rewrites it. The batch was rolled back; change the trigger "
            "for this role, then run it again."
        )


def read_back(
    cursor: Cursor[TupleRow], work: Work, leaf: sql.Identifier, addresses: list[str]
) -> None:
    """Every version that the batch wrote must still be the row's visible one.

    A version never changes, so one that is gone was replaced by an AFTER trigger in this very
    transaction. Raises CorrectionFailedError.
    """
    row = cursor.execute(
        query("batch", "read_back", leaf=leaf), {"addresses": addresses}
    ).fetchone()
    refuse_rewritten(work, len(addresses) - (row[0] if row else 0))


def record(
    cursor: Cursor[TupleRow],
    work: Work,
    batch: Batch,
    *,
    worker: int,
    sweep: int,
    corrected: int,
    skipped: int,
    started: float,
) -> None:
    """The ledger row, last: it is the fence. Raises OperationFencedError."""
    cursor.execute(
        query("batch", "record_batch"),
        {
            **work.holder.key,
            "pass": sweep,
            "first_seq": batch.first_seq,
            "last_seq": batch.last_seq,
            "worker": worker,
            "corrected": corrected,
            "skipped": skipped,
            "duration_ms": round((time.monotonic() - started) * 1000),
        },
    )
    if cursor.rowcount != 1:
        raise fenced(work.holder.correction_id)


def explain(error: BaseException, work: Work) -> AssetClassError:
    """The typed error of whatever ended a worker, without SQL text."""
    if isinstance(error, AssetClassError):
        return error
    said = what_it_said(error)
    tries = work.holder.retry(work.options).tries
    tried = f" (tried {tries} times)" if is_transient(error) else ""
    return CorrectionFailedError(
        f"A batch on {work.tables.market_name} could not be written{tried}: {said}. Everything "
        "committed so far stays; run it again to go on where it stopped."
    )


def _work(work: Work, number: int, take: Callable[[], Batch | None]) -> None:
    worker = Worker(work, number)
    try:
        while (batch := take()) is not None:
            work.holder.retrying(work.options)(worker.correct, batch)
    except Exception as error:  # noqa: BLE001 - a thread's error must reach the one who waits
        work.holder.stop.because(explain(error, work))
    finally:
        with suppress(psycopg.Error):
            worker.close()
