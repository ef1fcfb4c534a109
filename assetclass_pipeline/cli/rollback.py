"""`assetclass rollback`: undo a correction.

Belongs here: parsing, asking before other people's changes are overwritten. Does not: the run
(pipeline), and how a rollback looks (presentation).
"""

import sys
from typing import Annotated

import typer

from assetclass_pipeline.cli import operation_presentation, presentation
from assetclass_pipeline.cli.ended import end
from assetclass_pipeline.cli.exit_status import FAILED
from assetclass_pipeline.cli.flags import Chosen, rollback_options, with_rollback_flags
from assetclass_pipeline.cli.pipeline import Undo, open_pipeline
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.operation import Operation


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
    batches, and `assetclass resume` goes on. Behind an API (--api) it goes on after Ctrl-C.
    """
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
    undo = Undo(correction_id, options, reason, ticket)
    with open_pipeline() as pipeline:
        if must_ask:
            _ask(pipeline.overwritten_by(undo))
        ended = pipeline.rollback(undo)
    end(ended, as_json=as_json)


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
