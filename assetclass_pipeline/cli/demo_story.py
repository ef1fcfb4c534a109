"""The story that `assetclass demo` tells in the terminal.

Belongs here: words and tables about what happened, all figures from what was measured. Does not:
making it happen.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from assetclass_pipeline.cli.operation_presentation import changes_table
from assetclass_pipeline.cli.presentation import (
    SCORE_NAMES,
    count,
    duration,
    scores_table,
    section,
    table,
)
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.demo.load import LoadedDemo
from assetclass_pipeline.model.operation import Change, Operation
from assetclass_pipeline.model.quality import Category, IntegrityReport
from assetclass_pipeline.model.reference import ReferenceReport
from assetclass_pipeline.model.validation import Validation
from assetclass_pipeline.settings import Settings

if TYPE_CHECKING:
    from assetclass_pipeline.cli.operation_run import CheckOutcome, OperationRun

_MOST_NAMES = 7


@dataclass(frozen=True)
class Story:
    """Everything that was measured on the way; `seconds` is the whole demo."""

    settings: Settings
    loaded: LoadedDemo
    before: IntegrityReport
    reference: ReferenceReport
    run: "OperationRun"
    validation: Validation
    after: IntegrityReport
    mismatches: list[Change]
    dsn: str
    seconds: float

    @property
    def operation(self) -> Operation:
        """The correction."""
        if self.run.operation is None:
            raise ValueError("a story is told of a run that corrected something")
        return self.run.operation


def loaded_line(loaded: LoadedDemo) -> str:
    """What was loaded, in a sentence."""
    return (
        f"{count(loaded.bars)} real daily bars ({loaded.first} to {loaded.last}) and "
        f"{count(loaded.symbols)} symbols, loaded in {duration(loaded.seconds)}."
    )


def tell(console: Console, story: Story) -> None:
    """Print the whole story, about sixty lines of a hundred columns."""
    console.print(Rule("AssetClass demo", style="dim", align="left"))
    console.print(loaded_line(story.loaded))
    console.print()
    console.print(section("1. What was wrong", *_wrong(story)))
    console.print(section("2. What was fixed", *_fixed(story)))
    console.print(section("3. What could not be fixed, and why", _left(story)))
    console.print(section("4. Checks of the result", *_checks(story)))
    console.print(section("5. See it, undo it", *_next(story)))


def _wrong(story: Story) -> list[RenderableType]:
    before = story.before
    classes = ", ".join(
        f"{entry.asset_class or 'none'} {count(entry.records)}" for entry in before.by_asset_class
    )
    worst = ", ".join(f"{entry.symbol} ({count(entry.missing)})" for entry in before.by_symbol[:3])
    return [
        Text(
            f"{count(before.missing)} of {count(before.total_records)} bars carry no asset_class, "
            f"for their feeds have none; {count(before.mismatched)} carry a wrong one."
        ),
        Text(f"Bars by class: {classes}."),
        Text(f"Most damaged of {count(before.symbols_referenced)} symbols (bars): {worst}."),
        Text(""),
        scores_table(before),
    ]


def _fixed(story: Story) -> list[RenderableType]:
    operation = story.operation
    speed = round(operation.records_per_second or 0)
    return [
        Text(
            f"{count(operation.records_corrected)} bars in {count(operation.batches_done)} batches "
            f"at {count(speed)} rows/s; {duration(operation.duration_seconds)} with analysis, "
            "backup and proof."
        ),
        Text(f"Values from before are in the table {operation.backup_table}."),
        Text(""),
        changes_table(operation),
    ]


def _left(story: Story) -> RenderableType:
    """The rows that stay damaged, by reason, with the symbols that they belong to."""
    after, reference = story.after, story.reference
    reasons = {
        "orphaned": f"symbols does not know {_symbols(after, Category.ORPHANED)}: currencies that "
        "the euro or a reform ended, which today's lists leave out.",
        "unclassified": f"symbols lists {_symbols(after, Category.UNCLASSIFIED)} without a class.",
        "mismatched": f"{_mismatched(story)}: they changed exchange. A value is overwritten only "
        "when asked for; `assetclass preview --overwrite-existing` shows what that would do.",
        "ambiguous": f"no bar here, but {count(reference.ambiguous)} tickers of symbols stand on "
        f"several exchanges, like {_ambiguous(reference)}. The pipeline never guesses.",
    }
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(justify="right")
    made.add_column(style="yellow")
    made.add_column(overflow="fold")
    for word, sentence in reasons.items():
        made.add_row(count(getattr(after, word)), word, sentence)
    return made


def _symbols(report: IntegrityReport, category: Category) -> str:
    return _listed([str(entry.symbol) for entry in report.by_symbol if entry.category == category])


def _mismatched(story: Story) -> str:
    """Which symbols' bars say what, and what symbols says."""
    by_classes: dict[tuple[str | None, str | None], list[str]] = {}
    for change in story.mismatches:
        by_classes.setdefault((change.from_, change.to), []).append(str(change.symbol))
    return "; ".join(
        f"{_listed(names)} say {said}, symbols says {truth}"
        for (said, truth), names in by_classes.items()
    )


def _ambiguous(reference: ReferenceReport) -> str:
    """Two clean examples; the lists hold scraped headlines among their tickers, too."""
    samples = [
        f"{sample.ticker} ({' or '.join(sample.classes)})"
        for sample in reference.samples.get("ambiguous", [])
        if sample.ticker == sample.ticker.strip()
    ]
    return _listed(samples[:2])


def _listed(names: list[str]) -> str:
    shown, more = names[:_MOST_NAMES], len(names) - _MOST_NAMES
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join(
        part for part in (", ".join(shown[:-1]), shown[-1] if shown else "") if part
    )


def _checks(story: Story) -> list[RenderableType]:
    """Checks of the result; those of integrity_report judge the state before."""
    made = table("check", "of", "", "")
    for check in story.run.checks:
        if check.asset != "integrity_report":
            made.add_row(check.name, check.asset, _outcome(check), Text(check.description))
    return [made, Text(""), *_explanation(story)]


def _outcome(check: "CheckOutcome") -> Text:
    if check.passed:
        return Text("passed", "green")
    return Text("failed", "bold red" if check.severity == "ERROR" else "bold yellow")


def _explanation(story: Story) -> list[RenderableType]:
    """Why the thresholds that are not met are not met, and what a person would do."""
    after = story.after
    failed = [SCORE_NAMES.get(name, name) for name in after.failed_thresholds]
    if not failed:
        return [Text("Every threshold is met.")]
    return [
        Text(
            f"Not met, and rightly so: {_listed(failed)}. No correction can help: the class of "
            f"{count(after.orphaned + after.unclassified)} bars is nowhere to be found. A person "
            "adds their tickers to symbols, with a class, or removes the bars; the next correction "
            "does the rest."
        )
    ]


def _next(story: Story) -> list[RenderableType]:
    settings, operation = story.settings, story.operation
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    url = f"http://127.0.0.1:{settings.webserver_port}"
    made.add_row("see it", f"`make up`, then {url}/runs/{story.run.run_id}")
    made.add_row("look again", f"`assetclass status {operation.correction_id}`")
    made.add_row("undo it", f"`assetclass rollback {operation.correction_id} --reason TEXT`")
    made.add_row("or by hand", _undo(settings, operation))
    if settings.database_url is None:
        made.add_row("", f"in any SQL client while `make up` runs: {_connection(story)}")
    return [made, Text(""), Text(f"The whole demo took {duration(story.seconds)}.", "dim")]


def _undo(settings: Settings, operation: Operation) -> str:
    """The manual recovery of the operations guide with the names of this run."""
    statement = query(
        "demo_story",
        "manual_recovery",
        market=_name(settings.market_schema, settings.market_table),
        market_name=_name(settings.market_table),
        backup=_name(settings.market_schema, operation.backup_table or ""),
    ).as_string()
    return "\n".join(line for line in statement.splitlines() if not line.startswith("--"))


def _name(*parts: str) -> sql.Composable:
    """A name as a person would write it: quoted only where it must be."""
    shown = parts[1:] if parts[0] == "public" else parts
    if all(re.fullmatch(r"[a-z_][a-z0-9_]*", part) for part in shown):
        return sql.SQL(".".join(shown))
    return sql.Identifier(*shown)


def _connection(story: Story) -> str:
    where = conninfo_to_dict(story.dsn)
    return (
        f"{where['host']}:{where['port']}, database {where['dbname']}, user {where['user']}, "
        f"password in {story.settings.home / 'postgres' / 'password'}"
    )
