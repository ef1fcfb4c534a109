"""From a finding to a person and back: judged, told, told again, taken, over."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.monitoring.alert_store import (
    acknowledge,
    alert_history,
    judge,
    snooze,
)
from assetclass_pipeline.monitoring.reminders import remind
from assetclass_pipeline_tests.market import Market, MarketConnection, open_market
from assetclass_pipeline_tests.monitoring.outbox import Outbox, alert_settings
from assetclass_pipeline_tests.receiver import Mood, Receiver

CORRECTION = "5f0c9ab0-5f0f-4b3f-8f5f-0d3c6f3f4c11"


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


@pytest.fixture
def outbox(market: Market, receiver: Receiver) -> Outbox:
    channels = [receiver.channel("pager"), receiver.channel("lead", level=2)]
    return Outbox(market, alert_settings(*channels, cool_down=0, reminders={"high": 900}))


@pytest.fixture
def connection(outbox: Outbox) -> Iterator[MarketConnection]:
    with connect(outbox.market.dsn, outbox.settings, purpose="test") as opened:
        yield opened


def found(connection: MarketConnection, outbox: Outbox, *, holds: bool) -> None:
    finding = Finding(
        "operation_failed:correction",
        AlertType.OPERATION_FAILED,
        holds=holds,
        summary="The correction failed" if holds else "A correction succeeded",
        details={"value": 12.0, "limit": 5.0},
        correction_id=CORRECTION,
    )
    with transaction(connection, outbox.settings) as cursor:
        judge(cursor, outbox.settings, [finding])


def reminded(connection: MarketConnection, outbox: Outbox) -> int:
    with transaction(connection, outbox.settings) as cursor:
        return remind(cursor, outbox.settings)


def pass_time(outbox: Outbox, interval: str) -> None:
    """As if the alert, and everything about it, had happened earlier."""
    outbox.market.execute(
        "UPDATE assetclass.alert SET opened_at = opened_at - ago, "
        "notified_at = notified_at - ago, snoozed_until = snoozed_until - ago "
        "FROM (SELECT %s::interval AS ago) passed",
        values=(interval,),
    )


def test_told_once_told_higher_taken_and_over(
    outbox: Outbox, connection: MarketConnection, receiver: Receiver
) -> None:
    found(connection, outbox, holds=True)
    assert outbox.deliver().delivered == 1
    found(connection, outbox, holds=True)
    assert outbox.deliver().nothing_happened, "repeats are counted, not told"
    pass_time(outbox, "15 min")
    assert reminded(connection, outbox) == 1
    assert outbox.deliver().delivered == 2
    acknowledge(connection, outbox.settings, 1, by="ann")
    pass_time(outbox, "15 min")
    assert reminded(connection, outbox) == 0
    found(connection, outbox, holds=False)
    assert outbox.deliver().delivered == 2, "both levels knew"
    assert [title.split(" (")[0] for title in receiver.titles] == [
        "HIGH OPERATION_FAILED",
        "HIGH level 2, unacknowledged for 15 min: OPERATION_FAILED",
        "HIGH level 2, unacknowledged for 15 min: OPERATION_FAILED",
        "RESOLVED OPERATION_FAILED",
        "RESOLVED OPERATION_FAILED",
    ]
    assert f"Act: assetclass resume {CORRECTION}" in receiver.messages[0].body
    assert "Lasted: 30 min" in receiver.messages[-1].body
    history = alert_history(connection, outbox.settings, 1)
    assert [event.event for event in history.events] == [
        "opened",
        "escalated",
        "acknowledged",
        "resolved",
    ]
    assert all(one.delivered_at for one in history.notifications)


def test_it_comes_back(outbox: Outbox, connection: MarketConnection, receiver: Receiver) -> None:
    for holds in (True, False, True, False):
        found(connection, outbox, holds=holds)
        assert outbox.deliver().delivered == 1
    assert [title.split(" (")[0] for title in receiver.titles] == [
        "HIGH OPERATION_FAILED",
        "RESOLVED OPERATION_FAILED",
        "HIGH again: OPERATION_FAILED",
        "RESOLVED OPERATION_FAILED",
    ]


def test_it_is_over_before_the_channel_is_back(
    outbox: Outbox, connection: MarketConnection, receiver: Receiver
) -> None:
    receiver.mood = Mood.FAILING
    found(connection, outbox, holds=True)
    outbox.deliver()
    found(connection, outbox, holds=False)
    receiver.mood = Mood.ANSWERING
    outbox.make_due()
    assert outbox.deliver().delivered == 0
    assert receiver.titles == []


def test_a_snooze_that_is_over_is_told_on_the_same_level(
    outbox: Outbox, connection: MarketConnection, receiver: Receiver
) -> None:
    found(connection, outbox, holds=True)
    outbox.deliver()
    until = datetime.now(UTC) + timedelta(hours=1)
    snooze(connection, outbox.settings, 1, until=until, by="ann")
    pass_time(outbox, "30 min")
    assert reminded(connection, outbox) == 0
    pass_time(outbox, "31 min")
    assert reminded(connection, outbox) == 1
    assert reminded(connection, outbox) == 0
    assert outbox.deliver().delivered == 1
    assert receiver.titles[-1].startswith("HIGH level 1, unacknowledged for 1 h 01 min")
