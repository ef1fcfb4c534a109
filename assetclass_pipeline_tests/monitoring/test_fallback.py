"""The API's own watch: it delivers, and tells of a daemon or database that is gone, once."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from assetclass_pipeline.database import schema
from assetclass_pipeline.model.alert import AlertType, Severity
from assetclass_pipeline.monitoring.fallback import Fallback, News, Outage, is_silent, seen
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.monitoring.outbox import Outbox, alert_settings
from assetclass_pipeline_tests.receiver import SECRET, Mood, Receiver, closed_port


@dataclass
class Clock:
    """A time that a test moves; and a daemon that was last heard of `age` seconds ago."""

    now: float = 1000.0
    age: float | None = 5.0

    def __call__(self) -> float:
        return self.now

    def heartbeat_age(self) -> float | None:
        return self.age


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


@pytest.mark.parametrize(
    ("outage", "is_there", "now", "expected", "news"),
    [
        (Outage(), True, 9, Outage(), None),
        (Outage(), False, 9, Outage(9), None),
        (Outage(9), False, 68, Outage(9), None),
        (Outage(9), False, 69, Outage(9, told=True), News.GONE),
        (Outage(9, told=True), False, 999, Outage(9, told=True), None),
        (Outage(9), True, 68, Outage(), None),
        (Outage(9, told=True), True, 99, Outage(), News.BACK),
    ],
)
def test_an_outage_is_told_once_and_its_end_once(
    outage: Outage, is_there: bool, now: float, expected: Outage, news: News | None
) -> None:
    assert seen(outage, is_there=is_there, now=now, after=60) == (expected, news)


@pytest.mark.parametrize(
    ("age", "watched_for", "expected"),
    [
        (None, 9999, None),
        (30, 9999, False),
        (120, 9999, False),
        (121, 9999, True),
        (86_400, 120, None),  # it may be starting beside us
        (86_400, 121, True),
    ],
)
def test_a_silence_from_before_we_watch_is_no_verdict(
    age: float | None, watched_for: float, expected: bool | None
) -> None:
    assert is_silent(age, watched_for=watched_for, after=120) is expected


def test_it_delivers_and_reminds_while_the_daemon_cannot(
    market: Market, receiver: Receiver, clock: Clock
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    outbox.tell("it broke")
    outbox.open_alert("another", notified="-1 hour")
    Fallback(outbox.settings, market.dsn, clock.heartbeat_age, clock=clock).look()
    assert sorted(title.split(":")[-1] for title in receiver.titles) == [
        " The correction failed",
        " it broke",
    ]


def test_a_silent_daemon_is_one_alert_whatever_the_number_of_processes(
    market: Market, receiver: Receiver, clock: Clock
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    api_processes = [
        Fallback(outbox.settings, market.dsn, clock.heartbeat_age, clock=clock) for _ in range(2)
    ]

    def look() -> None:
        for process in api_processes:
            process.look()

    look()
    clock.now, clock.age = clock.now + 200, 119
    look()
    assert receiver.titles == []
    clock.age = 125
    look()
    look()
    assert [title.split("(")[0] for title in receiver.titles] == ["HIGH COMPONENT_UNHEALTHY "]
    assert "daemon is silent for 2 min" in receiver.titles[0]
    clock.age = None
    look()
    assert len(receiver.titles) == 1, "nobody can tell"
    clock.age = 2
    look()
    look()
    assert len(receiver.titles) == 2
    assert receiver.titles[1].startswith("RESOLVED COMPONENT_UNHEALTHY")
    assert market.rows("SELECT cause, status, severity, occurrences FROM assetclass.alert") == [
        ("component:daemon", "resolved", "high", 1)
    ]


def test_a_silent_daemon_makes_the_alert_about_its_parts_graver(
    market: Market, receiver: Receiver, clock: Clock
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    outbox.open_alert(
        "component:daemon",
        alert_type=AlertType.COMPONENT_UNHEALTHY,
        severity=Severity.MEDIUM,
        notified="0",
        incident="component daemon",
    )
    clock.age = 500
    fallback = Fallback(outbox.settings, market.dsn, clock.heartbeat_age, clock=clock)
    fallback.look()
    clock.now += 500
    for _ in range(2):
        fallback.look()
    assert [title.split(" (")[0] for title in receiver.titles] == ["now HIGH: COMPONENT_UNHEALTHY"]


def test_a_new_process_ends_what_one_that_died_has_opened(
    market: Market, receiver: Receiver, clock: Clock
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    outbox.open_alert("component:daemon", alert_type=AlertType.COMPONENT_UNHEALTHY)
    Fallback(outbox.settings, market.dsn, clock.heartbeat_age, clock=clock).look()
    assert market.value("SELECT status FROM assetclass.alert") == "resolved"


def test_a_database_that_is_gone_is_told_directly_once_and_its_return_once(
    market: Market, receiver: Receiver, another_receiver: Receiver, clock: Clock
) -> None:
    channels = [
        receiver.channel("pager"),
        another_receiver.channel("low", Severity.LOW),
        another_receiver.channel("level2", level=2),
    ]
    settings = Outbox(market, alert_settings(*channels)).settings
    nowhere = f"postgresql://ann:{SECRET}@127.0.0.1:{closed_port()}/market"
    fallback = Fallback(settings, nowhere, clock.heartbeat_age, clock=clock)
    for passed in (0, 59):
        clock.now += passed
        fallback.look()
    assert receiver.titles == []
    clock.now += 1
    for _ in range(3):
        fallback.look()
    (message,) = receiver.messages
    assert message.title.startswith("HIGH database gone: PostgreSQL cannot be reached at 127.0.0.1")
    assert "Since: " in message.body
    assert "1 min ago" in message.body
    assert "Written now: nothing" in message.body
    assert SECRET not in message.title + message.body
    fallback.dsn = market.dsn
    for _ in range(2):
        fallback.look()
    assert receiver.titles[1:] == ["RESOLVED database is back"]
    assert "Lasted: 1 min" in receiver.messages[1].body
    assert another_receiver.requests == 0


def test_a_short_absence_is_not_told(market: Market, receiver: Receiver, clock: Clock) -> None:
    settings = Outbox(market, alert_settings(receiver.channel("pager"))).settings
    nowhere = f"postgresql://127.0.0.1:{closed_port()}/market"
    fallback = Fallback(settings, nowhere, clock.heartbeat_age, clock=clock)
    fallback.look()
    fallback.dsn = market.dsn
    clock.now += 59
    fallback.look()
    fallback.dsn = nowhere
    clock.now += 59
    fallback.look()
    assert receiver.titles == []


def test_a_channel_that_fails_is_tried_again_while_the_database_is_gone(
    market: Market, receiver: Receiver, another_receiver: Receiver, clock: Clock
) -> None:
    channels = [receiver.channel("pager"), another_receiver.channel("chat")]
    settings = Outbox(market, alert_settings(*channels, delivery_tries=2)).settings
    nowhere = f"postgresql://127.0.0.1:{closed_port()}/market"
    fallback = Fallback(settings, nowhere, clock.heartbeat_age, clock=clock)
    fallback.look()
    another_receiver.mood = Mood.FAILING
    clock.now += 60
    for _ in range(4):
        fallback.look()
    assert (len(receiver.titles), another_receiver.requests) == (1, 4)
    fallback.dsn = market.dsn
    receiver.mood = Mood.FAILING
    for _ in range(4):
        fallback.look()
    assert another_receiver.requests == 4, "who never heard of it is not told of its end"
    assert receiver.requests == 1 + 2, "its end is told with some patience"


def test_a_database_that_refuses_us_is_told_when_that_lasts(
    database_url: str, receiver: Receiver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    market = Market(None, database_url)  # type: ignore[arg-type] # nothing is asked of it
    settings = Outbox(market, alert_settings(receiver.channel("pager"))).settings
    fallback = Fallback(settings, database_url, clock.heartbeat_age, clock=clock)
    fallback.look()
    clock.now += 599
    fallback.look()
    assert receiver.titles == [], "a deployment may be under way"
    assert "assetclass db upgrade" in caplog.text
    clock.now += 1
    fallback.look()
    fallback.look()
    [message] = receiver.messages
    assert message.title.startswith("HIGH no alert can be stored: Schema assetclass is missing")
    assert "gone" not in message.body
    schema.upgrade(database_url, settings)
    fallback.look()
    assert receiver.titles[1:] == ["RESOLVED database is back"]


def test_a_right_that_is_missing_is_told_too(
    market: Market, receiver: Receiver, clock: Clock
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    outbox.tell("it broke")
    market.execute("ALTER TABLE assetclass.notification RENAME TO not_ours")
    fallback = Fallback(outbox.settings, market.dsn, clock.heartbeat_age, clock=clock)
    fallback.look()
    clock.now += 600
    fallback.look()
    assert [title.split(":")[0] for title in receiver.titles] == ["HIGH no alert can be stored"]


def nobody_knows(*_: object, **__: object) -> None:
    raise RuntimeError("nobody knows")


def test_messages_go_out_when_the_instance_cannot_be_asked(
    market: Market, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    outbox.tell("it broke")
    Fallback(outbox.settings, market.dsn, nobody_knows).look()
    assert len(receiver.titles) == 1
    assert "RuntimeError: nobody knows" in caplog.text


def test_the_loop_goes_on_whatever_happens_and_ends_when_asked(
    market: Market,
    receiver: Receiver,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    monkeypatch.setattr("assetclass_pipeline.monitoring.fallback.deliver_due", nobody_knows)
    with Fallback(outbox.settings, market.dsn, clock.heartbeat_age, interval=0.01) as fallback:
        deadline = time.monotonic() + 10
        while caplog.text.count("RuntimeError: nobody knows") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        monkeypatch.undo()
        outbox.tell("it broke")
        receiver.wait_for(1)
    assert caplog.text.count("RuntimeError: nobody knows") >= 2
    assert fallback._thread is not None
    assert not fallback._thread.is_alive()
