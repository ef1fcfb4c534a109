"""A held operation from its plan to its end: what a correction and a rollback do alike.

Belongs here: phases, the batches of a whole plan, summing up. Does not: the order of the phases,
and how an operation ends (correction.py, rollback.py).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import psycopg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import ALL_CORES, set_also
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.engine.crew import Crew, open_ranges
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.engine.plan import PlanState
from assetclass_pipeline.engine.retry import is_transient
from assetclass_pipeline.engine.sweeping import next_pass, sweep
from assetclass_pipeline.engine.tempo import TempoOptions
from assetclass_pipeline.engine.work import Work
from assetclass_pipeline.errors import CorrectionFailedError, DatabaseUnavailableError
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline.model.options import Pace
from assetclass_pipeline.model.pacing import PROFILES
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.settings import Settings

OBSERVE_INTERVAL = 2.0

Observer = Callable[[Operation], None]
Result = TypeVar("Result")


@dataclass
class Running:
    """A held operation, the tables as they are now, and the pacing that an earlier try left."""

    holder: Holder
    tables: MarketTables
    pacing: object
    observe: Observer | None
    options: TempoOptions

    @property
    def connection(self) -> Connection[TupleRow]:
        """The operation's own; ask for it again after an error."""
        return self.holder.connection

    @property
    def settings(self) -> Settings:
        """Settings of this process."""
        return self.holder.settings

    def enter(self, phase: Phase) -> None:
        """Begin a phase, unless somebody asked to stop."""
        self.holder.stop.check()
        self.again(lambda: self.holder.enter_phase(phase))
        self.report()

    def again(self, step: Callable[[], Result]) -> Result:
        """Do a step, again after transient errors; each try asks for the connection anew."""
        return self.holder.attempt(step)

    def report(self) -> None:
        """Tell the observer how it stands."""
        if self.observe is None:
            return
        try:
            operation = self.holder.once(self.operation)
        except (psycopg.Error, DatabaseUnavailableError) as error:
            # The server may come back before the batches give up; nobody needs this one report.
            if not is_transient(error):
                raise
        else:
            self.observe(operation)

    def operation(self) -> Operation:
        """How it stands."""
        return get_operation(self.connection, self.settings, str(self.holder.correction_id))

    @property
    def pace(self) -> Pace:
        """How hard the server is pressed; people may have changed it since."""
        return self.holder.tuning.pace or self.options.pace

    def analyse(self) -> IntegrityReport:
        """The market table by a fresh scan."""
        return self.again(
            lambda: analyse(
                self.connection,
                self.tables,
                self.settings,
                worst=10,
                by_month=False,
                in_parallel=PROFILES[self.pace].scans_in_parallel,
            )
        )


def write_plan(running: Running, work: Work) -> None:
    """Do all batches that the ledger lacks, then sweep what they had to leave."""
    running.enter(Phase.CORRECTING)
    ranges = running.again(lambda: open_ranges(work))
    while True:
        _do_batches(running, Crew(work, ranges))
        # This commit waits for the disk, and with it all batches that did not.
        running.enter(Phase.SWEEPING)
        ranges = running.again(lambda: open_ranges(work))
        if ranges.is_empty:
            break
        # The server crashed meanwhile, or a standby took over, and forgot its last commits.
        running.holder.journal.tell("batches_were_lost")
        running.enter(Phase.CORRECTING)
    sweep(work, running.again(lambda: next_pass(work)))


def _do_batches(running: Running, crew: Crew) -> None:
    with crew.at_work():
        reported = time.monotonic()
        while crew.goes_on():
            if time.monotonic() - reported >= OBSERVE_INTERVAL:
                running.report()
                reported = time.monotonic()
    running.holder.stop.check()


def has_ended(running: Running, cursor: Cursor[TupleRow]) -> bool:
    """Whether COMMIT had arrived and its answer had not: then an unlogged plan is gone already."""
    key = {"correction_id": running.holder.correction_id}
    row = cursor.execute(query("control", "state"), key).fetchone()
    return row is not None and row[:2] == (Status.SUCCEEDED, running.holder.epoch)


def require_whole_plan(running: Running, cursor: Cursor[TupleRow], state: PlanState) -> None:
    """What a failover may have forgotten since the batches ended. Raises CorrectionFailedError."""
    key = {"correction_id": running.holder.correction_id}
    row = cursor.execute(query("operation", "covered_seqs"), key).fetchone()
    left = state.planned - (int(row[0]) if row else 0)
    if left:
        raise CorrectionFailedError(
            f"The server lost batches of operation {running.holder.correction_id} after it had "
            f"confirmed them (a crash, or a standby that took over): {left:,} planned rows are "
            "open. Run it again to go on where it stopped."
        )


def summarise(
    cursor: Cursor[TupleRow], correction_id: UUID, state: PlanState, *, dry_run: bool
) -> None:
    """What was changed by symbol, counted anew from plan, ledger and skipped rows."""
    key = {"correction_id": correction_id}
    cursor.execute(query("operation", "forget_changes"), key)
    set_also(cursor, ALL_CORES)
    rows = cursor.execute(
        query("operation", "changes_of_plan", backup=state.identifier),
        {**key, "dry_run": dry_run},
    ).fetchall()
    symbols, old, new, records = zip(*rows, strict=True) if rows else ((), (), (), ())
    cursor.execute(
        query("operation", "remember_changes"),
        {**key, "symbols": [*symbols], "old": [*old], "new": [*new], "records": [*records]},
    )


def scores(report: IntegrityReport) -> dict[str, object]:
    """The part of a report that an operation keeps: totals, scores and thresholds."""
    everything = report.model_dump(mode="json", by_alias=True)
    lists = {"byAssetClass", "bySymbol", "byPartition", "issues", "recommendations", "effort"}
    return {name: value for name, value in everything.items() if name not in lists}
