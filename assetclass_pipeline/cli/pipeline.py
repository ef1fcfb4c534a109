"""What commands ask of the pipeline, be it beside them or behind an API.

Belongs here: the questions, and who answers. Does not: answering (local_pipeline.py,
remote_pipeline.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from assetclass_pipeline.cli.ended import Ended
from assetclass_pipeline.cli.remote import chosen
from assetclass_pipeline.model.alert import Alert, MaintenanceWindow
from assetclass_pipeline.model.health import Health
from assetclass_pipeline.model.metrics import Metrics
from assetclass_pipeline.model.operation import Operation, OperationStatus
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preview import Preview
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.row_history import RowHistory
from assetclass_pipeline.model.validation import Validation
from assetclass_pipeline.settings import load_settings


@dataclass(frozen=True)
class Undo:
    """Which correction is undone, how, and why."""

    correction_id: str
    options: RollbackOptions
    reason: str
    ticket: str | None = None


class Pipeline(Protocol):
    """The pipeline as commands see it; each method raises the typed errors of errors.py."""

    def analyze(self) -> IntegrityReport:
        """Measure the damage."""

    def preview(self, options: CorrectionOptions) -> Preview:
        """What a correction would do."""

    def validate(self) -> Validation:
        """Whether every threshold is met."""

    def status(self, *, include_all: bool) -> OperationStatus:
        """What is going on."""

    def operation(self, correction_id: str) -> Operation:
        """One operation."""

    def execute(
        self, options: CorrectionOptions, *, reason: str | None, ticket: str | None
    ) -> Ended:
        """Correct, with live progress, until it has ended or somebody presses Ctrl-C."""

    def rollback(self, undo: Undo) -> Ended:
        """Undo a correction, as with `execute`."""

    def overwritten_by(self, undo: Undo) -> Operation:
        """A dry run that tells which rows of others an undo with `take_backup_value` overwrites."""

    def pause(self, correction_id: str | None) -> Operation:
        """Let the named or the active operation stay."""

    def resume(self, correction_id: str | None) -> Operation | Ended:
        """Let a paused one go on; or finish one that was cut off, as with `execute`."""

    def cancel(self, correction_id: str | None) -> Operation:
        """Stop the named or the active operation."""

    def health(self) -> Health:
        """Whether all is well."""

    def metrics(self) -> Metrics:
        """How operations went, how good the data are."""

    def metrics_text(self) -> str:
        """The same as Prometheus reads them."""

    def alerts(
        self, *, most: int, include_resolved: bool
    ) -> tuple[list[Alert], Sequence[MaintenanceWindow]]:
        """Alerts, and the maintenance windows as far as they can be told."""

    def acknowledge(self, alert_id: int, *, note: str | None) -> Alert:
        """Take an alert on."""

    def row_history(self, key: str, *, symbol: str | None, timestamp: str | None) -> RowHistory:
        """How a row came by its value."""


@contextmanager
def open_pipeline() -> Iterator[Pipeline]:
    """The pipeline that flags and settings choose; nothing of the other one is opened.

    Raises InvalidSettingsError, and InvalidOptionsError for an address or a token's file that
    cannot be used.
    """
    settings = load_settings()
    remote = chosen(settings)
    # Imported when it is needed: one of them needs the driver, the other one HTTP.
    if remote is None:
        from assetclass_pipeline.cli.local_pipeline import LocalPipeline

        with LocalPipeline(settings) as here:
            yield here
    else:
        from assetclass_pipeline.cli.remote_pipeline import open_remote

        with open_remote(remote) as there:
            yield there
