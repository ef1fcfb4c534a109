"""A rollback from claim to proof: look, plan, batches, sweep, judge what is left, end.

Belongs here: the order of the phases and the operation's end. Does not: how a phase works; what a
rollback shares with a correction is in running.py.

A rollback is the machine of a correction run over a plan of its own, whose old value is what the
correction wrote and whose new one is what stood there before: every row is compared and set, so a
row that anybody changed since is left alone. What it has put back is on record when it ends,
however it ends; what died without a word is put on record by the next rollback.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.engine.audit import refusals_recorded
from assetclass_pipeline.engine.claiming import fenced
from assetclass_pipeline.engine.courtesy import Courtesy
from assetclass_pipeline.engine.holding import Holder, hold
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.plan import PlanState, drop_plan, load_plan
from assetclass_pipeline.engine.retry import begun
from assetclass_pipeline.engine.running import (
    Observer,
    Running,
    has_ended,
    require_whole_plan,
    scores,
    summarise,
    write_plan,
)
from assetclass_pipeline.engine.tempo import Tempo
from assetclass_pipeline.engine.undo_check import Survey, Undoing, Undone
from assetclass_pipeline.engine.undo_effect import after_moves, look_for_harm, moves_of, refuse_harm
from assetclass_pipeline.engine.undo_plan import NOWHERE, UndoScan, make_undo_plan
from assetclass_pipeline.engine.undo_record import (
    look_at,
    mark_rolled_back,
    record_cut_off,
    record_undone,
    settle_left,
    settle_unfound,
)
from assetclass_pipeline.engine.work import Work, release_quarantine
from assetclass_pipeline.errors import AssetClassError, OperationFencedError
from assetclass_pipeline.model.audit import Action
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.operation import Kind, Operation, Phase, Status
from assetclass_pipeline.model.preflight import Preflight
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.settings import Settings


@dataclass(frozen=True)
class RollbackRequest:
    """Who asks to undo which correction; `correction_id` is the rollback's own.

    The same request again resumes a rollback that was cut off, with the options of its beginning;
    with `only_while_active` it takes up what was asked for before, unless that was cancelled since.
    """

    correction_id: str
    rollback_of: str
    options: RollbackOptions
    requested_by: str = ""
    reason: str | None = None
    ticket: str | None = None
    run_id: str | None = None
    retry_of: str | None = None
    stop_at: datetime | None = None
    only_while_active: bool = False

    @property
    def kind(self) -> Kind:
        """What it does."""
        return Kind.ROLLBACK

    @property
    def scope(self) -> TimeRange:
        """What a rollback is about, its options say."""
        return EVERYTHING


@dataclass(frozen=True)
class _Seen:
    """What was found before the claim."""

    tables: MarketTables
    undone: Undone
    survey: Survey
    preflight: Preflight | None


@dataclass
class Rollback(Running):
    """A held rollback, with its options as they were when it began."""

    options: RollbackOptions
    undone: Undone
    survey: Survey

    def scan(self) -> UndoScan:
        """A scan for the rows to put back."""
        return UndoScan(self.holder, self.tables, self.options, self.undone, self.survey)

    def work(self, state: PlanState) -> Work:
        """The batches of its plan."""
        holder = self.holder
        stored = holder.pacing or self.pacing
        tempo = Tempo(self.options, state.planned, lambda: holder.tuning, stored)
        return Work(holder, self.tables, state, self.options, tempo, follows_symbols=False)


def roll_back(
    dsn: str,
    settings: Settings,
    request: RollbackRequest,
    *,
    observe: Observer | None = None,
    cancelled_by: tuple[type[BaseException], ...] = (),
) -> Operation:
    """Put the old classes of a correction back, where its rows still hold what it wrote.

    A dry run plans, counts and estimates the scores, and changes nothing. Raises before anything
    is written: OperationNotFoundError, NotUndoableError, BackupExpiredError,
    AlreadyRolledBackError, LaterCorrectionError, OperationInProgressError, PreflightRefusedError,
    InvalidOptionsError, MarketTablesError, SchemaNotReadyError; later CorrectionFailedError and
    what `Stop` carries.
    """
    with _begun(dsn, settings, request, observe, cancelled_by) as rollback:
        with Courtesy(rollback.holder):
            state = _plan(rollback)
            if not rollback.options.dry_run:
                rollback.again(lambda: release_quarantine(rollback.holder))
                work = rollback.work(state)
                write_plan(rollback, work)
                settle_left(work, rollback.undone)
        _end(rollback, state)
        return rollback.again(rollback.operation)


@contextmanager
def _begun(
    dsn: str,
    settings: Settings,
    request: RollbackRequest,
    observe: Observer | None,
    cancelled_by: tuple[type[BaseException], ...],
) -> Iterator[Rollback]:
    """Everything that can be refused is refused before the operation's row is written."""
    undone = {"rollbackOf": request.rollback_of}
    with refusals_recorded(dsn, settings, request, Action.CLAIM_OPERATION, **undone):
        options = _options_of(dsn, settings, request)
        undoing = Undoing(settings, request.correction_id, request.rollback_of, options)
        seen = begun(
            lambda: _looked_at(dsn, settings, options, undoing),
            options.retry or settings.retry,
            settings.patience,
        )
    with hold(dsn, settings, request, cancelled_by=cancelled_by, check=undoing.check) as holder:
        pacing = holder.attempt(_pacing_of, holder)
        rollback = Rollback(holder, seen.tables, pacing, observe, options, seen.undone, seen.survey)
        holder.attempt(record_cut_off, holder, seen.undone)
        if seen.survey.lacks:
            holder.journal.tell("backup_lacks_rows", records=seen.survey.lacks)
        if seen.preflight is not None:
            found = Jsonb(seen.preflight.model_dump(mode="json", by_alias=True))
            values: dict[str, object] = {"preflight": found, "estimate": None}
            holder.attempt(holder.update, "set_preflight", values)
        try:
            yield rollback
        except OperationFencedError:
            raise
        except BaseException:
            with suppress(AssetClassError, psycopg.Error):
                holder.once(lambda: _keep_record(rollback), longest=holder.longest_scan)
            raise


def _options_of(dsn: str, settings: Settings, request: RollbackRequest) -> RollbackOptions:
    """Those that the rollback began with: a resume goes on with them, or with the request's."""
    key = {"correction_id": as_uuid(request.correction_id)}

    def look() -> RollbackOptions:
        with connect(dsn, settings, purpose="preflight") as connection:
            require_schema(connection)
            with transaction(connection, settings, read_only=True) as cursor:
                row = cursor.execute(query("rollback", "begun_with"), key).fetchone()
        return request.options if row is None else RollbackOptions.model_validate(row[0])

    return begun(look, request.options.retry or settings.retry, settings.patience)


def _looked_at(dsn: str, settings: Settings, options: RollbackOptions, undoing: Undoing) -> _Seen:
    with connect(dsn, settings, purpose="preflight") as connection:
        undone = look_at(connection, settings, undoing)
        tables = inspect_market_tables(connection, settings, for_writing=not options.dry_run)
        if undone.is_planned:
            return _Seen(tables, undone, Survey(), None)
        survey = undoing.survey(connection, undone)
        found = look_for_harm(connection, tables, settings, survey.records_by_class)
        if not options.dry_run:
            refuse_harm(found)
        return _Seen(tables, undone, survey, found)


def _pacing_of(holder: Holder) -> object:
    with transaction(holder.connection, holder.settings, read_only=True) as cursor:
        row = cursor.execute(
            query("operation", "plan_of"), {"correction_id": holder.correction_id}
        ).fetchone()
    if row is None:
        raise fenced(holder.correction_id)
    return row[4]


def _plan(rollback: Rollback) -> PlanState:
    state = rollback.again(lambda: load_plan(rollback.holder))
    if state is not None and state.complete:
        return state
    rollback.enter(Phase.PLANNING)
    return make_undo_plan(rollback.scan(), state)


def _end(rollback: Rollback, state: PlanState) -> None:
    """Record, summary, the correction's mark and the end commit together."""
    report = _measure(rollback, state)
    dry_run = rollback.options.dry_run
    dropped = dry_run or not state.planned

    def end() -> None:
        with transaction(rollback.connection, rollback.settings, statement_timeout="0") as cursor:
            if has_ended(rollback, cursor):
                return
            rollback.holder.require_ours(cursor)
            if not dry_run:
                require_whole_plan(rollback, cursor, state)
            _record(rollback, cursor, state)
            if not dry_run:
                mark_rolled_back(cursor, rollback.undone, state)
            before, after = _quality(rollback, cursor, report)
            measured: dict[str, object] = {"quality": before, "mismatched_left": 0}
            rollback.holder.update_with(cursor, "set_quality_before", measured)
            if dropped:
                drop_plan(cursor, state)
            values = {
                "status": Status.SUCCEEDED.value,
                "phase": Phase.DONE.value,
                "quality_after": after,
                "late_left": 0,
                "estimate_error_percent": None,
                "dropped": dropped,
                "error": None,
            }
            rollback.holder.update_with(cursor, "finish", values)

    rollback.again(end)
    rollback.holder.stop.comes_too_late()
    rollback.report()


def _measure(rollback: Rollback, state: PlanState) -> IntegrityReport | None:
    """The table by one fresh scan, as it is after a real rollback or before what a dry run plans.

    None where the caller does not want it measured; a dry run is there to tell it.
    """
    if rollback.options.dry_run:
        rollback.enter(Phase.ANALYSING)
        _leave_unfound(rollback, state)
    elif rollback.options.validate_after_rollback:
        rollback.enter(Phase.VERIFYING)
    else:
        return None
    return rollback.analyse()


def _quality(
    rollback: Rollback, cursor: Cursor[TupleRow], report: IntegrityReport | None
) -> tuple[Jsonb | None, Jsonb | None]:
    """(scores before, scores after): the one is measured, the other computed from the summary.

    The computed ones say so (`isEstimated`): they leave out what others wrote at the same time.
    """
    if report is None:
        return None, None
    dry_run = rollback.options.dry_run
    moves = moves_of(cursor, rollback.tables, rollback.holder.correction_id, backwards=not dry_run)
    computed = Jsonb({**scores(after_moves(report, moves, rollback.settings)), "isEstimated": True})
    measured = Jsonb(scores(report))
    return (measured, computed) if dry_run else (computed, measured)


def _leave_unfound(rollback: Rollback, state: PlanState) -> None:
    """Count only what a rollback would put back."""
    left = settle_unfound(rollback.work(state), rollback.undone)
    if not state.segments or state.segments[-1].leaf != NOWHERE:
        return
    state.segments.pop()
    state.add(NOWHERE, left)
    rollback.again(lambda: rollback.holder.update("set_plan", state.stored))


def _record(rollback: Rollback, cursor: Cursor[TupleRow], state: PlanState) -> None:
    """What was put back: which rows, and by symbol; a dry run puts back nothing."""
    dry_run = rollback.options.dry_run
    summarise(cursor, rollback.holder.correction_id, state, dry_run=dry_run)
    if not dry_run:
        # Of a backup that lacks rows, or may, not all that stood is in the plan.
        is_partial = rollback.options.is_partial or rollback.survey.lacks != 0
        record_undone(cursor, rollback.undone.key, state, is_partial=is_partial)


def _keep_record(rollback: Rollback) -> None:
    """What a rollback put back is on record however it ends."""
    state = load_plan(rollback.holder)
    if state is None or rollback.options.dry_run:
        return
    with transaction(rollback.connection, rollback.settings, statement_timeout="0") as cursor:
        _record(rollback, cursor, state)
        # Last: a take-over need not wait for all of this.
        rollback.holder.require_held(cursor)
