"""One connection of an operation: opened when it is needed, again after it was lost.

Belongs here: opening, cutting and closing it. Does not: what is tried again (attempts.py).
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow


class Session:
    """A connection for one thread; another thread may only cut it, or end its statement."""

    def __init__(self, open_connection: Callable[[], Connection[TupleRow]]) -> None:
        self._open = open_connection
        self._connection: Connection[TupleRow] | None = None
        self._deadline: float | None = None
        self._may_be_ended = False
        self._guard = threading.Lock()

    @property
    def connection(self) -> Connection[TupleRow]:
        """The connection, opened anew after it was lost. Raises DatabaseUnavailableError."""
        if self._connection is None or self._connection.closed:
            self._connection = self._open()
        return self._connection

    @contextmanager
    def at_work(self, longest: float, *, may_be_ended: bool = True) -> Iterator[None]:
        """A step that must have ended after `longest` seconds, or its connection is cut.

        One that `may_be_ended` is given up as soon as the operation stops.
        """
        with self._guard:
            outer = self._deadline, self._may_be_ended
            self._deadline, self._may_be_ended = time.monotonic() + longest, may_be_ended
        try:
            yield
        finally:
            with self._guard:
                self._deadline, self._may_be_ended = outer

    def cut_if_stalled(self) -> bool:
        """Cut a connection whose step should have ended long ago; returns whether it was.

        A time-out of the server does not help where its answer never arrives: something between
        us and it may keep the socket open and forward nothing. The step sees a lost connection.
        """
        with self._guard:
            connection = self._connection
            stalled = self._deadline is not None and time.monotonic() > self._deadline
            if not stalled or connection is None or connection.closed:
                return False
            self._deadline = None
            cut(connection)
            return True

    def end_statement(self) -> None:
        """Ask the server to end the statement of the step at work, if that one may be ended.

        The step cannot leave meanwhile, or what comes after it would be ended instead.
        """
        with self._guard:
            connection = self._connection
            if self._may_be_ended and connection is not None and not connection.closed:
                with suppress(psycopg.Error):
                    connection.cancel_safe(timeout=5)

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()


@contextmanager
def given_up_after(connection: Connection[TupleRow], seconds: float) -> Iterator[None]:
    """Cut the connection of a server that is silent for so long: libpq would wait for ever."""
    timer = threading.Timer(seconds, cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        # It may be at it just now, and the descriptor could be another connection's soon.
        timer.join()


def cut(connection: Connection[TupleRow]) -> None:
    """Shut its socket, whichever thread waits there: that one gets an error at once."""
    # A descriptor of its own: closing it must not close the one that libpq uses.
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=socket.dup(connection.fileno())) as wire,
    ):
        wire.shutdown(socket.SHUT_RDWR)
