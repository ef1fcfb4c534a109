"""Backups as people see them in a terminal.

Belongs here: tables and sentences of `assetclass backups`. Does not: what they are about.
"""

from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from assetclass_pipeline.cli.presentation import bullets, count, duration, section, table
from assetclass_pipeline.model.backup import ArchiveState, BackupState
from assetclass_pipeline.model.throttle import in_bytes

if TYPE_CHECKING:
    from assetclass_pipeline.model.backup import (
        Archive,
        Backup,
        BackupList,
        CleanupReport,
        DrillReport,
        RestoredArchive,
        UnregisteredTable,
        Verification,
        VerificationReport,
    )

_COLOURS = {
    BackupState.KEPT: "green",
    BackupState.HELD: "cyan",
    BackupState.NEEDED: "cyan",
    BackupState.EXPIRED: "yellow",
    BackupState.DROPPED: "dim",
    BackupState.DROPPED_BY_HAND: "bold red",
}


def show_backups(console: Console, found: "BackupList") -> None:
    """Every backup with what keeps it, then tables that nobody registered."""
    if not found.backups:
        console.print(Text("There is no backup: no correction has changed rows yet."))
    else:
        made = table("backup", "rows", "size", "created", "state", right=("rows", "size"))
        made.columns[0].no_wrap = True
        for backup in found.backups:
            made.add_row(
                Text(f"{backup.table_name}\n{backup.correction_id}"),
                count(backup.records),
                _size(backup.bytes),
                f"{backup.created_at:%Y-%m-%d}",
                _state(backup),
            )
        console.print(section("Backups, newest first", made))
    if found.archives:
        title = "Archives of operations without a backup table"
        console.print(section(title, bullets(_file(file) for file in found.archives)))
    _show_unregistered(console, found.unregistered)


def _show_unregistered(console: Console, tables: "list[UnregisteredTable]") -> None:
    if tables:
        title = "Not ours: tables that look like backups and are left alone"
        lines = (f"{each.schema_name}.{each.table_name}, {_size(each.bytes)}" for each in tables)
        console.print(section(title, bullets(lines)))


def _file(file: "Archive") -> Text:
    line = Text(f"{file.file_name}, {count(file.records)} rows, {_size(file.bytes)}: ")
    return line + Text(file.state, "green" if file.state is ArchiveState.PRESENT else "yellow")


def show_cleanup(console: Console, report: "CleanupReport") -> None:
    """What went and what stayed, each with its reason."""
    went = "Would be dropped" if report.dry_run else "Dropped, after their rows were archived"
    for title, tables in ((went, report.dropped), ("Kept", report.kept)):
        if tables:
            console.print(section(title, bullets(f"{each.table} {each.why}" for each in tables)))
    if not report.dropped:
        console.print(Text("No backup was dropped." if not report.dry_run else "None would go."))
    if report.noticed:
        title = "Dropped by hand since the last look: nothing can be restored, nothing is archived"
        console.print(section(title, bullets(report.noticed)))
    if report.archives_removed:
        removed = "Archives that would be removed" if report.dry_run else "Archives removed"
        console.print(section(removed, bullets(report.archives_removed)))
    _show_unregistered(console, report.unregistered)


def _state(backup: "Backup") -> Text:
    line = Text(backup.why, _COLOURS[backup.state])
    if backup.verification is not None:
        passed = "verified" if backup.verification.get("passed") else "CANNOT RESTORE, verified"
        line += Text(f"; {passed} {_day(backup.verified_at)}")
    return line


def show_verifications(console: Console, report: "VerificationReport") -> None:
    """Each backup with its figures, problems and remarks."""
    if not report.verifications:
        console.print(Text("There is no backup to verify."))
    for found in report.verifications:
        verdict = Text("can restore", "green") if found.passed else Text("CANNOT RESTORE", "red")
        console.print(
            Text(f"{found.table} of operation {found.correction_id}: ") + verdict, soft_wrap=True
        )
        console.print(section(_figures(found), bullets([*found.problems, *found.remarks])))
    if report.bad_archives:
        title = "Archives that are not what was written: copy them back from your own copies"
        console.print(section(title, bullets(_file(file) for file in report.bad_archives)))


def _figures(found: "Verification") -> str:
    return (
        f"{count(found.records)} rows in {duration(found.duration_seconds)}: a rollback would "
        f"restore {count(found.restorable)}, find {count(found.changed)} changed, "
        f"{count(found.already_restored)} with their old value, {count(found.missing)} deleted"
    )


def show_drill(console: Console, report: "DrillReport | None") -> None:
    """How a drill went that proved what it restored."""
    if report is None:
        console.print(Text("There is no backup to try: no correction has changed rows yet."))
        return
    console.print(
        Text(f"{report.table} of operation {report.correction_id}: ")
        + Text("restored and proved equal, row by row", "green"),
        soft_wrap=True,
    )
    deleted = f", {count(report.missing)} were deleted since" if report.missing else ""
    rate = count(round(report.records_per_second or 0))
    limit = duration(report.limit_seconds)
    whole = duration(report.whole_restore_seconds)
    within = "within" if report.within_limit else "LONGER THAN"
    took = f"{count(report.restored)} rows in {duration(report.restore_seconds)}"
    every = f"All {count(report.market_records)} rows of the market table"
    lines = [
        f"{took} ({rate} rows a second){deleted}.",
        f"{every} would take about {whole}: {within} the limit of {limit}.",
        "The scratch copy was dropped; the market table was only read.",
    ]
    console.print(section("Recovery drill", bullets(lines)))


def show_restored(console: Console, restored: "RestoredArchive") -> None:
    """Where the rows of an archive are now."""
    proof = "proved by the checksum of the table that was dropped"
    unproved = "the dropped table had no checksum; that of the file is right"
    schema, _, name = restored.table.partition(".")
    console.print(
        f"{restored.table} holds {count(restored.records)} rows of operation "
        f"{restored.correction_id}, {proof if restored.proved else unproved}. `psql -X -f "
        f"deploy/sql/roll_back.sql -v backup_schema={schema} -v backup_table={name} -v dry_run=on` "
        "shows what would be put back from it. Drop it when it is not needed any more.",
        soft_wrap=True,
    )


def _size(number: int | None) -> str:
    return "-" if number is None else in_bytes(number)


def _day(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d}"
