"""How an operation ended that a command asked for, and what the command says then.

Belongs here: the operation, the reason of a failure, what to do next, the exit status. Does not:
how it ran, in this process or behind an API.
"""

from dataclasses import dataclass

import typer

from assetclass_pipeline.cli import operation_presentation, presentation
from assetclass_pipeline.cli.exit_status import FAILED, INTERRUPTED
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.operation import RESUMABLE, Operation


@dataclass(frozen=True)
class Ended:
    """The operation as it stands when the command ends; None where there is none.

    `failure` says why it did not work, `left` what became of it when somebody pressed Ctrl-C.
    """

    operation: Operation | None
    failure: str | None = None
    left: str | None = None


def end(ended: Ended, *, as_json: bool) -> None:
    """Print the operation and what else is to be said; raise what the exit status needs."""
    operation = ended.operation
    if operation is not None:
        print_operation(operation, as_json=as_json)
    if ended.left is not None:
        presentation.aside().print(ended.left, style="yellow", soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if ended.failure is None:
        return
    if operation is None:
        raise CorrectionFailedError(ended.failure)
    presentation.show_error(ended.failure)
    if operation.records_planned and operation.status in RESUMABLE:
        presentation.aside().print(goes_on(operation), style="yellow", soft_wrap=True)
    raise typer.Exit(FAILED)


def print_operation(operation: Operation, *, as_json: bool) -> None:
    """The operation as the one JSON document, or for people."""
    if as_json:
        presentation.print_model(operation)
    else:
        operation_presentation.show_operation(presentation.for_people(), operation)


def goes_on(operation: Operation) -> str:
    """What to do with one that stopped half way."""
    return f"`assetclass resume {operation.correction_id}` goes on where it stopped."
