"""The pipeline beside the command: its database, and runs of Dagster's in this process.

Belongs here: opening what a question needs, calling engine and monitoring. Does not: printing, and
how a run is made and ends (through_dagster.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Self
from uuid import uuid4

import psycopg
from psycopg.rows import TupleRow

from assetclass_pipeline.cli.ended import Ended
from assetclass_pipeline.cli.pipeline import Undo
from assetclass_pipeline.cli.through_dagster import (
    correct_when_free,
    refuse_rollback,
    roll_back_when_free,
)
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, open_database
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.engine.audit import Asker, refusals_recorded
from assetclass_pipeline.engine.claiming import refuse_while_active
from assetclass_pipeline.engine.control import (
    ask_to_cancel,
    ask_to_pause,
    ask_to_resume,
    named_or_active,
)
from assetclass_pipeline.engine.control import tune as tune_operation
from assetclass_pipeline.engine.operations import (
    Unfinished,
    get_operation,
    operation_status,
    scope_of,
)
from assetclass_pipeline.engine.preview import preview
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.engine.row_history import row_history
from assetclass_pipeline.engine.validation import validate
from assetclass_pipeline.errors import AlreadyRolledBackError, OperationInProgressError
from assetclass_pipeline.model.alert import Alert, MaintenanceWindow
from assetclass_pipeline.model.audit import Action
from assetclass_pipeline.model.health import Health
from assetclass_pipeline.model.metrics import Metrics
from assetclass_pipeline.model.months import TimeRange
from assetclass_pipeline.model.operation import RESUMABLE, Operation, OperationStatus
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preview import Preview
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.row_history import RowHistory
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline.model.validation import Validation
from assetclass_pipeline.monitoring import alert_store
from assetclass_pipeline.monitoring.exposition import exposition
from assetclass_pipeline.monitoring.metrics import collect
from assetclass_pipeline.settings import Settings

_Connection = psycopg.Connection[TupleRow]
_Ask = Callable[..., Operation]


class LocalPipeline:
    """Answers a command from the database; opened with the first question that needs it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, traceback)

    @cached_property
    def _dsn(self) -> str:
        return self._opened.enter_context(open_database(self._settings))

    @cached_property
    def _writable_dsn(self) -> str:
        if self._settings.database_url is None:
            schema.upgrade(self._dsn, self._settings)
        return self._dsn

    @contextmanager
    def _connected(self, purpose: str) -> Iterator[_Connection]:
        with connect(self._dsn, self._settings, purpose=purpose) as connection:
            yield connection

    @contextmanager
    def _market(self, purpose: str) -> Iterator[tuple[_Connection, MarketTables]]:
        with self._connected(purpose) as connection:
            yield (
                connection,
                inspect_market_tables(connection, self._settings, for_writing=False),
            )

    @contextmanager
    def _records(self, purpose: str) -> Iterator[_Connection]:
        with self._connected(purpose) as connection:
            schema.require_schema(connection)
            yield connection

    @contextmanager
    def _records_of_the_living(self, purpose: str) -> Iterator[_Connection]:
        with self._records(purpose) as connection:
            # One whose process died is not active any more; nobody would hear what is asked of it.
            with suppress(OperationInProgressError):
                refuse_while_active(connection, self._settings)
            yield connection

    def analyze(self) -> IntegrityReport:
        """Measure the damage."""
        with self._market("analyze") as (connection, tables):
            return analyse(connection, tables, self._settings)

    def preview(self, options: CorrectionOptions) -> Preview:
        """What a correction would do."""
        with self._market("preview") as (connection, tables):
            return preview(connection, tables, self._settings, options)

    def validate(self) -> Validation:
        """Whether every threshold is met."""
        with self._market("validate") as (connection, tables):
            return validate(connection, tables, self._settings)

    def status(self, *, include_all: bool) -> OperationStatus:
        """What is going on."""
        with self._records("status") as connection:
            return operation_status(connection, self._settings, include_all=include_all)

    def operation(self, correction_id: str) -> Operation:
        """One operation."""
        with self._records("status") as connection:
            return get_operation(connection, self._settings, correction_id)

    def execute(
        self, options: CorrectionOptions, *, reason: str | None, ticket: str | None
    ) -> Ended:
        """Correct through `correction_job`."""
        return correct_when_free(
            self._writable_dsn, self._settings, options, reason=reason, ticket=ticket
        )

    def rollback(self, undo: Undo) -> Ended:
        """Undo through `rollback_job`."""
        return roll_back_when_free(
            self._writable_dsn,
            self._settings,
            undo.correction_id,
            undo.options,
            reason=undo.reason,
            ticket=undo.ticket,
        )

    def overwritten_by(self, undo: Undo) -> Operation:
        """A dry run in this process, without Dagster."""
        asker = Asker(this_user(), undo.reason, undo.ticket)
        of = {"rollbackOf": undo.correction_id}
        with refusals_recorded(
            self._writable_dsn, self._settings, asker, Action.CLAIM_OPERATION, **of
        ):
            refuse_rollback(self._dsn, self._settings, undo.correction_id, undo.options)
        blunt = undo.options.model_copy(update={"dry_run": True})
        try:
            return self._rehearse(undo, blunt.model_copy(update={"take_backup_value": False}))
        except AlreadyRolledBackError:
            # Only its conflicts are left, so everything that is planned would be overwritten.
            return self._rehearse(undo, blunt)

    def _rehearse(self, undo: Undo, options: RollbackOptions) -> Operation:
        request = RollbackRequest(
            correction_id=str(uuid4()),
            rollback_of=undo.correction_id,
            options=options,
            requested_by=this_user(),
            reason="which rows --take-backup-value would overwrite",
        )
        return roll_back(self._dsn, self._settings, request)

    def pause(self, correction_id: str | None) -> Operation:
        """Let the named or the active operation stay."""
        return self._ask(ask_to_pause, correction_id)

    def cancel(self, correction_id: str | None) -> Operation:
        """Stop the named or the active operation."""
        return self._ask(ask_to_cancel, correction_id)

    def tune(self, correction_id: str | None, changes: Tuning) -> Operation:
        """Make the named or the active operation go faster or slower."""

        def ask(connection: _Connection, settings: Settings, named: str, *, by: str) -> Operation:
            return tune_operation(connection, settings, named, changes, by=by)

        return self._ask(ask, correction_id)

    def resume(self, correction_id: str | None) -> Operation | Ended:
        """Let a paused one go on; run one that was cut off here, through Dagster."""
        with self._records_of_the_living("resume") as connection:
            named = named_or_active(connection, self._settings, correction_id)
            left = get_operation(connection, self._settings, named)
            if left.status in RESUMABLE:
                scope = scope_of(connection, self._settings, named)
                return self._go_on(left, scope)
        return self._ask(ask_to_resume, named)

    def _go_on(self, left: Operation, scope: TimeRange) -> Ended:
        """Finish an operation which was cut off, as it was asked for."""
        if left.rollback_of is None:
            return correct_when_free(
                self._dsn,
                self._settings,
                CorrectionOptions.model_validate(left.options),
                resume=Unfinished(left.correction_id, scope),
            )
        return roll_back_when_free(
            self._dsn,
            self._settings,
            left.rollback_of,
            RollbackOptions.model_validate(left.options),
            reason=left.reason or "not said",
            resume=left.correction_id,
        )

    def _ask(self, ask: _Ask, correction_id: str | None) -> Operation:
        with self._records_of_the_living("control") as connection:
            named = named_or_active(connection, self._settings, correction_id)
            return ask(connection, self._settings, named, by=this_user())

    def health(self) -> Health:
        """Whether all is well; starts nothing."""
        from assetclass_pipeline.defs.health import health_of

        return health_of(self._settings)

    def metrics(self) -> Metrics:
        """How operations went, how good the data are."""
        with self._records("metrics") as connection:
            return collect(connection, self._settings)

    def metrics_text(self) -> str:
        """The same as Prometheus reads them."""
        return exposition(self.metrics()).decode()

    def alerts(
        self, *, most: int, include_resolved: bool
    ) -> tuple[list[Alert], Sequence[MaintenanceWindow]]:
        """Alerts, and the maintenance windows that are not over."""
        with self._records("alerts list") as connection:
            found = alert_store.list_alerts(
                connection, self._settings, most=most, include_resolved=include_resolved
            )
            return found, alert_store.windows(connection, self._settings)

    def acknowledge(self, alert_id: int, *, note: str | None) -> Alert:
        """Take an alert on."""
        with self._records("alerts ack") as connection:
            return alert_store.acknowledge(
                connection, self._settings, alert_id, by=this_user(), note=note
            )

    def row_history(self, key: str, *, symbol: str | None, timestamp: str | None) -> RowHistory:
        """How a row came by its value."""
        with self._records("audit row") as connection:
            return row_history(connection, self._settings, key, symbol=symbol, timestamp=timestamp)
