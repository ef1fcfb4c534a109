"""What the API process does by itself when the watchers are what failed.

Belongs here: a loop that delivers messages while Dagster's daemon cannot, and tells people when the
daemon or the database is gone. Does not: asking Dagster (whoever starts the loop says how old the
daemon's heartbeat is), and health in general (health.py).

While the database is there, several API processes tell once: the daemon's silence is an alert like
any other. While it is gone each of them tells, for nothing is left through which they could agree.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, server_is_away, transaction
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.engine.session import given_up_after
from assetclass_pipeline.errors import AssetClassError, DatabaseUnavailableError
from assetclass_pipeline.model.alert import AlertType, Finding, Severity
from assetclass_pipeline.model.alert_rules import INCIDENT
from assetclass_pipeline.monitoring.channels import outcome, start_sending
from assetclass_pipeline.monitoring.delivery import deliver_due
from assetclass_pipeline.monitoring.messages import (
    ADVICE,
    TITLE_MOST,
    Message,
    masked,
    one_line,
    spoken,
)
from assetclass_pipeline.monitoring.reminders import hearers, remind
from assetclass_pipeline.monitoring.watching import judge_now
from assetclass_pipeline.settings import Settings

DAEMON_CAUSE: Final = "component:daemon"
"""The cause of the alert: the one that a look at all components opens and ends, too."""

_LOG = logging.getLogger(__name__)
_INTERVAL: Final = 10.0
_MOST: Final = 50
_SECONDS: Final = 5.0
# A server that accepts and answers nothing more is gone too.
_LONGEST_LOOK: Final = 60.0
# One that is there and of no use to us: between the steps of a deployment that is nothing special.
_UNUSABLE_AFTER: Final = 600.0

HeartbeatAge = Callable[[], float | None]
"""Seconds since the daemon was last heard of; None when nobody can tell."""


class News(StrEnum):
    """What people are to be told."""

    GONE = "gone"
    BACK = "back"


@dataclass(frozen=True)
class Outage:
    """Since when something is away (monotonic seconds; None: it is there), and if that was told."""

    since: float | None = None
    told: bool = False


def seen(outage: Outage, *, is_there: bool, now: float, after: float) -> tuple[Outage, News | None]:
    """What one look changes, and whether there is news: once when it was away for `after` seconds,
    and once when that is over.
    """
    if is_there:
        return Outage(), News.BACK if outage.told else None
    since = now if outage.since is None else outage.since
    if not outage.told and now - since >= after:
        return Outage(since, told=True), News.GONE
    return Outage(since, outage.told), None


def is_silent(age: float | None, *, watched_for: float, after: float) -> bool | None:
    """Whether the daemon is gone; None while nobody can tell.

    It may be silent for long before we call it gone: whatever starts us starts the daemon as well,
    and its last heartbeat may be of yesterday.
    """
    if age is None:
        return None
    if age <= after:
        return False
    return True if watched_for > after else None


@dataclass(frozen=True)
class _Trouble:
    """Why nothing of ours goes on in the database; it may be there and refuse us all the same."""

    why: str
    is_gone: bool = True


@dataclass
class _Pending:
    message: Message
    tries: int = 0


@dataclass
class Fallback:
    """The loop: one look every `interval` seconds, in a thread of its own.

    Use it as a context. `start` returns at once; `stop` waits for the look under way, `seconds` at
    most. What goes wrong in a look is logged, and the next one tries again.
    """

    settings: Settings
    dsn: str
    heartbeat_age: HeartbeatAge
    interval: float = _INTERVAL
    clock: Callable[[], float] = time.monotonic
    _database: Outage = Outage()
    _daemon_was_silent: bool | None = None
    _began: float | None = None
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _aware: set[str] = field(default_factory=set)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._run, name="assetclass fallback", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 10) -> None:
        """Look no more."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self.look()
            except Exception:  # noqa: BLE001 - nobody else would notice that this loop has ended
                _LOG.exception("The look at daemon and database failed; the next one follows.")
            self._ending.wait(self.interval)

    def look(self) -> None:
        """Deliver what is due, judge daemon and database, tell what is news."""
        if self._began is None:
            self._began = self.clock()
        trouble = self._at_work()
        before = self._database
        gone_after = self.settings.alerts.database_gone_after
        patience = gone_after if trouble is None or trouble.is_gone else _UNUSABLE_AFTER
        self._database, news = seen(
            before, is_there=trouble is None, now=self.clock(), after=max(gone_after, patience)
        )
        away_for = self.clock() - (self._database.since or before.since or self.clock())
        if news is News.GONE and trouble is not None:
            _LOG.warning("The database cannot be used: %s", trouble.why)
            self._tell_gone(_database_gone(self.settings, trouble, away_for))
        elif news is News.BACK:
            _LOG.warning("The database is back.")
            self._tell_back(_database_back(self.settings, away_for))
        self._send()

    def _at_work(self) -> _Trouble | None:
        """Do what needs the database; why that cannot be done, None when it was."""
        try:
            with (
                connect(self.dsn, self.settings, purpose="fallback", to_write=True) as connection,
                given_up_after(connection, _LONGEST_LOOK),
            ):
                require_schema(connection)
                self._judge_daemon(connection)
                with transaction(connection, self.settings) as cursor:
                    remind(cursor, self.settings)
                deliver_due(connection, self.settings, most=_MOST, seconds=_SECONDS)
        except DatabaseUnavailableError as error:
            return _Trouble(str(error))
        except AssetClassError as error:
            _LOG.warning("Messages cannot be delivered: %s", error)
            return _Trouble(str(error), is_gone=False)
        except psycopg.Error as error:
            said = one_line(masked(str(error)), 200)
            if server_is_away(error):
                return _Trouble(f"The connection was lost: {said}")
            _LOG.warning("Messages cannot be delivered: %s", said)
            return _Trouble(said, is_gone=False)
        return None

    def _judge_daemon(self, connection: Connection[TupleRow]) -> None:
        """Open the alert when the daemon falls silent, end it when it is heard of again."""
        age = self._age()
        limit = self.settings.alerts.daemon_gone_after
        watched_for = self.clock() - (self._began or 0)
        silent = is_silent(age, watched_for=watched_for, after=limit)
        if silent is None or age is None or silent is self._daemon_was_silent:
            return
        finding = _about_daemon(age, limit, holds=silent)
        judge_now(connection, self.settings, lambda _, __: [finding])
        self._daemon_was_silent = silent

    def _age(self) -> float | None:
        try:
            return self.heartbeat_age()
        except Exception:  # noqa: BLE001 - messages go out whatever Dagster's instance answers
            _LOG.exception("Nobody can tell how old the daemon's heartbeat is.")
            return None

    def _tell_gone(self, message: Message) -> None:
        told = hearers(Severity.HIGH, 1, self.settings.alerts)
        names = told.channels if told else ()
        self._aware.clear()
        self._pending = {name: _Pending(message) for name in names}

    def _tell_back(self, message: Message) -> None:
        """Tell those who know that it was gone."""
        self._pending = {name: _Pending(message) for name in self._aware}
        self._aware.clear()

    def _send(self) -> None:
        """Send what was not taken yet, on all channels side by side."""
        timeout = self.settings.alerts.delivery_timeout
        begun = time.monotonic()
        underway = [
            (channel, start_sending(channel, self._pending[channel.name].message, timeout=timeout))
            for channel in self.settings.alerts.channels
            if channel.name in self._pending
        ]
        for channel, future in underway:
            left = max(0.0, begun + timeout - time.monotonic())
            error = outcome(channel, future, timeout=left)
            pending = self._pending[channel.name]
            pending.tries += 1
            if error is not None:
                _LOG.warning("%s", error)
            if error is None and not pending.message.is_over:
                self._aware.add(channel.name)
            # That it is gone is told for as long as it is; that it is back, with some patience.
            gives_up = pending.message.is_over and (
                pending.tries >= self.settings.alerts.delivery_tries
            )
            if error is None or gives_up:
                del self._pending[channel.name]


def _about_daemon(age: float, limit: float, *, holds: bool) -> Finding:
    said = spoken(timedelta(seconds=age))
    return Finding(
        DAEMON_CAUSE,
        AlertType.COMPONENT_UNHEALTHY,
        holds=holds,
        summary=(
            f"Dagster's daemon is silent for {said}: no schedule, sensor or queued run starts."
            if holds
            else f"Dagster's daemon was heard of {said} ago."
        ),
        details={
            "value": round(age),
            "limit": limit,
            "component": "daemon",
            # Graver than that a look found one of its parts unwell: it raises that alert.
            INCIDENT: "daemon silent",
        },
        severity=Severity.HIGH,
    )


def _database_gone(settings: Settings, trouble: _Trouble, away_for: float) -> Message:
    alerts, advice = settings.alerts, ADVICE[AlertType.COMPONENT_UNHEALTHY]
    since = datetime.now(UTC) - timedelta(seconds=away_for)
    patience = spoken(timedelta(seconds=settings.patience))
    what, written = "database gone", f"nothing; an operation at work waits up to {patience}"
    meaning = "the database is gone: nothing is corrected, measured or recorded"
    step = "Look whether the server is up and reachable; nothing of ours has to be undone."
    if not trouble.is_gone:
        what, written = "no alert can be stored", "perhaps by an operation at work; none is begun"
        meaning = "the database refuses us: no alert is stored or told, whatever happens"
        step = "Mend what it says; until then nobody hears of anything else."
    lines = {
        "What": meaning,
        "Where": f"table {settings.market_schema}.{settings.market_table}",
        "How bad": trouble.why,
        "Since": f"{since:%Y-%m-%d %H:%M} UTC, {spoken(timedelta(seconds=away_for))} ago",
        "Written now": written,
        "Do now": step,
        "Look": advice.look,
        "Act": advice.act,
        "Runbook": f"{alerts.runbooks_url.rstrip('/')}/{AlertType.COMPONENT_UNHEALTHY.runbook}",
        "Call next": f"{alerts.contacts[1]} (level 2); this message is not told again",
        "Told by": f"the API process on {socket.gethostname()}, without the database",
    }
    return _message(f"HIGH {what}: {trouble.why}", lines, is_over=False)


def _database_back(settings: Settings, away_for: float) -> Message:
    lines = {
        "Over": "the database is back, and alerts are stored again",
        "Where": f"table {settings.market_schema}.{settings.market_table}",
        "Lasted": spoken(timedelta(seconds=away_for)),
        "Do now": "See whether operations went on: assetclass status",
        "Told by": f"the API process on {socket.gethostname()}",
    }
    return _message("RESOLVED database is back", lines, is_over=True)


def _message(title: str, lines: dict[str, str], *, is_over: bool) -> Message:
    body = "\n".join(f"{name}: {one_line(masked(said), 800)}" for name, said in lines.items())
    return Message(
        one_line(masked(title), TITLE_MOST), body, severity=Severity.HIGH, is_over=is_over
    )
