"""Operations that a command runs through Dagster in its own process.

Belongs here: refusing before Dagster is imported, and how the run ended. Does not: how a Dagster
run is made (operation_run), and what the command says in the end (ended).
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from assetclass_pipeline.cli.ended import Ended, goes_on
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.engine.audit import Asker, refusals_recorded
from assetclass_pipeline.engine.claiming import refuse_while_active
from assetclass_pipeline.engine.correction import look_before
from assetclass_pipeline.engine.operations import Unfinished
from assetclass_pipeline.engine.undo_check import Undoing
from assetclass_pipeline.engine.undo_record import look_at
from assetclass_pipeline.errors import OperationInProgressError
from assetclass_pipeline.model.audit import Action
from assetclass_pipeline.model.operation import Kind
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.settings import Settings

if TYPE_CHECKING:
    from assetclass_pipeline.cli.operation_run import OperationRun


def correct_when_free(
    dsn: str,
    settings: Settings,
    options: CorrectionOptions,
    *,
    reason: str | None = None,
    ticket: str | None = None,
    resume: Unfinished | None = None,
) -> Ended:
    """Run a correction through Dagster, a new one or the one to resume.

    Raises OperationInProgressError while another operation is active, and what `look_before`
    raises.
    """

    def refuse() -> None:
        with connect(dsn, settings, purpose="execute") as connection:
            schema.require_schema(connection)
            refuse_while_active(connection, settings)
            if resume is None:
                look_before(connection, settings, options)
            else:
                inspect_market_tables(connection, settings, for_writing=not options.dry_run)

    def run() -> "OperationRun":
        # Here, not above: Dagster takes seconds to import, and a refusal should not wait for it.
        from assetclass_pipeline.cli.operation_run import run_correction

        return run_correction(dsn, settings, options, reason=reason, ticket=ticket, resume=resume)

    asker = Asker(this_user(), reason, ticket, resume.correction_id if resume else None)
    with refusals_recorded(dsn, settings, asker, Action.CLAIM_OPERATION):
        return _run_unless_refused(refuse, run)


def roll_back_when_free(
    dsn: str,
    settings: Settings,
    rollback_of: str,
    options: RollbackOptions,
    *,
    reason: str,
    ticket: str | None = None,
    resume: str | None = None,
) -> Ended:
    """Run a rollback through Dagster, a new one or the one to resume.

    Raises what `refuse_rollback` raises.
    """

    def run() -> "OperationRun":
        from assetclass_pipeline.cli.operation_run import run_rollback

        return run_rollback(
            dsn, settings, rollback_of, options, reason=reason, ticket=ticket, resume=resume
        )

    def refuse() -> None:
        refuse_rollback(dsn, settings, rollback_of, options, resume=resume)

    asker = Asker(this_user(), reason, ticket, resume)
    with refusals_recorded(dsn, settings, asker, Action.CLAIM_OPERATION, rollbackOf=rollback_of):
        return _run_unless_refused(refuse, run)


def refuse_rollback(
    dsn: str,
    settings: Settings,
    rollback_of: str,
    options: RollbackOptions,
    *,
    resume: str | None = None,
) -> None:
    """Return when the correction can be rolled back now; changes nothing.

    Raises OperationInProgressError while another operation is active, OperationNotFoundError,
    MarketTablesError, and the errors that say why a correction cannot be undone.
    """
    with connect(dsn, settings, purpose="rollback") as connection:
        schema.require_schema(connection)
        inspect_market_tables(connection, settings, for_writing=not options.dry_run)
        # A correction whose process died has ended; this notes it.
        with suppress(OperationInProgressError):
            refuse_while_active(connection, settings)
        undoing = Undoing(settings, resume or str(uuid4()), rollback_of, options)
        look_at(connection, settings, undoing)
        refuse_while_active(connection, settings)


def _run_unless_refused(refuse: Callable[[], None], run: Callable[[], "OperationRun"]) -> Ended:
    refuse()
    ran = run()
    if not ran.worked:
        # Somebody else may have been quicker between our look and the run's claim.
        refuse()
    return _ended(ran)


def _ended(run: "OperationRun") -> Ended:
    if run.cancelled:
        return Ended(run.operation, left=_stopped(run))
    if run.succeeded:
        return Ended(run.operation)
    return Ended(run.operation, failure=f"Dagster run {run.run_id} failed: {run.failure}")


def _stopped(run: "OperationRun") -> str:
    operation = run.operation
    if operation is None or not operation.records_planned:
        return "Stopped before any row was changed. The same command starts again."
    of = f"{operation.records_corrected:,} of {operation.records_planned:,} rows are"
    if operation.kind is Kind.ROLLBACK:
        return f"Stopped between two batches: {of} restored and stay so. {goes_on(operation)}"
    return (
        f"Stopped between two batches: {of} corrected and stay so. {goes_on(operation)} "
        "`assetclass execute` corrects the rest as a new operation."
    )
