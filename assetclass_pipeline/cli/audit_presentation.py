"""How audit entries, the check of their chain, and a row's history look to people.

Belongs here: tables and sentences. Does not: JSON, which is the models' own.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from assetclass_pipeline.cli.presentation import count, table
from assetclass_pipeline.model.audit import ActorKind, AuditRecord, Head, Verification

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
