"""`assetclass backups list | verify | cleanup | hold | release | drill |
restore-archive`.

Belongs here: parsing, calling the engine, printing what it answers. Does not: how that looks to
people (backup_presentation.py).
"""

from typing import Annotated

import typer

from assetclass_pipeline.cli import backup_presentation as shown
from assetclass_pipeline.cli.exit_status import FAILED
from assetclass_pipeline.cli.presentation import document, for_people, print_document, print_model
from assetclass_pipeline.cli.records import open_records
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.engine import backups
from assetclass_pipeline.engine.archive_restore import restore_archive
from assetclass_pipeline.engine.backup_cleanup import clean_up
from assetclass_pipeline.engine.backup_verification import verify_all, verify_backup
from assetclass_pipeline.engine.recovery_drill import drill_recovery
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.backup import VerificationReport

OperationId = Annotated[str, typer.Argument(help="The operation that made it.", metavar="ID")]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _backups(context: typer.Context) -> None:
    """List, prove, hold and clean up what can undo a correction."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show every backup table, what keeps it, and tables that only look like one."""
    with open_records("backups list") as (connection, settings, _):
        found = backups.list_backups(connection, settings)
    if as_json:
        print_model(found)
    else:
        shown.show_backups(for_people(), found)


@app.command()
def verify(
    correction_id: Annotated[
        str | None, typer.Argument(help="The operation that made it.", metavar="[ID]")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every backup that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove that a backup can restore; nothing is changed. Exit status 1 when one cannot.

    Its checksum must be what it was when it was written, its rows must be found in the market table
    (how many were deleted or changed since is told), and the column must still take its old values.
    """
    if every is (correction_id is not None):
        raise InvalidOptionsError("Name one operation, or say --all for every backup.")
    with open_records("backups verify") as (connection, settings, _):
        if correction_id is None:
            report = verify_all(connection, settings, by=this_user())
        else:
            found = verify_backup(connection, settings, correction_id, by=this_user())
            report = VerificationReport(verifications=[found], archives=[])
    if as_json:
        print_model(report)
    else:
        shown.show_verifications(for_people(), report)
    if not report.passed:
        raise typer.Exit(FAILED)


@app.command()
def cleanup(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be dropped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Archive and drop backups that are expired, proved, and neither held nor needed.

    Each one that is kept is named with its reason. Tables that look like backups and are not in the
    registry are reported, never dropped. Exit status 1 when one that should go could not.
    """
    with open_records("backups cleanup") as (connection, settings, _):
        report = clean_up(connection, settings, by=this_user(), dry_run=dry_run)
    if as_json:
        print_model(report)
    else:
        shown.show_cleanup(for_people(), report)
    if any(kept.failed for kept in report.kept):
        raise typer.Exit(FAILED)


@app.command()
def hold(
    correction_id: OperationId,
    reason: Annotated[
        str, typer.Option("--reason", help="Why it must stay, for those who find it later.")
    ],
    as_json: AsJson = False,
) -> None:
    """Keep a backup beyond its retention until it is released."""
    if not reason.strip():
        raise InvalidOptionsError("--reason: say why the backup must stay.")
    with open_records("backups hold") as (connection, settings, _):
        held = backups.hold(connection, settings, correction_id, by=this_user(), reason=reason)
    if as_json:
        print_model(held)
    else:
        for_people().print(
            f"Backup {held.table_name} of operation {correction_id} is held until "
            f"`assetclass backups release {correction_id}`.",
            soft_wrap=True,
        )


@app.command()
def release(correction_id: OperationId, as_json: AsJson = False) -> None:
    """Let a held backup expire again."""
    with open_records("backups release") as (connection, settings, _):
        released = backups.release(connection, settings, correction_id, by=this_user())
    if as_json:
        print_model(released)
    else:
        for_people().print(
            f"Backup {released.table_name} of operation {correction_id}: {released.why}.",
            soft_wrap=True,
        )


@app.command()
def drill(
    correction_id: Annotated[
        str | None,
        typer.Argument(help="The operation; without it, the newest backup.", metavar="[ID]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a scratch copy and prove it row by row; tell how long it takes.

    The market table is only read, and the copy is dropped whatever happens.
    """
    with open_records("backups drill") as (_, settings, dsn):
        report = drill_recovery(dsn, settings, by=this_user(), correction_id=correction_id)
    if as_json:
        print_document({"drill": None if report is None else document(report)})
    else:
        shown.show_drill(for_people(), report)


@app.command("restore-archive")
def restore_archive_(correction_id: OperationId, as_json: AsJson = False) -> None:
    """Make a table of an archive again, in the shape of the backup that was dropped.

    It stands in the schema assetclass; the operators' guide's restore works on it. No market row is
    changed.
    """
    with open_records("backups restore-archive") as (connection, settings, _):
        restored = restore_archive(connection, settings, correction_id, by=this_user())
    if as_json:
        print_model(restored)
    else:
        shown.show_restored(for_people(), restored)
