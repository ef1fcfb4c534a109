"""`assetclass report performance | audit | capacity | quality`.

Belongs here: parsing, where a page goes, the few lines that people see. Does not: the numbers, and
how a page looks.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from assetclass_pipeline.cli.exit_status import FAILED
from assetclass_pipeline.cli.presentation import aside, bullets, for_people, print_model
from assetclass_pipeline.cli.records import open_records
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.model.moments import parse_moment
from assetclass_pipeline.reports.audit import audit_report
from assetclass_pipeline.reports.capacity import capacity_report
from assetclass_pipeline.reports.files import store, write_page
from assetclass_pipeline.reports.key_numbers import key_numbers, remarks
from assetclass_pipeline.reports.pages import Report
from assetclass_pipeline.reports.performance import performance_report
from assetclass_pipeline.reports.quality import quality_report
from assetclass_pipeline.settings import Settings

Since = Annotated[
    str | None,
    typer.Option(
        help="From this time on, ISO 8601; UTC unless it says otherwise.",
        metavar="TIME",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Write the page to this new file; without it, into the directory of reports.",
        metavar="FILE",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _report(context: typer.Context) -> None:
    """Write a report as a page: performance, audit, capacity or quality."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def performance(since: Since = None, out: Out = None, as_json: AsJson = False) -> None:
    """How operations fared in the last seven days, beside the four weeks before."""
    begin = parse_moment("--since", since)
    with open_records("performance report") as (connection, settings, _):
        report = performance_report(connection, settings, since=begin)
    _hand_over(report, settings, out, as_json=as_json)


@app.command()
def audit(since: Since = None, out: Out = None, as_json: AsJson = False) -> None:
    """Measure the data in full; a year of scores, a month of changes, operations and alerts.

    Exit status 1 when the audit log was tampered with; the report is written all the same.
    """
    begin = parse_moment("--since", since)
    with open_records("audit report") as (connection, settings, _):
        tables = inspect_market_tables(connection, settings, for_writing=False)
        report = audit_report(connection, tables, settings, since=begin, by=this_user())
    _hand_over(report, settings, out, as_json=as_json)
    if not report.audit_log.whole:
        raise typer.Exit(FAILED)


@app.command()
def capacity(since: Since = None, out: Out = None, as_json: AsJson = False) -> None:
    """Growth of a year, sizes now, and where both lead."""
    begin = parse_moment("--since", since)
    with open_records("capacity report") as (connection, settings, _):
        tables = inspect_market_tables(connection, settings, for_writing=False)
        report = capacity_report(connection, tables, settings, since=begin)
    _hand_over(report, settings, out, as_json=as_json)


@app.command()
def quality(out: Out = None, as_json: AsJson = False) -> None:
    """The latest measurement as it was stored; nothing is measured."""
    with open_records("quality report") as (connection, settings, _):
        report = quality_report(connection, settings)
    _hand_over(report, settings, out, as_json=as_json)


def _hand_over(report: Report, settings: Settings, out: Path | None, *, as_json: bool) -> None:
    """Print the data, or write the page and say where; with `out` both at once."""
    if out is not None:
        write_page(report, settings, out)
    if as_json:
        print_model(report)
        if out is not None:
            aside().print(f"The page is in {out}.", soft_wrap=True)
        return
    console = for_people()
    for name, value in key_numbers(report).items():
        console.print(Text(f"{name.replace('_', ' ')}: ", "dim") + Text(f"{value:,}"))
    if said := remarks(report):
        console.print()
        console.print(bullets(said))
    console.print()
    written = store(report, settings).html if out is None else out
    console.print(f"The page is in {written}.", soft_wrap=True)
