"""`assetclass analyze | preview | execute | validate | status`.

Belongs here: parsing, asking the pipeline, printing what it answers. Does not: how that looks
(presentation), and who answers (pipeline).
"""

from typing import Annotated

import typer

from assetclass_pipeline.cli import operation_presentation, presentation
from assetclass_pipeline.cli.ended import end, print_operation
from assetclass_pipeline.cli.exit_status import THRESHOLDS_NOT_MET
from assetclass_pipeline.cli.flags import Chosen, correction_options, with_correction_flags
from assetclass_pipeline.cli.pipeline import open_pipeline
from assetclass_pipeline.settings import load_settings

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]


def analyze(as_json: AsJson = False) -> None:
    """Measure the damage; change nothing."""
    with open_pipeline() as pipeline:
        report = pipeline.analyze()
    if as_json:
        presentation.print_model(report)
    else:
        table = load_settings().market_table
        presentation.show_report(presentation.for_people(), report, table)


@with_correction_flags
def preview(*, chosen: Chosen, as_json: AsJson = False) -> None:
    """Say what a correction would do; change nothing."""
    options = correction_options(chosen)
    with open_pipeline() as pipeline:
        found = pipeline.preview(options)
    if as_json:
        presentation.print_model(found)
    else:
        presentation.show_preview(presentation.for_people(), found)


def validate(as_json: AsJson = False) -> None:
    """Check the thresholds; exit status 5 when one is not met."""
    with open_pipeline() as pipeline:
        found = pipeline.validate()
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
    with open_pipeline() as pipeline:
        if correction_id is not None:
            print_operation(pipeline.operation(correction_id), as_json=as_json)
            return
        found = pipeline.status(include_all=include_all)
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
    nothing is half done. Behind an API (--api) it goes on after Ctrl-C; `cancel` stops it.
    """
    options = correction_options(chosen)
    with open_pipeline() as pipeline:
        ended = pipeline.execute(options, reason=reason, ticket=ticket)
    end(ended, as_json=as_json)
