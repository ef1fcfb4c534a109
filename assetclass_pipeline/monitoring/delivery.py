"""The way of messages from the outbox to people: claimed, sent, recorded.

Belongs here: which message goes out now, what becomes of one that was not taken, tests of channels.
Does not: what a message says (messages.py), how it is sent (channels.py), and who is told of what
(alert_life.py, reminders.py).

A message is sent outside of any transaction and once, whatever the number of processes: whoever
claims it moves its due time on. Only when a process dies after sending and before recording, or a
channel takes a message later than it had time for, is it sent again.
"""

import json
import random
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.operations import active_id, get_operation
from assetclass_pipeline.errors import InvalidOptionsError, NotificationError
from assetclass_pipeline.model.alert import Alert, AlertStatus, Severity
from assetclass_pipeline.model.alert_life import is_about_the_end
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.wire import WireModel
from assetclass_pipeline.monitoring.channels import outcome, start_sending
from assetclass_pipeline.monitoring.messages import (
    Message,
    Place,
    Surroundings,
    kind_of,
    message_of,
)
from assetclass_pipeline.settings import Channel, Settings

# A claim outlives its sending by so much: time to record what came of it.
_TO_RECORD: Final = 60
_WAIT_TO_RECORD: Final = "30s"
_JITTER: Final = 0.25
# A message of a channel that this process does not know may be one that another one sends.
_OF_OTHERS_UNTIL: Final = 3600
_chance = random.SystemRandom().random


@dataclass
class DeliveryReport:
    """Messages that were delivered, that failed and will be tried again, that were given up."""

    delivered: int = 0
    failed: int = 0
    dropped: int = 0

    @property
    def nothing_happened(self) -> bool:
        """Whether no message was due."""
        return not (self.delivered or self.failed or self.dropped)

    def __str__(self) -> str:
        return f"{self.delivered} delivered, {self.failed} failed, {self.dropped} given up"


@dataclass(frozen=True)
class _Claimed:
    id: int
    alert_id: int | None
    occasion: str
    channel: str
    attempts: int
    told_before: bool
    now: datetime


@dataclass(frozen=True)
class _Underway:
    """A message on its way, and until when it may take (monotonic seconds)."""

    claimed: _Claimed
    channel: Channel
    message: Message
    until: float


def deliver_due(
    connection: Connection[TupleRow], settings: Settings, *, most: int, seconds: float
) -> DeliveryReport:
    """Send messages that are due, `most` of them; no new one is begun after `seconds`.

    Channels are served side by side, each with one message at a time; one that fails, or hangs, is
    left alone for a while and delays no other. Returns after `seconds` plus one
    `delivery_timeout` at the latest. `connection` is autocommit.
    """
    return _Round(connection, settings, most, time.monotonic() + seconds).run()


def why_not(occasion: str, alert: Alert, *, told_before: bool, now: datetime) -> str | None:
    """Why a message need not be sent any more; None when it must.

    `told_before` says whether this channel ever heard of the alert.
    """
    if is_about_the_end(occasion):
        if alert.is_unresolved:
            return "the alert came back before this was told"
        return None if told_before else "nobody was told of it here, so nobody is told of its end"
    if not alert.is_unresolved:
        return "the alert ended before anybody was told"
    snoozed = alert.snoozed_until is not None and alert.snoozed_until > now
    if kind_of(occasion) == "reminder" and (alert.status is AlertStatus.ACKNOWLEDGED or snoozed):
        return "somebody took the alert before this was told"
    return None


def wait_after(attempts: int, backoff: tuple[float, float], chance: float) -> float:
    """Seconds until the next try after so many: doubled each time, up to the longest.

    `chance` (0..1) takes up to a quarter off, so that what failed together does not come back
    together.
    """
    first, longest = backoff
    doublings = min(attempts - 1, 60)
    return float(min(longest, first * 2**doublings) * (1 - _JITTER * chance))


@dataclass
class _Round:
    connection: Connection[TupleRow]
    settings: Settings
    most: int
    until: float
    report: DeliveryReport = field(default_factory=DeliveryReport)
    underway: "dict[Future[None], _Underway]" = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    begun: int = 0
    around: Surroundings | None = None

    def run(self) -> DeliveryReport:
        try:
            while True:
                self._begin()
                if not self.underway:
                    return self.report
                self._end_some()
        finally:
            # An error of the database: what is on its way is not known to have arrived.
            self.underway.clear()

    def _begin(self) -> None:
        """Start one message on each channel that has one due and is idle."""
        if not self._may_begin():
            return
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            ours = [channel.name for channel in self.settings.alerts.channels]
            values = {"ours": ours, "grace": _OF_OTHERS_UNTIL}
            found = cursor.execute(query("notification", "due_channels"), values)
            names = [row[0] for row in found]
        busy = {underway.claimed.channel for underway in self.underway.values()} | self.failed
        for name in names:
            if name not in busy and self._may_begin():
                self._begin_on(name)

    def _may_begin(self) -> bool:
        return self.begun < self.most and time.monotonic() < self.until

    def _begin_on(self, name: str) -> None:
        while self._may_begin():
            ready = self._claim(name)
            if ready is None:
                return
            claimed, message = ready
            channel = self.settings.alerts.channel(name)
            if channel is None or message is None:
                continue
            self.begun += 1
            timeout = self.settings.alerts.delivery_timeout
            future = start_sending(channel, message, timeout=timeout)
            until = time.monotonic() + timeout
            self.underway[future] = _Underway(claimed, channel, message, until)
            return

    def _claim(self, name: str) -> tuple[_Claimed, Message | None] | None:
        """The next message of a channel; without text when it was given up at once."""
        around = self._surroundings()
        values = {"channel": name, "lease": self.settings.alerts.delivery_timeout + _TO_RECORD}
        with (
            transaction(self.connection, self.settings) as opened,
            opened.connection.cursor(row_factory=dict_row) as cursor,
        ):
            row = cursor.execute(query("notification", "claim"), values).fetchone()
            if row is None:
                return None
            claimed = _Claimed(**row)
            one = query("alert", "one", columns=query("alert", "columns"))
            found = cursor.execute(one, {"id": claimed.alert_id}).fetchone()
        alert = None if found is None else Alert.model_validate(found)
        reason = self._reason_to_drop(claimed, alert)
        if reason is not None or alert is None:
            with self._recording() as recording:
                self._drop(recording, claimed, reason or "there is nothing to tell")
            return claimed, None
        return claimed, message_of(alert, claimed.occasion, around)

    def _reason_to_drop(self, claimed: _Claimed, alert: Alert | None) -> str | None:
        if self.settings.alerts.channel(claimed.channel) is None:
            return "no channel of this name is set any more"
        if claimed.attempts > self.settings.alerts.delivery_tries:
            return "whoever tried to send it ended each time before it was known what came of it"
        if alert is None:
            return "it belongs to no alert"
        return why_not(claimed.occasion, alert, told_before=claimed.told_before, now=claimed.now)

    def _surroundings(self) -> Surroundings:
        """Read once in a round, and only when there is something to tell."""
        if self.around is None:
            self.around = surroundings(self.connection, self.settings)
        return self.around

    def _end_some(self) -> None:
        """Wait for the next answer, or for the next one that takes too long; record it."""
        first = min(underway.until for underway in self.underway.values())
        wait(self.underway, max(0, first - time.monotonic()), FIRST_COMPLETED)
        now = time.monotonic()
        over = [f for f, underway in self.underway.items() if f.done() or underway.until <= now]
        for future in over:
            underway = self.underway.pop(future)
            timeout = self.settings.alerts.delivery_timeout
            if future.done():
                error = outcome(underway.channel, future, timeout=0)
            else:
                error = NotificationError(
                    f"Channel {underway.channel.name}: no answer within {timeout:g} s"
                )
            if error is None:
                self._record_delivered(underway)
            else:
                self.failed.add(underway.claimed.channel)
                self._record_failed(underway.claimed, str(error))

    def _recording(self) -> AbstractContextManager[Cursor[TupleRow]]:
        """A transaction that may wait: a record that is lost is a message that is sent twice.

        It takes the alert first, as whoever judges it does: in the other order both could wait.
        """
        return transaction(self.connection, self.settings, lock_timeout=_WAIT_TO_RECORD)

    def _record_delivered(self, underway: _Underway) -> None:
        claimed, message = underway.claimed, underway.message
        with self._recording() as cursor:
            is_end = is_about_the_end(claimed.occasion)
            if not is_end:
                cursor.execute(query("notification", "told"), {"alert_id": claimed.alert_id})
            cursor.execute(
                query("notification", "delivered"),
                {"id": claimed.id, "title": message.title, "body": message.body},
            )
            if not is_end and self.settings.alerts.notify_resolved:
                # It may have ended on the way, when nobody here was known to have heard of it.
                values = {"alert_id": claimed.alert_id, "channel": claimed.channel}
                cursor.execute(query("notification", "put_missed_end"), values)
        self.report.delivered += 1

    def _record_failed(self, claimed: _Claimed, error: str) -> None:
        alerts = self.settings.alerts
        pause = wait_after(1, alerts.delivery_backoff, _chance())
        with self._recording() as cursor:
            if claimed.attempts >= alerts.delivery_tries:
                self._drop(cursor, claimed, error)
            else:
                values = {
                    "id": claimed.id,
                    "attempts": claimed.attempts,
                    "wait": wait_after(claimed.attempts, alerts.delivery_backoff, _chance()),
                    "error": error,
                }
                cursor.execute(query("notification", "failed"), values)
                self.report.failed += 1
            cursor.execute(
                query("notification", "postpone"), {"channel": claimed.channel, "wait": pause}
            )

    def _drop(self, cursor: Cursor[TupleRow], claimed: _Claimed, reason: str) -> None:
        cursor.execute(query("notification", "hold_alert"), {"alert_id": claimed.alert_id})
        values = {"id": claimed.id, "attempts": claimed.attempts, "error": reason}
        if cursor.execute(query("notification", "drop"), values).fetchone() is None:
            return
        self.report.dropped += 1
        if claimed.alert_id is not None:
            details = {
                "channel": claimed.channel,
                "occasion": claimed.occasion,
                "attempts": claimed.attempts,
                "reason": reason,
            }
            values = event_values(claimed.alert_id, "notification_dropped", details)
            cursor.execute(query("notification", "event"), values)


def event_values(alert_id: int, event: str, details: Mapping[str, object]) -> dict[str, object]:
    """What the statement `event` is bound to; it is this program's own doing."""
    return {
        "alert_id": alert_id,
        "event": event,
        "actor": Actor.system().name,
        "details": json.dumps(details),
    }


def surroundings(connection: Connection[TupleRow], settings: Settings) -> Surroundings:
    """What messages of this moment say beside their alerts."""
    active = active_id(connection, settings)
    return Surroundings(
        place=place_of(connection, settings),
        active=None if active is None else get_operation(connection, settings, active),
        settings=settings,
        now=datetime.now(UTC),
    )


def place_of(connection: Connection[TupleRow], settings: Settings) -> Place:
    """Where the connection leads."""
    info = connection.info
    is_socket = not info.host or info.host.startswith("/")
    return Place(
        host="local socket" if is_socket else f"{info.host}:{info.port}",
        database=info.dbname,
        table=f"{settings.market_schema}.{settings.market_table}",
    )


class ChannelTest(WireModel):
    """What became of a test message on one channel."""

    channel: str
    level: int
    severities: list[Severity]
    delivered: bool
    error: str | None


def send_test(settings: Settings, channel: str | None, by: str) -> list[ChannelTest]:
    """Send a real message on one channel, or on all side by side; tells what each answered.

    Raises InvalidOptionsError for a name that the settings do not hold, NotificationError when
    they hold no channel at all.
    """
    chosen = _chosen(settings, channel)
    timeout = settings.alerts.delivery_timeout
    message = Message(
        title=f"TEST of AssetClass alerts, sent by {by}",
        body=(
            f"What: a test message, sent by {by}; nothing is wrong\n"
            f"Sent: {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
            "Do now: nothing; whoever reads this hears of alerts on this channel"
        ),
        severity=Severity.LOW,
    )
    begun = time.monotonic()
    sent = [(each, start_sending(each, message, timeout=timeout)) for each in chosen]
    tests = []
    for each, future in sent:
        left = max(0.0, begun + timeout - time.monotonic())
        error = outcome(each, future, timeout=left)
        tests.append(
            ChannelTest(
                channel=each.name,
                level=each.level,
                severities=sorted(each.severities),
                delivered=error is None,
                error=None if error is None else str(error),
            )
        )
    return tests


def _chosen(settings: Settings, name: str | None) -> tuple[Channel, ...]:
    channels = settings.alerts.channels
    if not channels:
        raise NotificationError(
            "No channel is set, so nobody is told of any alert: name one in "
            "ASSETCLASS_ALERTS__CHANNELS; docs/notifications.md shows how."
        )
    if name is None:
        return channels
    found = settings.alerts.channel(name)
    if found is None:
        known = ", ".join(channel.name for channel in channels)
        raise InvalidOptionsError(f"No channel is called {name[:60]!r}: there are {known}.")
    return (found,)
