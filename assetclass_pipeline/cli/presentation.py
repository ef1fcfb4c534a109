"""What commands print: JSON documents, tables for people, error messages.

Belongs here: turning values of the model into text, the same way in every command. Does not: what
the values are, and the demo's story.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import IO, TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from assetclass_pipeline.model.operation import Operation, OperationStatus
    from assetclass_pipeline.model.preflight import Preflight
    from assetclass_pipeline.model.preview import Preview
    from assetclass_pipeline.model.quality import IntegrityReport, SymbolCount
    from assetclass_pipeline.model.validation import Validation

_WIDEST = 100
_MOST_SYMBOLS = 10
_MOST_SAMPLES = 8
_MOST_CHANGES = 10
SCORE_NAMES = {
    "completeness": "completeness",
    "integrity": "integrity",
    "orphanedPercent": "orphaned",
    "qualityScore": "quality score",
    "correctablePercent": "correctable",
}
_COLOURS = {
    "succeeded": "green",
    "planned": "cyan",
    "running": "cyan",
    "requested": "cyan",
    "paused": "yellow",
    "interrupted": "yellow",
    "cancelled": "yellow",
}

_SEVERITIES = {
    "refuse": ("refused", "bold red"),
    "warn": ("careful", "yellow"),
    "info": ("note", "dim"),
}
_UPPER = re.compile("[A-Z]")


def for_people() -> Console:
    """Standard output; text is never read as markup, for tickers may contain brackets."""
    return _shaped(Console(markup=False, highlight=False, emoji=False))


def aside(stream: IO[str] | None = None) -> Console:
    """Standard error, or `stream`: progress and remarks, which no script reads."""
    return _shaped(Console(file=stream, stderr=True, markup=False, highlight=False, emoji=False))


def _shaped(console: Console) -> Console:
    if console.width > _WIDEST or not console.is_terminal:
        console.width = _WIDEST
    return console


def print_document(content: object) -> None:
    """One JSON document on standard output, in ASCII so that no encoding can damage it."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
    sys.stdout.flush()


def document(model: "BaseModel") -> object:
    """The model as the REST API shows it."""
    return model.model_dump(mode="json", by_alias=True)


def print_model(model: "BaseModel") -> None:
    """The model as one JSON document on standard output."""
    print_document(document(model))


def show_error(message: str) -> None:
    """The message on standard error, behind the word Error."""
    # Not through Rich's wrapping: a message in a log is one that can be searched for.
    aside().print(Text("Error: ", "bold red") + Text(message), soft_wrap=True)


def count(number: int | None) -> str:
    """With thousands separators; a dash where it is not known."""
    return "-" if number is None else f"{number:,}"


def class_name(value: str | None) -> Text:
    """A value of asset_class as people see it: NULL and the empty string are no names."""
    if value is None:
        return Text("NULL", "dim")
    return Text(value) if value else Text("(empty)", "dim")


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever a person would say."""
    if seconds is None:
        return "-"
    if seconds < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A plain table without frame; the columns named in `right` hold numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def section(title: str, *parts: RenderableType) -> RenderableType:
    """A bold line, then its parts indented, then an empty line."""
    return Group(
        Text(title, "bold"),
        *(Padding(part, (0, 0, 0, 2), expand=False) for part in parts),
        Text(""),
    )


def bullets(lines: Iterable[str | Text]) -> RenderableType:
    """Wrapped sentences with a hanging indent."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for line in lines:
        made.add_row("-", line)
    return made


def verdict(passed: bool) -> Text:
    """Whether a limit is met."""
    return Text("met", "green") if passed else Text("not met", "bold red")


def scores_table(report: "IntegrityReport") -> Table:
    """The scores against their limits."""
    made = table("score", "percent", "limit", "", right=("percent", "limit"))
    for name, result in report.thresholds.items():
        limit = f"{result.comparison} {result.limit:g}"
        made.add_row(
            SCORE_NAMES.get(name, name), f"{result.value:.2f}", limit, verdict(result.passed)
        )
    return made


def show_report(console: Console, report: "IntegrityReport", market: str) -> None:
    """The integrity report for people."""
    rows = f"{market}: {count(report.total_records)} rows of {count(report.symbols_referenced)}"
    console.print(
        Text(f"{rows} symbols, scanned in {duration(report.analysis_duration_seconds)}", "bold")
    )
    console.print()
    console.print(section("Scores", scores_table(report)))
    if report.by_asset_class:
        console.print(section("By asset_class", _classes_table(report)))
    damaged = [entry for entry in report.by_symbol if _is_damaged(entry)]
    if damaged:
        console.print(section("Most damaged symbols", symbols_table(report, _MOST_SYMBOLS)))
    if report.issues:
        found = [
            f"{count(issue.records)} {issue.message} ({issue.code})" for issue in report.issues
        ]
        console.print(section("What is wrong", bullets(found)))
    console.print(section("What to do", bullets(report.recommendations)))
    effort = report.effort
    if effort.records:
        low, high = effort.estimated_seconds.low, effort.estimated_seconds.high
        console.print(
            Text(
                f"`assetclass execute` would correct {count(effort.records)} rows in about "
                f"{duration(low)} to {duration(high)}. `assetclass preview` shows them first."
            )
        )


def _classes_table(report: "IntegrityReport") -> Table:
    made = table("asset_class", "rows", "percent", right=("rows", "percent"))
    for entry in report.by_asset_class:
        share = 100 * entry.records / report.total_records if report.total_records else 0
        made.add_row(class_name(entry.asset_class), count(entry.records), f"{share:.2f}")
    return made


def _is_damaged(entry: "SymbolCount") -> bool:
    return bool(entry.missing or entry.mismatched or entry.category != "mappable")


def symbols_table(report: "IntegrityReport", most: int) -> Table:
    """The worst symbols, at most so many."""
    numbers = ("rows", "missing", "mismatched")
    made = table("symbol", *numbers, "in symbols it is", right=numbers)
    for entry in [entry for entry in report.by_symbol if _is_damaged(entry)][:most]:
        symbol = Text("NULL", "dim") if entry.symbol is None else Text(entry.symbol)
        category = Text(str(entry.category), "" if entry.category == "mappable" else "yellow")
        figures = (count(entry.records), count(entry.missing), count(entry.mismatched))
        made.add_row(symbol, *figures, category)
    return made


def show_preview(console: Console, preview: "Preview") -> None:
    """The preview for people."""
    low, high = preview.estimated_seconds.low, preview.estimated_seconds.high
    headline = f"{count(preview.records)} rows would change"
    if preview.records:
        headline += (
            f", in {count(preview.batches)} batches of {count(preview.batch_size)} rows: about "
            f"{duration(low)} to {duration(high)}"
        )
    console.print(Text(headline, "bold"))
    console.print()
    if preview.changes:
        made = table("from", "to", "rows", right=("rows",))
        for change in preview.changes:
            made.add_row(class_name(change.from_), class_name(change.to), count(change.records))
        console.print(section("Changes", made))
    if preview.samples:
        made = table("id", "symbol", "timestamp", "before", "after", right=("id",))
        for sample in preview.samples[:_MOST_SAMPLES]:
            cells = (Text(str(sample.id)), Text(sample.symbol), sample.timestamp or "-")
            made.add_row(*cells, class_name(sample.before), class_name(sample.after))
        console.print(section("For example", made))
    if preview.risks:
        console.print(section("Mind", bullets(preview.risks)))
    if preview.records:
        show_preflight(console, preview.preflight)


def show_preflight(console: Console, preflight: "Preflight") -> None:
    """What a correction would meet, the gravest first; then the batch that was rehearsed."""
    lines = [_finding(finding.severity, finding.message) for finding in preflight.findings]
    if (rehearsal := preflight.rehearsal) is not None:
        lines.append(
            Text(
                f"A batch of {count(rehearsal.records)} rows was rehearsed in "
                f"{rehearsal.seconds * 1000:,.0f} ms and rolled back."
            )
        )
    if lines:
        title = "Preflight: a correction is refused" if preflight.refusals else "Preflight"
        console.print(section(title, bullets(lines)))
    console.print(Text("Nothing was changed. `assetclass execute` with the same options does it."))


def _finding(severity: str, message: str) -> Text:
    word, style = _SEVERITIES[severity]
    return Text(f"{word}: ", style) + Text(message)


def _grave_findings(operation: "Operation") -> list[Text]:
    """What the preflight of an operation warned of; what is only good to know is in a preview."""
    findings = (operation.preflight or {}).get("findings", [])
    return [
        _finding(finding["severity"], finding["message"])
        for finding in findings
        if finding["severity"] != "info"
    ]


def show_validation(console: Console, validation: "Validation") -> None:
    """The validation for people."""
    if validation.passed:
        console.print(Text("Valid: every threshold is met.", "bold green"))
    else:
        failed, limits = len(validation.failed_thresholds), len(validation.report.thresholds)
        said = f"Not valid: {failed} of {limits} thresholds are not met."
        console.print(Text(said, "bold red"))
    console.print()
    console.print(section("Scores", scores_table(validation.report)))
    if validation.errors:
        made = table("error", "rows", "what", right=("rows",))
        for problem in validation.errors:
            made.add_row(problem.type, count(problem.records), Text(problem.message))
        console.print(section("Errors", made))
    if validation.report.recommendations:
        console.print(section("What to do", bullets(validation.report.recommendations)))


def show_operation(console: Console, operation: "Operation") -> None:
    """One operation in full for people."""
    kind = "dry run" if operation.dry_run else str(operation.kind)
    console.print(
        Text(f"{kind} {operation.correction_id} ", "bold") + status_text(str(operation.status))
    )
    console.print()
    console.print(Padding(_facts(_operation_facts(operation)), (0, 0, 1, 2), expand=False))
    if operation.error is not None:
        console.print(section("Error", Text(f"{operation.error.message} ({operation.error.code})")))
    if grave := _grave_findings(operation):
        console.print(section("Preflight", bullets(grave)))
    if operation.changes:
        console.print(section("Changes", changes_table(operation)))
    if operation.quarantined:
        console.print(section("Refused by the database", quarantine_table(operation)))
    if operation.events:
        console.print(section("Events, newest first", events_table(operation)))


def quarantine_table(operation: "Operation") -> Table:
    """Rows that the database refused to change, and what it said."""
    made = table("id", "symbol", "timestamp", "should become", "because")
    for row in operation.quarantined[:_MOST_SAMPLES]:
        cells = (Text(row.id or "NULL"), Text(row.symbol or "NULL"), Text(row.timestamp or "NULL"))
        made.add_row(*cells, class_name(row.corrected_asset_class), Text(row.error_message))
    if operation.records_failed > _MOST_SAMPLES:
        made.add_row(Text(f"and {count(operation.records_failed - _MOST_SAMPLES)} more", "dim"))
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
    facts: dict[str, RenderableType] = {
        "phase": f"{operation.phase}, {operation.progress_percent:.1f} %",
    }
    if operation.silent_seconds is not None:
        facts["process"] = _silence_line(operation.silent_seconds, operation)
    if operation.throttle:
        facts["waits now"] = Text(" ".join(operation.throttle), "yellow")
    facts["rows"] = _rows_line(operation)
    if operation.skipped_by_reason:
        skipped = ", ".join(
            f"{count(records)} {reason.replace('_', ' ')}"
            for reason, records in operation.skipped_by_reason.items()
        )
        facts["skipped"] = skipped
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
        "backup table": operation.backup_table,
        "retry of": operation.retry_of,
        "rollback of": operation.rollback_of,
        "rolled back by": operation.rolled_back_by,
        "waited": _waits_line(operation),
        "window ends": _moment(operation.window_ends_at) if operation.is_active else None,
    }
    return facts | {name: Text(value) for name, value in optional.items() if value}


def _silence_line(seconds: float, operation: "Operation") -> Text:
    """What somebody needs to know who wonders whether it is still at work."""
    goes_on = f"`assetclass resume {operation.correction_id}` goes on with it"
    if operation.abandoned:
        return Text(f"dead, not heard of for {duration(seconds)}; {goes_on}", "bold red")
    return Text(
        f"not heard of for {duration(seconds)}; once it counts as dead, {goes_on}", "yellow"
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
    if operation.dry_run:
        return f"{planned} would be corrected; nothing was changed"
    line = f"{count(operation.records_corrected)} corrected of {planned} planned"
    if operation.records_skipped:
        line += f", {count(operation.records_skipped)} skipped"
    if operation.records_failed:
        line += f", {count(operation.records_failed)} failed"
    return line


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _facts(facts: Mapping[str, RenderableType]) -> Table:
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in facts.items():
        made.add_row(name, value)
    return made


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
    made = table(
        "correctionId", "kind", "status", "started (UTC)", "corrected", right=("corrected",)
    )
    for operation in status.recent_operations:
        made.add_row(
            operation.correction_id,
            "dry run" if operation.dry_run else str(operation.kind),
            status_text(str(operation.status)),
            (_moment(operation.started_at) or "-").removesuffix(" UTC"),
            count(operation.records_corrected),
        )
    console.print(section("Recent operations, newest first", made))
