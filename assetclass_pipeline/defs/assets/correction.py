"""Assets that write: the backup table, and the corrected market data.

Belongs here: which part of a correction a run asks the engine for, and what the UI then shows of
it. Does not: the correction.
"""

from collections.abc import Iterator, Mapping

import dagster as dg

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.defs.assets.sources import GROUP, OWNERS, TAGS
from assetclass_pipeline.defs.checks import (
    backup_check_spec,
    backup_result,
    proof_check_spec,
    proof_result,
)
from assetclass_pipeline.defs.failures import readable_failures
from assetclass_pipeline.defs.presentation import (
    changes_table,
    operation_metadata,
    preview_metadata,
    skipped_table,
)
from assetclass_pipeline.defs.resources import CorrectionOptionsResource, MarketDatabase
from assetclass_pipeline.defs.runs import (
    Materialized,
    ProgressLog,
    corrects_next,
    months_of,
    request_of,
)
from assetclass_pipeline.engine import correction
from assetclass_pipeline.engine.operations import proof
from assetclass_pipeline.engine.planned_months import PlannedMonth, planned_months
from assetclass_pipeline.engine.preview import preview
from assetclass_pipeline.model.operation import Operation, Proof
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.settings import Settings

MARKET_DATA_BACKUP = "market_data_backup"
CORRECTED_MARKET_DATA = "corrected_market_data"
POOL = "market_data"

_TERMINATED = (dg.DagsterExecutionInterruptedError,)


def market_data_backup_asset(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset `market_data_backup`."""

    @dg.asset(
        name=MARKET_DATA_BACKUP,
        description=(
            "Every row that a correction will change, with its class before and after: plan, undo "
            "log and audit trail in one table. Materialised alone it is a plan that waits: "
            "materialise corrected_market_data by re-executing the run. A dry run ends here."
        ),
        deps=["integrity_report", "symbols", "market_data"],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        pool=POOL,
        group_name=GROUP,
        owners=OWNERS,
        tags=TAGS,
        kinds={"postgres", "table"},
        check_specs=[backup_check_spec(MARKET_DATA_BACKUP)],
    )
    def market_data_backup(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[MarketDatabase],
        correction_options: CorrectionOptionsResource,
    ) -> Iterator[Materialized]:
        with readable_failures():
            options = correction_options.options()
            if options.dry_run:
                rehearse(context, database, options)
                return
            operation, months = _plan(context, database, options)
        planned = {key: {"records_planned": month.planned} for key, month in months.items()}
        _describe_months(context, database.settings, planned)
        yield dg.MaterializeResult(
            metadata=operation_metadata(operation),
            check_results=[
                backup_result(
                    MARKET_DATA_BACKUP, operation, sum(month.planned for month in months.values())
                )
            ],
        )

    return market_data_backup


def corrected_market_data_asset(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset `corrected_market_data`."""

    @dg.asset(
        name=CORRECTED_MARKET_DATA,
        description=(
            "market_data with every correctable row of these months corrected, and proved by a "
            "fresh scan. Without a partition: all rows. Alone it makes its own plan and backup."
        ),
        deps=[MARKET_DATA_BACKUP],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        pool=POOL,
        group_name=GROUP,
        owners=OWNERS,
        tags=TAGS,
        kinds={"postgres", "table"},
        check_specs=[proof_check_spec(CORRECTED_MARKET_DATA)],
    )
    def corrected_market_data(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[MarketDatabase],
        correction_options: CorrectionOptionsResource,
    ) -> Iterator[Materialized]:
        with readable_failures():
            options = correction_options.options()
            if options.dry_run:
                rehearse(context, database, options)
                return
            operation, months, proved = _correct(context, database, options)
        corrected = {
            key: {
                "records_corrected": month.planned - month.skipped,
                "records_skipped": month.skipped,
            }
            for key, month in months.items()
        }
        _describe_months(context, database.settings, corrected)
        yield dg.MaterializeResult(
            metadata=operation_metadata(operation)
            | {"changes": changes_table(operation), "skipped": skipped_table(operation)},
            check_results=[proof_result(CORRECTED_MARKET_DATA, proved)],
        )

    return corrected_market_data


def rehearse(
    context: dg.AssetExecutionContext, database: MarketDatabase, options: CorrectionOptions
) -> None:
    """Carry out a dry run and show it as an observation: nothing was materialised."""
    settings = database.settings
    with (
        database.address() as dsn,
        connect(dsn, settings, purpose="dry run") as connection,
    ):
        request = request_of(context, connection, settings, options)
        operation = correction.correct(
            dsn,
            settings,
            request,
            observe=ProgressLog(context.log),
            cancelled_by=_TERMINATED,
        )
        tables = inspect_market_tables(connection, settings, for_writing=False)
        found = preview(connection, tables, settings, options, scope=request.scope)
    context.log.info(
        "Dry run %s: %s rows would change in %s batches; nothing was changed.",
        operation.correction_id,
        f"{found.records:,}",
        f"{found.batches:,}",
    )
    context.log_event(
        dg.AssetObservation(
            asset_key=context.asset_key,
            description="Dry run: what a correction would change; nothing was changed.",
            metadata=preview_metadata(found) | {"correction_id": operation.correction_id},
        )
    )


def _plan(
    context: dg.AssetExecutionContext, database: MarketDatabase, options: CorrectionOptions
) -> tuple[Operation, Mapping[str, PlannedMonth]]:
    settings = database.settings
    with (
        database.address() as dsn,
        connect(dsn, settings, purpose="backup") as connection,
    ):
        operation = correction.plan(
            dsn,
            settings,
            request_of(context, connection, settings, options),
            park=not corrects_next(context),
            observe=ProgressLog(context.log),
            cancelled_by=_TERMINATED,
        )
        tables = inspect_market_tables(connection, settings, for_writing=False)
        months = planned_months(connection, tables, settings, operation.correction_id)
    return operation, months or {}


def _correct(
    context: dg.AssetExecutionContext, database: MarketDatabase, options: CorrectionOptions
) -> tuple[Operation, Mapping[str, PlannedMonth], Proof]:
    settings = database.settings
    with (
        database.address() as dsn,
        connect(dsn, settings, purpose="correction") as connection,
    ):
        operation = correction.correct(
            dsn,
            settings,
            request_of(context, connection, settings, options),
            observe=ProgressLog(context.log),
            cancelled_by=_TERMINATED,
        )
        tables = inspect_market_tables(connection, settings, for_writing=False)
        months = planned_months(connection, tables, settings, operation.correction_id)
        proved = proof(connection, settings, operation.correction_id)
    return operation, months or {}, proved


def _describe_months(
    context: dg.AssetExecutionContext, settings: Settings, by_month: Mapping[str, Mapping[str, int]]
) -> None:
    """Give each month of the run its own numbers.

    A run without partition stands for all months: Dagster records no partition for it, so the
    months are materialised here, one event each.
    """
    months = months_of(context, settings)
    for key in months.keys:
        metadata = by_month.get(key, {})
        if months.asked:
            context.add_asset_metadata(metadata, partition_key=key)
        else:
            context.log_event(
                dg.AssetMaterialization(
                    asset_key=context.asset_key, partition=key, metadata=metadata
                )
            )
