"""A batch: a range of `seq`, one transaction; its rows, skipped rows and ledger row together.

Belongs here: writing a batch, by address or on another server, and finding its poison rows. Does
not: who does which batch when (crew.py), and the rows that a batch had to leave (sweeping.py).
"""

import time
from collections.abc import Callable
from functools import partial

from psycopg import Connection, Cursor, errors
from psycopg.rows import TupleRow

from assetclass_pipeline.database.catalogue import parts_left
from assetclass_pipeline.database.connections import set_local, transaction
from assetclass_pipeline.database.market_tables import Leaf
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.by_key import ForeignRows, by_address, trying
from assetclass_pipeline.engine.conditions import Condition
from assetclass_pipeline.engine.ranges import Batch
from assetclass_pipeline.engine.readdressing import take_addresses_afresh
from assetclass_pipeline.engine.retry import is_data_error, shows_contention
from assetclass_pipeline.engine.work import (
    Ahead,
    Work,
    check_error_rate,
    look_ahead,
    quarantine,
    record,
    refuse_rewritten,
    set_updated_at,
    skip,
)
from assetclass_pipeline.errors import DatabaseUnavailableError, NoFreeConnectionError
from assetclass_pipeline.model.operation import SkipReason

LEDGER_KEYS = {"operation_batch_pkey", "operation_skipped_row_pkey"}
# Only the address may drive the join of a batch: with these off no other plan is left.
BATCH_SETTINGS = {"enable_hashjoin": "off", "enable_mergejoin": "off"}
# symbols is small and always in memory: with the default cost of a random page the planner reads
# all of it to look up the tickers of one batch.
_RANDOM_PAGE_COST = "1.1"

Step = Callable[[Batch, float], None]


class TooLongError(Exception):
    """The server ended a batch of several rows, by its time-out or because somebody asked it to.

    As it is it would be ended again: only a smaller one gets on.
    """


class _LeafRewrittenError(Exception):
    """The leaf has another file than when its addresses were taken."""


class _LeafGoneError(Exception):
    """The leaf was dropped or detached since the tables were looked at."""


class Worker:
    """One connection that does batches, opened again after it was lost."""

    def __init__(self, work: Work, number: int) -> None:
        self.work = work
        self.number = number
        self._session = work.holder.open_session(f"worker {number}")
        self._seconds = 0.0
        self._records = 0
        self._began = 0.0

    @property
    def connection(self) -> Connection[TupleRow]:
        """The connection, opened anew after it was lost."""
        return self._session.connection

    def has_room(self) -> bool:
        """Whether the server has a connection for it; what else is wrong, its batch waits for."""
        try:
            return not self._session.connection.closed
        except DatabaseUnavailableError as error:
            return not isinstance(error, NoFreeConnectionError)

    def close(self) -> None:
        """Close the connection if there is one."""
        self._session.close()

    def correct(self, batch: Batch) -> tuple[int, float]:
        """Do one batch to its end; returns rows of its last part, and the seconds that it took.

        One that takes too long is halved, and later ones are smaller. Rows that the database
        refuses are found by halving the batch, and quarantined. Raises ErrorRateError when they are
        too many, OperationFencedError after a take-over, and what `Stop` carries.
        """
        called = time.monotonic()
        try:
            self._do(batch)
        except TooLongError:
            self.work.tempo.took_too_long(batch.records, time.monotonic() - self._began)
            for half in batch.halves():
                self.correct(half)
        except Exception as error:
            if not is_data_error(error):
                raise
            self._find_poison(batch, error)
        if self._began - called > 2 * self._seconds:
            self.work.tempo.was_held()
        return self._records, self._seconds

    def _do(self, batch: Batch) -> None:
        leaf = self.work.leaves.get(batch.leaf)
        step: Step = self._leave
        if leaf is not None:
            step = partial(self._there if leaf.kind == "foreign" else self._here, leaf)
        while True:
            try:
                self.work.holder.attempt_to_write(self._session, self._timed, step, batch)
            except _LeafRewrittenError:
                take_addresses_afresh(self.work, self._session, batch.leaf)
            except _LeafGoneError:
                step = self._leave
            except errors.UndefinedTable:
                # Dropped between two statements of the batch; or what is gone is the plan.
                if step == self._leave or not self._is_gone(batch):
                    raise
                step = self._leave
            else:
                return

    def _is_gone(self, batch: Batch) -> bool:
        work = self.work

        def look() -> bool:
            with transaction(self.connection, work.holder.settings, read_only=True) as cursor:
                return not parts_left(cursor, work.tables.market_oid, [batch.leaf])

        return work.holder.attempt_to_write(self._session, look)

    def _find_poison(self, batch: Batch, error: Exception) -> None:
        if batch.records > 1:
            for half in batch.halves():
                self.correct(half)
            return
        quarantining = partial(self._quarantine, error)
        self.work.holder.attempt_to_write(self._session, self._timed, quarantining, batch)
        self.work.holder.attempt_to_write(self._session, self._check_error_rate)

    def _quarantine(self, error: Exception, batch: Batch, started: float) -> None:
        with transaction(self.connection, self.work.holder.settings) as cursor:
            quarantine(cursor, self.work, batch.first_seq, error)
            seqs = f"{{[{batch.first_seq},{batch.last_seq}]}}"
            skip(cursor, self.work, seqs, SkipReason.QUARANTINED)
            self._record(cursor, batch, corrected=0, started=started)

    def _check_error_rate(self) -> None:
        with transaction(self.connection, self.work.holder.settings, read_only=True) as cursor:
            check_error_rate(cursor, self.work)

    def _timed(self, step: Step, batch: Batch) -> None:
        self._began = time.monotonic()
        try:
            step(batch, self._began)
        except errors.UniqueViolation as error:
            # The connection was lost while COMMIT was on its way, and it had arrived: the ledger
            # holds this batch, and this second try was rolled back.
            if error.diag.constraint_name not in LEDGER_KEYS:
                raise
        except errors.QueryCanceled:
            if batch.records > 1:
                raise TooLongError from None
            raise
        except Exception as error:
            if shows_contention(error):
                self.work.tempo.met_contention()
            raise
        self._records, self._seconds = batch.records, time.monotonic() - self._began

    def _leave(self, batch: Batch, started: float) -> None:
        """Its leaf was detached or dropped: the sweep looks for its rows elsewhere."""
        with transaction(self.connection, self.work.holder.settings) as cursor:
            seqs = f"{{[{batch.first_seq},{batch.last_seq}]}}"
            skip(cursor, self.work, seqs, SkipReason.MOVED_OR_CHANGED)
            self._record(cursor, batch, corrected=0, started=started)

    def _here(self, leaf: Leaf, batch: Batch, started: float) -> None:
        """Rows of this server, by their physical address."""
        settings = self.work.holder.settings
        # A batch and its ledger row are lost together or not at all, so COMMIT need not wait for
        # the disk (docs/decisions/0008).
        with transaction(
            self.connection, settings, random_page_cost=_RANDOM_PAGE_COST, synchronous_commit="off"
        ) as cursor:
            corrected = self._write(cursor, batch, leaf)
            self._record(cursor, batch, corrected=corrected, started=started)

    def _write(self, cursor: Cursor[TupleRow], batch: Batch, leaf: Leaf) -> int:
        """Write what can be written by address, note the rest as skipped; returns rows written."""
        work, values = self.work, {"first_seq": batch.first_seq, "last_seq": batch.last_seq}
        in_range = Condition(query("batch", "in_range"), dict(values))
        ahead = look_ahead(cursor, work, in_range, leaf.oid)
        if ahead.is_gone:
            raise _LeafGoneError
        if work.plan.was_rewritten(leaf.oid, ahead.file_node):
            raise _LeafRewrittenError
        if batch.leaf in work.plan.reusing and ahead.pages <= batch.records:
            cursor.execute(query("batch", "prune", leaf=leaf.identifier), ahead.addresses)
        set_local(cursor, work.holder.settings, **BATCH_SETTINGS)
        row = cursor.execute(
            query(
                "batch",
                "correct_by_address",
                backup=work.plan.identifier,
                leaf=leaf.identifier,
                set_updated_at=set_updated_at(work.tables),
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
        self._skip_left(cursor, skipped, ahead)
        return int(corrected)

    def _skip_left(self, cursor: Cursor[TupleRow], skipped: str, ahead: Ahead) -> None:
        if skipped != "{}":
            stale = bool(ahead.stale_symbols)
            reason = SkipReason.CLASS_CHANGED if stale else SkipReason.MOVED_OR_CHANGED
            skip(cursor, self.work, skipped, reason)

    def _there(self, leaf: Leaf, batch: Batch, started: float) -> None:
        """Rows of another server, by their address there; it commits just before we do."""
        work = self.work
        rows = ForeignRows(work, leaf)
        seqs = list(range(batch.first_seq, batch.last_seq + 1))
        with trying(work, self.connection, [rows], seqs, by_address) as (cursor, (announced,)):
            in_range = Condition(
                query("batch", "in_range"),
                {"first_seq": batch.first_seq, "last_seq": batch.last_seq},
            )
            ahead = look_ahead(cursor, work, in_range, leaf.oid)
            if ahead.is_gone:
                raise _LeafGoneError
            written = rows.write(cursor, seqs, announced, ahead.stale_symbols)
            refuse_rewritten(work, written.rewritten)
            left = sorted({*seqs} - {*written.corrected})
            self._skip_left(cursor, multirange(left), ahead)
            self._record(cursor, batch, corrected=len(written.corrected), started=started)
        rows.tell(written)

    def _record(
        self, cursor: Cursor[TupleRow], batch: Batch, *, corrected: int, started: float
    ) -> None:
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


def multirange(seqs: list[int]) -> str:
    """Seqs as PostgreSQL writes a multirange; "{}" when there are none."""
    return "{" + ",".join(f"[{seq},{seq}]" for seq in seqs) + "}"


def read_back(cursor: Cursor[TupleRow], work: Work, leaf: Leaf, addresses: list[str]) -> None:
    """Every version that the batch wrote must still be the row's visible one.

    A version never changes, so one that is gone was replaced by an AFTER trigger in this very
    transaction. Raises CorrectionFailedError.
    """
    row = cursor.execute(
        query("batch", "read_back", leaf=leaf.identifier), {"addresses": addresses}
    ).fetchone()
    refuse_rewritten(work, len(addresses) - (row[0] if row else 0))
