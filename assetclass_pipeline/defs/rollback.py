"""`rollback_job`: undo a correction, then measure the data again.

Belongs here: what a run asks the engine for, and what the UI then shows of it. Does not: the
rollback. Why ops and no assets: docs/decisions/0005-dagster-surface.md.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import Field

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.defs.assets.correction import CORRECTED_MARKET_DATA
from assetclass_pipeline.defs.assets.quality import QUALITY_REPORT, measure_quality
from assetclass_pipeline.defs.checks import QUALITY_CHECKS, not_computed, or_not_computed
from assetclass_pipeline.defs.failures import readable_failures
from assetclass_pipeline.defs.instance import POOL, keep_connections
from assetclass_pipeline.defs.presentation import rollback_metadata, rollback_month_metadata
from assetclass_pipeline.defs.resources import (
    MarketDatabase,
    RetryConfig,
    described,
    values_of,
)
from assetclass_pipeline.defs.runs import (
    TICKET_TAG,
    ProgressLog,
    operation_of,
    requester_of,
    takes_up_request,
)
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.planned_months import rolled_back_months
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.rollback import RollbackOptions, parse_rollback_options
from assetclass_pipeline.settings import Settings

ROLLBACK_JOB = "rollback_job"

_DEFAULTS = RollbackOptions()
_ROLLBACK = "rollback"
_TERMINATED = (dg.DagsterExecutionInterruptedError,)

_Measured = dg.AssetMaterialization | dg.AssetCheckEvaluation | dg.Output[None]


class RollbackConfig(dg.Config):
    """Which correction to undo, why, and how much of it.

    The launchpad checks types only; limits are checked when the run starts.
    """

    correction_id: str = Field(description="the correction to undo: its correctionId")
    reason: str = Field(description="why it is undone, for the audit")
    validate_after_rollback: bool = described(_DEFAULTS, "validate_after_rollback")
    target_symbols: list[str] | None = described(_DEFAULTS, "target_symbols")
    partitions: list[str] | None = described(_DEFAULTS, "partitions")
    row_ids: list[str] | None = described(_DEFAULTS, "row_ids")
    dry_run: bool = described(_DEFAULTS, "dry_run")
    take_backup_value: bool = described(_DEFAULTS, "take_backup_value")
    batch_size: int | None = described(_DEFAULTS, "batch_size")
    pace: str = described(_DEFAULTS, "pace")
    workers: int | None = described(_DEFAULTS, "workers")
    timeout: str = described(_DEFAULTS, "timeout")
    retry: RetryConfig | None = described(_DEFAULTS, "retry")

    def options(self) -> RollbackOptions:
        """The options, with every limit checked.

        Raises InvalidOptionsError naming each field and its limit.
        """
        if not self.reason.strip():
            raise InvalidOptionsError("reason: say why the correction is undone")
        return parse_rollback_options(values_of(self, RollbackOptions))


def rollback_run_config(
    correction_id: str, options: RollbackOptions, *, reason: str
) -> dict[str, Any]:
    """Run config with which a run of `rollback_job` undoes the correction."""
    said = options.model_dump(mode="json", by_alias=False, exclude_none=True)
    config = {"correction_id": correction_id, "reason": reason, **said}
    return {"ops": {_ROLLBACK: {"config": config}}}


@dg.op(
    name=_ROLLBACK,
    description="Put the old values back where nobody changed the row since; list the others.",
    # Nothing to measure again comes out of a dry run: the second step is then skipped.
    out={"restored": dg.Out(dg.Nothing, is_required=False)},
    pool=POOL,
)
def _rollback(
    context: dg.OpExecutionContext,
    config: RollbackConfig,
    database: dg.ResourceParam[MarketDatabase],
) -> Iterator[dg.Output[None]]:
    keep_connections(context.instance)
    settings = database.settings
    with (
        readable_failures(),
        database.address() as dsn,
        connect(dsn, settings, purpose="dagster step") as connection,
    ):
        request = _request_of(context.run, config, connection, settings)
        operation = roll_back(
            dsn,
            settings,
            request,
            observe=ProgressLog(context.log),
            cancelled_by=_TERMINATED,
        )
        if not operation.dry_run:
            _observe_months(context, operation, connection, settings)
        # The last one stands first on the page of the asset.
        _observe(context, operation)
    if operation.dry_run:
        return
    if not operation.options["validateAfterRollback"]:
        context.log.info("quality_report is not measured again: validate_after_rollback is false.")
        return
    yield dg.Output(None, "restored")


def _request_of(
    run: dg.DagsterRun,
    config: RollbackConfig,
    connection: Connection[TupleRow],
    settings: Settings,
) -> RollbackRequest:
    """The rollback that this run carries out: a new one, or the one that its parent left."""
    options = config.options()
    correction_id, retry_of = operation_of(run, connection, settings)
    return RollbackRequest(
        correction_id=correction_id,
        rollback_of=str(as_uuid(config.correction_id.strip())),
        options=options,
        requested_by=requester_of(run),
        reason=config.reason,
        ticket=run.tags.get(TICKET_TAG),
        run_id=run.run_id,
        retry_of=retry_of,
        only_while_active=takes_up_request(run),
    )


def _observe_months(
    context: dg.OpExecutionContext,
    operation: Operation,
    connection: Connection[TupleRow],
    settings: Settings,
) -> None:
    """Each month that the rollback met hears of it; a materialisation would blank its checks."""
    tables = inspect_market_tables(connection, settings, for_writing=False)
    months = rolled_back_months(connection, tables, settings, operation)
    for key, month in sorted(months.items()):
        context.log_event(
            dg.AssetObservation(
                asset_key=CORRECTED_MARKET_DATA,
                partition=key,
                description=f"Rolled back: {_counts(month.restored, month.conflicting)}.",
                metadata=rollback_month_metadata(operation, month),
            )
        )


def _observe(context: dg.OpExecutionContext, operation: Operation) -> None:
    """The whole rollback at once, with its changes and conflicts; of a dry run, all there is."""
    conflicting = operation.records_conflicting or 0
    if operation.dry_run:
        would = f"{operation.records_planned or 0:,} rows would be restored"
        said = f"Dry run: {would}, {conflicting:,} are in conflict; nothing was changed."
    else:
        said = f"Rolled back: {_counts(operation.records_restored or 0, conflicting)}."
    context.log.info(said)
    context.log_event(
        dg.AssetObservation(
            asset_key=CORRECTED_MARKET_DATA,
            description=said,
            metadata=rollback_metadata(operation),
        )
    )


def _counts(restored: int, conflicting: int) -> str:
    """Rows that have their old value, and those that were changed by others since."""
    said = f"{restored:,} rows have their old value again"
    return f"{said}, {conflicting:,} were changed by others and left alone" if conflicting else said


@dg.op(
    name="measure_again",
    description="Measure the data by a fresh scan, and check every threshold.",
    ins={"restored": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
)
def _measure_again(
    context: dg.OpExecutionContext, database: dg.ResourceParam[MarketDatabase]
) -> Iterator[_Measured]:
    settings = database.settings
    yield from or_not_computed(
        _measured_again(context, database),
        lambda reason: [
            _evaluation(result, None)
            for result in not_computed(QUALITY_REPORT, QUALITY_CHECKS, reason, settings)
        ],
    )


def _measured_again(
    context: dg.OpExecutionContext, database: MarketDatabase
) -> Iterator[_Measured]:
    measured = measure_quality(database, context.run)
    yield dg.AssetMaterialization(QUALITY_REPORT, metadata=measured.metadata)
    # It is stored by now. A check that names no materialisation would look outdated in the UI.
    [materialized] = context.instance.fetch_materializations(QUALITY_REPORT, limit=1).records
    target = AssetCheckEvaluationTargetMaterializationData(
        storage_id=materialized.storage_id,
        run_id=materialized.run_id,
        timestamp=materialized.timestamp,
    )
    for result in measured.checks:
        yield _evaluation(result, target)
    yield dg.Output(None)


def _evaluation(
    result: dg.AssetCheckResult, target: AssetCheckEvaluationTargetMaterializationData | None
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=QUALITY_REPORT,
        check_name=str(result.check_name),
        passed=result.passed,
        metadata=result.metadata,
        target_materialization_data=target,
        severity=result.severity,
        description=result.description,
    )


@dg.job(
    name=ROLLBACK_JOB,
    description=(
        "Undo a correction: each row gets its old value back unless somebody changed it since; "
        "those are listed as conflicts and left alone. With dry_run nothing is changed. A failed "
        "or terminated run goes on where it stopped by re-executing."
    ),
    executor_def=dg.in_process_executor,
)
def rollback_job() -> None:
    """The two steps, one after the other."""
    _measure_again(_rollback())
