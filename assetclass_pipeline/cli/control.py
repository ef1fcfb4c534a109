"""`assetclass pause | resume | cancel | tune`: what people ask of a running operation.

Belongs here: parsing, writing the wish down, printing what became of it. Does not: obeying it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer
from psycopg.rows import TupleRow
from pydantic import ValidationError

from assetclass_pipeline.cli import presentation
from assetclass_pipeline.cli.through_dagster import (
    correct_when_free,
    end_run,
    roll_back_when_free,
)
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, open_database
from assetclass_pipeline.engine.claiming import refuse_while_active
from assetclass_pipeline.engine.control import (
    ask_to_cancel,
    ask_to_pause,
    ask_to_resume,
    named_or_active,
)
from assetclass_pipeline.engine.control import tune as tune_operation
from assetclass_pipeline.engine.operations import Unfinished, get_operation, scope_of
from assetclass_pipeline.errors import InvalidOptionsError, OperationInProgressError
from assetclass_pipeline.model.months import TimeRange
from assetclass_pipeline.model.operation import RESUMABLE, Operation
from assetclass_pipeline.model.options import CorrectionOptions, Pace, describe_problems
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from assetclass_pipeline.cli.operation_run import OperationRun

OperationId = Annotated[
    str | None, typer.Argument(help="The operation; without it, the active one.", metavar="ID")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]
_Connection = psycopg.Connection[TupleRow]
_Ask = Callable[..., Operation]


@contextmanager
def _records(purpose: str) -> Iterator[tuple[_Connection, Settings, str]]:
    settings = load_settings()
    with (
        open_database(settings) as dsn,
        connect(dsn, settings, purpose=purpose) as connection,
    ):
        schema.require_schema(connection)
        # One whose process died is not active any more; nobody would hear what is asked of it.
        with suppress(OperationInProgressError):
            refuse_while_active(connection, settings)
        yield connection, settings, dsn


def pause(correction_id: OperationId = None, as_json: AsJson = False) -> None:
    """Let the running operation stay between two batches.

    No row is locked meanwhile; `resume` lets it go on.
    """
    _ask(ask_to_pause, correction_id, "It stays between two batches.", as_json=as_json)


def cancel(correction_id: OperationId = None, as_json: AsJson = False) -> None:
    """Stop the active operation; what is committed stays."""
    _ask(ask_to_cancel, correction_id, "It stops between two batches.", as_json=as_json)


def resume(correction_id: OperationId = None, as_json: AsJson = False) -> None:
    """Let a paused operation go on; run one that was cut off.

    One that was cancelled, timed out, failed or lost its process is run here, through Dagster, from
    where its ledger ends.
    """
    with _records("resume") as (connection, settings, dsn):
        named = named_or_active(connection, settings, correction_id)
        operation = get_operation(connection, settings, named)
        if operation.status in RESUMABLE:
            scope = scope_of(connection, settings, named)
            end_run(_go_on(dsn, settings, operation, scope), as_json=as_json)
            return
    _ask(ask_to_resume, named, "It goes on.", as_json=as_json)


def _go_on(dsn: str, settings: Settings, left: Operation, scope: TimeRange) -> "OperationRun":
    """A run that finishes an operation which was cut off, as it was asked for."""
    if left.rollback_of is None:
        correction = CorrectionOptions.model_validate(left.options)
        unfinished = Unfinished(left.correction_id, scope)
        return correct_when_free(dsn, settings, correction, resume=unfinished)
    return roll_back_when_free(
        dsn,
        settings,
        left.rollback_of,
        RollbackOptions.model_validate(left.options),
        reason=left.reason or "not said",
        resume=left.correction_id,
    )


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

    def ask(connection: _Connection, settings: Settings, named: str, *, by: str) -> Operation:
        return tune_operation(connection, settings, named, changes, by=by)

    _ask(ask, correction_id, "Its next batch goes by that.", as_json=as_json)


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


def _ask(ask: _Ask, correction_id: str | None, done: str, *, as_json: bool) -> None:
    with _records("control") as (connection, settings, _):
        named = named_or_active(connection, settings, correction_id)
        operation = ask(connection, settings, named, by=this_user())
    if as_json:
        presentation.print_model(operation)
    else:
        presentation.for_people().print(f"Operation {named}: {done}", soft_wrap=True)
