"""Connections to the database for requests: a few that are used again, and one for each scan.

Belongs here: how many there are, what happens when none is free or the database is away, ending a
scan nobody waits for. Does not: what is asked of the database.

Not psycopg_pool: it connects in the background, so a refused connection, which is known at once,
would be a time-out of seconds without a reason.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import anyio
import anyio.to_thread
import psycopg
from fastapi import Depends, Request
from psycopg import Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.session import given_up_after
from assetclass_pipeline.errors import (
    AssetClassError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    ServerBusyError,
)
from assetclass_pipeline.settings import Settings

T = TypeVar("T")

# Seconds. A request must not wait for a host that never answers as long as a batch may.
_LONGEST_CONNECT = 3
# After a failed try its reason is given at once, so that requests do not queue for more of them.
_STAYS_AWAY = 0.5
# One that was used so lately is not asked first whether it still lives.
_SURELY_ALIVE = 1.0
_LONGEST_CHECK = 2.0
_LONGEST_LIFE = 600.0
# A statement may have begun after it was asked to end, so it is asked again.
_ASK_AGAIN = 0.3


@dataclass
class Lent:
    """A connection, when it was opened and when it was used last (monotonic seconds)."""

    connection: Connection[TupleRow]
    opened: float
    used: float


@dataclass
class Connections:
    """At most `settings.api.connections` at once; none is opened before a request needs it."""

    dsn: str
    settings: Settings
    _idle: deque[Lent] = field(default_factory=deque)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _away_until: float = 0.0
    _away: DatabaseUnavailableError | None = None
    _scans: "set[_Scan]" = field(default_factory=set)

    def __post_init__(self) -> None:
        self._places = threading.BoundedSemaphore(self.settings.api.connections)
        self._scan_places = anyio.CapacityLimiter(self.settings.api.scans)

    @contextmanager
    def borrowed(self) -> Iterator[Connection[TupleRow]]:
        """A connection in autocommit, to a database whose schema is at head.

        Raises ServerBusyError when none gets free in time, DatabaseUnavailableError,
        SchemaNotReadyError.
        """
        lent = self.lend()
        try:
            yield lent.connection
        finally:
            self.take_back(lent)

    def lend(self) -> Lent:
        """As `borrowed`, for whoever calls `take_back` at the end."""
        if not self._places.acquire(timeout=self.settings.api.connection_wait):
            raise ServerBusyError(
                "All connections of the API to its database are in use: try again in a moment."
            )
        try:
            return self._take()
        except BaseException:
            self._places.release()
            raise

    def lend_at_once(self) -> Lent | None:
        """A connection that was used a moment ago; None where anything would have to be awaited."""
        with self._guard:
            fresh = self._idle and time.monotonic() - self._idle[-1].used < _SURELY_ALIVE
            if not fresh or not self._places.acquire(blocking=False):
                return None
            return self._idle.pop()

    def take_back(self, lent: Lent) -> None:
        """It is somebody else's from now on, or closed where it cannot be; takes no time."""
        try:
            self._give_back(lent)
        finally:
            self._places.release()

    def open_own(self, purpose: str) -> Connection[TupleRow]:
        """A connection that is nobody else's and does not count; the caller closes it."""
        with self._guard:
            if self._away is not None and time.monotonic() < self._away_until:
                raise DatabaseUnavailableError(str(self._away))
        session = self.settings.session
        timeout = min(session.connect_timeout, _LONGEST_CONNECT)
        quick = session.model_copy(update={"connect_timeout": timeout})
        settings = self.settings.model_copy(update={"session": quick})
        try:
            connection = connect(self.dsn, settings, purpose=purpose)
        except DatabaseUnavailableError as error:
            with self._guard:
                self._away, self._away_until = error, time.monotonic() + _STAYS_AWAY
            raise
        with self._guard:
            self._away = None
        try:
            schema.require_schema(connection)
        except (AssetClassError, psycopg.Error):
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close what is idle and end every scan; what is borrowed is closed when it comes back."""
        with self._guard:
            idle, self._idle = self._idle, deque()
            scans = [*self._scans]
        for one in idle:
            one.connection.close()
        for scan in scans:
            scan.end(ServerBusyError("The API is about to stop: try again in a moment."))

    def _take(self) -> Lent:
        while True:
            with self._guard:
                if not self._idle:
                    break
                one = self._idle.pop()
            if _is_alive(one, time.monotonic()):
                return one
            one.connection.close()
        now = time.monotonic()
        return Lent(self.open_own("api"), now, now)

    def _give_back(self, one: Lent) -> None:
        one.used = time.monotonic()
        connection = one.connection
        clean = connection.info.transaction_status == TransactionStatus.IDLE
        if connection.closed or not clean or one.used - one.opened > _LONGEST_LIFE:
            connection.close()
            return
        with self._guard:
            self._idle.append(one)

    async def scan(
        self, request: Request, function: Callable[[Connection[TupleRow]], T], seconds: float
    ) -> T:
        """As `run_cancellable` says."""
        scan = _Scan(self)
        try:
            with anyio.fail_after(self.settings.api.scan_wait):
                await self._scan_places.acquire_on_behalf_of(scan)
        except TimeoutError:
            raise ServerBusyError(
                f"{self.settings.api.scans} requests are reading the whole table already: try "
                "again when one of them has ended."
            ) from None
        try:
            return await self._scan(scan, request, function, seconds)
        finally:
            self._scan_places.release_on_behalf_of(scan)

    async def _scan(
        self,
        scan: "_Scan",
        request: Request,
        function: Callable[[Connection[TupleRow]], T],
        seconds: float,
    ) -> T:
        with self._guard:
            self._scans.add(scan)
        watcher = asyncio.create_task(_watch(scan, request, seconds))
        try:
            return await anyio.to_thread.run_sync(scan.run, function, limiter=_unlimited())
        except Exception:
            # Whatever the function made of its ended statement: this is why.
            if scan.reason is not None:
                raise scan.reason from None
            raise
        finally:
            scan.finished.set()
            watcher.cancel()
            with self._guard:
                self._scans.discard(scan)


class ClientGoneError(ServerBusyError):
    """Nobody reads the answer any more."""

    code = "CLIENT_GONE"
    http_status = 499


@dataclass(eq=False)
class _Scan:
    """A function at work on a connection of its own, which can be ended from outside."""

    connections: Connections
    reason: AssetClassError | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    _connection: Connection[TupleRow] | None = None

    def run(self, function: Callable[[Connection[TupleRow]], T]) -> T:
        with self.connections.open_own("api scan") as connection:
            self._connection = connection
            if self.reason is not None:
                raise self.reason
            try:
                return function(connection)
            finally:
                self._connection = None

    def end(self, reason: AssetClassError) -> None:
        """Have the database end the statement at work, and the next, until the function is done."""
        self.reason = reason
        connection = self._connection
        if connection is not None and not connection.closed:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=_LONGEST_CHECK)

    def keep_ending(self, reason: AssetClassError) -> None:
        """As `end`, until the function is done."""
        while not self.finished.is_set():
            self.end(reason)
            self.finished.wait(_ASK_AGAIN)


async def run_cancellable(
    request: Request,
    function: Callable[[Connection[TupleRow]], T],
    *,
    seconds: float | None = None,
) -> T:
    """What `function` makes of a connection of its own, in a thread.

    Its statements are ended in the database when the client goes away, after `seconds` (by default
    the setting `scan_deadline`) and when the API stops. Raises DeadlineExceededError then, and
    ServerBusyError when `settings.api.scans` of them are at work already.
    """
    connections: Connections = request.app.state.connections
    longest = connections.settings.api.scan_deadline if seconds is None else seconds
    return await connections.scan(request, function, longest)


async def _watch(scan: _Scan, request: Request, seconds: float) -> None:
    reason: AssetClassError
    try:
        with anyio.fail_after(seconds):
            await _until_gone(request)
        reason = ClientGoneError("The client has gone.")
    except TimeoutError:
        reason = DeadlineExceededError(
            f"The answer took longer than {seconds:g} seconds and was given up. Ask for less, or "
            "raise ASSETCLASS_API__SCAN_DEADLINE."
        )
    await anyio.to_thread.run_sync(scan.keep_ending, reason, limiter=_unlimited())


async def _until_gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def _unlimited() -> anyio.CapacityLimiter:
    """Threads beside those of the short requests; the places of scans bound them."""
    return anyio.CapacityLimiter(1)


def _is_alive(one: Lent, now: float) -> bool:
    if one.connection.closed or now - one.opened > _LONGEST_LIFE:
        return False
    if now - one.used < _SURELY_ALIVE:
        return True
    try:
        with given_up_after(one.connection, _LONGEST_CHECK):
            one.connection.execute("SELECT")
    except psycopg.Error:
        return False
    return True


async def _borrowed(request: Request) -> AsyncIterator[Connection[TupleRow]]:
    connections: Connections = request.app.state.connections
    lent = connections.lend_at_once()
    if lent is None:
        lent = await anyio.to_thread.run_sync(connections.lend)
    try:
        yield lent.connection
    finally:
        connections.take_back(lent)


# Given back before the answer is sent: who reads it slowly holds no connection.
DatabaseConnection = Annotated[Connection[TupleRow], Depends(_borrowed, scope="function")]
"""A connection from the pool, in autocommit; transactions are `database.connections`'.

Parameters of a route are made in their order: name the caller first, so that one who is refused
takes no connection.
"""
