"""Assets that write: the backup table and the corrected market data, in one step.

Belongs here: which part of a correction a run asks the engine for, and what the UI then shows of
it. Does not: the correction. Why one step: docs/decisions/0005-dagster-surface.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dagster as dg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.defs.assets.sources import GROUP, OWNERS, TAGS
from assetclass_pipeline.defs.checks import (
    BACKUP_IS_COMPLETE,
    NO_ROW_LOST_OR_INVENTED,
    backup_check_spec,
    backup_result,
    dropped_backup_result,
    not_computed,
    or_not_computed,
    proof_check_spec,
    proof_result,
)
from assetclass_pipeline.defs.failures import readable_failures, reason_of
from assetclass_pipeline.defs.instance import POOL, keep_connections
from assetclass_pipeline.defs.presentation import (
    changes_table,
    operation_metadata,
    preview_metadata,
    skipped_table,
)
from assetclass_pipeline.defs.resources import (
    CorrectionOptionsResource,
    MarketDatabase,
)
from assetclass_pipeline.defs.runs import Materialized, ProgressLog, request_of
from assetclass_pipeline.engine.backups import list_backups
from assetclass_pipeline.engine.correction import CorrectionRequest, correct, plan
from assetclass_pipeline.engine.operations import operation_status, proof
from assetclass_pipeline.engine.planned_months import PlannedMonth, planned_months
from assetclass_pipeline.engine.preview import preview
from assetclass_pipeline.errors import OperationNotFoundError
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.settings import Settings

MARKET_DATA_BACKUP = dg.AssetKey("market_data_backup")
CORRECTED_MARKET_DATA = dg.AssetKey("corrected_market_data")

_TERMINATED = (dg.DagsterExecutionInterruptedError,)

Event = Materialized | dg.AssetCheckResult


def correction_assets(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`market_data_backup` and `corrected_market_data`, together or either alone."""

    @dg.multi_asset(
        name="correction",
        description="Plan into the backup table, correct in batches, sweep, prove.",
        specs=[
            _spec(
                MARKET_DATA_BACKUP,
                "Every row that a correction will change, with its class before and after: plan, "
                "undo log and audit trail in one table. Materialised alone it shows what would "
                "change, and blocks nobody: corrected_market_data plans afresh.",
                deps=["integrity_report", "symbols", "market_data"],
            ),
            _spec(
                CORRECTED_MARKET_DATA,
                "market_data with every correctable row of these months corrected, and proved by "
                "a fresh scan. Without a partition: all rows. Alone it makes its own backup.",
                deps=[MARKET_DATA_BACKUP],
            ),
        ],
        check_specs=[
            backup_check_spec(MARKET_DATA_BACKUP),
            proof_check_spec(CORRECTED_MARKET_DATA),
        ],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        can_subset=True,
        pool=POOL,
    )
    def correction(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[MarketDatabase],
        correction_options: CorrectionOptionsResource,
        calendar: dg.ResourceParam[Calendar],
    ) -> Iterator[Event]:
        keep_connections(context.instance)
        with (
            readable_failures(),
            database.address() as dsn,
            connect(dsn, database.settings, purpose="dagster step") as connection,
        ):
            options = correction_options.options()
            step = _Step(context, database.settings, dsn, connection, options, calendar)
            for event in step.events():
                # Only what was selected may be yielded: a check can be deselected in the UI.
                if not isinstance(event, dg.AssetCheckResult) or step.is_selected(event):
                    yield event

    return correction


def _spec(key: dg.AssetKey, description: str, *, deps: list[dg.AssetKey | str]) -> dg.AssetSpec:
    return dg.AssetSpec(
        key,
        description=description,
        deps=deps,
        # A dry run yields nothing, so that no month turns green.
        skippable=True,
        group_name=GROUP,
        owners=OWNERS,
        tags=TAGS,
        kinds={"postgres", "table"},
    )


@dataclass(frozen=True)
class _Step:
    """One execution: a run's selection of the two assets, over its months."""

    context: dg.AssetExecutionContext
    settings: Settings
    dsn: str
    connection: Connection[TupleRow]
    options: CorrectionOptions
    calendar: Calendar

    def is_selected(self, check: dg.AssetCheckResult) -> bool:
        key = dg.AssetCheckKey(check.asset_key or MARKET_DATA_BACKUP, check.check_name or "")
        return key in self.context.selected_asset_check_keys

    def events(self) -> Iterator[Event]:
        selected = self.context.selected_asset_keys
        if not selected:
            yield from self._check_latest()
            return
        request = request_of(
            self.context, self.connection, self.settings, self.options, self.calendar
        )
        if self.options.dry_run:
            self._rehearse(request)
            return
        if MARKET_DATA_BACKUP in selected:
            operation = self._plan(request, park=CORRECTED_MARKET_DATA not in selected)
            try:
                with readable_failures():
                    backed_up = self._backup_result(operation)
            except dg.Failure as failure:
                names, reason = [BACKUP_IS_COMPLETE], reason_of(failure)
                yield from not_computed(MARKET_DATA_BACKUP, names, reason, self.settings)
                raise
            yield self._materialized_backup(operation)
            yield backed_up
            if not backed_up.passed:
                # Parked, so that it blocks nobody; Dagster fails the step for the blocking check.
                self._plan(request, park=True)
                return
        if CORRECTED_MARKET_DATA in selected:
            operation = self._correct(request)
            yield self._materialized_correction(operation)
            yield from self._proved(operation.correction_id)

    def _plan(self, request: CorrectionRequest, *, park: bool) -> Operation:
        return plan(
            self.dsn,
            self.settings,
            request,
            park=park,
            observe=ProgressLog(self.context.log),
            cancelled_by=_TERMINATED,
        )

    def _correct(self, request: CorrectionRequest) -> Operation:
        return correct(
            self.dsn,
            self.settings,
            request,
            observe=ProgressLog(self.context.log),
            cancelled_by=_TERMINATED,
        )

    def _materialized_backup(self, operation: Operation) -> Materialized:
        planned = {
            key: {"records_planned": month.planned}
            for key, month in self._planned_months(operation).items()
        }
        self._describe_months(MARKET_DATA_BACKUP, planned)
        return dg.MaterializeResult(
            asset_key=MARKET_DATA_BACKUP, metadata=operation_metadata(operation)
        )

    def _materialized_correction(self, operation: Operation) -> Materialized:
        corrected = {
            key: {
                "records_corrected": month.planned - month.skipped,
                "records_skipped": month.skipped,
            }
            for key, month in self._planned_months(operation).items()
        }
        self._describe_months(CORRECTED_MARKET_DATA, corrected)
        return dg.MaterializeResult(
            asset_key=CORRECTED_MARKET_DATA,
            metadata=operation_metadata(operation)
            | {"changes": changes_table(operation), "skipped": skipped_table(operation)},
        )

    def _describe_months(
        self, asset: dg.AssetKey, numbers: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Each month gets its own numbers: what a result carries is copied to all of them."""
        nothing = dict.fromkeys(next(iter(numbers.values()), {}), 0)
        for key in self.context.partition_keys:
            self.context.add_asset_metadata(
                numbers.get(key, nothing), asset_key=asset, partition_key=key
            )

    def _backup_result(self, operation: Operation) -> dg.AssetCheckResult:
        found = sum(month.planned for month in self._planned_months(operation).values())
        return backup_result(MARKET_DATA_BACKUP, operation, found, self.settings)

    def _kept_backup_result(self, operation: Operation) -> dg.AssetCheckResult:
        """Of an operation that may have ended long ago: its backup may rightly be gone."""
        backups = list_backups(self.connection, self.settings).backups
        kept = next((one for one in backups if one.correction_id == operation.correction_id), None)
        if kept is None or kept.dropped_at is None:
            return self._backup_result(operation)
        return dropped_backup_result(MARKET_DATA_BACKUP, operation, kept, self.settings)

    def _proved(self, correction_id: str) -> Iterator[dg.AssetCheckResult]:
        names = [NO_ROW_LOST_OR_INVENTED]
        yield from or_not_computed(
            self._proof_results(correction_id),
            lambda reason: not_computed(CORRECTED_MARKET_DATA, names, reason, self.settings),
        )

    def _proof_results(self, correction_id: str) -> Iterator[dg.AssetCheckResult]:
        with readable_failures():
            proved = proof(self.connection, self.settings, correction_id)
        yield proof_result(CORRECTED_MARKET_DATA, proved, self.settings)

    def _planned_months(self, operation: Operation) -> Mapping[str, PlannedMonth]:
        tables = inspect_market_tables(self.connection, self.settings, for_writing=False)
        found = planned_months(self.connection, tables, self.settings, operation.correction_id)
        return found or {}

    def _rehearse(self, request: CorrectionRequest) -> None:
        """Carry out a dry run and show it as an observation: nothing was materialised."""
        operation = self._correct(request)
        tables = inspect_market_tables(self.connection, self.settings, for_writing=False)
        # What a real one would meet: a dry run alone makes no backup that could be in the way.
        real = self.options.model_copy(update={"dry_run": False})
        found = preview(self.connection, tables, self.settings, real, scope=request.scope)
        self.context.log.info(
            "Dry run %s: %s rows would change in %s batches; nothing was changed.",
            operation.correction_id,
            f"{found.records:,}",
            f"{found.batches:,}",
        )
        for key in self.context.selected_asset_keys:
            self.context.log_event(
                dg.AssetObservation(
                    asset_key=key,
                    description="Dry run: what a correction would change; nothing was changed.",
                    metadata=preview_metadata(found) | {"correction_id": operation.correction_id},
                )
            )

    def _check_latest(self) -> Iterator[dg.AssetCheckResult]:
        """Only checks were asked for: about the newest correction that changed rows."""
        ended = operation_status(self.connection, self.settings, most=1).recent_operations
        if not ended:
            raise OperationNotFoundError(
                "No correction has changed rows yet, so there is nothing to check. Materialise "
                "corrected_market_data first."
            )
        if ended[0].backup_table:
            yield self._kept_backup_result(ended[0])
        yield from self._proved(ended[0].correction_id)
