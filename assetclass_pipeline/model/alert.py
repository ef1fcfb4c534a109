"""Alerts in words: types, severities, findings of rules, and what an alert looks like on the wire.

Belongs here: the vocabulary of watching. Does not: the rules themselves (alert_rules.py), what a
finding does to an alert (alert_life.py), rows of the alert tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from assetclass_pipeline.model.wire import Moment, WireModel


class Severity(StrEnum):
    """How fast somebody must look: at once, today, this week."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class AlertType(StrEnum):
    """What kind of trouble it is; the first eight are the operators' guide's."""

    OPERATION_FAILED = "OPERATION_FAILED"
    SLA_VIOLATION = "SLA_VIOLATION"
    SERVICE_DEGRADED = "SERVICE_DEGRADED"
    HIGH_ERROR_RATE = "HIGH_ERROR_RATE"
    LOW_DATA_QUALITY = "LOW_DATA_QUALITY"
    DATA_QUALITY_DEGRADED = "DATA_QUALITY_DEGRADED"
    HIGH_ORPHANED_RECORDS = "HIGH_ORPHANED_RECORDS"
    PERFORMANCE_DEGRADATION = "PERFORMANCE_DEGRADATION"
    ASSET_CHECK_FAILED = "ASSET_CHECK_FAILED"
    RUN_FAILED = "RUN_FAILED"
    TICK_FAILED = "TICK_FAILED"
    BACKUP_CLEANUP_FAILED = "BACKUP_CLEANUP_FAILED"
    RECOVERY_DRILL_FAILED = "RECOVERY_DRILL_FAILED"
    COMPONENT_UNHEALTHY = "COMPONENT_UNHEALTHY"

    @property
    def severity(self) -> Severity:
        """That of the guide; a finding may say another one where the guide names none."""
        return _SEVERITIES[self]

    @property
    def runbook(self) -> str:
        """File name of its page in docs/runbooks."""
        return self.value.lower().replace("_", "-") + ".md"


_SEVERITIES: Final = {
    AlertType.OPERATION_FAILED: Severity.HIGH,
    AlertType.SLA_VIOLATION: Severity.HIGH,
    AlertType.SERVICE_DEGRADED: Severity.HIGH,
    AlertType.HIGH_ERROR_RATE: Severity.MEDIUM,
    AlertType.LOW_DATA_QUALITY: Severity.MEDIUM,
    AlertType.DATA_QUALITY_DEGRADED: Severity.MEDIUM,
    AlertType.HIGH_ORPHANED_RECORDS: Severity.LOW,
    AlertType.PERFORMANCE_DEGRADATION: Severity.LOW,
    AlertType.ASSET_CHECK_FAILED: Severity.MEDIUM,
    AlertType.RUN_FAILED: Severity.MEDIUM,
    AlertType.TICK_FAILED: Severity.MEDIUM,
    AlertType.BACKUP_CLEANUP_FAILED: Severity.MEDIUM,
    AlertType.RECOVERY_DRILL_FAILED: Severity.HIGH,
    AlertType.COMPONENT_UNHEALTHY: Severity.MEDIUM,
}


class AlertStatus(StrEnum):
    """Where an alert stands."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


UNRESOLVED: Final = frozenset({AlertStatus.OPEN, AlertStatus.ACKNOWLEDGED})
"""States of an alert whose condition holds, as far as anybody knows."""


@dataclass(frozen=True)
class Finding:
    """What a rule says about one cause now: whether it holds, with the numbers that tell so.

    `cause` names what is wrong and with what, and is the same whenever that is found again.
    `summary` is one sentence for people; `details` must be what JSON can hold. `severity` is the
    type's unless said otherwise; one that `only_raises` makes no open alert less severe. While the
    alert of the cause `told_by` is open, that one tells of it.
    """

    cause: str
    alert_type: AlertType
    holds: bool
    summary: str
    details: Mapping[str, object] = field(default_factory=dict)
    severity: Severity | None = None
    only_raises: bool = False
    told_by: str | None = None
    correction_id: str | None = None
    run_id: str | None = None

    @property
    def weight(self) -> Severity:
        """How severe it is."""
        return self.severity or self.alert_type.severity


class Alert(WireModel):
    """One alert: what is wrong, since when, how often, who knows; `level` grows by escalation."""

    id: int
    cause: str
    alert_type: AlertType
    severity: Severity
    status: AlertStatus
    summary: str
    details: dict[str, Any]
    correction_id: str | None
    run_id: str | None
    opened_at: Moment
    last_seen_at: Moment
    occurrences: int
    times_reopened: int
    level: int
    notified_at: Moment | None
    acknowledged_at: Moment | None
    acknowledged_by: str | None
    snoozed_until: Moment | None
    resolved_at: Moment | None

    @property
    def is_unresolved(self) -> bool:
        """Whether its condition still holds, as far as anybody knows."""
        return self.status in UNRESOLVED


class AlertEvent(WireModel):
    """One change in the life of an alert."""

    happened_at: Moment
    event: str
    actor: str
    details: dict[str, Any]


class Notification(WireModel):
    """A message about an alert on one channel: waiting, delivered, or dropped."""

    occasion: str
    channel: str
    created_at: Moment
    due_at: Moment
    attempts: int
    delivered_at: Moment | None
    dropped_at: Moment | None
    last_error: str | None


class AlertHistory(WireModel):
    """One alert with all that happened to it and who was told."""

    alert: Alert
    events: list[AlertEvent]
    notifications: list[Notification]


class MaintenanceWindow(WireModel):
    """When nobody is told of alerts; `alert_types` None means of any."""

    id: int
    starts_at: Moment
    ends_at: Moment
    alert_types: list[AlertType] | None
    reason: str
    created_by: str
