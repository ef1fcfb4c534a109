"""What all batches of one operation share: the plan, the look ahead, the ledger row that fences.

Belongs here: what ordinary batches and the sweep both do. Does not: either of them.
"""

import time
from dataclasses import dataclass, field
from typing import Protocol

from psycopg import Cursor, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.catalogue import is_part
from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import Leaf, MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.claiming import fenced
from assetclass_pipeline.engine.conditions import Condition, blanks_of
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.plan import PlanState, plan_lost
from assetclass_pipeline.engine.ranges import Batch
from assetclass_pipeline.engine.retry import is_transient, what_it_said
from assetclass_pipeline.engine.tempo import Tempo
from assetclass_pipeline.errors import AssetClassError, CorrectionFailedError, ErrorRateError
from assetclass_pipeline.model.operation import SkipReason, too_many_failures


class WorkOptions(Protocol):
    """What a batch needs of the options of an operation of any kind."""

    @property
    def validate_after_each_batch(self) -> bool:
        """Whether each written value is read back."""


@dataclass(frozen=True)
class Work:
    """One operation's plan and tables, and how fast it goes.

    A correction writes what `symbols` says at that moment; what a rollback writes need not be
    there at all (`follows_symbols` is false).
    """

    holder: Holder
    tables: MarketTables
    plan: PlanState
    options: WorkOptions
    tempo: Tempo
    follows_symbols: bool = True
    leaves: dict[int, Leaf] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", {leaf.oid: leaf for leaf in self.tables.leaves})


@dataclass(frozen=True)
class Ahead:
    """What is known of a batch before its rows are touched.

    A symbol is stale when its class is derived differently now than it was planned. `file_node`
    changes when something rewrites the leaf and with it all addresses. A leaf that `is_gone` was
    dropped or detached.
    """

    stale_symbols: list[str]
    has_triggers: bool
    first_address: str
    last_address: str
    file_node: int | None
    is_gone: bool

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


def look_ahead(cursor: Cursor[TupleRow], work: Work, in_batch: Condition, leaf: int = 0) -> Ahead:
    """Look at the planned rows of a batch, their symbols, the table's triggers, the leaf's file.

    Raises CorrectionFailedError when none of them is in the plan any more: without a backup its
    table is unlogged, and a crash of the server, which we may outlive, has emptied it.
    """
    parts = {"backup": work.plan.identifier, "in_batch": in_batch.text}
    stale = query("batch", "no_stale_symbols")
    if work.follows_symbols:
        stale = query("batch", "stale_symbols", symbols=work.tables.symbols, **parts)
    still_there = is_part(sql.SQL("%(leaf)s::oid"))
    row = cursor.execute(
        query("batch", "look_ahead", stale_symbols=stale, is_part=still_there, **parts),
        {
            **in_batch.values,
            "blanks": blanks_of(cursor.connection),
            "relations": [work.tables.market_oid, *work.leaves],
            "leaf": leaf,
            "market": work.tables.market_oid,
        },
    ).fetchone()
    if row is None or row[2] is None:
        raise plan_lost(work.holder)
    return Ahead(list(row[0]), bool(row[1]), row[2], row[3], row[4], is_gone=not row[5])


def refuse_rewritten(work: Work, rewritten: int) -> None:
    """A trigger that writes another value than ours makes every promise void: stop."""
    if rewritten:
        raise CorrectionFailedError(
            f"{rewritten} rows of a batch got another asset_class than planned: a trigger on "
            f"{work.tables.market_name} rewrites it. The batch was rolled back; change the trigger "
            "for this role, then run it again."
        )


def skip(cursor: Cursor[TupleRow], work: Work, seqs: str, reason: SkipReason) -> None:
    """Note planned rows, given as a multirange, as left for now."""
    cursor.execute(
        query("batch", "record_skipped"),
        {**work.holder.key, "skipped": seqs, "reason": reason.value},
    )


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


def quarantine(cursor: Cursor[TupleRow], work: Work, seq: int, error: BaseException) -> None:
    """Keep a row that the database refused to change, with its error, out of all further tries."""
    cursor.execute(
        query("batch", "quarantine", backup=work.plan.identifier),
        {
            **work.holder.key,
            "seq": seq,
            "error_code": getattr(error, "sqlstate", None) or type(error).__name__,
            "error_message": what_it_said(error),
        },
    )


def release_quarantine(holder: Holder) -> None:
    """Give rows that an earlier try had to quarantine another one: the sweep takes them up."""
    with transaction(holder.connection, holder.settings) as cursor:
        cursor.execute(query("batch", "forget_quarantine"), holder.key)
        cursor.execute(
            query("batch", "release_quarantine"),
            {**holder.key, "reason": SkipReason.MOVED_OR_CHANGED.value},
        )
        holder.require_ours(cursor)


def check_error_rate(cursor: Cursor[TupleRow], work: Work) -> None:
    """Stop when too many rows are quarantined. Raises ErrorRateError."""
    row = cursor.execute(query("batch", "failures"), work.holder.key).fetchone()
    failed, done, said = row or (0, 0, "")
    limit = work.holder.settings.thresholds.error_rate
    if too_many_failures(failed, done=done, planned=work.plan.planned, limit=limit):
        raise ErrorRateError(
            f"{failed:,} of {done:,} rows were refused by the database, more than {limit:g} %: "
            f"{said}. Everything committed so far stays, and each refused row stands in quarantine "
            f"(`assetclass status {work.holder.correction_id}`). Mend the cause, then run it "
            "again: it goes on where it stopped, and tries those rows once more."
        )


def explain(error: BaseException, work: Work) -> AssetClassError:
    """The typed error of whatever ended a worker, without SQL text."""
    if isinstance(error, AssetClassError):
        return error
    said = what_it_said(error)
    tries = work.holder.attempts.retry.tries
    tried = f" (tried {tries} times)" if is_transient(error) else ""
    return CorrectionFailedError(
        f"A batch on {work.tables.market_name} could not be written{tried}: {said}. Everything "
        "committed so far stays; run it again to go on where it stopped."
    )


def set_updated_at(tables: MarketTables) -> sql.Composable:
    """Assignment of `updated_at` where the column exists."""
    return query("batch", "set_updated_at") if tables.has_updated_at else sql.SQL("")
