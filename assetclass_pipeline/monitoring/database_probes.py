"""Probes that ask the database: does it answer, can we work on it, does the work go on.

Belongs here: questions and what counts as well. Does not: asking them side by side (health.py),
and Dagster (defs/dagster_probes.py). They read only, in short transactions, on connections that
are kept between two checks.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.embedded.data_directory import DataDirectory
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.engine.disk_space import free_disk
from assetclass_pipeline.engine.session import cut
from assetclass_pipeline.engine.silence import is_abandoned, silence, silence_limits
from assetclass_pipeline.errors import DatabaseUnavailableError, MarketTablesError
from assetclass_pipeline.model.operation import Phase, Status
from assetclass_pipeline.model.throttle import in_bytes
from assetclass_pipeline.monitoring.health import Answer, Probe
from assetclass_pipeline.settings import Settings

DATABASE = "database"
MARKET_TABLES = "marketTables"
SCHEMA = "schema"
DISK = "disk"
OPERATION = "operation"
REQUESTS = "requests"
QUALITY_REPORT = "qualityReport"
NOTIFICATIONS = "notifications"

_Question = Callable[[Connection[TupleRow], Settings], Answer]

_MOST_CONNECTIONS = 3
# Whoever has not answered by then will not: its connection is cut, and its thread ends.
_HANGING_AFTER = 10.0
_CONNECT_SECONDS = 2
_FAILED_TRIES = 3
# The name under which the asset is measured, see defs/assets/quality.py.
_MEASURED_BY = "quality_report"


@contextmanager
def database_probes(dsn: str, settings: Settings) -> Iterator[list[Probe]]:
    """All probes of the database, for as long as the context lives; use them again and again.

    Nothing is connected before the first look. They keep three connections at most; one that hangs
    is cut after ten seconds, and at the end of the context.
    """
    connections = _Connections(dsn, _hasty(settings))
    questions: dict[str, _Question] = {
        DATABASE: _answers,
        MARKET_TABLES: _market_tables,
        SCHEMA: _schema,
        DISK: _disk,
        OPERATION: _operation,
        REQUESTS: _requests,
        QUALITY_REPORT: _quality_report,
        NOTIFICATIONS: _notifications,
    }
    try:
        yield [
            Probe(name, partial(connections.ask, question), timeout=settings.health.timeout)
            for name, question in questions.items()
        ]
    finally:
        connections.close()


def _hasty(settings: Settings) -> Settings:
    """The settings, with sessions that give up when nobody waits for their answer any more."""
    limits = settings.session.model_copy(
        update={
            "connect_timeout": _CONNECT_SECONDS,
            "statement_timeout": settings.health.timeout,
            "lock_timeout": settings.health.timeout,
        }
    )
    return settings.model_copy(update={"session": limits})


class _Connections:
    """A few connections that probes take turns on; safe in many threads."""

    def __init__(self, dsn: str, settings: Settings) -> None:
        self._dsn = dsn
        self._settings = settings
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._idle: list[Connection[TupleRow]] = []
        self._in_use: dict[Connection[TupleRow], float] = {}
        self._closed = False

    def ask(self, question: _Question) -> Answer:
        """The answer; a connection that died since the last question is replaced once.

        Raises DatabaseUnavailableError, and what the question raises.
        """
        self._cut(older_than=_HANGING_AFTER)
        if not self._free.acquire(timeout=self._settings.health.timeout):
            raise DatabaseUnavailableError("Earlier questions to the database still wait.")
        try:
            try:
                return self._ask_on(self._take(), question)
            except _DiedIdleError:
                return self._ask_on(self._connect(), question)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close what is idle, and cut what is in use: its question fails."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._cut(older_than=0)

    def _ask_on(self, taken: "_Taken", question: _Question) -> Answer:
        connection = taken.connection
        try:
            answer = question(connection, self._settings)
        except psycopg.OperationalError:
            if taken.was_idle and connection.broken and not self._closed:
                raise _DiedIdleError from None
            raise
        else:
            return answer
        finally:
            self._give_back(connection)

    def _take(self) -> "_Taken":
        with self._lock:
            if self._idle:
                connection = self._idle.pop()
                self._in_use[connection] = time.monotonic()
                return _Taken(connection, was_idle=True)
        return self._connect()

    def _connect(self) -> "_Taken":
        connection = connect(self._dsn, self._settings, purpose="health")
        with self._lock:
            self._in_use[connection] = time.monotonic()
        return _Taken(connection, was_idle=False)

    def _give_back(self, connection: Connection[TupleRow]) -> None:
        with self._lock:
            self._in_use.pop(connection, None)
            if not (self._closed or connection.broken or connection.closed):
                self._idle.append(connection)
                return
        connection.close()

    def _cut(self, *, older_than: float) -> None:
        """Shut sockets whose server is silent; the thread that waits there gets an error."""
        now = time.monotonic()
        with self._lock:
            for connection, since in self._in_use.items():
                if now - since >= older_than:
                    cut(connection)


@dataclass(frozen=True)
class _Taken:
    """A connection in use; `was_idle`: it may have died since it was used last."""

    connection: Connection[TupleRow]
    was_idle: bool


class _DiedIdleError(Exception):
    """The server closed a connection that nobody used: asking again is right."""


def _row(
    connection: Connection[TupleRow], settings: Settings, name: str, **values: object
) -> TupleRow:
    with transaction(connection, settings, read_only=True) as cursor:
        return cursor.execute(query("health", name), values).fetchall()[0]


def _answers(connection: Connection[TupleRow], settings: Settings) -> Answer:
    version, in_recovery = _row(connection, settings, "answers")
    if in_recovery:
        return Answer(False, f"PostgreSQL {version} answers, but is a standby: nothing is written.")
    return Answer(True, f"PostgreSQL {version} answers.")


def _market_tables(connection: Connection[TupleRow], settings: Settings) -> Answer:
    try:
        tables = inspect_market_tables(
            connection, settings, for_writing=True, ask_other_servers=False
        )
    except MarketTablesError as error:
        return Answer(False, str(error))
    leaves = f" in {len(tables.leaves)} partitions" if tables.is_partitioned else ""
    return Answer(
        True, f"{tables.market_name}{leaves} can be corrected from {tables.symbols_name}."
    )


def _schema(connection: Connection[TupleRow], settings: Settings) -> Answer:
    with transaction(connection, settings, read_only=True):
        require_schema(connection)
    return Answer(True, "The newest migration is in place.")


def _disk(connection: Connection[TupleRow], settings: Settings) -> Answer:
    free = free_in(settings)
    with transaction(connection, settings, read_only=True) as cursor:
        found = free_disk(cursor, DataDirectory(settings.home.absolute() / "postgres").data)
    if found is not None:
        free["the data"] = found.data
        if found.wal is not None:
            free["the WAL"] = found.wal
    limit = settings.health.free_disk_bytes
    short = {name: size for name, size in free.items() if size < limit}
    if short:
        said = ", ".join(f"{in_bytes(size)} for {name}" for name, size in short.items())
        return Answer(False, f"Too little room: {said}; {in_bytes(limit)} should be free.")
    unseen = "" if found else "; the server's own disk cannot be seen from here"
    said = ", ".join(f"{in_bytes(size)} for {name}" for name, size in free.items())
    return Answer(True, f"Free: {said}{unseen}.")


def free_in(settings: Settings) -> dict[str, int]:
    """Free bytes of the disks of home and archive, where they are or would be made."""
    return {
        name: shutil.disk_usage(_existing(directory)).free
        for name, directory in (("home", settings.home), ("archives", settings.archive))
    }


def _existing(directory: Path) -> Path:
    absolute = directory.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def _active(connection: Connection[TupleRow], settings: Settings) -> dict[str, Any] | None:
    statement = query("health", "active_operation", silence=silence(), is_abandoned=is_abandoned())
    with (
        transaction(connection, settings, read_only=True),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        return cursor.execute(statement, silence_limits(settings)).fetchone()


def _operation(connection: Connection[TupleRow], settings: Settings) -> Answer:
    active = _active(connection, settings)
    if active is None or active["status"] == Status.REQUESTED:
        return Answer(True, "No operation runs.")
    what = f"{active['kind'].capitalize()} {active['correction_id']}"
    if active["abandoned"]:
        return Answer(
            False,
            f"{what} is {active['status']}, but its process was not heard of for "
            f"{_readable(active['silent'])}. The next operation ends it as interrupted; "
            f"`assetclass resume {active['correction_id']}` goes on with it.",
        )
    if active["status"] == Status.PAUSED:
        paused = active["paused"] or 0.0
        asked = f" for {_readable(paused)}" if paused > settings.health.paused else ""
        return Answer(True, f"{what} is paused{asked} and keeps others out.")
    if not active["throttle"] and active["idle"] > _patience(Phase(active["phase"]), settings):
        return Answer(
            False,
            f"{what} is {active['phase']}, but has written nothing for "
            f"{_readable(active['idle'])}: `assetclass status {active['correction_id']}`.",
        )
    waits = f" and waits: {'; '.join(active['throttle'])}" if active["throttle"] else ""
    return Answer(True, f"{what} is {active['phase']}{waits}.")


def _patience(phase: Phase, settings: Settings) -> float:
    """Seconds in which a phase may write no batch: scans of the whole table write none."""
    if phase in (Phase.CORRECTING, Phase.SWEEPING):
        return settings.health.stalled + settings.patience
    return settings.health.stalled + settings.session.scan_timeout


def _requests(connection: Connection[TupleRow], settings: Settings) -> Answer:
    active = _active(connection, settings)
    if active is None or active["status"] != Status.REQUESTED:
        return Answer(True, "No request waits.")
    what = f"The request for {active['kind']} {active['correction_id']}"
    waits = f"waits for {_readable(active['waited'])}"
    if active["waited"] > settings.alerts.pickup:
        return Answer(
            False,
            f"{what} {waits}: nobody picks it up. Does Dagster's daemon run, and is the sensor "
            "operation_requests switched on?",
        )
    return Answer(True, f"{what} {waits}.")


def _quality_report(connection: Connection[TupleRow], settings: Settings) -> Answer:
    age, schema_age = _row(connection, settings, "quality_report_age", source=_MEASURED_BY)
    limit = settings.health.quality_report
    if age is not None:
        said = f"The newest quality report is {_readable(age)} old"
        if age > limit:
            return Answer(False, f"{said}; one is due every {_readable(limit)}.")
        return Answer(True, f"{said}.")
    if schema_age is not None and schema_age > limit:
        return Answer(
            False, f"No quality report in {_readable(schema_age)}, since the schema was made."
        )
    return Answer(True, f"No quality report yet; the first is due within {_readable(limit)}.")


def _notifications(connection: Connection[TupleRow], settings: Settings) -> Answer:
    with (
        transaction(connection, settings, read_only=True),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        rows = cursor.execute(
            query("health", "deliveries"), {"tries": settings.alerts.delivery_tries}
        ).fetchall()
    channels = [channel.name for channel in settings.alerts.channels]
    problems = [
        problem
        for row in rows
        if row["channel"] in channels and (problem := _delivery_problem(row, settings))
    ]
    if problems:
        return Answer(False, " ".join(problems))
    if not channels:
        return Answer(True, "No channel is configured: nobody is told of alerts.")
    return Answer(True, f"Channels: {', '.join(channels)}; nothing failed to be delivered.")


def _delivery_problem(row: dict[str, Any], settings: Settings) -> str | None:
    name = row["channel"]
    said = f" ({row['last_error']})" if row["last_error"] else ""
    if (row["overdue"] or 0) > settings.health.delivery:
        return (
            f"A message on {name} waits for {_readable(row['overdue'])}: nobody delivers. Is the "
            "sensor alert_notifications switched on?"
        )
    if (row["failed_tries"] or 0) >= _FAILED_TRIES:
        return f"{name} has refused a message {row['failed_tries']} times{said}."
    if row["dropped"]:
        return f"The last message on {name} was given up after all tries{said}."
    return None


def _readable(seconds: float) -> str:
    """A time span in the two largest units that a person would say."""
    whole = round(seconds)
    if whole < 120:  # noqa: PLR2004 - two minutes
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if minutes < 120:  # noqa: PLR2004 - two hours
        return f"{minutes} min"
    return f"{hours} h" if hours < 72 else f"{days} days"  # noqa: PLR2004 - three days
