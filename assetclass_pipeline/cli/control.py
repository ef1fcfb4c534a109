"""`assetclass pause | resume | cancel | tune`: what people ask of a running operation.

Belongs here: parsing, asking the pipeline, printing what became of it. Does not: obeying it.
"""

import json
from typing import Annotated

import typer
from pydantic import ValidationError

from assetclass_pipeline.cli import presentation
from assetclass_pipeline.cli.ended import Ended, end
from assetclass_pipeline.cli.local_pipeline import LocalPipeline
from assetclass_pipeline.cli.pipeline import open_pipeline
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.options import Pace, describe_problems
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline.settings import load_settings

OperationId = Annotated[
    str | None, typer.Argument(help="The operation; without it, the active one.", metavar="ID")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]


def pause(correction_id: OperationId = None, as_json: AsJson = False) -> None:
    """Let the running operation stay between two batches.

    No row is locked meanwhile; `resume` lets it go on.
    """
    with open_pipeline() as pipeline:
        operation = pipeline.pause(correction_id)
    _print(operation, "It stays between two batches.", as_json=as_json)


def cancel(correction_id: OperationId = None, as_json: AsJson = False) -> None:
    """Stop the active operation; what is committed stays."""
    with open_pipeline() as pipeline:
        operation = pipeline.cancel(correction_id)
    _print(operation, "It stops between two batches.", as_json=as_json)


def resume(correction_id: OperationId = None, as_json: AsJson = False) -> None:
    """Let a paused operation go on; run one that was cut off.

    One that was cancelled, timed out, failed or lost its process is run here, through Dagster, from
    where its ledger ends; behind an API (--api) it is asked for again and followed.
    """
    with open_pipeline() as pipeline:
        found = pipeline.resume(correction_id)
    if isinstance(found, Ended):
        end(found, as_json=as_json)
    else:
        _print(found, "It goes on.", as_json=as_json)


def tune(
    correction_id: OperationId = None,
    *,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of one batch at most.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Connections that write at most.", show_default=False)
    ] = None,
    pace: Annotated[
        Pace | None, typer.Option(help="gentle, balanced or fast.", show_default=False)
    ] = None,
    throttle: Annotated[
        list[str] | None,
        typer.Option(
            help="A limit of the throttle, like lag_seconds=5; null switches a signal off.",
            metavar="NAME=VALUE",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the running operation go faster or slower.

    Who asked for what, and when, is recorded with it.
    """
    limits = dict(_limit(said) for said in throttle or [])
    try:
        changes = Tuning(batch_size=batch_size, workers=workers, pace=pace, throttle=limits or None)
    except ValidationError as error:
        raise InvalidOptionsError(describe_problems(error)) from None

    with LocalPipeline(load_settings()) as pipeline:
        operation = pipeline.tune(correction_id, changes)
    _print(operation, "Its next batch goes by that.", as_json=as_json)


def _limit(said: str) -> tuple[str, object]:
    """A limit and its name; a number or null is no text."""
    name, _, value = (part.strip() for part in said.partition("="))
    if not name or not value:
        raise InvalidOptionsError(f"--throttle {said}: write it as NAME=VALUE, like lag_seconds=5.")
    try:
        number = json.loads(value)
    except ValueError:
        return name, value
    return name, number if isinstance(number, (int, float, type(None))) else value


def _print(operation: Operation, done: str, *, as_json: bool) -> None:
    if as_json:
        presentation.print_model(operation)
    else:
        said = f"Operation {operation.correction_id}: {done}"
        presentation.for_people().print(said, soft_wrap=True)
