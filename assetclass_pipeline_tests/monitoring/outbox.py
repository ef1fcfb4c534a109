"""Alerts and their messages for tests: put straight into the tables, and read from them.

Belongs here: rows of alert, alert_event and notification. Does not: expectations about them.
"""

import json
from dataclasses import dataclass
from typing import Any

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.model.alert import Alert, AlertType, Severity
from assetclass_pipeline.model.alert_life import channels_for
from assetclass_pipeline.monitoring.delivery import DeliveryReport, deliver_due
from assetclass_pipeline.settings import AlertSettings, Channel, Settings
from assetclass_pipeline_tests.market import Market


def alert_settings(*channels: Channel, **changed: object) -> AlertSettings:
    """Quick tries, so that no test waits for long."""
    quick = {"delivery_backoff": (0.05, 0.2), "delivery_timeout": 5, "delivery_tries": 5}
    return AlertSettings.model_validate({"channels": channels, **quick, **changed})


@dataclass(frozen=True)
class Outbox:
    """The alert tables of one market, and deliveries from them."""

    market: Market
    alerts: AlertSettings

    @property
    def settings(self) -> Settings:
        """The market's, with these alerts."""
        return self.market.settings.model_copy(update={"alerts": self.alerts})

    def open_alert(
        self,
        cause: str = "a cause",
        *,
        severity: Severity = Severity.HIGH,
        status: str = "open",
        alert_type: AlertType = AlertType.OPERATION_FAILED,
        summary: str = "The correction failed",
        opened: str = "now",
        notified: str | None = None,
        level: int = 1,
        **details: object,
    ) -> int:
        """An alert as the store makes it; times are PostgreSQL's, like `5 minutes ago`."""
        row = self.market.execute(
            "INSERT INTO assetclass.alert (cause, alert_type, severity, status, summary, details, "
            "level, opened_at, notified_at, resolved_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, now() + %s::interval, now() + %s::interval, "
            "CASE WHEN %s = 'resolved' THEN now() END) RETURNING id",
            values=(
                cause,
                alert_type.value,
                severity.value,
                status,
                summary,
                json.dumps(details),
                level,
                "0" if opened == "now" else opened,
                notified,
                status,
            ),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def put(self, alert_id: int, channel: str, occasion: str = "opened", due: str = "0") -> int:
        """A message that waits; `due` is an interval from now."""
        row = self.market.execute(
            "INSERT INTO assetclass.notification (alert_id, occasion, channel, due_at) "
            "VALUES (%s, %s, %s, clock_timestamp() + %s::interval) RETURNING id",
            values=(alert_id, occasion, channel, due),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def tell(self, cause: str, severity: Severity = Severity.HIGH) -> int:
        """An alert and its first messages, on every channel that hears of it."""
        alert_id = self.open_alert(cause, severity=severity, summary=cause)
        for channel in channels_for(severity, 1, self.alerts.channels):
            self.put(alert_id, channel)
        return alert_id

    def set_status(self, alert_id: int, status: str) -> None:
        """As if somebody, or the end of its condition, had changed it."""
        self.market.execute(
            "UPDATE assetclass.alert SET status = %s, "
            "resolved_at = CASE WHEN %s = 'resolved' THEN clock_timestamp() END WHERE id = %s",
            values=(status, status, alert_id),
        )

    def deliver(self, *, most: int = 100, seconds: float = 60) -> DeliveryReport:
        """One round."""
        with connect(self.market.dsn, self.settings, purpose="test") as connection:
            return deliver_due(connection, self.settings, most=most, seconds=seconds)

    def make_due(self) -> None:
        """The waits of failed messages are over."""
        self.market.execute(
            "UPDATE assetclass.notification SET due_at = clock_timestamp() "
            "WHERE delivered_at IS NULL AND dropped_at IS NULL"
        )

    def state(self) -> list[tuple[Any, ...]]:
        """channel, occasion and what became of each message, in their order."""
        return self.market.rows(
            "SELECT channel, occasion, CASE WHEN delivered_at IS NOT NULL THEN 'delivered' "
            "WHEN dropped_at IS NOT NULL THEN 'dropped' ELSE 'waiting' END "
            "FROM assetclass.notification ORDER BY id"
        )

    def fates(self) -> list[str]:
        """What became of each message."""
        return [fate for _, _, fate in self.state()]

    def errors(self) -> list[str | None]:
        """last_error of each message."""
        rows = self.market.rows("SELECT last_error FROM assetclass.notification ORDER BY id")
        return [error for (error,) in rows]

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Of all alerts."""
        return [
            (event, details)
            for event, details in self.market.rows(
                "SELECT event, details FROM assetclass.alert_event ORDER BY id"
            )
        ]

    def everything_stored(self) -> str:
        """Every word that the alert tables and the audit log hold."""
        said = [
            self.market.value("SELECT coalesce(json_agg(t)::text, '') FROM assetclass.alert t"),
            self.market.value(
                "SELECT coalesce(json_agg(t)::text, '') FROM assetclass.alert_event t"
            ),
            self.market.value(
                "SELECT coalesce(json_agg(t)::text, '') FROM assetclass.notification t"
            ),
            self.market.value("SELECT coalesce(json_agg(t)::text, '') FROM assetclass.audit_log t"),
        ]
        return "\n".join(said)


def an_alert(alert_type: AlertType = AlertType.OPERATION_FAILED, **changed: object) -> Alert:
    """An open alert of 2026-03-01 02:00, seen once."""
    made: dict[str, object] = {
        "id": 7,
        "cause": f"{alert_type} of something",
        "alert_type": alert_type,
        "severity": alert_type.severity,
        "status": "open",
        "summary": "Something is wrong",
        "details": {},
        "correction_id": None,
        "run_id": None,
        "opened_at": "2026-03-01T02:00:00Z",
        "last_seen_at": "2026-03-01T02:00:00Z",
        "occurrences": 1,
        "times_reopened": 0,
        "level": 1,
        "notified_at": None,
        "acknowledged_at": None,
        "acknowledged_by": None,
        "snoozed_until": None,
        "resolved_at": None,
    }
    return Alert.model_validate({**made, **changed})
