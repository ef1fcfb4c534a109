"""`assetclass analyze | preview | execute | validate | status`.

Belongs here: parsing, calling the engine, printing what it answers. Does not: how that looks
(presentation), and how a run through Dagster ends (through_dagster).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import psycopg
import typer
from psycopg.rows import TupleRow

from assetclass_pipeline.cli import operation_presentation, presentation
from assetclass_pipeline.cli.exit_status import THRESHOLDS_NOT_MET
from assetclass_pipeline.cli.flags import Chosen, correction_options, with_correction_flags
from assetclass_pipeline.cli.through_dagster import correct_when_free, end_run, print_operation
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, open_database
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.engine.operations import get_operation, operation_status
from assetclass_pipeline.engine.preview import preview as preview_correction
from assetclass_pipeline.engine.validation import validate as validate_rows
from assetclass_pipeline.settings import Settings, load_settings

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]


@dataclass(frozen=True)
class _Market:
    """The market tables, with a connection to them."""

    settings: Settings
    connection: psycopg.Connection[TupleRow]
    tables: MarketTables


@contextmanager
def _open_market(purpose: str) -> Iterator[_Market]:
    settings = load_settings()
    with (
        open_database(settings) as dsn,
        connect(dsn, settings, purpose=purpose) as connection,
    ):
        yield _Market(
            settings, connection, inspect_market_tables(connection, settings, for_writing=False)
        )


def analyze(as_json: AsJson = False) -> None:
    """Measure the damage; change nothing."""
    with _open_market("analyze") as market:
        report = analyse(market.connection, market.tables, market.settings)
    if as_json:
        presentation.print_model(report)
    else:
        presentation.show_report(presentation.for_people(), report, market.settings.market_table)


@with_correction_flags
def preview(*, chosen: Chosen, as_json: AsJson = False) -> None:
    """Say what a correction would do; change nothing."""
    options = correction_options(chosen)
    with _open_market("preview") as market:
        found = preview_correction(market.connection, market.tables, market.settings, options)
    if as_json:
        presentation.print_model(found)
    else:
        presentation.show_preview(presentation.for_people(), found)


def validate(as_json: AsJson = False) -> None:
    """Check the thresholds; exit status 5 when one is not met."""
    with _open_market("validate") as market:
        found = validate_rows(market.connection, market.tables, market.settings)
    if as_json:
        presentation.print_model(found)
    else:
        presentation.show_validation(presentation.for_people(), found)
    if not found.passed:
        raise typer.Exit(THRESHOLDS_NOT_MET)


def status(
    correction_id: Annotated[
        str | None,
        typer.Argument(help="Show this operation; without it, what is going on.", metavar="ID"),
    ] = None,
    include_all: Annotated[
        bool, typer.Option("--include-all", help="Also dry runs, failures, runs without changes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the active operation and the recent ones, or one."""
    settings = load_settings()
    with (
        open_database(settings) as dsn,
        connect(dsn, settings, purpose="status") as connection,
    ):
        schema.require_schema(connection)
        if correction_id is not None:
            operation = get_operation(connection, settings, correction_id)
            print_operation(operation, as_json=as_json)
            return
        found = operation_status(connection, settings, include_all=include_all)
    if as_json:
        presentation.print_model(found)
    else:
        operation_presentation.show_status(presentation.for_people(), found)


@with_correction_flags
def execute(
    *,
    chosen: Chosen,
    reason: Annotated[
        str | None, typer.Option(help="Why it is done, for the audit.", show_default=False)
    ] = None,
    ticket: Annotated[
        str | None, typer.Option(help="The ticket that asks for it.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Correct the rows through Dagster's correction_job.

    The run stands in the UI. Ctrl-C stops it between two batches: what is committed stays,
    nothing is half done.
    """
    settings = load_settings()
    options = correction_options(chosen)
    with open_database(settings) as dsn:
        if settings.database_url is None:
            schema.upgrade(dsn, settings)
        run = correct_when_free(dsn, settings, options, reason=reason, ticket=ticket)
    end_run(run, as_json=as_json)
