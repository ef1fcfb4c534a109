"""Alerts as people see them in a terminal.

Belongs here: tables and sentences of `assetclass alerts`. Does not: what they are about.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from assetclass_pipeline.cli.presentation import bullets, count, facts, section, table
from assetclass_pipeline.model.alert import AlertStatus, Severity
from assetclass_pipeline.monitoring.messages import advice_for, numbers, spoken, to_do, worst

if TYPE_CHECKING:
    from assetclass_pipeline.model.alert import (
        Alert,
        AlertEvent,
        AlertHistory,
        MaintenanceWindow,
        Notification,
    )
    from assetclass_pipeline.settings import Settings

_COLOURS = {Severity.HIGH: "bold red", Severity.MEDIUM: "yellow", Severity.LOW: "cyan"}
_MOST_EVENTS = 20
_MOST_MESSAGES = 20


def moment(when: datetime | None) -> str:
    """A time to the minute; a dash where there is none."""
    return "-" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def types(window: "MaintenanceWindow") -> str:
    """Which alerts a window is about."""
    return ", ".join(window.alert_types or ["any alert"])


def show_alerts(
    console: Console,
    alerts: "Sequence[Alert]",
    windows: "Sequence[MaintenanceWindow]",
    *,
    now: datetime,
) -> None:
    """One line for each, with what it is about below; then which silence there is."""
    if alerts:
        made = table(
            "no.", "severity", "what", "since (UTC)", "seen", "state", right=("no.", "seen")
        )
        for alert in alerts:
            made.add_row(
                str(alert.id),
                Text(alert.severity, _colour(alert)),
                Text(f"{alert.alert_type}\n{alert.summary}"),
                moment(alert.opened_at).removesuffix(" UTC"),
                count(alert.occurrences),
                _state(alert, now),
            )
        console.print(made)
        console.print()
        console.print(Text("`assetclass alerts show NO` tells more, and what to do.", "dim"))
    else:
        console.print(Text("No alert is like that: nothing that is watched is wrong.", "green"))
    _show_silence(console, windows, now)


def _show_silence(console: Console, windows: "Sequence[MaintenanceWindow]", now: datetime) -> None:
    for window in windows:
        if window.starts_at <= now < window.ends_at:
            line = f"Nobody is told of {types(window)} before {moment(window.ends_at)}: "
            console.print(Text(f"{line}{window.reason} ({window.created_by})", "yellow"))


def _colour(alert: "Alert") -> str:
    return _COLOURS[alert.severity] if alert.is_unresolved else "dim"


def _state(alert: "Alert", now: datetime) -> Text:
    """Where it stands, in a few words."""
    if alert.status is AlertStatus.RESOLVED:
        return Text(f"over since {moment(alert.resolved_at)}", "green")
    line = Text("open", _colour(alert))
    if alert.status is AlertStatus.ACKNOWLEDGED:
        line = Text(f"taken by {alert.acknowledged_by}", "cyan")
    if alert.snoozed_until is not None and alert.snoozed_until > now:
        line += Text(f", snoozed until {moment(alert.snoozed_until)}")
    return line


def show_history(
    console: Console, history: "AlertHistory", settings: "Settings", *, now: datetime
) -> None:
    """One alert in full."""
    alert = history.alert
    title = Text(f"Alert {alert.id} {alert.alert_type} ", "bold")
    console.print(title + Text(f"{alert.severity} ", _colour(alert)) + _state(alert, now))
    console.print(Text(alert.summary), soft_wrap=True)
    console.print()
    console.print(Padding(facts(_facts(alert, settings, now)), (0, 0, 1, 2), expand=False))
    for part in _sections(history, settings, now):
        console.print(part)


def _facts(alert: "Alert", settings: "Settings", now: datetime) -> dict[str, RenderableType]:
    ended = alert.resolved_at or now
    lasted = spoken(ended - alert.opened_at)
    found = {
        "since": f"{moment(alert.opened_at)}, for {lasted}",
        "last seen": moment(alert.last_seen_at),
        "how often": _often(alert),
        "cause": alert.cause,
        "operation": alert.correction_id,
        "run": f"{settings.webserver_url}/runs/{alert.run_id}" if alert.run_id else None,
        "acknowledged": _acknowledged(alert),
        "snoozed": _snoozed(alert, now),
        "level": f"{alert.level}, {settings.alerts.contacts[alert.level - 1]}"
        if 1 <= alert.level <= len(settings.alerts.contacts)
        else str(alert.level),
    }
    return {name: Text(said) for name, said in found.items() if said}


def _often(alert: "Alert") -> str:
    seen = f"{count(alert.occurrences)} times" if alert.occurrences > 1 else "once"
    if not alert.times_reopened:
        return seen
    back = f"{count(alert.times_reopened)} times" if alert.times_reopened > 1 else "once"
    return f"{seen} since then; it was over and came back {back}"


def _acknowledged(alert: "Alert") -> str | None:
    if alert.acknowledged_at is None:
        return "by nobody" if alert.is_unresolved else None
    return f"by {alert.acknowledged_by}, {moment(alert.acknowledged_at)}"


def _snoozed(alert: "Alert", now: datetime) -> str | None:
    if alert.snoozed_until is None or alert.snoozed_until <= now:
        return None
    return f"until {moment(alert.snoozed_until)}"


def _sections(
    history: "AlertHistory", settings: "Settings", now: datetime
) -> Iterator[RenderableType]:
    alert = history.alert
    if alert.details:
        told = [*numbers(alert.details), *worst(alert.details)]
        yield section("Numbers", bullets(f"{name}: {said}" for name, said in told))
    yield section("Who was told", _messages(history.notifications, now))
    yield section("What happened", _events(history.events))
    if alert.is_unresolved:
        yield section("What to do", bullets(_steps(alert, settings)))


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(_said(each) for each in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _messages(messages: "Sequence[Notification]", now: datetime) -> RenderableType:
    if not messages:
        return Text("Nobody: no channel hears of it (setting alerts.channels).", "yellow")
    made = table("occasion", "channel", "message")
    for message in messages[-_MOST_MESSAGES:]:
        made.add_row(Text(message.occasion), Text(message.channel), _delivery(message, now))
    return made


def _delivery(message: "Notification", now: datetime) -> Text:
    failed = f", {message.attempts} tries" if message.attempts > 1 else ""
    why = f": {message.last_error}" if message.last_error else ""
    if message.delivered_at is not None:
        return Text(f"delivered {moment(message.delivered_at)}{failed}", "green")
    if message.dropped_at is not None:
        reason = why or ": overtaken before anybody was told"
        return Text(f"dropped {moment(message.dropped_at)}{failed}{reason}", "dim")
    if why:
        again = f"again at {moment(message.due_at)}"
        return Text(f"failed{failed}{why}; {again}", "red")
    waits = f"waits until {moment(message.due_at)}" if message.due_at > now else "pending"
    return Text(waits, "yellow")


def _events(events: "Sequence[AlertEvent]") -> RenderableType:
    made = table("when (UTC)", "who", "what")
    for event in events[-_MOST_EVENTS:]:
        when = f"{event.happened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        made.add_row(when, Text(event.actor), Text(_what(event)))
    return made


def _what(event: "AlertEvent") -> str:
    said = [event.event.replace("_", " ")]
    for name, value in event.details.items():
        if isinstance(value, Mapping) and {"from", "to"} <= value.keys():
            said.append(f"{name} from {value['from']} to {value['to']}")
        elif name in {"summary", "note", "reason"}:
            said.append(str(value))
        elif name != "alertType":
            said.append(f"{name} {_said(value)}")
    return f"{said[0]}: {'; '.join(said[1:])}" if said[1:] else said[0]


def _steps(alert: "Alert", settings: "Settings") -> Iterator[str]:
    advice = advice_for(alert)
    yield to_do(alert, advice)
    yield f"Look: {_command(advice.look, alert)}"
    yield f"Act: {_command(advice.act, alert)}"
    yield f"Runbook: {settings.alerts.runbooks_url.rstrip('/')}/{alert.alert_type.runbook}"
    if alert.status is AlertStatus.OPEN:
        yield f"Take it on, so that nobody is reminded: assetclass alerts ack {alert.id}"


def _command(text: str, alert: "Alert") -> str:
    return " ".join(text.format(id=alert.correction_id or "").split())


def show_windows(
    console: Console, windows: "Sequence[MaintenanceWindow]", *, now: datetime
) -> None:
    """When nobody is told, of what, and why."""
    if not windows:
        console.print(Text("There is no maintenance window: people are told of alerts."))
        return
    made = table("no.", "from (UTC)", "until (UTC)", "of", "why", right=("no.",))
    for window in windows:
        until = moment(window.ends_at).removesuffix(" UTC")
        made.add_row(
            str(window.id),
            moment(window.starts_at).removesuffix(" UTC"),
            Text(until, "dim" if window.ends_at <= now else "yellow"),
            Text(types(window)),
            Text(f"{window.reason} ({window.created_by})"),
        )
    console.print(made)
