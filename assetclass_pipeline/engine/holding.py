"""Holding an operation: claim it, keep its heart beating, hear requests to stop, and end it.

Belongs here: the rule that one operation is active, the epoch that fences, the heartbeat, the
deadline. Does not: what the operation does while it is held.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import UUID

import psycopg
from psycopg import Connection, errors
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from tenacity import Retrying

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.retry import retrying, what_it_said
from assetclass_pipeline.errors import (
    AssetClassError,
    CorrectionFailedError,
    DatabaseUnavailableError,
    OperationCancelledError,
    OperationFencedError,
    OperationInProgressError,
    OperationStateError,
    OperationTimedOutError,
)
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.operation import ACTIVE, RESUMABLE, Kind, Phase, Status
from assetclass_pipeline.model.options import CorrectionOptions, RetryOptions
from assetclass_pipeline.settings import Settings

# First key of the advisory lock, so that it meets no other application's: "acls" in ASCII.
ADVISORY_CLASS = 0x61636C73
CONTROL_INTERVAL = 1.0
# So many heartbeats missed, and no session holds the advisory lock: nobody needs to wait longer.
MISSED_BEATS = 3


@dataclass(frozen=True)
class CorrectionRequest:
    """Who asks for which correction."""

    correction_id: str
    options: CorrectionOptions
    scope: TimeRange = EVERYTHING
    requested_by: str = ""
    reason: str | None = None
    ticket: str | None = None
    run_id: str | None = None
    retry_of: str | None = None


class Stop(threading.Event):
    """Set once, with the error that everybody who checks shall raise."""

    def __init__(self) -> None:
        super().__init__()
        self.cause: AssetClassError | None = None

    def because(self, cause: AssetClassError) -> None:
        """Ask all workers to stop between two batches; the first cause stays."""
        if self.cause is None:
            self.cause = cause
        self.set()

    def check(self) -> None:
        """Raise the cause once there is one."""
        if self.is_set() and self.cause is not None:
            raise self.cause


class Holder:
    """A claimed operation; while it lives its heart beats on a connection of its own.

    `stop` is set by a cancel request, the deadline, a take-over, or a database that went away
    for longer than the operation may stay silent.
    """

    def __init__(self, dsn: str, settings: Settings, correction_id: UUID, epoch: int) -> None:
        self.dsn = dsn
        self.settings = settings
        self.correction_id = correction_id
        self.epoch = epoch
        self.stop = Stop()
        self._deadline: float | None = None
        self._connection: Connection[TupleRow] | None = None
        self._statement_ended = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        if self._connection is not None:
            self._connection.close()
        # Without a holder the next claim need not wait for silence; a dead server says nothing.
        with (
            suppress(AssetClassError, psycopg.Error),
            self.connect("release") as connection,
            transaction(connection, self.settings) as cursor,
        ):
            cursor.execute(query("operation", "beat"), self._beat_values(""))

    def limit(self, seconds: float) -> None:
        """Stop after so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def retry(self, options: CorrectionOptions) -> RetryOptions:
        """Tries and waits: the operation's own, or those of the settings."""
        return options.retry or self.settings.retry

    def retrying(self, options: CorrectionOptions) -> Retrying:
        """Calls a function again after transient errors, until the operation stops."""
        return retrying(self.retry(options), self.stop)

    def connect(self, purpose: str) -> Connection[TupleRow]:
        """A connection of this operation's."""
        return connect(self.dsn, self.settings, purpose=purpose)

    @property
    def connection(self) -> Connection[TupleRow]:
        """The operation's own connection, opened anew after it was lost; for one thread."""
        if self._connection is None or self._connection.closed:
            self._connection = self.connect("correction")
        return self._connection

    @property
    def key(self) -> dict[str, object]:
        """What every statement about this operation is bound to."""
        return {"correction_id": self.correction_id, "epoch": self.epoch}

    def enter_phase(self, phase: Phase) -> None:
        """Tell what the operation does now. Raises OperationFencedError after a take-over."""
        self.update("set_phase", {"phase": phase.value})

    def update(self, statement: str, values: dict[str, object]) -> None:
        """Change the operation's row while it is ours. Raises OperationFencedError."""
        with transaction(self.connection, self.settings) as cursor:
            self.update_with(cursor, statement, values)

    def update_with(
        self, cursor: psycopg.Cursor[TupleRow], statement: str, values: dict[str, object]
    ) -> None:
        """The same within a transaction of the caller's."""
        cursor.execute(query("operation", statement), {**self.key, **values})
        if cursor.rowcount != 1:
            raise fenced(self.correction_id)

    def _beat_values(self, name: str) -> dict[str, object]:
        return {**self.key, "holder": name}

    def _watch(self) -> None:
        last_heard = time.monotonic()
        connection: Connection[TupleRow] | None = None
        last_beat = 0.0
        while not self._ended.wait(CONTROL_INTERVAL):
            self._check_deadline()
            try:
                connection = connection or self._watching_connection()
                due = time.monotonic() - last_beat >= self.settings.heartbeat_interval
                self._hear(connection, beat=due)
                last_heard = time.monotonic()
                last_beat = last_heard if due else last_beat
            except (psycopg.Error, DatabaseUnavailableError):
                connection = None
                if time.monotonic() - last_heard > self.settings.heartbeat_stale_after:
                    self.stop.because(
                        OperationFencedError(
                            "The database did not answer for longer than an operation may stay "
                            "silent. Run it again to go on where it stopped."
                        )
                    )
            if self.stop.is_set():
                self._end_statement()
        if connection is not None:
            connection.close()

    def _end_statement(self) -> None:
        """A scan of the whole table may run for an hour: who asks to stop need not wait for it."""
        connection = self._connection
        if not self._statement_ended and connection is not None:
            self._statement_ended = True
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=5)

    def _watching_connection(self) -> Connection[TupleRow]:
        connection = self.connect("heartbeat")
        # Only a hint (a pooler may leak it, an idle time-out may drop it): where it is gone and the
        # heart has missed some beats, a dead operation is known sooner than by silence alone.
        connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (ADVISORY_CLASS, 1))
        return connection

    def _hear(self, connection: Connection[TupleRow], *, beat: bool) -> None:
        with transaction(connection, self.settings) as cursor:
            if beat:
                cursor.execute(query("operation", "beat"), self._beat_values(holder_name()))
            row = cursor.execute(
                query("operation", "state"), {"correction_id": self.correction_id}
            ).fetchone()
        # Without a higher epoch nobody but ourselves ends the operation.
        if row is None or row[1] != self.epoch:
            self.stop.because(fenced(self.correction_id))
        elif row[2] == "cancel":
            self.stop.because(
                OperationCancelledError(
                    f"Operation {self.correction_id} was cancelled between two batches. "
                    "Everything committed stays; run it again to go on."
                )
            )

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.stop.because(
                OperationTimedOutError(
                    f"Operation {self.correction_id} used up its timeout and stopped between two "
                    "batches. Everything committed stays; run it again to go on, with a longer "
                    "timeout if need be."
                )
            )


def holder_name() -> str:
    """Which process holds an operation, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


def fenced(correction_id: UUID) -> OperationFencedError:
    """The error of a process that no longer owns the operation."""
    return OperationFencedError(
        f"Operation {correction_id} was ended or taken over by another process; this one writes "
        "no more. `assetclass status` tells who works on it."
    )


@contextmanager
def hold(
    dsn: str,
    settings: Settings,
    request: CorrectionRequest,
    *,
    cancelled_by: tuple[type[BaseException], ...] = (),
) -> Iterator[Holder]:
    """Claim the operation of `request` (create, resume, or take over) and hold it.

    An error inside ends the operation as cancelled, timed_out, interrupted or failed, and is
    raised on; without one the caller has ended it, or parks it for the next process.
    Raises OperationInProgressError naming the active operation.
    """
    with connect(dsn, settings, purpose="claim") as connection:
        epoch = _claim(connection, settings, request)
    with Holder(dsn, settings, as_uuid(request.correction_id), epoch) as holder:
        holder.limit(request.options.timeout.total_seconds())
        try:
            yield holder
        except BaseException as error:
            shown = _readable(holder, error)
            holder.stop.because(fenced(holder.correction_id))
            with suppress(AssetClassError, psycopg.Error):
                _end_badly(holder, shown, cancelled_by)
            if shown is error:
                raise
            # Not "from error": PostgreSQL's own text holds SQL, and rows of the table.
            raise shown from None


def _readable(holder: Holder, error: BaseException) -> BaseException:
    """The typed error of a statement that failed, or the reason why it was ended."""
    if not isinstance(error, psycopg.Error):
        return error
    return holder.stop.cause or CorrectionFailedError(
        f"Operation {holder.correction_id} could not go on: {what_it_said(error)}. Everything "
        "committed so far stays; run it again to go on where it stopped."
    )


def _claim(connection: Connection[TupleRow], settings: Settings, request: CorrectionRequest) -> int:
    key = as_uuid(request.correction_id)
    _interrupt_abandoned(connection, settings)
    by_key = {"correction_id": key}
    try:
        with transaction(connection, settings) as cursor:
            row = cursor.execute(query("operation", "lock"), by_key).fetchone()
            if row is None:
                cursor.execute(query("operation", "create"), _creation(key, request))
            else:
                _check_claimable(cursor, key, Status(row[0]))
                _check_same_kind(key, request, begun_dry=row[1])
            claimed = cursor.execute(
                query("operation", "claim"), {**by_key, "run_id": request.run_id}
            ).fetchone()
            epoch = int(claimed[0]) if claimed else 0
            if row is None or Status(row[0]) is not Status.RUNNING:
                # Picked up from the step before, a request to cancel that came meanwhile holds.
                cursor.execute(
                    query("operation", "ask"),
                    {**by_key, "wanted": "run", "wanted_by": request.requested_by},
                )
            # The claim is the first heartbeat: one that died right after it would otherwise never
            # count as silent, and a resumed one would look silent until it beats.
            cursor.execute(
                query("operation", "beat"), {**by_key, "epoch": epoch, "holder": holder_name()}
            )
            return epoch
    except errors.UniqueViolation:
        raise _in_progress(connection, settings) from None


def _creation(key: UUID, request: CorrectionRequest) -> dict[str, object]:
    return {
        "correction_id": key,
        "kind": Kind.CORRECTION.value,
        "status": Status.REQUESTED.value,
        "dry_run": request.options.dry_run,
        "options": Jsonb(request.options.model_dump(mode="json", by_alias=True)),
        "range_start": request.scope.start,
        "range_end": request.scope.end,
        "requested_by": request.requested_by,
        "reason": request.reason,
        "ticket": request.ticket,
        "run_id": request.run_id,
        "retry_of": request.retry_of,
    }


def _check_claimable(cursor: psycopg.Cursor[TupleRow], key: UUID, status: Status) -> None:
    if status in RESUMABLE or status is Status.REQUESTED:
        return
    if status not in ACTIVE:
        raise OperationStateError(
            f"Operation {key} is {status} and cannot be run again; start a new one."
        )
    age = cursor.execute(query("operation", "heartbeat_age"), {"correction_id": key}).fetchone()
    if age is not None:
        raise OperationInProgressError(
            f"Operation {key} is already running in another process (heard of {age[0]:.0f} s ago).",
            correction_id=str(key),
        )


def _check_same_kind(key: UUID, request: CorrectionRequest, *, begun_dry: bool) -> None:
    """A resume goes on with the options of the beginning; of these one must not surprise."""
    if request.options.dry_run is not begun_dry:
        begun, asked = ("a dry run", "a real one") if begun_dry else ("a real run", "a dry one")
        raise OperationStateError(
            f"Operation {key} was begun as {begun} and cannot go on as {asked}; start a new one."
        )


def _interrupt_abandoned(connection: Connection[TupleRow], settings: Settings) -> None:
    with transaction(connection, settings) as cursor:
        cursor.execute(
            query("operation", "interrupt_abandoned"),
            {
                "stale_after": settings.heartbeat_stale_after,
                "missed_after": MISSED_BEATS * settings.heartbeat_interval,
                "advisory_class": ADVISORY_CLASS,
            },
        )


def refuse_while_active(connection: Connection[TupleRow], settings: Settings) -> None:
    """Return when no operation is active; one whose process is gone is ended first.

    For surfaces that refuse before they start anything; the proof is the claim. Raises
    OperationInProgressError naming the active one.
    """
    _interrupt_abandoned(connection, settings)
    with transaction(connection, settings, read_only=True) as cursor:
        active = cursor.execute(query("operation", "active")).fetchone()
    if active is not None:
        raise _in_progress(connection, settings)


def _in_progress(connection: Connection[TupleRow], settings: Settings) -> OperationInProgressError:
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "active")).fetchone()
    active = str(row[0]) if row else "unknown"
    return OperationInProgressError(
        f"Operation {active} is active, and only one may be. Wait for it "
        f"(`assetclass status {active}`) or cancel it.",
        correction_id=active,
    )


def _end_badly(
    holder: Holder, error: BaseException, cancelled_by: tuple[type[BaseException], ...]
) -> None:
    """Write how it ended; whoever took the operation over has the last word."""
    if isinstance(error, OperationFencedError):
        return
    if isinstance(error, (OperationCancelledError, *cancelled_by)):
        status = Status.CANCELLED
    elif isinstance(error, OperationTimedOutError):
        status = Status.TIMED_OUT
    elif isinstance(error, Exception):
        status = Status.FAILED
    else:
        status = Status.INTERRUPTED
    if status is Status.CANCELLED and not isinstance(error, AssetClassError):
        error = OperationCancelledError(
            "Stopped between two batches by a signal or on request. Everything committed stays; "
            "run it again to go on."
        )
    code = error.code if isinstance(error, AssetClassError) else type(error).__name__
    message = str(error) or f"Ended by {type(error).__name__}. Run it again to go on."
    with holder.connect("end") as connection, transaction(connection, holder.settings) as cursor:
        cursor.execute(
            query("operation", "end_badly"),
            {
                **holder.key,
                "status": status.value,
                "error": Jsonb({"code": code, "message": message}),
            },
        )
