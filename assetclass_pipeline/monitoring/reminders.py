"""Reminders: an alert that nobody takes is told again, one level higher each time.

Belongs here: when, to whom, on which level. Does not: the first message (alert_life.py) and the way
to people (delivery.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import Cursor
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.alert import AlertStatus, Severity
from assetclass_pipeline.model.alert_life import Message, channels_for
from assetclass_pipeline.monitoring.alert_store import put
from assetclass_pipeline.monitoring.delivery import event_values
from assetclass_pipeline.settings import AlertSettings, Settings

HIGHEST_LEVEL: Final = 3
_AT_A_TIME: Final = 500


@dataclass(frozen=True)
class Unheeded:
    """An alert as a reminder sees it; `has_message` says whether anybody was ever to be told."""

    severity: Severity
    status: AlertStatus
    level: int
    opened_at: datetime
    notified_at: datetime | None
    snoozed_until: datetime | None
    in_maintenance: bool
    has_message: bool


@dataclass(frozen=True)
class Reminder:
    """Tell these channels, on this level."""

    level: int
    channels: tuple[str, ...]


def due_reminder(alert: Unheeded, settings: AlertSettings, now: datetime) -> Reminder | None:
    """What is to be told again now; None when nothing is, or nobody is there to be told.

    One level higher when the time after the last message is over. On the same level when nobody
    could be told before (a maintenance window), or when a snooze is over and it still holds.
    """
    if alert.status is not AlertStatus.OPEN or alert.in_maintenance:
        return None
    if alert.snoozed_until is not None and alert.snoozed_until > now:
        return None
    never_told = alert.notified_at is None and not alert.has_message
    told_at = alert.notified_at or alert.opened_at
    slept = alert.snoozed_until is not None and alert.snoozed_until > told_at
    if never_told or slept:
        return hearers(alert.severity, alert.level, settings)
    if told_at + settings.reminders.after(alert.severity) > now:
        return None
    return hearers(alert.severity, min(alert.level + 1, HIGHEST_LEVEL), settings)


def hearers(severity: Severity, level: int, settings: AlertSettings) -> Reminder | None:
    """Whoever hears of this severity, on the lowest level from `level` on where anybody does."""
    for reached in range(level, HIGHEST_LEVEL + 1):
        told = channels_for(severity, reached, settings.channels)
        if told:
            return Reminder(reached, told)
    return None


def remind(cursor: Cursor[TupleRow], settings: Settings) -> int:
    """Put reminders and escalations into the outbox, in the caller's transaction; how many."""
    heard = {severity.value for each in settings.alerts.channels for severity in each.severities}
    if not heard:
        return 0
    after = {severity.value: _seconds(settings, severity) for severity in Severity}
    values = {"severities": sorted(heard), "most": _AT_A_TIME, **after}
    with cursor.connection.cursor(row_factory=dict_row) as found:
        rows = found.execute(query("notification", "maybe_due_reminders"), values).fetchall()
    return sum(_remind_of(cursor, settings.alerts, row) for row in rows)


def _remind_of(cursor: Cursor[TupleRow], settings: AlertSettings, row: Mapping[str, Any]) -> bool:
    alert = Unheeded(
        severity=Severity(row["severity"]),
        status=AlertStatus(row["status"]),
        level=row["level"],
        opened_at=row["opened_at"],
        notified_at=row["notified_at"],
        snoozed_until=row["snoozed_until"],
        in_maintenance=row["in_maintenance"],
        has_message=row["has_message"],
    )
    reminder = due_reminder(alert, settings, row["now"])
    if reminder is None:
        return False
    occasion = f"reminder {row['reminders'] + 1}"
    channels = list(reminder.channels)
    cursor.execute(
        query("notification", "raise_level"), {"alert_id": row["id"], "level": reminder.level}
    )
    messages = [(row["id"], Message(occasion, channel, row["now"])) for channel in channels]
    put(cursor, messages, row["now"])
    event = "escalated" if reminder.level > alert.level else "reminded"
    details = {"level": reminder.level, "occasion": occasion, "channels": channels}
    cursor.execute(query("notification", "event"), event_values(row["id"], event, details))
    return True


def _seconds(settings: Settings, severity: Severity) -> float:
    return settings.alerts.reminders.after(severity).total_seconds()
