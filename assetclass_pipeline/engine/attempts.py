"""A step of an operation until it is done: through the gate, again after errors that pass.

Belongs here: tries, and waiting for a server or for a lock. Does not: which errors those are
(retry.py).
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from psycopg import Connection, errors
from psycopg.rows import TupleRow

from assetclass_pipeline.engine.gate import Gate, Stop
from assetclass_pipeline.engine.journal import Journal
from assetclass_pipeline.engine.retry import means_waiting, retrying, what_it_said
from assetclass_pipeline.engine.session import Session
from assetclass_pipeline.errors import DatabaseUnavailableError, NoFreeConnectionError
from assetclass_pipeline.model.options import RetryOptions

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0

Result = TypeVar("Result")


class Attempts:
    """Does steps of one operation, for all of its threads.

    A transient error is tried again `retry.tries` times. A server that cannot be reached, ours or
    that of a foreign table, and a table that others lock, count no tries: that step is waited for,
    `patience` seconds at most, and while ours is away no other step is started (a circuit breaker).
    """

    def __init__(
        self,
        *,
        gate: Gate,
        stop: Stop,
        journal: Journal,
        connect: Callable[[str], Connection[TupleRow]],
        retry: RetryOptions,
        patience: float,
    ) -> None:
        self.retry = retry
        self._gate = gate
        self._stop = stop
        self._journal = journal
        self._connect = connect
        self._patience = patience

    def do(
        self,
        session: Session,
        step: Callable[[], Result],
        *,
        longest: float,
        to_write: bool,
    ) -> Result:
        """What `step` returns; `longest` is how many seconds one try may take.

        Raises the step's own error once it is not worth another try, and the cause of a stop.
        """

        held = 0.0

        def once() -> Result:
            nonlocal held
            asked = time.monotonic()
            with self._gate.entered(to_write=to_write):
                held += time.monotonic() - asked
                with session.at_work(longest):
                    return step()

        since: float | None = None
        while True:
            held = 0.0
            try:
                result = retrying(self.retry, self._stop)(once)
            except Exception as error:
                if not means_waiting(error) or self._stop.is_set():
                    raise
                # Patience is for what the step waits for, not for a pause or the throttle.
                since = time.monotonic() if since is None else since + held
                if time.monotonic() - since > self._patience:
                    raise
                self._wait(error, since)
            else:
                return result

    def _wait(self, error: Exception, since: float) -> None:
        said = what_it_said(error)
        if isinstance(error, NoFreeConnectionError):
            # Who has a connection goes on.
            self._pause("connection", f"Waits for a connection: {said}", since)
        elif isinstance(error, DatabaseUnavailableError):
            self._wait_for_server(error, since)
        elif isinstance(error, errors.LockNotAvailable):
            self._pause("lock", f"Waits for a lock of another session: {said}.", since)
        else:
            # Ours is there and goes on with what needs the other one not.
            self._pause("foreign server", f"The server of a foreign table is away: {said}.", since)

    def _wait_for_server(self, error: DatabaseUnavailableError, since: float) -> None:
        self._gate.close("server", [f"The server is away: {error}"])
        try:
            with self._journal.waiting("server"):
                self._try_to_connect(since)
        finally:
            self._gate.open("server")
        self._journal.tell("server_was_away", seconds=round(time.monotonic() - since, 3))

    def _try_to_connect(self, since: float) -> None:
        pause = _FIRST_PAUSE
        while not self._stop.wait(pause) and time.monotonic() - since <= self._patience:
            try:
                with closing(self._connect("is it back")):
                    return
            except DatabaseUnavailableError:
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _pause(self, signal: str, reason: str, since: float) -> None:
        waited = time.monotonic() - since
        pause = min(_FIRST_PAUSE + waited / 2, _LONGEST_PAUSE)
        self._gate.tell(signal, [reason])
        try:
            with self._journal.waiting(signal):
                self._stop.wait(pause)
        finally:
            self._gate.open(signal)
