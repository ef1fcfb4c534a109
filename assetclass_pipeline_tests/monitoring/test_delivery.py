"""Delivery: each message once to each channel, whatever the receivers and other processes do."""

import itertools
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler

import pytest

from assetclass_pipeline.errors import InvalidOptionsError, InvalidSettingsError, NotificationError
from assetclass_pipeline.model.alert import Alert, AlertType, Severity
from assetclass_pipeline.monitoring.delivery import send_test, wait_after, why_not
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.monitoring.outbox import Outbox, alert_settings, an_alert
from assetclass_pipeline_tests.receiver import LONGEST_HANG, SECRET, Mood, Receiver, closed_port

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


@pytest.fixture
def outbox(market: Market, receiver: Receiver) -> Outbox:
    return Outbox(market, alert_settings(receiver.channel("pager")))


def test_a_message_is_rendered_sent_and_recorded(outbox: Outbox, receiver: Receiver) -> None:
    alert = outbox.open_alert(summary="It broke", value=3.0, limit=2.0)
    outbox.put(alert, "pager")
    report = outbox.deliver()
    assert (report.delivered, report.failed, report.dropped) == (1, 0, 0)
    (message,) = receiver.messages
    info = outbox.market.connection.info
    assert message.title == f"HIGH OPERATION_FAILED ({info.host}:{info.port}): It broke"
    assert f"database {info.dbname}, table public.market_data" in message.body
    assert "How bad: value 3; limit 2" in message.body
    assert "Written now: nothing" in message.body
    assert "password" not in message.body
    stored = outbox.market.rows(
        "SELECT title, body, attempts, last_error, delivered_at <= clock_timestamp() "
        "FROM assetclass.notification"
    )
    assert stored == [(message.title, message.body, 1, None, True)]
    assert outbox.market.value("SELECT notified_at IS NOT NULL FROM assetclass.alert")
    assert outbox.deliver().nothing_happened
    assert receiver.requests == 1


def test_severities_are_routed(
    market: Market, receiver: Receiver, another_receiver: Receiver
) -> None:
    channels = [
        receiver.channel("pager", Severity.HIGH),
        another_receiver.channel("chat", Severity.MEDIUM, Severity.LOW),
    ]
    outbox = Outbox(market, alert_settings(*channels))
    for severity in Severity:
        outbox.tell(severity.value, severity)
    assert outbox.deliver().delivered == 3
    assert [(message.kind, message.title[:4]) for message in receiver.messages] == [
        ("failure", "HIGH")
    ]
    assert [message.kind for message in another_receiver.messages] == ["warning", "info"]


def test_what_is_not_due_is_left(outbox: Outbox, receiver: Receiver) -> None:
    outbox.put(outbox.open_alert(), "pager", due="1 hour")
    assert outbox.deliver().nothing_happened
    assert receiver.requests == 0


def test_a_message_is_tried_again_until_the_channel_is_back(
    outbox: Outbox, receiver: Receiver
) -> None:
    receiver.mood = Mood.FAILING
    outbox.tell("it broke")
    for tried in (1, 2):
        begun = outbox.market.value("SELECT clock_timestamp()")
        assert outbox.deliver().failed == 1
        assert receiver.requests == tried
        [(attempts, due, error)] = outbox.market.rows(
            "SELECT attempts, due_at, last_error FROM assetclass.notification"
        )
        assert (attempts, error) == (tried, outbox.errors()[0])
        assert due > begun
        outbox.make_due()
    (error,) = outbox.errors()
    assert error is not None
    assert "error=500" in error
    receiver.mood = Mood.ANSWERING
    assert outbox.deliver().delivered == 1
    assert outbox.errors() == [None]
    assert len(receiver.messages) == 1


def test_a_failed_message_waits(outbox: Outbox, receiver: Receiver) -> None:
    slow = Outbox(
        outbox.market, alert_settings(*outbox.alerts.channels, delivery_backoff=(60, 600))
    )
    receiver.stop()
    slow.tell("it broke")
    begun = slow.market.value("SELECT clock_timestamp()")
    assert slow.deliver().failed == 1
    failed = slow.market.value("SELECT clock_timestamp()")
    assert slow.deliver().nothing_happened
    due = slow.market.value("SELECT due_at FROM assetclass.notification")
    assert begun + timedelta(seconds=45) < due <= failed + timedelta(seconds=60)


def test_a_channel_that_failed_is_left_alone_for_a_moment(
    outbox: Outbox, receiver: Receiver
) -> None:
    slow = Outbox(
        outbox.market, alert_settings(*outbox.alerts.channels, delivery_backoff=(60, 600))
    )
    receiver.mood = Mood.FAILING
    for number in range(3):
        slow.tell(f"trouble {number}")
    assert slow.deliver().failed == 1
    assert slow.deliver().nothing_happened
    assert receiver.requests == 1
    attempts = slow.market.rows("SELECT attempts FROM assetclass.notification ORDER BY id")
    assert attempts == [(1,), (0,), (0,)], "it costs the others no try"


def test_it_is_given_up_after_all_tries_with_the_reason(outbox: Outbox, receiver: Receiver) -> None:
    receiver.mood = Mood.FAILING
    outbox.tell("it broke")
    for _ in range(5):
        outbox.deliver()
        outbox.make_due()
    assert outbox.deliver().nothing_happened
    assert outbox.fates() == ["dropped"]
    ((event, details),) = outbox.events()
    assert event == "notification_dropped"
    assert details == {
        "channel": "pager",
        "occasion": "opened",
        "attempts": 5,
        "reason": outbox.errors()[0],
    }
    assert "error=500" in details["reason"]


@pytest.mark.parametrize(
    ("attempts", "chance", "seconds"),
    [(1, 0, 5), (2, 0, 10), (3, 0, 20), (8, 0, 600), (10_000, 0, 600), (2, 1, 7.5), (8, 1, 450)],
)
def test_waits_grow_up_to_a_limit(attempts: int, chance: float, seconds: float) -> None:
    assert wait_after(attempts, (5, 600), chance) == seconds


@pytest.mark.parametrize("trouble", ["refusing", "failing", "hanging"])
def test_a_dead_channel_does_not_hold_up_a_living_one(
    trouble: str, market: Market, receiver: Receiver, another_receiver: Receiver
) -> None:
    if trouble == "refusing":
        another_receiver.stop()
    else:
        another_receiver.mood = Mood(trouble)
    channels = another_receiver.channel("dead"), receiver.channel("living")
    outbox = Outbox(market, alert_settings(*channels, delivery_timeout=LONGEST_HANG))
    for number in range(5):
        outbox.tell(f"trouble {number}")
    with ThreadPoolExecutor(1) as pool:
        round_ = pool.submit(outbox.deliver)
        receiver.wait_for(5, LONGEST_HANG / 2)
        if trouble == "hanging":
            assert not round_.done(), "its message is on the way all the time"
            another_receiver.stop()
        report = round_.result()
    assert (report.delivered, report.failed) == (5, 1)
    assert another_receiver.requests <= 1, "once it has failed it is left alone"


def test_a_channel_that_hangs_is_given_up_in_time(
    market: Market, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is our limit that ends it, not Apprise's own.
    monkeypatch.setattr("apprise.NotifyBase.socket_read_timeout", 2 * LONGEST_HANG)
    receiver.mood = Mood.HANGING
    outbox = Outbox(market, alert_settings(receiver.channel("dead"), delivery_timeout=0.2))
    for number in range(5):
        outbox.tell(f"trouble {number}")
    begun = time.monotonic()
    assert outbox.deliver().failed == 1
    assert time.monotonic() - begun < LONGEST_HANG
    receiver.stop()


def test_a_message_may_not_take_longer_than_a_tick() -> None:
    with pytest.raises(InvalidSettingsError, match="DELIVERY_TIMEOUT"):
        load_settings(alerts={"delivery_timeout": 31})


def test_no_message_is_begun_after_its_time(outbox: Outbox, receiver: Receiver) -> None:
    outbox.tell("it broke")
    assert outbox.deliver(seconds=0).nothing_happened
    outbox.tell("another")
    assert outbox.deliver(most=1).delivered == 1
    assert receiver.requests == 1


def test_a_message_whose_sender_died_is_sent_by_the_next_one(outbox: Outbox) -> None:
    alert = outbox.open_alert()
    number = outbox.put(alert, "pager", due="90 seconds")
    outbox.market.execute("UPDATE assetclass.notification SET attempts = 1")
    assert outbox.deliver().nothing_happened, "its lease is not over"
    outbox.make_due()
    assert outbox.deliver().delivered == 1
    assert outbox.market.rows("SELECT id, attempts FROM assetclass.notification") == [(number, 2)]


def test_messages_of_an_alert_keep_their_order(outbox: Outbox, receiver: Receiver) -> None:
    alert = outbox.open_alert()
    outbox.put(alert, "pager", "opened", due="1 hour")
    outbox.put(alert, "pager", "reminder 1")
    assert outbox.deliver().nothing_happened
    outbox.make_due()
    assert outbox.deliver().delivered == 2
    assert ["unacknowledged" in title for title in receiver.titles] == [False, True]


def alert_that(status: str, **changed: object) -> Alert:
    return an_alert(AlertType.SLA_VIOLATION, status=status, **changed)


@pytest.mark.parametrize(
    ("occasion", "alert", "told_before", "dropped"),
    [
        ("opened", alert_that("open"), False, False),
        ("opened", alert_that("acknowledged"), False, False),
        ("opened", alert_that("resolved"), False, True),
        ("reopened 1", alert_that("resolved"), True, True),
        ("reminder 1", alert_that("open"), True, False),
        ("reminder 1", alert_that("acknowledged"), True, True),
        ("reminder 1", alert_that("resolved"), True, True),
        ("reminder 1", alert_that("open", snoozed_until=NOW + timedelta(1)), True, True),
        ("reminder 1", alert_that("open", snoozed_until=NOW), True, False),
        ("resolved 1", alert_that("resolved"), True, False),
        ("resolved 1", alert_that("resolved"), False, True),
        ("resolved 1", alert_that("open"), True, True),
    ],
)
def test_what_nobody_needs_to_hear_any_more_is_dropped(
    occasion: str, alert: Alert, told_before: bool, dropped: bool
) -> None:
    reason = why_not(occasion, alert, told_before=told_before, now=NOW)
    assert (reason is not None) is dropped


def test_an_alert_that_ends_before_anybody_was_told_is_never_told(
    outbox: Outbox, receiver: Receiver
) -> None:
    alert = outbox.tell("it broke")
    outbox.set_status(alert, "resolved")
    outbox.put(alert, "pager", "resolved 1")
    report = outbox.deliver()
    assert (report.delivered, report.dropped) == (0, 2)
    assert receiver.requests == 0
    assert outbox.fates() == ["dropped", "dropped"]
    assert [event for event, _ in outbox.events()] == ["notification_dropped"] * 2


def test_whoever_was_told_hears_of_the_end(outbox: Outbox, receiver: Receiver) -> None:
    alert = outbox.tell("it broke")
    outbox.deliver()
    told_at = outbox.market.value("SELECT notified_at FROM assetclass.alert")
    outbox.set_status(alert, "resolved")
    outbox.put(alert, "pager", "resolved 1")
    assert outbox.deliver().delivered == 1
    assert receiver.titles[-1].startswith("RESOLVED OPERATION_FAILED")
    assert receiver.messages[-1].kind == "success"
    assert outbox.market.value("SELECT notified_at FROM assetclass.alert") == told_at


def test_an_alert_that_ends_while_its_message_is_on_the_way_is_told_to_be_over(
    outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alert = outbox.tell("it broke")

    def while_it_is_sent() -> None:
        outbox.set_status(alert, "resolved")
        outbox.market.execute("UPDATE assetclass.notification SET dropped_at = clock_timestamp()")

    receive = receiver._take

    def take(request: BaseHTTPRequestHandler, message: dict[str, str]) -> None:
        while_it_is_sent()
        receive(request, message)

    monkeypatch.setattr(receiver, "_take", take)
    outbox.deliver(most=1)
    monkeypatch.undo()
    assert outbox.state() == [("pager", "opened", "delivered"), ("pager", "resolved 1", "waiting")]


def test_a_channel_that_is_set_no_more_gets_nothing(outbox: Outbox) -> None:
    outbox.put(outbox.open_alert(), "gone", due="-61 minutes")
    assert outbox.deliver().dropped == 1
    assert outbox.errors() == ["no channel of this name is set any more"]


def test_a_process_with_older_settings_takes_nothing_from_those_that_know_a_channel(
    market: Market, receiver: Receiver
) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    outbox.tell("it broke")
    older = Outbox(market, alert_settings())
    assert older.deliver().nothing_happened
    assert outbox.deliver().delivered == 1
    assert len(receiver.titles) == 1


def test_a_message_whose_senders_all_died_is_given_up(outbox: Outbox, receiver: Receiver) -> None:
    outbox.tell("it broke")
    outbox.market.execute(
        "UPDATE assetclass.notification SET attempts = %s", values=(outbox.alerts.delivery_tries,)
    )
    assert outbox.deliver().dropped == 1
    assert receiver.requests == 0
    assert [event for event, _ in outbox.events()] == ["notification_dropped"]


def test_a_url_that_is_not_understood_fails_like_a_dead_channel(
    market: Market, receiver: Receiver
) -> None:
    wrong = receiver.channel("wrong", url=f"nosuch://{SECRET}")
    outbox = Outbox(market, alert_settings(wrong, receiver.channel("right")))
    outbox.tell("it broke")
    report = outbox.deliver()
    assert (report.delivered, report.failed) == (1, 1)
    assert "Apprise does not understand" in str(outbox.errors()[0])


@pytest.mark.parametrize("mood", Mood)
def test_the_secret_is_in_no_column_and_no_log(
    mood: Mood,
    market: Market,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    receiver.mood = mood
    caplog.set_level(1)
    channels = [
        receiver.channel("pager"),
        receiver.channel("wrong", url=f"nosuch://{SECRET}"),
        receiver.channel("closed", url=f"json://u:{SECRET}@127.0.0.1:{closed_port()}/{SECRET}"),
    ]
    settings = alert_settings(*channels, delivery_tries=1, delivery_timeout=0.5)
    outbox = Outbox(market, settings)
    outbox.tell("it broke")
    outbox.deliver()
    assert SECRET not in outbox.everything_stored()
    assert SECRET not in caplog.text + str(capfd.readouterr()) + repr(outbox)
    receiver.stop()


DELIVERER = """
import sys
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.monitoring.channels import understood
from assetclass_pipeline.monitoring.delivery import deliver_due
from assetclass_pipeline.settings import load_settings

settings = load_settings()
with connect(sys.argv[1], settings, purpose="test") as connection:
    assert all(understood(channel) is None for channel in settings.alerts.channels)
    print("ready", flush=True)
    sys.stdin.readline()
    print(deliver_due(connection, settings, most=100, seconds=20).delivered)
"""


def test_two_processes_deliver_fifty_messages_once_each(
    market: Market,
    receiver: Receiver,
    another_receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channels = [receiver.channel("pager"), another_receiver.channel("chat")]
    outbox = Outbox(market, alert_settings(*channels))
    shown = ", ".join(
        f'{{"name": "{each.name}", "url": "{each.url.get_secret_value()}"}}' for each in channels
    )
    monkeypatch.setenv("ASSETCLASS_ALERTS__CHANNELS", f"[{shown}]")
    monkeypatch.setenv("ASSETCLASS_ALERTS__DELIVERY_TIMEOUT", str(LONGEST_HANG))
    both_at_it, requests = threading.Barrier(2), itertools.count()
    receive = receiver._take

    def take(request: BaseHTTPRequestHandler, message: dict[str, str]) -> None:
        # A process sends one message at a time on a channel: two at once are of both.
        if next(requests) < both_at_it.parties:
            both_at_it.wait(LONGEST_HANG)
        receive(request, message)

    monkeypatch.setattr(receiver, "_take", take)
    for number in range(25):
        outbox.tell(f"trouble number {number}.")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DELIVERER, market.dsn],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    delivered = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(delivered) == 50
    assert min(delivered) > 0, "both are at it"
    for each in (receiver, another_receiver):
        assert each.requests == 25
        assert set(Counter(each.titles).values()) == {1}
    assert set(outbox.fates()) == {"delivered"}
    assert market.rows("SELECT DISTINCT attempts FROM assetclass.notification") == [(1,)]


def test_a_test_message_goes_to_every_channel(
    receiver: Receiver, another_receiver: Receiver
) -> None:
    another_receiver.mood = Mood.FAILING
    channels = [receiver.channel("pager", Severity.HIGH), another_receiver.channel("chat", level=2)]
    settings = load_settings(alerts=alert_settings(*channels))
    pager, chat = send_test(settings, None, by="ann")
    assert (pager.channel, pager.level, pager.delivered, pager.error) == ("pager", 1, True, None)
    assert (chat.channel, chat.level, chat.delivered) == ("chat", 2, False)
    assert "error=500" in str(chat.error)
    assert receiver.titles == ["TEST of AssetClass alerts, sent by ann"]
    (only,) = send_test(settings, "pager", by="ann")
    assert only.delivered


def test_a_test_message_needs_a_channel(receiver: Receiver) -> None:
    with pytest.raises(NotificationError, match="No channel is set"):
        send_test(load_settings(), None, by="ann")
    settings = load_settings(alerts=alert_settings(receiver.channel("pager")))
    with pytest.raises(InvalidOptionsError, match="No channel is called 'x': there are pager"):
        send_test(settings, "x", by="ann")
