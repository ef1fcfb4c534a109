"""A correction from claim to proof: analyse, plan, batches, sweep, verify, end.

Belongs here: the order of the phases and the operation's end. Does not: how a phase works.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import connect, scan, transaction
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.engine import backups
from assetclass_pipeline.engine.archive import (
    ArchiveFile,
    Source,
    register_archive,
    require_directory,
    write_archive,
)
from assetclass_pipeline.engine.audit import refusals_recorded
from assetclass_pipeline.engine.claiming import CorrectionRequest, fenced
from assetclass_pipeline.engine.conditions import blanks_of, correctable_rows
from assetclass_pipeline.engine.courtesy import Courtesy
from assetclass_pipeline.engine.holding import Holder, hold
from assetclass_pipeline.engine.plan import (
    PlanScan,
    PlanState,
    add_late_rows,
    drop_plan,
    load_plan,
    make_plan,
)
from assetclass_pipeline.engine.readiness import (
    estimate_error,
    prepare,
    refuse_what_would_do_harm,
    rehearsed_row,
    remember_reference,
    tell_changed_reference,
)
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
from assetclass_pipeline.engine.work import Work, release_quarantine
from assetclass_pipeline.errors import (
    AssetClassError,
    MarketTablesError,
    OperationFencedError,
)
from assetclass_pipeline.model.audit import Action
from assetclass_pipeline.model.months import TimeRange
from assetclass_pipeline.model.operation import Kind, Operation, Phase, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.settings import Settings

__all__ = ["CorrectionRequest", "correct", "look_before", "plan"]

# Rows that a feed adds in mid-run are planned after the first verification; then the next night's.
LATE_PASSES = 2


@dataclass
class Correction(Running):
    """A held correction, with its options as they were when it began."""

    options: CorrectionOptions
    scope: TimeRange

    @property
    def keeps_backup(self) -> bool:
        """Whether the plan stays as a backup table."""
        return self.options.create_backup and not self.options.dry_run

    def scan(self) -> PlanScan:
        """A scan for rows to plan."""
        return PlanScan(self.holder, self.tables, self.options, self.scope)


def plan(
    dsn: str,
    settings: Settings,
    request: CorrectionRequest,
    *,
    park: bool,
    observe: Observer | None = None,
    cancelled_by: tuple[type[BaseException], ...] = (),
) -> Operation:
    """Claim the operation and write its plan, or the rest of it.

    With `park` it ends as `planned`, which blocks nobody; else it stays `running` for `correct`,
    here or in another process of the same run. Raises OperationInProgressError,
    MarketTablesError, SchemaNotReadyError, CorrectionFailedError and what `Stop` carries.
    """
    with _begun(dsn, settings, request, observe, cancelled_by) as correction:
        with Courtesy(correction.holder):
            _plan(correction)
        if park:
            correction.again(lambda: correction.holder.update("park", {}))
            correction.holder.stop.comes_too_late()
        else:
            correction.enter(Phase.PLANNED)
        return correction.again(correction.operation)


def correct(
    dsn: str,
    settings: Settings,
    request: CorrectionRequest,
    *,
    observe: Observer | None = None,
    cancelled_by: tuple[type[BaseException], ...] = (),
) -> Operation:
    """Claim or pick up the operation, plan what is not planned yet, correct, prove, and end it.

    A dry run ends after its plan; `market_data` is not changed. Raises what `plan` raises.
    """
    with _begun(dsn, settings, request, observe, cancelled_by) as correction:
        with Courtesy(correction.holder):
            state = _plan(correction)
            after, late = None, 0
            if not correction.options.dry_run:
                correction.again(lambda: release_quarantine(correction.holder))
                _correct(correction, state)
                after, late = _prove(correction, state)
        _end(correction, state, after, late)
        return correction.again(correction.operation)


@contextmanager
def _begun(
    dsn: str,
    settings: Settings,
    request: CorrectionRequest,
    observe: Observer | None,
    cancelled_by: tuple[type[BaseException], ...],
) -> Iterator[Correction]:
    """Everything that can be refused is refused before the operation's row is written."""
    with refusals_recorded(dsn, settings, request, Action.CLAIM_OPERATION):
        tables = begun(
            lambda: _looked_at(dsn, settings, request.options),
            request.options.retry or settings.retry,
            settings.patience,
        )
    with hold(dsn, settings, request, cancelled_by=cancelled_by) as holder:
        options, scope, pacing = holder.attempt(_as_begun, holder)
        correction = Correction(holder, tables, pacing, observe, options, scope)
        try:
            yield correction
        except OperationFencedError:
            raise
        except BaseException:
            with suppress(AssetClassError, psycopg.Error):
                correction.holder.once(
                    lambda: _keep_summary(correction), longest=correction.holder.longest_scan
                )
            raise


def _looked_at(dsn: str, settings: Settings, options: CorrectionOptions) -> MarketTables:
    with connect(dsn, settings, purpose="preflight") as connection:
        return look_before(connection, settings, options)


def look_before(
    connection: Connection[TupleRow], settings: Settings, options: CorrectionOptions
) -> MarketTables:
    """The market tables, when a correction of them may be asked for.

    Raises SchemaNotReadyError, MarketTablesError, PreflightRefusedError and ArchiveError.
    """
    require_schema(connection)
    tables = inspect_market_tables(connection, settings, for_writing=not options.dry_run)
    refuse_what_would_do_harm(connection, tables, settings, options)
    if not (options.create_backup or options.dry_run):
        # Its rows are archived at the end; better refused now than failed then.
        require_directory(settings)
    return tables


def _as_begun(holder: Holder) -> tuple[CorrectionOptions, TimeRange, object]:
    """Options, scope and pacing that the operation began with: a resume goes on with those."""
    with transaction(holder.connection, holder.settings, read_only=True) as cursor:
        row = cursor.execute(
            query("operation", "plan_of"), {"correction_id": holder.correction_id}
        ).fetchone()
    if row is None:
        raise fenced(holder.correction_id)
    return CorrectionOptions.model_validate(row[1]), TimeRange(row[2], row[3]), row[4]


def _plan(correction: Correction) -> PlanState:
    state = correction.again(lambda: load_plan(correction.holder))
    if state is not None and state.complete:
        return state
    correction.enter(Phase.ANALYSING)
    before = correction.analyse()
    values = {"quality": Jsonb(scores(before)), "mismatched_left": _mismatched_left(correction)}
    correction.again(lambda: correction.holder.update("set_quality_before", dict(values)))
    correction.enter(Phase.PLANNING)
    remember_reference(correction.holder, correction.tables)
    state = make_plan(correction.scan(), state)
    if state.planned:
        prepare(correction.scan(), state, scan_seconds=before.analysis_duration_seconds)
    return state


def _mismatched_left(correction: Correction) -> int:
    """Mismatched rows in scope that `onlyProcessNullAssetClass: false` alone does not overwrite."""
    options = correction.options
    if options.only_process_null_asset_class or options.overwrite_existing_values:
        return 0
    return _count(correction, mismatched_only=True)


def _count(
    correction: Correction,
    *,
    mismatched_only: bool = False,
    not_in: PlanState | None = None,
    written_in: PlanState | None = None,
) -> int:
    """Correctable rows of the operation's scope and options.

    With `not_in` only those that this plan lacks, with `written_in` those that were corrected.
    """
    rows = correctable_rows(
        correction.tables,
        correction.options,
        correction.scope,
        columns="sample_columns",
        mismatched_only=mismatched_only,
    )
    statement = query("plan", "count_rows", correctable_rows=rows.text)
    if not_in is not None:
        not_planned = query("plan", "not_planned", backup=not_in.identifier)
        statement = query("plan", "count_late", correctable_rows=rows.text, not_planned=not_planned)
    values = {**rows.values}
    if written_in is not None:
        statement = query(
            "plan",
            "count_damaged_again",
            correctable_rows=rows.text,
            backup=written_in.identifier,
        )
        values["correction_id"] = correction.holder.correction_id

    def count() -> int:
        with scan(correction.connection, correction.settings) as cursor:
            row = cursor.execute(
                statement, {**values, "blanks": blanks_of(cursor.connection)}
            ).fetchone()
        return int(row[0]) if row else 0

    return correction.again(count)


def _correct(correction: Correction, state: PlanState) -> None:
    holder = correction.holder
    stored = holder.pacing or correction.pacing
    rehearsed = correction.again(lambda: rehearsed_row(holder))
    tempo = Tempo(correction.options, state.planned, lambda: holder.tuning, stored, rehearsed)
    work = Work(holder, correction.tables, state, correction.options, tempo)
    write_plan(correction, work)


def _prove(correction: Correction, state: PlanState) -> tuple[IntegrityReport, int]:
    """A fresh scan; rows that came late are planned and corrected. Returns (scores, rows left).

    Rows that were skipped with a reason may still be correctable; they are not late. A limit of
    rows leaves others on purpose.
    """
    for _ in range(LATE_PASSES):
        correction.enter(Phase.VERIFYING)
        report = correction.analyse()
        if not _late_rows(correction, state, report):
            _tell_damaged_again(correction, state, report)
            return report, 0
        correction.enter(Phase.PLANNING)
        correction.again(lambda: _find_new_partitions(correction))
        add_late_rows(correction.scan(), state)
        _correct(correction, state)
    report = correction.analyse()
    _tell_damaged_again(correction, state, report)
    return report, _late_rows(correction, state, report)


def _tell_damaged_again(correction: Correction, state: PlanState, report: IntegrityReport) -> None:
    """Rows that we corrected and others have damaged since: what they wrote stays, and is told.

    They are no late rows, which a later pass plans: one row has one place in the plan.
    """
    if _damage(correction, report) and (records := _count(correction, written_in=state)):
        correction.holder.journal.tell("damaged_again", records=records)


def _damage(correction: Correction, report: IntegrityReport) -> int:
    """Rows of the whole table that a correction with these options would change."""
    overwrites = correction.options.overwrite_existing_values
    return report.correctable + (report.mismatched if overwrites else 0)


def _find_new_partitions(correction: Correction) -> None:
    """Late rows may stand in partitions that were made since; what we may not write is left out."""
    with suppress(MarketTablesError):
        correction.tables = inspect_market_tables(
            correction.connection, correction.settings, for_writing=True
        )


def _late_rows(correction: Correction, state: PlanState, report: IntegrityReport) -> int:
    """Correctable rows that no plan knows, counted only where the report shows any damage left."""
    if not _damage(correction, report) or correction.options.max_records_to_process is not None:
        return 0
    return _count(correction, not_in=state)


def _end(
    correction: Correction, state: PlanState, after: IntegrityReport | None, late: int
) -> None:
    """Summary, end, the archive's record and the unlogged plan's removal commit together."""
    correction.again(lambda: tell_changed_reference(correction.holder, correction.tables))
    dry_run = correction.options.dry_run
    dropped = not correction.keeps_backup or not state.planned
    file = _archive(correction, state)
    values = {
        "status": Status.SUCCEEDED.value,
        "phase": Phase.DONE.value,
        "quality_after": Jsonb(scores(after)) if after else None,
        "late_left": late,
        "estimate_error_percent": _estimate_error(correction),
        "dropped": dropped,
        "error": None,
    }

    def end() -> None:
        with transaction(
            correction.connection, correction.settings, statement_timeout="0"
        ) as cursor:
            if has_ended(correction, cursor):
                return
            # Whoever took the operation over may have planned and done more than we know of.
            correction.holder.require_ours(cursor)
            if not dry_run:
                require_whole_plan(correction, cursor, state)
            summarise(cursor, correction.holder.correction_id, state, dry_run=dry_run)
            if file is not None:
                register_archive(cursor, correction.settings, correction.holder.correction_id, file)
            if dropped:
                drop_plan(cursor, state)
            else:
                backups.seal(cursor, correction.holder.correction_id, state.identifier)
            correction.holder.update_with(cursor, "finish", dict(values))

    correction.again(end)
    correction.holder.stop.comes_too_late()
    correction.report()


def _archive(correction: Correction, state: PlanState) -> ArchiveFile | None:
    """What an operation without a backup did stays known all the same; None where a table stays.

    Whoever dies before the end is committed leaves a file that nobody knows of; a resume writes it
    again. Raises ArchiveError, also when a crash has emptied the plan.
    """
    if correction.keeps_backup or correction.options.dry_run or not state.planned:
        return None
    source = Source(
        correction.holder.correction_id, Kind.CORRECTION, state.schema_name, state.table_name
    )

    def write() -> ArchiveFile:
        return write_archive(
            correction.connection,
            correction.settings,
            source,
            expected=state.planned,
            check=correction.holder.stop.check,
        )

    return correction.again(write)


def _estimate_error(correction: Correction) -> float | None:
    """How far off the estimate was; a dry run does not do what was estimated."""
    if correction.options.dry_run:
        return None
    return correction.again(lambda: estimate_error(correction.holder))


def _keep_summary(correction: Correction) -> None:
    """What an operation changed is summed up however it ends."""
    state = load_plan(correction.holder)
    if state is None or correction.options.dry_run:
        return
    with transaction(correction.connection, correction.settings, statement_timeout="0") as cursor:
        summarise(cursor, correction.holder.correction_id, state, dry_run=False)
        # Last: a take-over need not wait for all of this.
        correction.holder.require_held(cursor)
