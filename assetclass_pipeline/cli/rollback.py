"""`assetclass rollback`: undo a correction.

Belongs here: parsing, asking before other people's changes are overwritten. Does not: the run
(through_dagster), and how a rollback looks (presentation).
"""

import sys
from typing import Annotated
from uuid import uuid4

import typer

from assetclass_pipeline.cli import operation_presentation, presentation
from assetclass_pipeline.cli.exit_status import FAILED
from assetclass_pipeline.cli.flags import Chosen, rollback_options, with_rollback_flags
from assetclass_pipeline.cli.through_dagster import (
    end_run,
    refuse_rollback,
    roll_back_when_free,
)
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import open_database
from assetclass_pipeline.engine.audit import Asker, refusals_recorded
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.errors import AlreadyRolledBackError, InvalidOptionsError
from assetclass_pipeline.model.audit import Action
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.settings import Settings, load_settings


@with_rollback_flags
def rollback(
    *,
    chosen: Chosen,
    correction_id: Annotated[
        str, typer.Argument(help="The correction to undo.", metavar="CORRECTION_ID")
    ],
    reason: Annotated[str, typer.Option(help="Why it is undone, for the audit.")],
    ticket: Annotated[
        str | None, typer.Option(help="The ticket that asks for it.", show_default=False)
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before --take-backup-value overwrites.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
    ] = False,
) -> None:
    """Undo a correction through Dagster's rollback_job.

    Each row gets its old value back unless somebody changed it since the correction; those are
    left alone and listed as conflicts. The run stands in the UI. Ctrl-C stops it between two
    batches, and `assetclass resume` goes on.
    """
    settings = load_settings()
    options = rollback_options(chosen)
    if not reason.strip():
        raise InvalidOptionsError("--reason: say why the correction is undone.")
    must_ask = options.take_backup_value and not (options.dry_run or yes)
    if must_ask and not sys.stdin.isatty():
        raise InvalidOptionsError(
            "--take-backup-value overwrites what others changed since the correction, and here is "
            "no terminal to ask on. `--dry-run` without it lists those rows; add --yes when they "
            "may be overwritten."
        )
    with open_database(settings) as dsn:
        if settings.database_url is None:
            schema.upgrade(dsn, settings)
        if must_ask:
            asker = Asker(this_user(), reason, ticket)
            of = {"rollbackOf": correction_id}
            with refusals_recorded(dsn, settings, asker, Action.CLAIM_OPERATION, **of):
                refuse_rollback(dsn, settings, correction_id, options)
            _ask(_look(dsn, settings, correction_id, options))
        run = roll_back_when_free(
            dsn, settings, correction_id, options, reason=reason, ticket=ticket
        )
    end_run(run, as_json=as_json)


def _look(dsn: str, settings: Settings, correction_id: str, options: RollbackOptions) -> Operation:
    """A dry run that tells which rows were changed by others: those would be overwritten."""
    polite = options.model_copy(update={"dry_run": True, "take_backup_value": False})
    try:
        return _rehearse(dsn, settings, correction_id, polite)
    except AlreadyRolledBackError:
        # Only its conflicts are left, so everything that is planned would be overwritten.
        blunt = options.model_copy(update={"dry_run": True})
        return _rehearse(dsn, settings, correction_id, blunt)


def _rehearse(
    dsn: str, settings: Settings, correction_id: str, options: RollbackOptions
) -> Operation:
    request = RollbackRequest(
        correction_id=str(uuid4()),
        rollback_of=correction_id,
        options=options,
        requested_by=this_user(),
        reason="which rows --take-backup-value would overwrite",
    )
    return roll_back(dsn, settings, request)


def _ask(found: Operation) -> None:
    """Return when the answer is yes; without rows of others there is nothing to ask."""
    overwritten = found.records_conflicting or 0
    if found.options["takeBackupValue"]:
        overwritten = found.records_planned or 0
    if not overwritten:
        return
    console = presentation.aside()
    if found.conflicts:
        console.print(operation_presentation.conflicts_section(found))
    if not typer.confirm(
        f"{overwritten:,} rows were changed by others since the correction. Overwrite these "
        "changes with the values from before it?",
        err=True,
    ):
        console.print("Nothing was changed.")
        raise typer.Exit(FAILED)
