"""Alerts in the database: judging findings, what people do about alerts, maintenance windows.

Belongs here: rows of alerts, of their history, and what is put into the outbox when one changes.
Does not: which finding does what (model/alert_life.py), and sending messages (delivery.py).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, class_row, dict_row
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import set_also, transaction
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine.audit import Asker, record, record_refusal
from assetclass_pipeline.errors import (
    AlertNotFoundError,
    AlertStateError,
    AssetClassError,
    DatabaseUnavailableError,
    InvalidOptionsError,
    MaintenanceWindowNotFoundError,
)
from assetclass_pipeline.model import alert_life
from assetclass_pipeline.model.alert import (
    Alert,
    AlertEvent,
    AlertHistory,
    AlertType,
    Finding,
    MaintenanceWindow,
    Notification,
)
from assetclass_pipeline.model.alert_life import Case, Circumstances, Message, Told
from assetclass_pipeline.model.audit import Actor, AuditEntry
from assetclass_pipeline.monitoring.messages import masked
from assetclass_pipeline.settings import Settings

LONGEST_WINDOW = timedelta(days=30)

_MOST_OF_HISTORY = 500
_LARGEST_ID = 2**63 - 1
# Whoever judges holds its turn for milliseconds, but several may stand in line; a look at events
# takes as long as Dagster's storage needs for them.
_PATIENCE = {"lock_timeout": "10s"}
_OURSELVES = Actor.system().name


def judge(cursor: Cursor[TupleRow], settings: Settings, findings: Iterable[Finding]) -> list[Alert]:
    """Apply findings, in their order, to the alerts of their causes, in the caller's transaction.

    Alerts are opened, counted, resolved and reopened, and messages put into the outbox. Returns the
    alerts that stand otherwise than before, repeats not among them. Call it last in a transaction:
    others who judge wait for its COMMIT. Some ten statements, however many findings there are.
    """
    found = [_storable(finding) for finding in findings]
    if not found:
        return []
    now = take_turn(cursor)
    newest = _newest(cursor, {finding.cause for finding in found})
    at = Circumstances(now, settings.alerts, windows_from(cursor, now))
    # What becomes of an alert does not depend on who was told; that is read where it changes.
    changing = _Judgement(newest, {}, at).apply(found).changed_ids()
    judgement = _Judgement(newest, _told(cursor, changing), at).apply(found)
    return judgement.write(cursor)


def take_turn(cursor: Cursor[TupleRow]) -> datetime:
    """Wait until nobody else changes alerts, up to COMMIT; returns the time on the server."""
    set_also(cursor, _PATIENCE)
    cursor.execute(query("alert", "take_turn"))
    row = cursor.execute(query("alert", "now")).fetchone()
    return row[0]  # type: ignore[index,no-any-return] # it always gives a row


def windows_from(cursor: Cursor[TupleRow], moment: datetime) -> list[MaintenanceWindow]:
    """Maintenance windows that end after a moment, those included that have not begun."""
    with cursor.connection.cursor(row_factory=class_row(MaintenanceWindow)) as named:
        return named.execute(query("alert", "windows"), {"after": moment}).fetchall()


@dataclass
class _Work:
    """What is to be written for one alert."""

    case: Case
    is_new: bool = False
    has_changed: bool = False
    drops: bool = False
    kept: str | None = None
    messages: list[Message] = field(default_factory=list)
    events: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)


class _Judgement:
    """Findings applied one after the other, in memory, then written at once."""

    def __init__(
        self, newest: Mapping[str, Alert], told: Mapping[int, Told], at: Circumstances
    ) -> None:
        self._at = at
        self._work = {
            cause: _Work(Case(alert, told.get(alert.id, Told()))) for cause, alert in newest.items()
        }

    def apply(self, findings: Iterable[Finding]) -> "_Judgement":
        """Let each finding do what it does."""
        for finding in findings:
            work = self._work.get(finding.cause) or _Work(Case())
            change = alert_life.change(work.case, finding, self._at)
            if change.outcome is alert_life.Outcome.NOTHING:
                continue
            if change.outcome is alert_life.Outcome.OPENED:
                work = _Work(Case(), is_new=True)
            self._work[finding.cause] = work
            work.case, work.has_changed = change.case, True
            if change.outcome.is_event:
                work.events.append((change.outcome.value, change.details))
            self._send(work, change)
        return self

    @staticmethod
    def _send(work: _Work, change: alert_life.Change) -> None:
        if change.drops_waiting:
            kept = change.messages[0].occasion if change.messages else None
            work.kept = kept if not work.drops or work.kept == kept else None
            work.drops = True
            work.messages = [each for each in work.messages if each.occasion == kept]
        work.messages += change.messages

    def changed_ids(self) -> list[int]:
        """Alerts with a row that stand otherwise than before."""
        return [
            alert.id for alert, work in self._alerts() if work.events and alert.id != alert_life.NEW
        ]

    def _alerts(self) -> Iterator[tuple[Alert, _Work]]:
        for work in self._work.values():
            if work.case.alert is not None:
                yield work.case.alert, work

    def write(self, cursor: Cursor[TupleRow]) -> list[Alert]:
        """Write alerts, events and messages; returns the alerts that stand otherwise."""
        self._add(cursor)
        changed = [(alert, work) for alert, work in self._alerts() if work.has_changed]
        _write_alerts(cursor, "change", [alert for alert, work in changed if not work.is_new])
        _add_events(
            cursor,
            [
                (alert.id, self._at.now, event, _OURSELVES, details)
                for alert, work in changed
                for event, details in work.events
            ],
        )
        dropping = [(alert.id, work.kept) for alert, work in changed if work.drops]
        if dropping:
            values = {
                "ids": [each[0] for each in dropping],
                "kept": [each[1] for each in dropping],
                "now": self._at.now,
            }
            cursor.execute(query("alert", "drop_waiting"), values)
        messages = [(alert.id, each) for alert, work in changed for each in work.messages]
        put(cursor, messages, self._at.now)
        return [alert for alert, work in changed if work.events]

    def _add(self, cursor: Cursor[TupleRow]) -> None:
        """Write new alerts, and note the numbers that they get."""
        new = [(alert, work) for alert, work in self._alerts() if work.is_new]
        if not new:
            return
        _write_alerts(cursor, "add", [alert for alert, _ in new])
        ids: dict[str, int] = dict(cursor.fetchall())
        for alert, work in new:
            numbered = alert.model_copy(update={"id": ids[alert.cause]})
            work.case = replace(work.case, alert=numbered)


def put(cursor: Cursor[TupleRow], messages: Sequence[tuple[int, Message]], now: datetime) -> None:
    """Put messages about alerts, named by their ids, into the outbox."""
    if messages:
        rows = [
            {
                "alert_id": alert_id,
                "occasion": message.occasion,
                "channel": message.channel,
                "created_at": now,
                "due_at": message.due_at,
            }
            for alert_id, message in messages
        ]
        cursor.execute(query("alert", "put"), {"messages": _rows(rows)})


def _newest(cursor: Cursor[TupleRow], causes: Iterable[str]) -> dict[str, Alert]:
    found = _alerts(cursor, "newest", {"causes": sorted(causes)})
    return {alert.cause: alert for alert in found}


def _told(cursor: Cursor[TupleRow], ids: Sequence[int]) -> dict[int, Told]:
    """What the outbox says about alerts."""
    told: dict[int, Told] = {}
    if not ids:
        return told
    with cursor.connection.cursor(row_factory=dict_row) as named:
        for row in named.execute(query("alert", "told"), {"ids": [*ids]}):
            before = told.get(row["alert_id"], Told())
            moments = [each for each in (before.last_at, row["last_at"]) if each is not None]
            last = row["last_occasion"]
            is_unaware = last is not None and not alert_life.is_about_the_end(last)
            told[row["alert_id"]] = Told(
                max(moments, default=None),
                before.unaware_of_end | ({row["channel"]} if is_unaware else set()),
                before.said | {(occasion, row["channel"]) for occasion in row["said"]},
            )
    return told


def _alerts(cursor: Cursor[TupleRow], name: str, values: Mapping[str, object]) -> list[Alert]:
    with cursor.connection.cursor(row_factory=class_row(Alert)) as named:
        return named.execute(_selecting(name), values).fetchall()


def _selecting(name: str) -> Statement:
    return query("alert", name, columns=query("alert", "columns"))


def _write_alerts(cursor: Cursor[TupleRow], statement: str, alerts: Sequence[Alert]) -> None:
    if alerts:
        rows = _rows([alert.model_dump() for alert in alerts])
        cursor.execute(query("alert", statement), {"alerts": rows})


def _add_events(
    cursor: Cursor[TupleRow],
    events: Sequence[tuple[int, datetime, str, str, Mapping[str, object]]],
) -> None:
    if events:
        names = ("alert_id", "happened_at", "event", "actor", "details")
        rows = _rows([dict(zip(names, event, strict=True)) for event in events])
        cursor.execute(query("alert", "add_events"), {"events": rows})


def _rows(rows: list[dict[str, Any]]) -> Jsonb:
    """Rows for one statement; times keep their microseconds."""
    return Jsonb(rows, dumps=lambda content: json.dumps(content, default=str))


def _storable(finding: Finding) -> Finding:
    """The finding without what PostgreSQL cannot hold: it must not be lost for a character.

    Nor with a password, which errors of others may repeat: whoever reads alerts would learn it.
    """
    return replace(
        finding,
        cause=_text(finding.cause),
        summary=masked(_text(finding.summary)),
        details=_clean(finding.details),
    )


def _text(said: str) -> str:
    return said.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _clean(value: Any) -> Any:  # noqa: ANN401 - whatever a rule has found
    if isinstance(value, str):
        return masked(_text(value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {_text(str(name)): _clean(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(each) for each in value]
    return value if isinstance(value, (int, float, type(None))) else _text(str(value))


def position(cursor: Cursor[TupleRow], watcher: str, source: str) -> int | None:
    """The last event of `source` that a watcher has judged; None before its first `move`.

    Its row is locked until the transaction ends: of two looks at the same events the second one
    waits, some seconds if it must, and goes on where the first one has ended.
    """
    set_also(cursor, _PATIENCE)
    row = cursor.execute(
        query("alert", "position"), {"watcher": watcher, "source": source}
    ).fetchone()
    return None if row is None else row[0]


def move(cursor: Cursor[TupleRow], watcher: str, source: str, position: int) -> None:
    """Note that events up to `position` (0 or more) are judged; it never goes back."""
    values = {"watcher": watcher, "source": source, "position": position}
    cursor.execute(query("alert", "move"), values)


def list_alerts(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    most: int = 50,
    include_resolved: bool = True,
) -> list[Alert]:
    """Unresolved alerts, the most severe first, then those that are over, the newest first."""
    with transaction(connection, settings, read_only=True) as cursor:
        values = {"most": most, "include_resolved": include_resolved}
        return _alerts(cursor, "listed", values)


def alert_history(
    connection: Connection[TupleRow], settings: Settings, alert_id: int
) -> AlertHistory:
    """One alert, what happened to it, and who was told, the newest 500 of each, the oldest first.

    Raises AlertNotFoundError.
    """
    with transaction(connection, settings, read_only=True, snapshot=True) as cursor:
        alert = _one(cursor, "one", alert_id)
        values = {"id": alert_id, "most": _MOST_OF_HISTORY}
        with cursor.connection.cursor(row_factory=class_row(AlertEvent)) as named:
            events = named.execute(query("alert", "events"), values).fetchall()
        with cursor.connection.cursor(row_factory=class_row(Notification)) as named:
            notifications = named.execute(query("alert", "notifications"), values).fetchall()
    return AlertHistory(alert=alert, events=events, notifications=notifications)


def acknowledge(
    connection: Connection[TupleRow],
    settings: Settings,
    alert_id: int,
    *,
    by: str,
    note: str | None = None,
) -> Alert:
    """Somebody takes an alert on: nobody is reminded of it any more, until it is reopened.

    Raises AlertNotFoundError, and AlertStateError when it is acknowledged or over.
    """
    said: dict[str, object] = {"note": note} if note else {}
    with _changing(connection, settings, "acknowledge_alert", by, alertId=alert_id, **said) as (
        cursor,
        now,
    ):
        alert = _one(cursor, "one_to_change", alert_id)
        changed = alert_life.acknowledged(alert, by=by, now=now)
        _write_alerts(cursor, "change", [changed])
        cursor.execute(query("alert", "drop_reminders"), {"id": alert_id, "now": now})
        _add_events(cursor, [(alert_id, now, "acknowledged", by, said)])
        _record(cursor, "acknowledge_alert", by, {**_naming(alert), **said}, alert.correction_id)
    return changed


def snooze(
    connection: Connection[TupleRow],
    settings: Settings,
    alert_id: int,
    *,
    until: datetime,
    by: str,
) -> Alert:
    """Nobody is told of an alert before `until`; what waits to be told waits so long.

    Raises AlertNotFoundError, AlertStateError when it is over, and InvalidOptionsError.
    """
    said = {"until": until.isoformat()}
    with _changing(connection, settings, "snooze_alert", by, alertId=alert_id, **said) as (
        cursor,
        now,
    ):
        alert = _one(cursor, "one_to_change", alert_id)
        changed = alert_life.snoozed(alert, until=until, now=now)
        _write_alerts(cursor, "change", [changed])
        changed = _retime(cursor, settings, now, alert_id).get(alert_id, changed)
        _add_events(cursor, [(alert_id, now, "snoozed", by, said)])
        _record(cursor, "snooze_alert", by, {**_naming(alert), **said}, alert.correction_id)
    return changed


def open_window(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    ends_at: datetime,
    reason: str,
    by: str,
    starts_at: datetime | None = None,
    alert_types: Iterable[AlertType] | None = None,
) -> MaintenanceWindow:
    """From `starts_at` (now) to `ends_at` nobody is told of alerts, of these types or of any.

    They open all the same; who should have been told is told afterwards, where they are not over
    by then. Raises InvalidOptionsError.
    """
    types = None if alert_types is None else sorted({each.value for each in alert_types})
    said = {"endsAt": ends_at.isoformat(), "alertTypes": types, "reason": reason}
    with _changing(connection, settings, "open_maintenance_window", by, **said) as (cursor, now):
        begins = starts_at or now
        _refuse_window(begins, ends_at, now, reason, types)
        values = {
            "starts_at": begins,
            "ends_at": ends_at,
            "alert_types": types,
            "reason": reason.strip(),
            "by": by,
        }
        window = _window(cursor, "open_window", values)
        _retime(cursor, settings, now)
        begun = {"windowId": window.id, "startsAt": window.starts_at.isoformat()}
        _record(cursor, "open_maintenance_window", by, {**begun, **said})
    return window


def _refuse_window(
    begins: datetime, ends: datetime, now: datetime, reason: str, types: Sequence[str] | None
) -> None:
    if not reason.strip():
        raise InvalidOptionsError("Say why nobody should be told: the reason is empty.")
    if types == []:
        raise InvalidOptionsError("Name the types of alerts, or none for all of them.")
    if not max(begins, now) < ends <= begins + LONGEST_WINDOW:
        raise InvalidOptionsError(
            f"A maintenance window ends in the future and takes {LONGEST_WINDOW.days} days at "
            f"most; this one would be from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC."
        )


def end_window(
    connection: Connection[TupleRow], settings: Settings, window_id: int, *, by: str
) -> MaintenanceWindow:
    """End a maintenance window now; what waited for its end is due.

    Raises MaintenanceWindowNotFoundError, and AlertStateError when it is over.
    """
    with _changing(connection, settings, "end_maintenance_window", by, windowId=window_id) as (
        cursor,
        now,
    ):
        window = _window(cursor, "window_to_change", {"id": window_id})
        if window.ends_at <= now:
            raise AlertStateError(
                f"Maintenance window {window_id} ended at {window.ends_at:%Y-%m-%d %H:%M} UTC."
            )
        ended = _window(cursor, "end_window", {"id": window_id, "now": now})
        _retime(cursor, settings, now)
        _record(cursor, "end_maintenance_window", by, {"windowId": window_id})
    return ended


def windows(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    include_ended: bool = False,
    most: int = 50,
) -> list[MaintenanceWindow]:
    """Maintenance windows that are not over, by their beginning; or the newest of all."""
    with transaction(connection, settings, read_only=True) as cursor:
        if not include_ended:
            row = cursor.execute(query("alert", "now")).fetchone()
            return windows_from(cursor, row[0]) if row else []
        with cursor.connection.cursor(row_factory=class_row(MaintenanceWindow)) as named:
            return named.execute(query("alert", "newest_windows"), {"most": most}).fetchall()


def _window(
    cursor: Cursor[TupleRow], statement: str, values: Mapping[str, Any]
) -> MaintenanceWindow:
    window_id = values.get("id", 1)
    if not 0 < window_id <= _LARGEST_ID:
        raise _no_window(window_id)
    with cursor.connection.cursor(row_factory=class_row(MaintenanceWindow)) as named:
        window = named.execute(query("alert", statement), values).fetchone()
    if window is None:
        raise _no_window(window_id)
    return window


def _no_window(window_id: int) -> MaintenanceWindowNotFoundError:
    return MaintenanceWindowNotFoundError(
        f"There is no maintenance window {window_id}. `assetclass alerts maintenance list` shows "
        "those that are not over."
    )


def _one(cursor: Cursor[TupleRow], statement: str, alert_id: int) -> Alert:
    found = []
    if 0 < alert_id <= _LARGEST_ID:
        found = _alerts(cursor, statement, {"id": alert_id})
    if not found:
        raise AlertNotFoundError(
            f"There is no alert {alert_id}. `assetclass alerts list --all` shows the recent ones."
        )
    return found[0]


def _retime(
    cursor: Cursor[TupleRow], settings: Settings, now: datetime, alert_id: int | None = None
) -> dict[int, Alert]:
    """Let waiting messages wait as long as snoozes and windows now ask for.

    A try that failed, or is under way, is only put off, never brought forward. Returns the alerts
    whose messages moved.
    """
    with cursor.connection.cursor(row_factory=dict_row) as named:
        waiting = named.execute(query("alert", "waiting"), {"id": alert_id}).fetchall()
    if not waiting:
        return {}
    ids = sorted({row["alert_id"] for row in waiting})
    alerts = {each.id: each for each in _alerts(cursor, "some_to_change", {"ids": ids})}
    told = _told(cursor, ids)
    at = Circumstances(now, settings.alerts, windows_from(cursor, now))
    moved: list[tuple[int, datetime, datetime]] = []
    changed: dict[int, Alert] = {}
    for row in waiting:
        alert = alerts[row["alert_id"]]
        due = _due_again(row, alert, told.get(alert.id, Told()), at)
        if due != row["due_at"]:
            moved.append((row["id"], row["due_at"], due))
            changed[alert.id] = alert.model_copy(update={"notified_at": due})
    if moved:
        names = ("ids", "before", "dues")
        values = dict(zip(names, map(list, zip(*moved, strict=True)), strict=True))
        cursor.execute(query("alert", "move_due"), values)
        _write_alerts(cursor, "change", [*changed.values()])
    return changed


def _due_again(row: Mapping[str, Any], alert: Alert, told: Told, at: Circumstances) -> datetime:
    """When a waiting message is due, judged anew."""
    earliest = at.now
    if alert_life.is_about_a_return(row["occasion"]) and told.last_at is not None:
        earliest = max(at.now, told.last_at + timedelta(seconds=at.policy.cool_down))
    due = alert_life.due_at(
        alert.alert_type, earliest, at.windows, snoozed_until=alert.snoozed_until
    )
    was: datetime = row["due_at"]
    if due <= at.now:
        return was if row["attempts"] else min(was, due)
    return max(was, due) if row["attempts"] else due


@contextmanager
def _changing(
    connection: Connection[TupleRow],
    settings: Settings,
    action: str,
    by: str,
    **parameters: object,
) -> Iterator[tuple[Cursor[TupleRow], datetime]]:
    """A transaction in which somebody changes alerts, and its time; a refusal is recorded."""
    try:
        with transaction(connection, settings) as cursor:
            yield cursor, take_turn(cursor)
    except DatabaseUnavailableError:
        raise
    except AssetClassError as error:
        # What cannot be recorded, because the database is away, does not hide the refusal.
        with suppress(AssetClassError, psycopg.Error):
            record_refusal(connection, settings, error, Asker(by), action, **parameters)
        raise


def _naming(alert: Alert) -> dict[str, object]:
    return {"alertId": alert.id, "cause": alert.cause}


def _record(
    cursor: Cursor[TupleRow],
    action: str,
    by: str,
    parameters: Mapping[str, object],
    correction_id: str | None = None,
) -> None:
    actor = Actor.of_requester(by)
    record(cursor, AuditEntry(actor, action, "done", parameters, correction_id))
