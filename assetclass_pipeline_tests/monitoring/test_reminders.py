"""Reminders: when an alert that nobody takes is told again, and on which level."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.model.alert import AlertStatus, AlertType, Severity
from assetclass_pipeline.monitoring.reminders import Reminder, Unheeded, due_reminder, remind
from assetclass_pipeline.settings import AlertSettings, Channel
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.monitoring.outbox import Outbox, alert_settings
from assetclass_pipeline_tests.receiver import Receiver

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def minutes_ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def channel(name: str, level: int, *severities: str) -> Channel:
    chosen = {"severities": severities} if severities else {}
    return Channel.model_validate({"name": name, "url": "json://x", "level": level, **chosen})


ALL = alert_settings(
    channel("team", 1), channel("lead", 2), channel("boss", 3), channel("sms", 2, "high")
)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # High alerts wait 15 minutes, medium 4 hours, low a day.
        ({"notified_at": minutes_ago(14)}, None),
        ({"notified_at": minutes_ago(15)}, Reminder(2, ("team", "lead", "sms"))),
        ({"severity": Severity.MEDIUM, "notified_at": minutes_ago(239)}, None),
        (
            {"severity": Severity.MEDIUM, "notified_at": minutes_ago(240)},
            Reminder(2, ("team", "lead")),
        ),
        ({"severity": Severity.LOW, "notified_at": minutes_ago(1439)}, None),
        (
            {"severity": Severity.LOW, "notified_at": minutes_ago(1440)},
            Reminder(2, ("team", "lead")),
        ),
        # Up to level 3, and there again and again.
        (
            {"notified_at": minutes_ago(15), "level": 2},
            Reminder(3, ("team", "lead", "boss", "sms")),
        ),
        (
            {"notified_at": minutes_ago(15), "level": 3},
            Reminder(3, ("team", "lead", "boss", "sms")),
        ),
        # Somebody has it, or nobody wants to hear of it now.
        ({"notified_at": minutes_ago(99), "status": AlertStatus.ACKNOWLEDGED}, None),
        ({"notified_at": minutes_ago(99), "status": AlertStatus.RESOLVED}, None),
        ({"notified_at": minutes_ago(99), "in_maintenance": True}, None),
        ({"notified_at": minutes_ago(99), "snoozed_until": minutes_ago(-1)}, None),
        # A snooze is over and it still holds: those who knew, not the next level.
        ({"notified_at": minutes_ago(99), "snoozed_until": NOW}, Reminder(1, ("team",))),
        ({"notified_at": minutes_ago(5), "snoozed_until": minutes_ago(9)}, None),
        # The first message is due later (a maintenance window), or on its way.
        ({"notified_at": minutes_ago(-30)}, None),
        ({"notified_at": None, "opened_at": minutes_ago(14)}, None),
        ({"notified_at": None, "opened_at": minutes_ago(15)}, Reminder(2, ("team", "lead", "sms"))),
        # Nobody was ever to be told: now somebody is there.
        (
            {"notified_at": None, "opened_at": minutes_ago(1), "has_message": False},
            Reminder(1, ("team",)),
        ),
    ],
)
def test_when_and_on_which_level(changed: dict[str, Any], expected: Reminder | None) -> None:
    alert = Unheeded(
        **{
            "severity": Severity.HIGH,
            "status": AlertStatus.OPEN,
            "level": 1,
            "opened_at": minutes_ago(200),
            "notified_at": None,
            "snoozed_until": None,
            "in_maintenance": False,
            "has_message": True,
            **changed,
        }
    )
    assert due_reminder(alert, ALL, NOW) == expected


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((), None),
        ((channel("low", 1, "low"),), None),
        ((channel("boss", 3),), Reminder(3, ("boss",))),
        ((channel("low", 1, "low"), channel("lead", 2)), Reminder(2, ("lead",))),
    ],
)
def test_a_level_without_anybody_is_passed_over(
    channels: tuple[Channel, ...], expected: Reminder | None
) -> None:
    alert = Unheeded(
        Severity.HIGH, AlertStatus.OPEN, 1, minutes_ago(99), None, None, False, has_message=False
    )
    assert due_reminder(alert, alert_settings(*channels), NOW) == expected


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


def levels(receiver: Receiver, **changed: object) -> AlertSettings:
    channels = [receiver.channel(f"level{level}", level=level) for level in (1, 2, 3)]
    return alert_settings(*channels, **changed)


def reminded(outbox: Outbox) -> int:
    with (
        connect(outbox.market.dsn, outbox.settings, purpose="test") as connection,
        transaction(connection, outbox.settings) as cursor,
    ):
        return remind(cursor, outbox.settings)


def test_an_alert_that_nobody_takes_climbs_and_is_told_on_each_level(
    market: Market, receiver: Receiver
) -> None:
    outbox = Outbox(market, levels(receiver))
    alert = outbox.tell("a broken thing")
    assert outbox.deliver().delivered == 1
    assert reminded(outbox) == 0, "too early"
    for level, told in ((2, 2), (3, 3), (3, 3)):
        market.execute("UPDATE assetclass.alert SET notified_at = now() - interval '16 min'")
        receiver.forget()
        assert reminded(outbox) == 1
        assert reminded(outbox) == 0, "once only"
        assert outbox.deliver().delivered == told
        assert all(f"HIGH level {level}, unacknowledged" in title for title in receiver.titles)
        assert market.value("SELECT level FROM assetclass.alert") == level
    assert [(event, details["level"]) for event, details in outbox.events()] == [
        ("escalated", 2),
        ("escalated", 3),
        ("reminded", 3),
    ]
    outbox.set_status(alert, "acknowledged")
    market.execute("UPDATE assetclass.alert SET notified_at = now() - interval '16 min'")
    assert reminded(outbox) == 0, "somebody has it"


def test_nobody_is_reminded_in_a_maintenance_window(market: Market, receiver: Receiver) -> None:
    outbox = Outbox(market, levels(receiver))
    outbox.open_alert("one", notified="-1 hour", alert_type=AlertType.RUN_FAILED)
    outbox.open_alert("another", notified="-1 hour", alert_type=AlertType.SLA_VIOLATION)
    market.execute(
        "INSERT INTO assetclass.maintenance_window "
        "(starts_at, ends_at, alert_types, reason, created_by) VALUES "
        "(now() - interval '1 hour', now() + interval '1 hour', ARRAY['SLA_VIOLATION'], 'x', 'a'), "
        "(now() - interval '2 hours', now() - interval '1 hour', NULL, 'over', 'ann')"
    )
    assert reminded(outbox) == 1
    assert market.rows("SELECT cause FROM assetclass.alert WHERE level = 2") == [("one",)]


def test_a_dead_channel_does_not_keep_the_next_level_from_hearing(
    market: Market, receiver: Receiver, another_receiver: Receiver
) -> None:
    another_receiver.stop()
    outbox = Outbox(
        market,
        alert_settings(
            another_receiver.channel("dead"),
            receiver.channel("lead", level=2),
            reminders={"high": 0.01},
        ),
    )
    outbox.tell("a broken thing")
    assert outbox.deliver().failed == 1
    assert reminded(outbox) == 1
    outbox.deliver()
    assert len(receiver.titles) == 1


def test_without_channels_nothing_is_reminded(market: Market) -> None:
    outbox = Outbox(market, alert_settings())
    outbox.open_alert(notified="-1 hour")
    assert reminded(outbox) == 0
    assert outbox.events() == []


def test_two_processes_remind_once(market: Market, receiver: Receiver) -> None:
    outbox = Outbox(market, levels(receiver))
    outbox.open_alert(notified="-1 hour")
    with (
        connect(market.dsn, outbox.settings, purpose="test") as connection,
        transaction(connection, outbox.settings) as cursor,
    ):
        assert remind(cursor, outbox.settings) == 1
        assert reminded(outbox) == 0, "the other one is at it"
    assert reminded(outbox) == 0
    assert len(outbox.state()) == 2
