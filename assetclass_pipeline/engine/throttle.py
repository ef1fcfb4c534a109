"""Measuring what the throttle looks at, on a connection of its own.

Belongs here: one short read-only look at all signals. Does not: what follows from it
(model/throttle.py), and who waits.
"""

import ipaddress
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.retry import what_it_said
from assetclass_pipeline.engine.session import given_up_after
from assetclass_pipeline.errors import DatabaseUnavailableError
from assetclass_pipeline.model.throttle import (
    BlockedSession,
    FirstSeen,
    LagClock,
    Readings,
    Reason,
    Signal,
    Slot,
    Standby,
    ThrottleLimits,
    VacuumHolder,
    files_behind,
    in_seconds,
    reasons,
    signals_on,
)
from assetclass_pipeline.settings import Settings

_Cursor = psycopg.Cursor[TupleRow]

_STATEMENT_SECONDS = 2.0
# More than all statements of one look together may take before the server itself ends them.
_SILENT_SECONDS = 20.0
_STATEMENTS = {
    Signal.REPLICATION_LAG: "replication",
    Signal.SLOT_WAL: "slots",
    Signal.ARCHIVE_BACKLOG: "archive",
    Signal.BLOCKED_SESSIONS: "blocked",
    Signal.OLD_TRANSACTION: "vacuum_holders",
    Signal.FREE_DISK: "directories",
}
_NOT_ARCHIVED_YET = (
    "pg_stat_archiver names no archived file yet, and only pg_monitor may list those that wait "
    "(GRANT pg_monitor to this role)"
)
_ONE_BOOLEAN = "it must return one row with one boolean"
# What the server calls its directory there need not be the same for us.
_PER_PROCESS = (Path("/proc"), Path("/dev"))


@dataclass
class _Look:
    """What one look has found so far."""

    values: dict[Signal, Any] = field(default_factory=dict)
    problems: dict[Signal, str] = field(default_factory=dict)


class Throttle:
    """Tells why an operation should wait; for one thread. `limits` can be replaced at any time.

    `connect` opens a connection for a purpose (see `database.connections.connect`). It is opened
    at the first look, and again at the next one after it was lost. A server that accepts a
    statement and stays silent is given up after `silent_after` seconds.
    """

    def __init__(
        self,
        connect: Callable[[str], Connection[TupleRow]],
        settings: Settings,
        limits: ThrottleLimits | None = None,
        *,
        silent_after: float = _SILENT_SECONDS,
    ) -> None:
        self.limits = settings.throttle if limits is None else limits
        self._connect = connect
        self._settings = settings
        self._silent_after = silent_after
        self._connection: Connection[TupleRow] | None = None
        self._lags: LagClock[int] = LagClock()
        self._holders: FirstSeen[tuple[str, str, str]] = FirstSeen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back; another look would open it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def reasons(self) -> list[Reason]:
        """Why to wait now, by the limits of this moment; nothing: go on. Raises nothing."""
        limits = self.limits
        return reasons(self._measure(limits), limits, datetime.now(self._settings.zone))

    def measure(self) -> Readings:
        """One look at every signal that is on. Raises nothing: what went wrong stands in it."""
        return self._measure(self.limits)

    def _measure(self, limits: ThrottleLimits) -> Readings:
        if not signals_on(limits):
            return Readings()
        try:
            connection = self._opened()
            with given_up_after(connection, self._silent_after):
                look = self._look(connection, limits)
        except (psycopg.Error, DatabaseUnavailableError) as error:
            self.close()
            why = what_it_said(error).rstrip(".")
            return Readings(problems={Signal.SERVER: f"The server does not answer: {why}."})
        return self._readings(connection, look)

    def _opened(self) -> Connection[TupleRow]:
        if self._connection is None:
            self._connection = self._connect("throttle")
        return self._connection

    def _look(self, connection: Connection[TupleRow], limits: ThrottleLimits) -> _Look:
        """All values in one statement; where one signal makes it fail, each in its own."""
        on = signals_on(limits)
        asked = [signal for signal in _STATEMENTS if signal in on]
        if not _is_local(connection) and Signal.FREE_DISK in asked:
            asked.remove(Signal.FREE_DISK)
        look = _Look()
        try:
            with self._transaction(connection) as cursor:
                look.values = _fetch(cursor, asked, limits)
                self._look_further(cursor, look, limits)
                return look
        except psycopg.Error:
            if connection.broken:
                raise
        look = _Look()
        with self._transaction(connection) as cursor:
            for signal in asked:
                with _noting(connection, look, signal):
                    look.values |= _fetch(cursor, [signal], limits)
            self._look_further(cursor, look, limits)
        return look

    @contextmanager
    def _transaction(self, connection: Connection[TupleRow]) -> Iterator[_Cursor]:
        timeout = f"{_STATEMENT_SECONDS * 1000:.0f}ms"
        with transaction(
            connection, self._settings, read_only=True, statement_timeout=timeout
        ) as cursor:
            yield cursor

    def _look_further(self, cursor: _Cursor, look: _Look, limits: ThrottleLimits) -> None:
        connection = cursor.connection
        archive = look.values.get(Signal.ARCHIVE_BACKLOG)
        if archive is not None:
            with _noting(connection, look, Signal.ARCHIVE_BACKLOG):
                look.values[Signal.ARCHIVE_BACKLOG] = _backlog(cursor, look, archive)
        if limits.condition is not None:
            with _noting(connection, look, Signal.CONDITION):
                look.values[Signal.CONDITION] = _condition(cursor, look, limits.condition)

    def _readings(self, connection: Connection[TupleRow], look: _Look) -> Readings:
        now = time.monotonic()
        values = look.values
        return Readings(
            role=connection.info.user,
            standbys=self._standbys(values.get(Signal.REPLICATION_LAG, []), now),
            slots=tuple(Slot(*slot) for slot in values.get(Signal.SLOT_WAL, [])),
            archive_backlog=values.get(Signal.ARCHIVE_BACKLOG),
            blocked=tuple(BlockedSession(*row) for row in values.get(Signal.BLOCKED_SESSIONS, [])),
            vacuum_holders=self._vacuum_holders(values.get(Signal.OLD_TRANSACTION), now),
            free_disk=_free_disk(values.get(Signal.FREE_DISK, [])),
            condition=values.get(Signal.CONDITION),
            problems=MappingProxyType(look.problems),
        )

    def _standbys(self, rows: list[Any], now: float) -> tuple[Standby, ...]:
        positions = {
            pid: (written, replayed)
            for pid, _, written, replayed, _ in rows
            if written is not None and replayed is not None
        }
        behind = self._lags.look(positions, now)
        return tuple(
            Standby(name, max(0, written - replayed), max(lag or 0.0, behind[pid]))
            if pid in positions
            else Standby(name, None, None)
            for pid, name, written, replayed, lag in rows
        )

    def _vacuum_holders(
        self, found: Mapping[str, Any] | None, now: float
    ) -> tuple[VacuumHolder, ...]:
        if found is None:
            return ()
        holders = [] if found["oldest"] is None else [VacuumHolder(*found["oldest"])]
        # A transaction id and a snapshot are held from different moments on; the older one counts.
        keys = {
            (who, kind, held): hidden
            for who, hidden, xid, xmin in found["others"]
            for kind, held in (("xid", xid), ("xmin", xmin))
            if held is not None
        }
        seconds: dict[str, float] = {}
        for key, age in self._holders.look([*keys], now).items():
            # Fail closed where we may not look; where PostgreSQL itself does not know, count from
            # now on, or each correction would begin with a wait.
            held = age.at_most if keys[key] else age.at_least
            seconds[key[0]] = max(seconds.get(key[0], 0.0), held)
        holders += [
            VacuumHolder(who, None if held == float("inf") else held)
            for who, held in seconds.items()
        ]
        return tuple(holders)


def _fetch(cursor: _Cursor, signals: list[Signal], limits: ThrottleLimits) -> dict[Signal, Any]:
    if not signals:
        return {}
    parts = [
        sql.SQL("(\n{}\n)").format(
            query("throttle", _STATEMENTS[signal], ours=query("throttle", "ours"))
        )
        for signal in signals
    ]
    statement = query("throttle", "together", signals=sql.SQL(", ").join(parts))
    # Only a statement with placeholders may be given values (see `queries.Statement`).
    values = {"blocked_seconds": limits.blocked_seconds}
    has_placeholder = Signal.BLOCKED_SESSIONS in signals
    row = cursor.execute(statement, values if has_placeholder else None).fetchone()
    return dict(zip(signals, row or (), strict=True))


@contextmanager
def _noting(connection: Connection[TupleRow], look: _Look, signal: Signal) -> Iterator[None]:
    """A savepoint: an error of this signal is noted, and the others are still looked at."""
    try:
        with connection.transaction():
            yield
    except psycopg.errors.QueryCanceled:
        look.values.pop(signal, None)
        look.problems[signal] = f"it took longer than {in_seconds(_STATEMENT_SECONDS)}"
    except psycopg.Error as error:
        if connection.broken:
            raise
        look.values.pop(signal, None)
        look.problems[signal] = what_it_said(error).rstrip(".")


def _backlog(cursor: _Cursor, look: _Look, archive: list[Any]) -> int | None:
    """WAL files that wait to be archived, or a problem noted."""
    may_list, position, archived, file_bytes = archive
    if may_list:
        row = cursor.execute(query("throttle", "archive_files")).fetchone()
        return int(row[0]) if row else None
    backlog = files_behind(position, archived or "", file_bytes)
    if backlog is None:
        look.problems[Signal.ARCHIVE_BACKLOG] = _NOT_ARCHIVED_YET
    return backlog


def _condition(cursor: _Cursor, look: _Look, condition: str) -> bool | None:
    """The condition's value, or a problem noted; NULL and no row are both None."""
    text = condition.strip().rstrip(";")
    # Not the simple protocol, in which one string can hold several statements.
    rows = cursor.execute(
        query("throttle", "condition", condition=sql.SQL(text)), binary=True
    ).fetchall()
    if not rows:
        return None
    value = rows[0][0] if len(rows[0]) == 1 else ""
    if len(rows) > 1 or not (value is None or isinstance(value, bool)):
        look.problems[Signal.CONDITION] = _ONE_BOOLEAN
        return None
    return value


def _is_local(connection: Connection[TupleRow]) -> bool:
    """Whether the server runs on this machine, as far as its address tells."""
    host, address = connection.info.host, connection.info.hostaddr
    if host.startswith(("/", "@")) or not (host or address):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _free_disk(directories: list[str]) -> dict[str, int]:
    """Free bytes by directory, once for each disk; what cannot be seen is left out."""
    found: dict[int, tuple[str, int]] = {}
    paths = [Path(directory) for directory in directories]
    for path in [*paths, *(path / "pg_wal" for path in paths[:1])]:
        if any(path.is_relative_to(place) for place in _PER_PROCESS):
            continue
        with suppress(OSError):
            found.setdefault(path.stat().st_dev, (str(path), shutil.disk_usage(path).free))
    return dict(found.values())
