"""Progress of an operation, as a bar or as lines.

Belongs here: how it looks; watching one that runs in this process, on a connection of its own.
Does not: running it, and watching one behind an API (remote_pipeline.py).
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, Self

import psycopg
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from assetclass_pipeline.cli.presentation import aside, count, duration
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.operation import RESUMABLE, Kind, Operation, Phase, Status
from assetclass_pipeline.settings import Settings

_INTERVAL = 0.5
_BETWEEN_LINES = 10.0
_WORDS = {
    Phase.STARTING: "starting",
    Phase.ANALYSING: "measuring the damage",
    Phase.PLANNING: "planning, backing up",
    Phase.PLANNED: "plan is ready",
    Phase.CORRECTING: "correcting",
    Phase.SWEEPING: "sweeping up moved rows",
    Phase.VERIFYING: "proving the result",
    Phase.DONE: "writing the report",
}
_WORDS_OF_ROLLBACK = {
    Phase.PLANNING: "comparing rows",
    Phase.CORRECTING: "restoring",
    Phase.VERIFYING: "measuring the result",
}


@contextmanager
def live_progress(dsn: str, settings: Settings, correction_id: str) -> Iterator[None]:
    """Show on standard error how the operation gets on until the context ends.

    It is a bar on a terminal, else lines.
    """
    # A copy of the stream: while a step runs, Dagster sends the stream itself into a log file.
    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace") as stream:
        yield from _shown(dsn, settings, correction_id, aside(stream))


def progress_view(console: Console, beginning: str) -> "ProgressView":
    """A bar on a terminal, else lines; `beginning` is said before an operation is shown."""
    return _Bar(console, beginning) if console.is_terminal else _Lines(console, beginning)


def _shown(dsn: str, settings: Settings, correction_id: str, console: Console) -> Iterator[None]:
    ended = threading.Event()
    view = progress_view(console, "starting Dagster")
    watcher = threading.Thread(
        target=_watch,
        args=(dsn, settings, correction_id, view, ended),
        name="progress",
        daemon=True,
    )
    with view:
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join(timeout=10)


def _watch(
    dsn: str,
    settings: Settings,
    correction_id: str,
    view: "ProgressView",
    ended: threading.Event,
) -> None:
    connection = None
    while not ended.wait(_INTERVAL):
        # No operation yet, or the server is away for a moment: the run itself tells what is wrong.
        with suppress(AssetClassError, psycopg.Error):
            if connection is None or connection.closed:
                connection = connect(dsn, settings, purpose="progress")
            operation = get_operation(connection, settings, correction_id)
            # One that is resumed stands there as it was left until the run has claimed it.
            if operation.status not in RESUMABLE:
                view.show(operation)
    if connection is not None:
        connection.close()


def _doing(operation: Operation) -> str:
    if operation.status is Status.PAUSED:
        return "paused"
    words = _WORDS | _WORDS_OF_ROLLBACK if operation.kind is Kind.ROLLBACK else _WORDS
    return words.get(operation.phase, str(operation.phase))


def _figures(operation: Operation) -> str:
    """Rows, speed and time to the end, as far as they are known."""
    if not operation.records_planned:
        return ""
    if operation.phase in {Phase.PLANNING, Phase.PLANNED}:
        return f"{count(operation.records_planned)} rows found"
    parts = [f"{count(operation.records_corrected)} of {count(operation.records_planned)} rows"]
    if operation.records_per_second:
        parts.append(f"{count(round(operation.records_per_second))} rows/s")
    if operation.eta_seconds is not None:
        parts.append(f"ETA {duration(operation.eta_seconds.high)}")
    return ", ".join(parts)


def _waits_for(operation: Operation) -> str:
    """Why no batch is started now, if so."""
    return f"waits: {' '.join(operation.throttle)}" if operation.throttle else ""


def _pacing(operation: Operation) -> str:
    if operation.pacing is None or operation.phase is not Phase.CORRECTING:
        return ""
    return f"batches of {count(operation.pacing.batch_size)} x {operation.pacing.workers}"


class _BarAndLine(Progress):
    """The bar, and a line of its own below: beside it there is no room on a usual terminal."""

    line = Text()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self.line


class ProgressView(Protocol):
    """Shows how an operation gets on while its context lives."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Leave the screen in order."""

    def show(self, operation: Operation) -> None:
        """The operation as it stands now."""


class _Bar:
    """A bar that a terminal redraws and that vanishes at the end."""

    def __init__(self, console: Console, beginning: str = "starting") -> None:
        self._progress = _BarAndLine(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID = self._progress.add_task(beginning, total=None, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, operation: Operation) -> None:
        known = bool(operation.records_planned)
        waits = _waits_for(operation)
        self._progress.line = Text(
            waits or _pacing(operation),
            style="yellow" if waits else "dim",
            no_wrap=True,
            overflow="ellipsis",
        )
        self._progress.update(
            self._task,
            description=_doing(operation),
            total=100 if known else None,
            completed=operation.progress_percent,
            figures=_figures(operation),
        )


class _Lines:
    """A line at each new phase, when it waits or goes on, and every ten seconds, for logs."""

    def __init__(self, console: Console, beginning: str = "starting") -> None:
        self._console = console
        self._beginning = beginning
        self._doing: tuple[str, bool] | None = None
        self._printed = 0.0

    def __enter__(self) -> Self:
        self._console.print(self._beginning)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, operation: Operation) -> None:
        now = time.monotonic()
        doing = (_doing(operation), bool(operation.throttle))
        if doing == self._doing and now - self._printed < _BETWEEN_LINES:
            return
        self._doing, self._printed = doing, now
        said = (_figures(operation), _pacing(operation), _waits_for(operation))
        figures = ", ".join(part for part in said if part)
        self._console.print(
            f"{_doing(operation)}{': ' if figures else ''}{figures}",
            no_wrap=True,
            overflow="ellipsis",
        )
