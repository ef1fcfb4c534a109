"""Holding an operation: keep its heart beating, hear what people ask of it, and end it.

Belongs here: the heartbeat, pause and resume, the deadline, the end. Does not: the claim
(claiming.py), and what the operation does while it is held.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import ParamSpec, Self, TypeVar
from uuid import UUID

import psycopg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.attempts import Attempts
from assetclass_pipeline.engine.audit import refusals_recorded
from assetclass_pipeline.engine.claiming import (
    Check,
    OperationRequest,
    claim,
    fenced,
    holder_name,
)
from assetclass_pipeline.engine.ending import note_end
from assetclass_pipeline.engine.gate import Gate, Stop
from assetclass_pipeline.engine.journal import Journal
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.retry import begun, what_it_said
from assetclass_pipeline.engine.session import Session, given_up_after
from assetclass_pipeline.engine.silence import ADVISORY_CLASS, CONTROL_INTERVAL
from assetclass_pipeline.errors import (
    AssetClassError,
    CorrectionFailedError,
    DatabaseUnavailableError,
    OperationCancelledError,
    OperationFencedError,
    OperationTimedOutError,
)
from assetclass_pipeline.model.audit import Action, Actor
from assetclass_pipeline.model.operation import Phase, Status
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline.settings import Settings

# Beside what the server may take for a statement: its answer's way to us.
_ANSWER_SECONDS = 15.0
_HELD = {Status.RUNNING, Status.PAUSED}
_ENDING = {"finish", "park"}

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Holder:
    """A claimed operation; while it lives its heart beats on a connection of its own.

    `stop` is set by a cancel request, the deadline, the end of the window, a take-over, or a
    database that stays away; `gate` is closed by a pause, by the throttle, and by a server that is
    away. `pacing` is what the batches have come to, kept for a resume.
    """

    def __init__(self, dsn: str, settings: Settings, request: OperationRequest, epoch: int) -> None:
        self.dsn = dsn
        self.settings = settings
        self.correction_id: UUID = as_uuid(request.correction_id)
        self.epoch = epoch
        self.actor = Actor.of_requester(request.requested_by)
        self.stop = Stop()
        self.gate = Gate(self.stop)
        self.journal = Journal(self.correction_id, holder_name())
        self.tuning = Tuning()
        self.pacing: dict[str, object] | None = None
        self.attempts = Attempts(
            gate=self.gate,
            stop=self.stop,
            journal=self.journal,
            connect=self.connect,
            retry=request.options.retry or settings.retry,
            patience=settings.patience,
        )
        self._deadline = time.monotonic() + request.options.timeout.total_seconds()
        self._paused_at: float | None = None
        self._session = Session(lambda: self.connect(request.kind))
        self._sessions = [self._session]
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
        for session in self._sessions:
            session.close()
        # Without a holder the next claim need not wait for silence; a dead server says nothing.
        with (
            suppress(AssetClassError, psycopg.Error),
            self.connect("release") as connection,
            transaction(connection, self.settings) as cursor,
        ):
            self._beat(cursor, "")
            self.journal.write(cursor)

    def connect(self, purpose: str) -> Connection[TupleRow]:
        """A connection of this operation's to a primary. Raises DatabaseUnavailableError."""
        return connect(self.dsn, self.settings, purpose=purpose, to_write=True)

    def open_session(self, purpose: str) -> Session:
        """A session for another thread of this operation's, cut when it stalls."""
        session = Session(lambda: self.connect(purpose))
        self._sessions.append(session)
        return session

    @property
    def connection(self) -> Connection[TupleRow]:
        """The operation's own connection; for one thread."""
        return self._session.connection

    def attempt(
        self, step: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Do a step on the operation's own connection until it is done; it may read a table."""
        return self.attempts.do(
            self._session,
            partial(step, *args, **kwargs),
            longest=self.longest_scan,
            to_write=False,
        )

    def attempt_to_write(
        self,
        session: Session | None,
        step: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """The same for one that writes: the throttle may hold it. None is the own session."""
        return self.attempts.do(
            session or self._session,
            partial(step, *args, **kwargs),
            longest=self.longest_statement,
            to_write=True,
        )

    def once(self, step: Callable[[], Result], *, longest: float | None = None) -> Result:
        """Do a step on the own connection once and past the gate; a stop does not end it."""
        with self._session.at_work(longest or self.longest_statement, may_be_ended=False):
            return step()

    @property
    def longest_statement(self) -> float:
        """Seconds after which a usual step is given up."""
        return self.settings.session.statement_timeout + _ANSWER_SECONDS

    @property
    def longest_scan(self) -> float:
        """Seconds after which a step is given up that reads a whole table."""
        return self.settings.session.scan_timeout + _ANSWER_SECONDS

    @property
    def key(self) -> dict[str, object]:
        """What every statement about this operation is bound to."""
        return {"correction_id": self.correction_id, "epoch": self.epoch}

    def enter_phase(self, phase: Phase) -> None:
        """Tell what the operation does now. Raises OperationFencedError after a take-over."""
        self.update("set_phase", {"phase": phase.value})

    def update(self, statement: str, values: Mapping[str, object]) -> None:
        """Change the operation's row while it is ours. Raises OperationFencedError."""
        with (
            self._session.at_work(self.longest_statement),
            transaction(self.connection, self.settings) as cursor,
        ):
            self.update_with(cursor, statement, values)

    def update_with(
        self, cursor: Cursor[TupleRow], statement: str, values: Mapping[str, object]
    ) -> None:
        """The same within a transaction of the caller's."""
        cursor.execute(query("operation", statement), {**self.key, **values})
        if cursor.rowcount != 1:
            raise fenced(self.correction_id)
        if statement in _ENDING:
            note_end(cursor, self.correction_id, self.actor)

    def require_ours(self, cursor: Cursor[TupleRow]) -> None:
        """The fence of a transaction without a ledger row. Raises OperationFencedError."""
        if cursor.execute(query("operation", "require_ours"), self.key).fetchone() is None:
            raise fenced(self.correction_id)

    def require_held(self, cursor: Cursor[TupleRow]) -> None:
        """The same for one that may be paused. Raises OperationFencedError."""
        if cursor.execute(query("operation", "require_held"), self.key).fetchone() is None:
            raise fenced(self.correction_id)

    def _watch(self) -> None:
        """Without it nobody would obey, and nothing that stalls be cut: then the operation ends."""
        try:
            self._watch_until_the_end()
        except Exception as error:  # noqa: BLE001 - a thread's error must reach those who work
            self.stop.because(
                CorrectionFailedError(
                    f"The heartbeat of operation {self.correction_id} broke: "
                    f"{what_it_said(error)}. Everything committed stays; run it again to go on."
                )
            )
            self._session.end_statement()

    def _watch_until_the_end(self) -> None:
        session = Session(self._watching_connection)
        last_heard, last_beat = time.monotonic(), 0.0
        told: list[str] = []
        try:
            with suppress(psycopg.Error, DatabaseUnavailableError):
                # Before any worker takes the server's last one.
                _ = session.connection
            while not self._ended.wait(CONTROL_INTERVAL):
                self._check_deadline()
                self._cut_what_stalls()
                try:
                    reasons = self.gate.reasons
                    # Whether it waits, and why, is not to be old news in the status.
                    due = bool(reasons) != bool(told) or (
                        time.monotonic() - last_beat >= self.settings.heartbeat_interval
                    )
                    with given_up_after(session.connection, _ANSWER_SECONDS):
                        self._hear(session.connection, beat=due)
                    last_heard = time.monotonic()
                    last_beat, told = (last_heard, reasons) if due else (last_beat, told)
                except (psycopg.Error, DatabaseUnavailableError):
                    session.close()
                    self._check_silence(time.monotonic() - last_heard)
                if self.stop.is_set():
                    # A scan may run for an hour: who asks to stop need not wait for it.
                    self._session.end_statement()
        finally:
            session.close()

    def _cut_what_stalls(self) -> None:
        for session in self._sessions:
            if session.cut_if_stalled():
                self.journal.tell("connection_stalled")

    def _check_silence(self, seconds: float) -> None:
        if seconds > max(self.settings.heartbeat_stale_after, self.settings.patience):
            self.stop.because(
                DatabaseUnavailableError(
                    f"The database did not answer for {seconds:.0f} s. Everything committed stays; "
                    "run it again to go on where it stopped."
                )
            )

    def _watching_connection(self) -> Connection[TupleRow]:
        connection = self.connect("heartbeat")
        # Only a hint (a pooler may leak it, an idle time-out may drop it): where it is gone and the
        # heart has missed some beats, a dead operation is known sooner than by silence alone.
        connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (ADVISORY_CLASS, 1))
        return connection

    def _hear(self, connection: Connection[TupleRow], *, beat: bool) -> None:
        with transaction(connection, self.settings, statement_timeout="5s") as cursor:
            if beat:
                self._beat(cursor, holder_name())
            self.journal.write(cursor)
            row = cursor.execute(
                query("control", "state"), {"correction_id": self.correction_id}
            ).fetchone()
        self.journal.written()
        # Without a higher epoch nobody but ourselves ends the operation.
        if row is None or row[1] != self.epoch:
            self.stop.because(fenced(self.correction_id))
            return
        if row[0] not in _HELD:
            # We have just ended it: who asked for something then came too late, and must not hold
            # up, or call off, what is only told now.
            self.gate.open("pause")
            return
        self._obey(connection, Status(row[0]), wanted=row[2], by=row[3], window_closed=row[5])
        self._tune(row[4])

    def _beat(self, cursor: Cursor[TupleRow], name: str) -> None:
        cursor.execute(
            query("operation", "beat"),
            {
                **self.key,
                "holder": name,
                "pacing": None if self.pacing is None else Jsonb(self.pacing),
                "throttle": self.gate.reasons if name else [],
            },
        )

    def _obey(
        self,
        connection: Connection[TupleRow],
        status: Status,
        *,
        wanted: str,
        by: str,
        window_closed: bool,
    ) -> None:
        if wanted == "cancel":
            self.stop.because(
                OperationCancelledError(
                    f"Operation {self.correction_id} was cancelled between two batches by "
                    f"{by or 'somebody'}. Everything committed stays; run it again to go on."
                )
            )
        elif window_closed:
            self.stop.because(
                OperationTimedOutError(
                    f"The window of operation {self.correction_id} closed. Everything committed "
                    "stays; the next night goes on where it stopped, or run it again by hand."
                )
            )
        elif wanted == "pause":
            self._pause(connection, status, by)
        else:
            self._go_on(connection, status)

    def _pause(self, connection: Connection[TupleRow], status: Status, by: str) -> None:
        """Close the gate; once nobody is in a step, the operation's row says so."""
        self.gate.close("pause", [f"Paused by {by or 'somebody'}: `assetclass resume` goes on."])
        if status is Status.RUNNING and self.gate.is_empty:
            # Before the statement: it may be committed although its answer is lost.
            self._paused_at = self._paused_at or time.monotonic()
            with transaction(connection, self.settings) as cursor:
                cursor.execute(query("control", "set_paused"), self.key)

    def _go_on(self, connection: Connection[TupleRow], status: Status) -> None:
        if self._paused_at is not None or status is Status.PAUSED:
            # No batch commits while the row says that it is paused.
            with transaction(connection, self.settings) as cursor:
                cursor.execute(query("control", "set_running"), self.key)
        if self._paused_at is not None:
            seconds = time.monotonic() - self._paused_at
            # A pause of an hour is no hour of work.
            self._deadline += seconds
            self._paused_at = None
            self.journal.waited("pause", seconds)
        self.gate.open("pause")

    def _tune(self, stored: object) -> None:
        try:
            tuning = Tuning.model_validate(stored)
        except ValidationError:
            # Checked when it was asked for; another version of this program may have been asked.
            return
        if tuning != self.tuning:
            self.tuning = tuning

    def _check_deadline(self) -> None:
        if self._paused_at is None and time.monotonic() > self._deadline:
            self.stop.because(
                OperationTimedOutError(
                    f"Operation {self.correction_id} used up its timeout and stopped between two "
                    "batches. Everything committed stays; run it again to go on, with a longer "
                    "timeout if need be."
                )
            )


@contextmanager
def hold(
    dsn: str,
    settings: Settings,
    request: OperationRequest,
    *,
    cancelled_by: tuple[type[BaseException], ...] = (),
    check: Check | None = None,
) -> Iterator[Holder]:
    """Claim the operation of `request` (create, resume, or take over) and hold it.

    An error inside ends the operation as cancelled, timed_out, interrupted or failed, and is
    raised on; without one the caller has ended it, or parks it for the next process.
    Raises OperationInProgressError naming the active operation, and what `check` raises.
    """
    epoch = _claimed(dsn, settings, request, check)
    with Holder(dsn, settings, request, epoch) as holder:
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


def _claimed(dsn: str, settings: Settings, request: OperationRequest, check: Check | None) -> int:
    """The epoch of our claim; a batch in flight, or a lost answer, is worth another try."""
    tried = False

    def once() -> int:
        nonlocal tried
        again, tried = tried, True
        with connect(dsn, settings, purpose="claim", to_write=True) as connection:
            return claim(connection, settings, request, again=again, check=check)

    with refusals_recorded(dsn, settings, request, Action.CLAIM_OPERATION):
        return begun(once, request.options.retry or settings.retry, settings.patience)


def _readable(holder: Holder, error: BaseException) -> BaseException:
    """The typed error of a statement that failed, or the reason why it was ended."""
    if not isinstance(error, psycopg.Error):
        return error
    return holder.stop.cause or CorrectionFailedError(
        f"Operation {holder.correction_id} could not go on: {what_it_said(error)}. Everything "
        "committed so far stays; run it again to go on where it stopped."
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
        if cursor.rowcount:
            note_end(cursor, holder.correction_id, holder.actor)
