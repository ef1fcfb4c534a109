"""How audit entries, the check of their chain, and a row's history look to people.

Belongs here: tables and sentences. Does not: JSON, which is the models' own.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from assetclass_pipeline.cli.presentation import bullets, class_name, count, section, table
from assetclass_pipeline.model.audit import ActorKind, AuditRecord, Head, Verification
from assetclass_pipeline.model.row_history import RowEvent, RowHistory, RowTrail

# Good outcomes; whatever else came of an action is worth a look.
_GOOD = {"begun", "resumed", "continued", "succeeded", "planned", "asked", "done"}
_DETAILS = ("reason", "ticket", "recordsCorrected", "message", "otherOperation")
_UNSURE = {ActorKind.SYSTEM, ActorKind.DAGSTER_UI}


def show_entries(console: Console, entries: Sequence[AuditRecord]) -> None:
    """Entries, the newest first."""
    if not entries:
        console.print("No entry is like that.")
        return
    made = table("no.", "when (UTC)", "who", "what", "outcome", "of operation, and details")
    for entry in entries:
        made.add_row(
            str(entry.number),
            moment(entry.happened_at),
            Text(_who(entry)),
            Text(entry.action.replace("_", " ")),
            Text(entry.outcome, "green" if entry.outcome in _GOOD else "yellow"),
            Text(_details(entry)),
        )
    console.print(made)


def moment(when: datetime | None) -> str:
    """A time to the second; a dash where there is none."""
    return "-" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _who(entry: AuditRecord) -> str:
    if entry.actor_kind in _UNSURE:
        return entry.actor
    return f"{entry.actor} ({entry.actor_kind.replace('_', ' ')})"


def _details(entry: AuditRecord) -> str:
    said: Mapping[str, object] = entry.parameters
    parts = [entry.correction_id] if entry.correction_id else []
    parts += [f"{name}: {said[name]}" for name in _DETAILS if said.get(name)]
    return ", ".join(parts) or ", ".join(f"{name}: {value}" for name, value in said.items())


def show_verification(console: Console, found: Verification, noted: Head | None) -> None:
    """A chain that is whole."""
    console.print(Text(f"Whole: {count(found.entries)} entries.", "bold green"))
    if found.head is None:
        return
    if noted is not None:
        console.print(f"Entry {noted.number} is still the one that was noted.")
    console.print(f"Head: {found.head}", soft_wrap=True)
    console.print(
        "Note it where the database's owner cannot write; `assetclass audit verify --head` "
        "compares with it later."
    )


def show_history(console: Console, history: RowHistory) -> None:
    """All rows with one id."""
    for row in history.rows:
        console.print(Text(_headline(history, row), "bold"))
        console.print()
        if row.events:
            console.print(section("What happened, the oldest first", _events_table(row)))
            if lines := [*_remarks(row)]:
                console.print(section("Mind", bullets(lines)))
        console.print(section("The way back", bullets(_way_back(row))))
    if lost := _lost(history):
        console.print(section("What nobody can tell any more", bullets(lost)))


def _headline(history: RowHistory, row: RowTrail) -> str:
    name = f"Row {history.id}, {row.symbol or 'NULL'} at {row.timestamp or 'NULL'}"
    if row.now is not None:
        changed = f", changed at {row.now.updated_at}" if row.now.updated_at else ""
        return f"{name}: now {class_name(row.now.asset_class)}{changed}"
    return f"{name}: deleted" if row.exists is False else f"{name}: not looked up"


def _events_table(row: RowTrail) -> Table:
    made = table("when (UTC)", "what", "from", "to", "operation", "by", "because")
    for event in row.events:
        made.add_row(
            moment(event.happened_at),
            Text(_what(event), "" if event.has_changed else "yellow"),
            class_name(event.from_),
            class_name(event.to),
            Text(event.correction_id),
            Text(event.requested_by),
            Text(", ".join(filter(None, (event.reason, event.ticket, _why(event)))) or "-"),
        )
    return made


def _what(event: RowEvent) -> str:
    if event.has_changed:
        return {"correction": "corrected", "rollback": "rolled back"}[event.kind]
    return f"{event.kind} {event.outcome}"


def _why(event: RowEvent) -> str | None:
    return event.why and event.why.replace("_", " ")


def _remarks(row: RowTrail) -> Iterator[str]:
    for event in row.events:
        if event.undone_by:
            yield f"{event.correction_id} was undone by {event.undone_by}."
        if event.changed_by_others_before:
            yield f"Somebody else had changed it before {event.correction_id}."
        if event.not_after:
            yield (
                f"A sweep of {event.correction_id} may have written it up to "
                f"{moment(event.not_after)}."
            )
    if row.changed_by_others_since:
        deleted = row.exists is False
        yield f"Somebody else has {'deleted' if deleted else 'changed'} it since."


def _way_back(row: RowTrail) -> list[str | Text]:
    back = row.way_back
    if not back.possible:
        return [f"It cannot be put back: {back.why}."]
    return [f"{back.command}", Text("sets it to ") + class_name(back.asset_class), f"{back.why}."]


def _lost(history: RowHistory) -> list[str]:
    lines = [
        f"{gone.kind} {gone.correction_id} of {moment(gone.finished_at)} changed "
        f"{count(gone.records)} rows of this symbol; which ones is lost: {gone.why}."
        for gone in history.gone
    ]
    if history.operations_without_rows:
        lines.append(
            f"{_some(history.operations_without_rows, 'operation')} touched rows that are gone; "
            "their per-symbol summary stays."
        )
    if history.archives_not_read:
        lines.append(
            f"{_some(history.archives_not_read, 'archive')} may hold the row and could not be "
            "read. --symbol leaves out those without rows of a symbol."
        )
    return lines


def _some(number: int, thing: str) -> str:
    return f"{count(number)} {thing}" if number == 1 else f"{count(number)} {thing}s"
