"""How operations look on a terminal: one in full, and the list of them.

Belongs here: turning a correction or rollback into text. Does not: what all commands print alike
(presentation).
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from assetclass_pipeline.cli.presentation import (
    MOST_SAMPLES,
    SCORE_NAMES,
    bullets,
    class_name,
    count,
    duration,
    facts,
    finding_line,
    section,
    table,
)

if TYPE_CHECKING:
    from assetclass_pipeline.model.operation import Operation, OperationStatus

_MOST_CHANGES = 10
_MOST_CONFLICTS = 20
_TOLD_AS_CONFLICTS = ("changed_by_others", "deleted", "already_restored")
_COLOURS = {
    "succeeded": "green",
    "planned": "cyan",
    "running": "cyan",
    "requested": "cyan",
    "paused": "yellow",
    "interrupted": "yellow",
    "cancelled": "yellow",
}
_UPPER = re.compile("[A-Z]")


def show_operation(console: Console, operation: "Operation") -> None:
    """One operation in full for people."""
    console.print(
        Text(f"{_kind(operation)} {operation.correction_id} ", "bold")
        + status_text(str(operation.status))
    )
    console.print()
    console.print(Padding(facts(_operation_facts(operation)), (0, 0, 1, 2), expand=False))
    for part in _operation_sections(operation):
        console.print(part)


def _operation_sections(operation: "Operation") -> Iterator[RenderableType]:
    """Each with its title, where there is something to say."""
    if operation.error is not None:
        yield section("Error", Text(f"{operation.error.message} ({operation.error.code})"))
    if grave := _grave_findings(operation):
        yield section("Preflight", bullets(grave))
    # Of one that goes on they are those of its last try, and in a list not all.
    if operation.changes and not operation.is_active:
        yield section("Changes", changes_table(operation))
    if operation.quality_after:
        yield _scores(operation)
    if operation.conflicts:
        yield conflicts_section(operation)
    if operation.quarantined:
        yield section("Refused by the database", quarantine_table(operation))
    if operation.events:
        yield section("Events, newest first", events_table(operation))
    if steps := _next_steps(operation):
        yield section("What to do", bullets(steps))


def _kind(operation: "Operation") -> str:
    if not operation.dry_run:
        return str(operation.kind)
    return "dry run" if operation.rollback_of is None else "dry run of a rollback"


def _scores(operation: "Operation") -> RenderableType:
    """Scores of the whole table in percent, as far as the operation measured them."""
    after = "would be" if operation.dry_run else "after"
    found = {"before": operation.quality_before, after: operation.quality_after}
    measured = {when: scores for when, scores in found.items() if scores}
    made = table("score", *measured, right=measured)
    for key in ("completeness", "qualityScore"):
        made.add_row(SCORE_NAMES[key], *(f"{scores[key]:.2f}" for scores in measured.values()))
    return section("Scores", made)


def conflicts_section(operation: "Operation") -> RenderableType:
    """Rows that a rollback leaves alone, with their class before, corrected and now."""
    made = table("id", "symbol", "timestamp", "before", "corrected", "now", "because")
    for row in operation.conflicts[:_MOST_CONFLICTS]:
        cells = (Text(row.id or "NULL"), Text(row.symbol or "NULL"), Text(row.timestamp or "NULL"))
        now = Text("-", "dim") if row.reason == "deleted" else class_name(row.now)
        classes = (class_name(row.before), class_name(row.corrected), now)
        made.add_row(*cells, *classes, Text(row.reason.replace("_", " ")))
    more = (operation.records_conflicting or 0) - _MOST_CONFLICTS
    if more > 0:
        made.add_row(Text(f"and {count(more)} more", "dim"))
    title = "Conflicts: changed by others since the correction"
    if not operation.dry_run:
        title += ", left alone"
    return section(title, made)


def _next_steps(operation: "Operation") -> list[str]:
    """What a person may want to do with an operation that has ended."""
    if operation.is_active:
        return []
    if operation.rollback_of is None:
        changed = operation.records_corrected and not operation.dry_run
        can_be_undone = operation.backup_table and operation.rolled_back_by is None
        undo = f"`assetclass rollback {operation.correction_id} --reason ...` undoes it."
        return [undo] if changed and can_be_undone else []
    if operation.status != "succeeded":
        return []
    again = f"assetclass rollback {operation.rollback_of} --reason ..."
    if operation.dry_run:
        return [f"Nothing was changed. `{again}` with the same options does it."]
    steps = [
        (
            "`assetclass execute` corrects the rows again, with --overwrite-existing where "
            "values were overwritten."
        )
    ]
    if any(row.reason != "deleted" for row in operation.conflicts):
        chosen = ", with the same choice of rows," if _is_partial(operation) else ""
        steps.append(
            "The conflicts hold what others wrote. "
            f"`{again} --take-backup-value`{chosen} overwrites them too."
        )
    return steps


def _grave_findings(operation: "Operation") -> list[Text]:
    """What the preflight of an operation warned of; what is only good to know is in a preview."""
    findings = (operation.preflight or {}).get("findings", [])
    return [
        finding_line(finding["severity"], finding["message"])
        for finding in findings
        if finding["severity"] != "info"
    ]


def _is_partial(rollback: "Operation") -> bool:
    return any(rollback.options.get(name) for name in ("targetSymbols", "partitions", "rowIds"))


def quarantine_table(operation: "Operation") -> Table:
    """Rows that the database refused to change, and what it said."""
    made = table("id", "symbol", "timestamp", "should become", "because")
    for row in operation.quarantined[:MOST_SAMPLES]:
        cells = (Text(row.id or "NULL"), Text(row.symbol or "NULL"), Text(row.timestamp or "NULL"))
        made.add_row(*cells, class_name(row.corrected_asset_class), Text(row.error_message))
    if operation.records_failed > MOST_SAMPLES:
        made.add_row(Text(f"and {count(operation.records_failed - MOST_SAMPLES)} more", "dim"))
    return made


def events_table(operation: "Operation") -> Table:
    """What was asked of the operation, and what it met."""
    made = table("when (UTC)", "what", "who", "details")
    for event in operation.events[:_MOST_CHANGES]:
        when = (_moment(event.happened_at) or "-").removesuffix(" UTC")
        details = ", ".join(_details(event.details))
        made.add_row(when, Text(event.event.replace("_", " ")), Text(event.actor), Text(details))
    return made


def _details(details: Mapping[str, object]) -> Iterator[str]:
    """Each detail with its name as the command line writes it."""
    for name, value in sorted(details.items(), key=lambda entry: isinstance(entry[1], Mapping)):
        if isinstance(value, Mapping):
            yield from (f"{name} {entry}" for entry in _details(value))
        else:
            yield f"{_UPPER.sub(_lowered, name)} {'off' if value is None else value}"


def _lowered(upper: re.Match[str]) -> str:
    return f"_{upper[0].lower()}"


def status_text(status: str) -> Text:
    """The status in its colour."""
    return Text(status, f"bold {_COLOURS.get(status, 'red')}")


def changes_table(operation: "Operation") -> Table:
    """The operation's changes summed by old and new class."""
    summed: dict[tuple[str | None, str | None], tuple[int, set[str | None]]] = {}
    for change in operation.changes:
        records, symbols = summed.get((change.from_, change.to), (0, set()))
        summed[change.from_, change.to] = (records + change.records, symbols | {change.symbol})
    made = table("from", "to", "rows", "symbols", right=("rows", "symbols"))
    ordered = sorted(summed.items(), key=lambda entry: -entry[1][0])
    for (before, after), (records, symbols) in ordered[:_MOST_CHANGES]:
        made.add_row(class_name(before), class_name(after), count(records), count(len(symbols)))
    if len(ordered) > _MOST_CHANGES:
        made.add_row(Text(f"and {len(ordered) - _MOST_CHANGES} more", "dim"))
    return made


def _operation_facts(operation: "Operation") -> dict[str, RenderableType]:
    found: dict[str, RenderableType] = {
        "phase": f"{operation.doing}, {operation.progress_percent:.1f} %",
    }
    if operation.silent_seconds is not None:
        found["process"] = _silence_line(operation.silent_seconds, operation)
    if operation.throttle:
        found["waits now"] = Text(" ".join(operation.throttle), "yellow")
    found["rows"] = _rows_line(operation)
    if skipped := _skipped_line(operation):
        found["skipped"] = skipped
    optional = {
        "batches": _batches_line(operation),
        "rows a second": count(round(operation.records_per_second or 0))
        if operation.records_per_second
        else None,
        "started": _moment(operation.started_at),
        "took": duration(operation.duration_seconds) if operation.duration_seconds else None,
        "estimated": _estimate_line(operation),
        "asked by": operation.requested_by or None,
        "reason": operation.reason,
        "ticket": operation.ticket,
        "Dagster run": operation.run_id,
        "backup table" if operation.rollback_of is None else "plan table": operation.backup_table,
        "retry of": operation.retry_of,
        "rollback of": operation.rollback_of,
        "rolled back by": operation.rolled_back_by,
        "waited": _waits_line(operation),
        "window ends": _moment(operation.window_ends_at) if operation.is_active else None,
    }
    return found | {name: Text(value) for name, value in optional.items() if value}


def _silence_line(seconds: float, operation: "Operation") -> Text:
    """What somebody needs to know who wonders whether it is still at work."""
    goes_on = f"`assetclass resume {operation.correction_id}` goes on with it"
    if operation.abandoned:
        return Text(f"dead, not heard of for {duration(seconds)}; {goes_on}", "bold red")
    return Text(
        f"not heard of for {duration(seconds)}; once it counts as dead, {goes_on}", "yellow"
    )


def _skipped_line(operation: "Operation") -> str:
    """Rows that were left, by reason; a rollback lists its conflicts below."""
    told = _TOLD_AS_CONFLICTS if operation.rollback_of is not None else ()
    return ", ".join(
        f"{count(records)} {reason.replace('_', ' ')}"
        for reason, records in operation.skipped_by_reason.items()
        if reason not in told
    )


def _batches_line(operation: "Operation") -> str | None:
    if not operation.batches_total:
        return None
    line = f"{count(operation.batches_done)} of {count(operation.batches_total)}"
    if operation.pacing is None or not operation.is_active:
        return line
    return f"{line}, now {count(operation.pacing.batch_size)} rows x {operation.pacing.workers}"


def _estimate_line(operation: "Operation") -> str | None:
    if operation.estimated_seconds is None:
        return None
    low, high = operation.estimated_seconds.low, operation.estimated_seconds.high
    line = f"{duration(low)} to {duration(high)}"
    error = operation.estimate_error_percent
    if not error:
        return line if error is None else f"{line}, which was right"
    return f"{line}; it took {abs(error):.0f} % {'longer' if error > 0 else 'less'}"


def _waits_line(operation: "Operation") -> str | None:
    waits = (f"{duration(seconds)} for {name}" for name, seconds in operation.waits.items())
    return ", ".join(waits).replace("_", " ") or None


def _rows_line(operation: "Operation") -> str:
    planned = count(operation.records_planned)
    if operation.rollback_of is not None:
        return _restored_line(operation)
    if operation.dry_run:
        return f"{planned} would be corrected; nothing was changed"
    line = f"{count(operation.records_corrected)} corrected of {planned} planned"
    if operation.records_skipped:
        line += f", {count(operation.records_skipped)} skipped"
    if operation.records_failed:
        line += f", {count(operation.records_failed)} failed"
    return line


def _restored_line(operation: "Operation") -> str:
    """Of a rollback; rows that had their old value back already count as restored."""
    planned, restored = count(operation.records_planned), operation.records_restored or 0
    if operation.dry_run:
        parts = [f"{planned} would be restored"]
        parts += [f"{count(restored)} have their old value back already"] if restored else []
    elif operation.is_active:
        parts = [f"{count(operation.records_corrected)} restored of {planned} planned"]
    else:
        parts = [f"{count(restored)} restored"]
    if operation.records_conflicting:
        parts.append(f"{count(operation.records_conflicting)} in conflict")
    if operation.records_failed:
        parts.append(f"{count(operation.records_failed)} failed")
    line = ", ".join(parts)
    return f"{line}; nothing was changed" if operation.dry_run else line


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def show_status(console: Console, status: "OperationStatus") -> None:
    """What is going on, for people."""
    if status.current_operation is None:
        console.print(Text("No operation is active.", "bold"))
        console.print()
    else:
        show_operation(console, status.current_operation)
    if not status.recent_operations:
        console.print(
            Text("No ended operation changed rows; --include-all shows the others as well.")
        )
        return
    made = table("correctionId", "kind", "status", "started (UTC)", "changed", right=("changed",))
    for operation in status.recent_operations:
        made.add_row(
            operation.correction_id,
            _kind(operation),
            status_text(str(operation.status)),
            (_moment(operation.started_at) or "-").removesuffix(" UTC"),
            count(operation.records_corrected),
        )
    console.print(section("Recent operations, newest first", made))
