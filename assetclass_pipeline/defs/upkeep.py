"""Jobs that look after backups: the weekly cleanup and the quarterly recovery drill.

Belongs here: ops that ask the engine and show what it answers. Does not: what is dropped or
proved. Both may run beside an operation, so neither takes a slot of its pool.
"""

import dagster as dg
from pydantic import Field

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.defs.failures import readable_failures
from assetclass_pipeline.defs.presentation import cleanup_metadata, drill_metadata
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.runs import requester_of
from assetclass_pipeline.engine.backup_cleanup import clean_up
from assetclass_pipeline.engine.recovery_drill import drill_recovery
from assetclass_pipeline.errors import ArchiveError
from assetclass_pipeline.model.backup import CleanupReport

BACKUP_CLEANUP_JOB = "backup_cleanup_job"
RECOVERY_DRILL_JOB = "recovery_drill_job"


class CleanupConfig(dg.Config):
    """How backups are cleaned up."""

    dry_run: bool = Field(default=False, description="only say what would be dropped")


class DrillConfig(dg.Config):
    """Which backup is tried."""

    correction_id: str | None = Field(
        default=None, description="the operation whose backup is tried; unset: the newest one"
    )


@dg.op(description="Archive and drop backups that are expired, proved, neither held nor needed.")
def clean_up_backups(
    context: dg.OpExecutionContext,
    config: CleanupConfig,
    database: dg.ResourceParam[MarketDatabase],
) -> None:
    """Show what went and what stayed, each with its reason, as metadata of the output."""
    settings = database.settings
    with (
        readable_failures(),
        database.address() as dsn,
        connect(dsn, settings, purpose="backup cleanup") as connection,
    ):
        require_schema(connection)
        report = clean_up(
            connection, settings, by=requester_of(context.run), dry_run=config.dry_run
        )
    verb = "Would drop" if report.dry_run else "Dropped"
    context.log.info("%s %d backups, kept %d.", verb, len(report.dropped), len(report.kept))
    for correction_id in report.noticed:
        context.log.warning(
            "The backup of operation %s was dropped by hand: it cannot be rolled back, and its "
            "rows are in no archive.",
            correction_id,
        )
    context.add_output_metadata(cleanup_metadata(report))
    with readable_failures():
        _require_all_gone(report)


def _require_all_gone(report: CleanupReport) -> None:
    """Fail, after the others are gone, where one could not go; else disks fill up unnoticed."""
    stayed = [kept for kept in report.kept if kept.failed]
    if stayed and not report.dry_run:
        first = stayed[0]
        raise ArchiveError(
            f"{len(stayed)} of {len(report.kept) + len(report.dropped)} backups could not be "
            f"cleaned up. {first.table} {first.why}"
        )


@dg.op(description="Restore a backup into a scratch copy and prove it row by row.")
def drill_recovery_of_backup(
    context: dg.OpExecutionContext,
    config: DrillConfig,
    database: dg.ResourceParam[MarketDatabase],
) -> None:
    """Show rows, time and the limit as metadata of the output; fail where something differs."""
    settings = database.settings
    with readable_failures(), database.address() as dsn:
        with connect(dsn, settings, purpose="recovery drill") as connection:
            require_schema(connection)
        report = drill_recovery(
            dsn, settings, by=requester_of(context.run), correction_id=config.correction_id
        )
    if report is None:
        context.log.info("There is no backup to try: no correction has changed rows yet.")
        context.add_output_metadata({"result": "no backup"})
        return
    if not report.within_limit:
        context.log.warning(
            "Restoring all %s rows would take about %.0f s, longer than the limit of %.0f s.",
            f"{report.market_records:,}",
            report.whole_restore_seconds or 0,
            report.limit_seconds,
        )
    context.add_output_metadata(drill_metadata(report))


@dg.job(
    name=BACKUP_CLEANUP_JOB,
    description=(
        "Drop backup tables that are expired, proved, and neither held nor needed, after their "
        "rows were archived; say why each other one is kept. With dry_run nothing is dropped. It "
        "fails, after all others, where one that should go cannot be archived or proved."
    ),
    executor_def=dg.in_process_executor,
)
def backup_cleanup_job() -> None:
    """One step."""
    clean_up_backups()


@dg.job(
    name=RECOVERY_DRILL_JOB,
    description=(
        "Restore the newest backup into a scratch copy as the operators' guide does, prove it "
        "row by row, and tell how long a restore takes. The market table is only read."
    ),
    executor_def=dg.in_process_executor,
)
def recovery_drill_job() -> None:
    """One step."""
    drill_recovery_of_backup()
