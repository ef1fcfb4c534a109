"""What a finding does to the alert of its cause, and who is told of it when.

Belongs here: pure decisions; the same alert, finding, time and policy give the same answer. Does
not: which findings there are (alert_rules.py), rows of the alert tables (the alert store), and what
a message says.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from assetclass_pipeline.errors import AlertStateError, InvalidOptionsError
from assetclass_pipeline.model.alert import (
    Alert,
    AlertStatus,
    AlertType,
    Finding,
    MaintenanceWindow,
    Severity,
)

NEW: Final = 0
"""Id of an alert that has no row yet."""

FIRST_LEVEL: Final = 1
LONGEST_SNOOZE: Final = timedelta(days=30)
"""Longer silence is what a setting is for, which others can see."""

_FROM_THE_MOST_SEVERE: Final = (Severity.HIGH, Severity.MEDIUM, Severity.LOW)


class Route(Protocol):
    """A channel: of which severities it hears, and from which level of escalation on."""

    @property
    def name(self) -> str:
        """Its name, unique among channels."""

    @property
    def severities(self) -> AbstractSet[Severity]:
        """What it hears of."""

    @property
    def level(self) -> int:
        """From which level on it is told."""


class Policy(Protocol):
    """When people are told; times in seconds. `settings.AlertSettings` is one."""

    @property
    def channels(self) -> Sequence[Route]:
        """Where they are told."""

    @property
    def cool_down(self) -> float:
        """After a message so long none about the same alert that comes back."""

    @property
    def reopen_within(self) -> float:
        """A cause that comes back so soon reopens its alert."""

    @property
    def notify_resolved(self) -> bool:
        """Whether they are told when it is over."""


class Outcome(StrEnum):
    """What a finding did; each but `repeated` and `nothing` is an event of the alert too."""

    OPENED = "opened"
    REOPENED = "reopened"
    CHANGED = "changed"
    RESOLVED = "resolved"
    REPEATED = "repeated"
    NOTHING = "nothing"

    @property
    def is_event(self) -> bool:
        """Whether the alert stands otherwise than before."""
        return self not in {Outcome.REPEATED, Outcome.NOTHING}


@dataclass(frozen=True)
class Told:
    """What the outbox says about one alert.

    `last_at` is when anybody was last told. Channels of `unaware_of_end` were told of trouble and
    not, since then, that it is over. `said` are occasions with their channels, whether told,
    waiting or dropped: none is put there twice.
    """

    last_at: datetime | None = None
    unaware_of_end: frozenset[str] = frozenset()
    said: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Case:
    """The newest alert of a cause, None where there never was one, and who was told of it."""

    alert: Alert | None = None
    told: Told = Told()


@dataclass(frozen=True)
class Circumstances:
    """When a finding is judged, by which policy, and which maintenance windows there are."""

    now: datetime
    policy: Policy
    windows: Sequence[MaintenanceWindow] = ()


@dataclass(frozen=True)
class Message:
    """To be sent once for its occasion on its channel, not before it is due."""

    occasion: str
    channel: str
    due_at: datetime


@dataclass(frozen=True)
class Change:
    """What a finding did to a case, and what follows.

    With `drops_waiting` whatever nobody got yet about the alert is dropped, but for messages of the
    occasion that `messages` are about.
    """

    outcome: Outcome
    case: Case
    details: Mapping[str, object] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    drops_waiting: bool = False


def severer(one: Severity, other: Severity) -> bool:
    """Whether `one` is more severe than `other`."""
    return _FROM_THE_MOST_SEVERE.index(one) < _FROM_THE_MOST_SEVERE.index(other)


def channels_for(severity: Severity, level: int, channels: Iterable[Route]) -> tuple[str, ...]:
    """Names of the channels that hear of this severity once it is escalated to `level`.

    Whoever was called on a lower level goes on hearing.
    """
    return tuple(
        channel.name
        for channel in channels
        if severity in channel.severities and channel.level <= level
    )


def due_at(
    alert_type: AlertType,
    moment: datetime,
    windows: Iterable[MaintenanceWindow],
    *,
    snoozed_until: datetime | None = None,
) -> datetime:
    """The first time from `moment` on at which people may be told: no snooze, no window."""
    due = moment if snoozed_until is None else max(moment, snoozed_until)
    # Windows may overlap, and one may begin where another ends.
    left = [each for each in windows if not each.alert_types or alert_type in each.alert_types]
    while covering := [each for each in left if each.starts_at <= due < each.ends_at]:
        due = max(each.ends_at for each in covering)
    return due


def opening_occasion(alert: Alert) -> str:
    """What people are told of when it opens: `opened`, or `reopened` and for which time."""
    return f"reopened {alert.times_reopened}" if alert.times_reopened else "opened"


def escalated_occasion(alert: Alert) -> str:
    """That it got more severe: told once for a severity, until the alert is reopened."""
    return f"escalated to {alert.severity} {alert.times_reopened + 1}"


def resolved_occasion(alert: Alert) -> str:
    """That it is over, and for which time."""
    return f"resolved {alert.times_reopened + 1}"


def is_about_the_end(occasion: str) -> bool:
    """Whether that occasion is the end of an alert."""
    return occasion.startswith("resolved ")


def is_about_a_return(occasion: str) -> bool:
    """Whether that occasion is that an alert was reopened, which the cool-down puts off."""
    return occasion.startswith("reopened ")


def change(case: Case, finding: Finding, at: Circumstances) -> Change:
    """What a finding does to the newest alert of its cause.

    While it holds the alert is opened, counted, or made more or less severe; when it does not, the
    alert is resolved. A cause that comes back within `reopen_within` reopens its alert: it counts
    from 1 again, on the first level, with nobody's acknowledgement; a snooze stays.
    """
    alert = case.alert
    if alert is not None and alert.is_unresolved:
        judge = _seen_again if finding.holds else _resolved
        return judge(alert, case.told, finding, at)
    if not finding.holds:
        return Change(Outcome.NOTHING, case)
    if alert is not None and _is_recent(alert, at):
        return _reopened(alert, case.told, finding, at)
    return _opened(finding, at)


def acknowledged(alert: Alert, *, by: str, now: datetime) -> Alert:
    """The alert once somebody has taken it on. Raises AlertStateError."""
    if alert.status is AlertStatus.RESOLVED:
        raise AlertStateError(
            f"Alert {alert.id} resolved by itself; there is nothing left to acknowledge."
        )
    if alert.status is AlertStatus.ACKNOWLEDGED:
        raise AlertStateError(
            f"Alert {alert.id} was acknowledged already, by {alert.acknowledged_by}. "
            f"`assetclass alerts show {alert.id}` tells when."
        )
    changed = {"status": AlertStatus.ACKNOWLEDGED, "acknowledged_at": now, "acknowledged_by": by}
    return alert.model_copy(update=changed)


def snoozed(alert: Alert, *, until: datetime, now: datetime) -> Alert:
    """The alert once nobody wants to be told of it before `until`.

    Raises AlertStateError, and InvalidOptionsError for a time that is past or too far away.
    """
    if alert.status is AlertStatus.RESOLVED:
        raise AlertStateError(f"Alert {alert.id} resolved by itself; nobody is told of it.")
    if not now < until <= now + LONGEST_SNOOZE:
        raise InvalidOptionsError(
            f"An alert can be snoozed for up to {LONGEST_SNOOZE.days} days from now, not until "
            f"{until:%Y-%m-%d %H:%M} UTC."
        )
    return alert.model_copy(update={"snoozed_until": until})


def _opened(finding: Finding, at: Circumstances) -> Change:
    alert = Alert(
        id=NEW,
        cause=finding.cause,
        alert_type=finding.alert_type,
        severity=finding.weight,
        status=AlertStatus.OPEN,
        summary=finding.summary,
        details=dict(finding.details),
        correction_id=finding.correction_id,
        run_id=finding.run_id,
        opened_at=at.now,
        last_seen_at=at.now,
        occurrences=1,
        times_reopened=0,
        level=FIRST_LEVEL,
        notified_at=None,
        acknowledged_at=None,
        acknowledged_by=None,
        snoozed_until=None,
        resolved_at=None,
    )
    messages = _to_everybody(alert, opening_occasion(alert), at.now, at)
    return _told(Outcome.OPENED, alert, Told(), messages, details=_seen(finding))


def _seen_again(alert: Alert, told: Told, finding: Finding, at: Circumstances) -> Change:
    seen = _with_news(alert, finding, at.now, occurrences=alert.occurrences + 1)
    if finding.only_raises and severer(alert.severity, seen.severity):
        seen = seen.model_copy(update={"severity": alert.severity})
    changes: dict[str, object] = {}
    if seen.severity is not alert.severity:
        changes["severity"] = {"from": alert.severity.value, "to": seen.severity.value}
    if seen.alert_type is not alert.alert_type:
        changes["alertType"] = {"from": alert.alert_type.value, "to": seen.alert_type.value}
    if not changes:
        return Change(Outcome.REPEATED, Case(seen, told))
    messages: tuple[Message, ...] = ()
    if severer(seen.severity, alert.severity):
        messages = _to_everybody(seen, escalated_occasion(seen), at.now, at, told.said)
    details = {**changes, "summary": finding.summary}
    # A message that waits for a cool-down gives way to one that does not.
    drops = bool(messages)
    return _told(Outcome.CHANGED, seen, told, messages, details=details, drops_waiting=drops)


def _resolved(alert: Alert, told: Told, finding: Finding, at: Circumstances) -> Change:
    over = alert.model_copy(
        update={
            "status": AlertStatus.RESOLVED,
            "resolved_at": at.now,
            "notified_at": told.last_at,
        }
    )
    messages: tuple[Message, ...] = ()
    if at.policy.notify_resolved:
        messages = tuple(
            Message(
                resolved_occasion(over),
                channel.name,
                due_at(over.alert_type, at.now, at.windows, snoozed_until=over.snoozed_until),
            )
            for channel in at.policy.channels
            if channel.name in told.unaware_of_end
        )
    details = {"summary": finding.summary, "occurrences": alert.occurrences}
    return _told(Outcome.RESOLVED, over, told, messages, details=details, drops_waiting=True)


def _reopened(alert: Alert, told: Told, finding: Finding, at: Circumstances) -> Change:
    back = _with_news(
        alert,
        finding,
        at.now,
        status=AlertStatus.OPEN,
        opened_at=at.now,
        occurrences=1,
        times_reopened=alert.times_reopened + 1,
        level=FIRST_LEVEL,
        notified_at=told.last_at,
        acknowledged_at=None,
        acknowledged_by=None,
        resolved_at=None,
    )
    earliest = at.now
    if told.last_at is not None:
        earliest = max(at.now, told.last_at + timedelta(seconds=at.policy.cool_down))
    messages = _to_everybody(back, opening_occasion(back), earliest, at)
    # What waits is that it was over, which is not true any more.
    return _told(Outcome.REOPENED, back, told, messages, details=_seen(finding), drops_waiting=True)


def _is_recent(alert: Alert, at: Circumstances) -> bool:
    if alert.resolved_at is None:
        return False
    return at.now - alert.resolved_at <= timedelta(seconds=at.policy.reopen_within)


def _with_news(alert: Alert, finding: Finding, now: datetime, **also: object) -> Alert:
    news = {
        "alert_type": finding.alert_type,
        "severity": finding.weight,
        "summary": finding.summary,
        "details": dict(finding.details),
        "correction_id": finding.correction_id or alert.correction_id,
        "run_id": finding.run_id or alert.run_id,
        "last_seen_at": now,
    }
    return alert.model_copy(update={**news, **also})


def _seen(finding: Finding) -> dict[str, object]:
    return {
        "alertType": finding.alert_type.value,
        "severity": finding.weight.value,
        "summary": finding.summary,
    }


def _to_everybody(
    alert: Alert,
    occasion: str,
    earliest: datetime,
    at: Circumstances,
    said: AbstractSet[tuple[str, str]] = frozenset(),
) -> tuple[Message, ...]:
    due = due_at(alert.alert_type, earliest, at.windows, snoozed_until=alert.snoozed_until)
    names = channels_for(alert.severity, alert.level, at.policy.channels)
    return tuple(Message(occasion, name, due) for name in names if (occasion, name) not in said)


def _told(
    outcome: Outcome,
    alert: Alert,
    told: Told,
    messages: tuple[Message, ...],
    *,
    details: Mapping[str, object],
    drops_waiting: bool = False,
) -> Change:
    """The change, with its messages noted in alert and outbox."""
    if messages:
        due = max(message.due_at for message in messages)
        alert = alert.model_copy(update={"notified_at": due})
        said = told.said | {(message.occasion, message.channel) for message in messages}
        told = replace(told, said=said)
    return Change(outcome, Case(alert, told), details, messages, drops_waiting)
