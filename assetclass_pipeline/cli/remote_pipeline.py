"""The pipeline behind a REST API: asked over HTTP, its operations followed by polling.

Belongs here: asking through the client, progress, Ctrl-C. Does not: printing how it ended.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from assetclass_pipeline.cli.ended import Ended
from assetclass_pipeline.cli.pipeline import Undo
from assetclass_pipeline.cli.presentation import aside
from assetclass_pipeline.cli.progress import progress_view
from assetclass_pipeline.cli.remote import Remote, read_token
from assetclass_pipeline.client import AssetClassClient
from assetclass_pipeline.errors import AlreadyRolledBackError, CorrectionFailedError
from assetclass_pipeline.model.alert import Alert, MaintenanceWindow
from assetclass_pipeline.model.health import Health
from assetclass_pipeline.model.metrics import Metrics
from assetclass_pipeline.model.operation import Operation, OperationStatus, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preview import Preview
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.row_history import RowHistory
from assetclass_pipeline.model.validation import Validation

# Somebody waits at a terminal. Seconds.
_TRIES = 4
_PATIENCE = 15.0


@contextmanager
def open_remote(remote: Remote) -> Iterator["RemotePipeline"]:
    """The pipeline behind an API. Raises InvalidOptionsError for a bad address or token's file."""
    token = None if remote.token_file is None else read_token(remote.token_file)
    with AssetClassClient(remote.url, token, tries=_TRIES, patience=_PATIENCE) as client:
        yield RemotePipeline(remote, client)


class RemotePipeline:
    """Answers a command through the API."""

    def __init__(self, remote: Remote, client: AssetClassClient) -> None:
        self._remote = remote
        self._client = client

    def analyze(self) -> IntegrityReport:
        """Measure the damage."""
        return self._client.analyze()

    def preview(self, options: CorrectionOptions) -> Preview:
        """What a correction would do."""
        return self._client.preview(options)

    def validate(self) -> Validation:
        """Whether every threshold is met."""
        return self._client.validate()

    def status(self, *, include_all: bool) -> OperationStatus:
        """What is going on."""
        return self._client.status(include_all=include_all)

    def operation(self, correction_id: str) -> Operation:
        """One operation."""
        return self._client.operation(correction_id)

    def execute(
        self, options: CorrectionOptions, *, reason: str | None, ticket: str | None
    ) -> Ended:
        """Ask for a correction and follow it."""
        return self._follow(
            self._asked(lambda: self._client.execute(options, reason=reason, ticket=ticket))
        )

    def rollback(self, undo: Undo) -> Ended:
        """Ask for an undo and follow it."""
        return self._follow(self._asked(lambda: self._ask_to_undo(undo, undo.options)))

    def overwritten_by(self, undo: Undo) -> Operation:
        """A dry run of the API's; Ctrl-C leaves it alone, for it changes nothing."""
        blunt = undo.options.model_copy(update={"dry_run": True})
        polite = blunt.model_copy(update={"take_backup_value": False})
        try:
            asked = self._ask_to_undo(undo, polite)
        except AlreadyRolledBackError:
            # Only its conflicts are left, so everything that is planned would be overwritten.
            asked = self._ask_to_undo(undo, blunt)
        with progress_view(aside(), "looking which rows others have changed") as view:
            found = self._client.follow(asked, progress=view.show)
        if failure := _failure(found):
            raise CorrectionFailedError(failure)
        return found

    def _ask_to_undo(self, undo: Undo, options: RollbackOptions) -> str:
        return self._client.rollback(
            undo.correction_id, options, reason=undo.reason, ticket=undo.ticket
        )

    def pause(self, correction_id: str | None) -> Operation:
        """Let the named or the active operation stay."""
        return self._client.pause(correction_id)

    def resume(self, correction_id: str | None) -> Operation | Ended:
        """Let a paused one go on; or follow one that was cut off and is asked for again."""
        operation = self._client.resume(correction_id)
        if operation.status is Status.REQUESTED:
            return self._follow(operation.correction_id)
        return operation

    def cancel(self, correction_id: str | None) -> Operation:
        """Stop the named or the active operation."""
        return self._client.cancel(correction_id)

    def health(self) -> Health:
        """Whether all is well."""
        return self._client.health()

    def metrics(self) -> Metrics:
        """How operations went, how good the data are."""
        return self._client.metrics()

    def metrics_text(self) -> str:
        """The same as Prometheus reads them."""
        return self._client.metrics_text()

    def alerts(
        self, *, most: int, include_resolved: bool
    ) -> tuple[list[Alert], Sequence[MaintenanceWindow]]:
        """Alerts; the API does not tell of maintenance windows."""
        return self._client.alerts(most=most, include_resolved=include_resolved), ()

    def acknowledge(self, alert_id: int, *, note: str | None) -> Alert:
        """Take an alert on."""
        return self._client.acknowledge(alert_id, note=note)

    def row_history(self, key: str, *, symbol: str | None, timestamp: str | None) -> RowHistory:
        """How a row came by its value."""
        return self._client.row_history(key, symbol=symbol, timestamp=timestamp)

    def _asked(self, ask: Callable[[], str]) -> str:
        try:
            return ask()
        except (KeyboardInterrupt, SystemExit):
            self._remark(
                f"Whether it was asked for is not known: `{self._remote.command('status')}` tells."
            )
            raise

    def _follow(self, correction_id: str) -> Ended:
        """Show how it gets on until it has ended; whoever stops looking does not stop it."""
        seen: Operation | None = None

        def look(operation: Operation) -> None:
            nonlocal seen
            seen = operation
            view.show(operation)

        with progress_view(aside(), f"{correction_id} is asked for") as view:
            try:
                ended = self._client.follow(correction_id, progress=look)
            except (KeyboardInterrupt, SystemExit):
                return Ended(seen, left=self._goes_on(correction_id))
        return Ended(ended, failure=_failure(ended))

    def _goes_on(self, correction_id: str) -> str:
        cancel, status = (
            self._remote.command(f"{word} {correction_id}") for word in ("cancel", "status")
        )
        return (
            f"Operation {correction_id} goes on without this command. `{cancel}` stops it, "
            f"`{status}` shows it."
        )

    def _remark(self, said: str) -> None:
        aside().print(said, style="yellow", soft_wrap=True)


def _failure(operation: Operation) -> str | None:
    """Why it did not work, as a run in this process would say it; None when it did."""
    if operation.status is Status.SUCCEEDED:
        return None
    status = operation.status.replace("_", " ")
    said = operation.error.message if operation.error else f"the {operation.kind} is {status}"
    if operation.run_id is None:
        return f"Operation {operation.correction_id} has no run, and is {status}: {said}"
    return f"Dagster run {operation.run_id} failed: {said}"
