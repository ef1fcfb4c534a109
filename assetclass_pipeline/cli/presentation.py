"""What commands print: JSON documents, tables for people, error messages.

Belongs here: turning values of the model into text, the same way in every command. Does not: what
the values are, operations (operation_presentation), and the demo's story.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from assetclass_pipeline.model.preflight import Preflight
    from assetclass_pipeline.model.preview import Preview
    from assetclass_pipeline.model.quality import IntegrityReport, SymbolCount
    from assetclass_pipeline.model.validation import Validation

_WIDEST = 100
_MOST_SYMBOLS = 10
MOST_SAMPLES = 8
SCORE_NAMES = {
    "completeness": "completeness",
    "integrity": "integrity",
    "orphanedPercent": "orphaned",
    "qualityScore": "quality score",
    "correctablePercent": "correctable",
}
_SEVERITIES = {
    "refuse": ("refused", "bold red"),
    "warn": ("careful", "yellow"),
    "info": ("note", "dim"),
}


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


def facts(said: Mapping[str, RenderableType]) -> Table:
    """Names and what is known by them, without frame or header."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in said.items():
        made.add_row(name, value)
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
        for sample in preview.samples[:MOST_SAMPLES]:
            cells = (Text(str(sample.id)), Text(sample.symbol), sample.timestamp or "-")
            made.add_row(*cells, class_name(sample.before), class_name(sample.after))
        console.print(section("For example", made))
    if preview.risks:
        console.print(section("Mind", bullets(preview.risks)))
    if preview.records:
        show_preflight(console, preview.preflight)


def show_preflight(console: Console, preflight: "Preflight") -> None:
    """What a correction would meet, the gravest first; then the batch that was rehearsed."""
    lines = [finding_line(finding.severity, finding.message) for finding in preflight.findings]
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


def finding_line(severity: str, message: str) -> Text:
    """What a preflight found, behind the word for how grave it is."""
    word, style = _SEVERITIES[severity]
    return Text(f"{word}: ", style) + Text(message)


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
