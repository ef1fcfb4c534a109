"""Alerts in a real database: findings judged, also by several at once, and what people do."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import TupleRow

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import (
    AlertNotFoundError,
    AlertStateError,
    AssetClassError,
    InvalidOptionsError,
    MaintenanceWindowNotFoundError,
)
from assetclass_pipeline.model.alert import Alert, AlertStatus, AlertType, Finding, Severity
from assetclass_pipeline.monitoring import alert_store
from assetclass_pipeline.settings import Settings, load_settings

CHANNELS = (
    {"name": "chat", "url": "json://localhost"},
    {"name": "pager", "url": "json://localhost", "severities": ["high"]},
)
QUALITY = AlertType.LOW_DATA_QUALITY
DEFAULTS: dict[str, Any] = {"channels": CHANNELS}


@dataclass(frozen=True)
class Store:
    """An empty store, with settings that name two channels."""

    dsn: str
    connection: psycopg.Connection[TupleRow]
    settings: Settings

    def judge(self, *findings: Finding, settings: Settings | None = None) -> list[Alert]:
        chosen = settings or self.settings
        with transaction(self.connection, chosen) as cursor:
            return alert_store.judge(cursor, chosen, findings)

    def alerts(self, **chosen: Any) -> list[Alert]:
        return alert_store.list_alerts(self.connection, self.settings, **chosen)

    def the_alert(self) -> Alert:
        (alert,) = self.alerts()
        return alert

    def rows(self, statement: LiteralString, **values: object) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def outbox(self) -> list[tuple[str, str, str]]:
        """(occasion, channel, state), in their order."""
        return self.rows(
            "SELECT occasion, channel, CASE WHEN delivered_at IS NOT NULL THEN 'delivered'"
            " WHEN dropped_at IS NOT NULL THEN 'dropped'"
            " WHEN due_at <= clock_timestamp() THEN 'due' ELSE 'later' END"
            " FROM assetclass.notification ORDER BY id"
        )

    def deliver(self) -> None:
        """Whatever is due arrives."""
        self.rows(
            "UPDATE assetclass.notification SET delivered_at = clock_timestamp(), attempts = 1"
            " WHERE dropped_at IS NULL AND delivered_at IS NULL AND due_at <= clock_timestamp()"
        )

    def age(self, seconds: float) -> None:
        """Let everything be so much longer ago."""
        self.rows(
            "UPDATE assetclass.alert SET opened_at = opened_at - make_interval(secs => %(s)s),"
            " last_seen_at = last_seen_at - make_interval(secs => %(s)s),"
            " notified_at = notified_at - make_interval(secs => %(s)s),"
            " resolved_at = resolved_at - make_interval(secs => %(s)s)",
            s=seconds,
        )
        self.rows(
            "UPDATE assetclass.notification SET due_at = due_at - make_interval(secs => %(s)s),"
            " created_at = created_at - make_interval(secs => %(s)s),"
            " delivered_at = delivered_at - make_interval(secs => %(s)s)",
            s=seconds,
        )

    def events(self, alert_id: int) -> list[str]:
        history = alert_store.alert_history(self.connection, self.settings, alert_id)
        return [event.event for event in history.events]

    def audited(self) -> list[tuple[str, str, str]]:
        return self.rows(
            "SELECT actor, action, outcome FROM assetclass.audit_log"
            " WHERE action <> 'upgrade_schema' ORDER BY number"
        )


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    settings = load_settings(alerts=DEFAULTS)
    schema.upgrade(database_url, settings)
    with connect(database_url, settings, purpose="test") as connection:
        yield Store(database_url, connection, settings)


def with_alerts(**values: Any) -> Settings:
    return load_settings(alerts={**DEFAULTS, **values})


def found(cause: str = "quality", holds: bool = True, **said: Any) -> Finding:
    known = {"alert_type": QUALITY, "summary": "80 %", "details": {"score": 80.5}, **said}
    return Finding(cause=cause, holds=holds, **known)


def over(cause: str = "quality") -> Finding:
    return found(cause, holds=False, summary="99 %")


def in_(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.every_postgres
def test_a_cause_has_one_alert_through_its_whole_life(store: Store) -> None:
    correction = "7d0b3c1e-3b7e-4c1f-9d42-0a4f5c0a8f11"
    (opened,) = store.judge(found(correction_id=correction, run_id="run 1"))
    assert opened == store.the_alert()
    assert (opened.status, opened.occurrences, opened.severity) == ("open", 1, "medium")
    assert (opened.details, opened.correction_id) == ({"score": 80.5}, correction)
    assert store.outbox() == [("opened", "chat", "due")]

    assert store.judge(found(summary="79 %"), found(summary="78 %")) == []
    repeated = store.the_alert()
    assert (repeated.occurrences, repeated.summary, repeated.id) == (3, "78 %", opened.id)
    assert repeated.opened_at == opened.opened_at
    assert repeated.last_seen_at > opened.last_seen_at

    (worse,) = store.judge(found(severity=Severity.HIGH))
    assert worse == store.the_alert()
    assert worse.severity == "high"
    assert store.outbox() == [
        ("opened", "chat", "dropped"),
        ("escalated to high 1", "chat", "due"),
        ("escalated to high 1", "pager", "due"),
    ]
    store.deliver()
    (resolved,) = store.judge(over())
    assert resolved == store.the_alert()
    assert resolved.status is AlertStatus.RESOLVED
    assert resolved.resolved_at is not None
    assert store.outbox()[3:] == [("resolved 1", "chat", "due"), ("resolved 1", "pager", "due")]
    assert store.judge(over()) == []

    store.deliver()
    (reopened,) = store.judge(found())
    assert (reopened.id, reopened.times_reopened, reopened.occurrences) == (opened.id, 1, 1)
    assert store.outbox()[5:] == [("reopened 1", "chat", "later")]
    store.judge(over())
    assert store.outbox()[5:] == [("reopened 1", "chat", "dropped")]
    assert store.events(opened.id) == ["opened", "changed", "resolved", "reopened", "resolved"]


def test_a_cause_that_comes_back_late_gets_an_alert_of_its_own(store: Store) -> None:
    (first,) = store.judge(found())
    store.judge(over())
    store.age(86_000)
    assert store.judge(found())[0].id == first.id
    store.judge(over())
    store.age(87_000)
    (second,) = store.judge(found())
    assert second.id > first.id
    assert (second.times_reopened, second.occurrences) == (0, 1)
    assert [each.id for each in store.alerts()] == [second.id, first.id]


def test_everything_in_one_look_ends_as_its_last_finding_says(store: Store) -> None:
    changed = store.judge(found("a"), found("b"), over("a"), over("c"), found("a"), over("b"))
    assert [(each.cause, each.status) for each in changed] == [("a", "open"), ("b", "resolved")]
    # Nobody needs to hear of what was over before they could.
    assert store.outbox() == [("reopened 1", "chat", "due")]
    a, b = changed
    assert store.events(a.id) == ["opened", "resolved", "reopened"]
    assert store.events(b.id) == ["opened", "resolved"]


def test_alerts_open_without_any_channel(store: Store) -> None:
    quiet = load_settings()
    (opened,) = store.judge(found(), settings=quiet)
    assert (store.outbox(), opened.notified_at) == ([], None)
    assert store.the_alert() == opened


def test_whatever_was_found_can_be_stored(store: Store) -> None:
    details = {
        "nul": "a\0b",
        "nan": float("nan"),
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "list": ["\ud800", {"x": {1}}],
    }
    store.judge(found("c\0", summary="\0 \ud800", details=details))
    alert = store.the_alert()
    assert alert.summary == "\N{REPLACEMENT CHARACTER} ?"
    assert alert.details == {
        "nul": "a\N{REPLACEMENT CHARACTER}b",
        "nan": "nan",
        "time": "2026-01-01 00:00:00+00:00",
        "list": ["?", {"x": [1]}],
    }
    store.judge(replace(over(), cause="c\0"))
    assert store.the_alert().status is AlertStatus.RESOLVED


def test_a_thousand_findings_take_few_statements(store: Store) -> None:
    causes = [f"check {n}" for n in range(1000)]
    store.connection.cursor_factory = CountedCursor
    for findings, changed in (
        ([found(cause) for cause in causes], 1000),
        ([found(cause) for cause in causes], 0),
        ([over(cause) for cause in causes], 1000),
    ):
        with transaction(store.connection, store.settings) as cursor:
            CountedCursor.statements = 0
            assert len(alert_store.judge(cursor, store.settings, findings)) == changed
            assert 0 < CountedCursor.statements <= 12
        store.deliver()
    assert {(each.status, each.occurrences) for each in store.alerts(most=2000)} == {
        ("resolved", 2)
    }
    assert len(store.outbox()) == 2000


class CountedCursor(psycopg.Cursor[TupleRow]):
    """Counts what is executed, by all of them together."""

    statements = 0

    def execute(self, *arguments: Any, **named: Any) -> "CountedCursor":
        CountedCursor.statements += 1
        super().execute(*arguments, **named)
        return self


@pytest.mark.every_postgres
def test_two_who_judge_the_same_cause_at_once_open_one_alert(store: Store) -> None:
    both_ready = threading.Barrier(2)

    def look(findings: list[Finding]) -> int:
        with (
            closing(connect(store.dsn, store.settings, purpose="test")) as connection,
            transaction(connection, store.settings) as cursor,
        ):
            both_ready.wait(10)
            return len(alert_store.judge(cursor, store.settings, findings))

    causes = [f"check {n}" for n in range(50)]
    forward = [found(cause) for cause in causes]
    with ThreadPoolExecutor(2) as pool:
        for findings in (forward, forward, [over(cause) for cause in causes], forward):
            backward = findings[::-1]
            opened = list(pool.map(look, [findings, backward]))
            assert sorted(opened) in ([0, 50], [0, 0])
    alerts = store.alerts(most=500)
    assert [each.cause for each in sorted(alerts, key=lambda each: each.id)] != []
    assert len({each.cause for each in alerts}) == len(alerts) == 50
    assert {(each.times_reopened, each.occurrences) for each in alerts} == {(1, 2)}


def test_whoever_is_second_sees_what_the_first_one_did(store: Store) -> None:
    """Also when the second one has looked before the first one commits."""
    with (
        closing(connect(store.dsn, store.settings, purpose="test")) as other,
        ThreadPoolExecutor(1) as pool,
    ):

        def second() -> list[Alert]:
            with transaction(other, store.settings) as cursor:
                return alert_store.judge(cursor, store.settings, [found()])

        with transaction(store.connection, store.settings) as cursor:
            (first,) = alert_store.judge(cursor, store.settings, [found()])
            waiting = pool.submit(second)
            _wait_until_blocked(store, other.info.backend_pid)
        assert waiting.result(10) == []
    assert store.the_alert().id == first.id
    assert store.the_alert().occurrences == 2


def _wait_until_blocked(store: Store, pid: int) -> None:
    with psycopg.connect(store.dsn, autocommit=True) as watching:
        for _ in range(1000):
            row = watching.execute("SELECT cardinality(pg_blocking_pids(%s))", [pid]).fetchone()
            if row is not None and row[0]:
                return
    raise AssertionError("it never waited")


def test_judges_people_and_deliverers_never_block_each_other_for_ever(store: Store) -> None:
    """No deadlock, no lock time-out, whatever they meet each other with."""
    everybody_ready = threading.Barrier(4)

    def judging(connection: psycopg.Connection[TupleRow], chance: random.Random) -> None:
        causes = chance.sample("abcdefgh", 5)
        findings = [
            found(cause, holds=chance.random() < 0.6, severity=chance.choice([*Severity]))
            for cause in causes
        ]
        with transaction(connection, store.settings) as cursor:
            alert_store.judge(cursor, store.settings, findings)

    def acting(connection: psycopg.Connection[TupleRow], chance: random.Random) -> None:
        number, settings = chance.randint(1, 8), store.settings
        with suppress(AlertNotFoundError, AlertStateError):
            alert_store.acknowledge(connection, settings, number, by="ada")
        with suppress(AlertNotFoundError, AlertStateError):
            alert_store.snooze(connection, settings, number, until=in_(0.5), by="ada")
        window = alert_store.open_window(
            connection, settings, ends_at=in_(60), reason="upgrade", by="ada"
        )
        alert_store.end_window(connection, settings, window.id, by="ada")

    def delivering(connection: psycopg.Connection[TupleRow], chance: random.Random) -> None:
        """As a deliverer claims and records, some of it as failed."""
        channel = {"channel": "chat", "lease": 1}
        with transaction(connection, store.settings) as cursor:
            row = cursor.execute(query("notification", "claim"), channel).fetchone()
        if row is None:
            return
        about = {"id": row[0], "alert_id": row[1], "attempts": row[4], "wait": 0.01, "error": "no"}
        with transaction(connection, store.settings) as cursor:
            if chance.random() < 0.3:
                cursor.execute(query("notification", "failed"), about)
                cursor.execute(query("notification", "postpone"), {**about, **channel})
            else:
                cursor.execute(query("notification", "told"), about)
                text = {"title": "a title", "body": "a body"}
                cursor.execute(query("notification", "delivered"), {**about, **text})

    def work(number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - no secret; the same in each run
        task = (judging, judging, acting, delivering)[number]
        with closing(connect(store.dsn, store.settings, purpose="test")) as connection:
            everybody_ready.wait(30)
            for _ in range(25):
                task(connection, chance)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [None] * 4
    numbers = store.rows(
        "SELECT count(*) FILTER (WHERE event = 'opened' OR event = 'reopened'),"
        " count(*) FILTER (WHERE event = 'resolved') FROM assetclass.alert_event"
    )
    began, ended = numbers[0]
    assert began - ended == len(store.alerts(include_resolved=False))
    assert len({each.cause for each in store.alerts()}) == len(store.alerts()) == 8


def test_what_is_rolled_back_was_never_judged(store: Store) -> None:
    def look() -> None:
        with transaction(store.connection, store.settings) as cursor:
            alert_store.judge(cursor, store.settings, [found()])
            alert_store.move(cursor, "watcher", "storage", 9)
            raise RuntimeError("the process has had enough")

    with pytest.raises(RuntimeError):
        look()
    assert store.alerts() == []
    with transaction(store.connection, store.settings) as cursor:
        assert alert_store.position(cursor, "watcher", "storage") is None


def test_a_watcher_goes_on_where_it_was(store: Store) -> None:
    with transaction(store.connection, store.settings) as cursor:
        assert alert_store.position(cursor, "watcher", "storage") is None
    for moved, stands in ((0, 0), (7, 7), (5, 7), (8, 8)):
        with transaction(store.connection, store.settings) as cursor:
            alert_store.move(cursor, "watcher", "storage", moved)
            assert alert_store.position(cursor, "watcher", "storage") == stands
            assert alert_store.position(cursor, "watcher", "another storage") is None


def test_the_second_look_waits_for_the_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_store, "_PATIENCE", {"lock_timeout": "20ms"})
    with transaction(store.connection, store.settings) as cursor:
        assert alert_store.position(cursor, "watcher", "storage") is None
        with (
            closing(connect(store.dsn, store.settings, purpose="test")) as other,
            pytest.raises(psycopg.errors.LockNotAvailable),
            transaction(other, store.settings) as second,
        ):
            alert_store.position(second, "watcher", "storage")


def test_acknowledging_is_remembered_and_ends_with_the_alert(store: Store) -> None:
    (opened,) = store.judge(found())
    store.rows(
        "INSERT INTO assetclass.notification (alert_id, occasion, channel)"
        " VALUES (%(id)s, 'reminder 1', 'chat'), (%(id)s, 'reminder 1', 'pager')",
        id=opened.id,
    )
    taken = alert_store.acknowledge(
        store.connection, store.settings, opened.id, by="ada", note="on it"
    )
    assert taken == store.the_alert()
    assert (taken.status, taken.acknowledged_by) == ("acknowledged", "ada")
    assert store.outbox() == [
        ("opened", "chat", "due"),
        ("reminder 1", "chat", "dropped"),
        ("reminder 1", "pager", "dropped"),
    ]
    history = alert_store.alert_history(store.connection, store.settings, opened.id)
    assert history.alert == taken
    assert [(each.event, each.actor) for each in history.events] == [
        ("opened", "assetclass"),
        ("acknowledged", "ada"),
    ]
    assert history.events[1].details == {"note": "on it"}
    assert [each.channel for each in history.notifications] == ["chat", "chat", "pager"]
    with pytest.raises(AlertStateError, match="by ada"):
        alert_store.acknowledge(store.connection, store.settings, opened.id, by="token ci")
    assert store.judge(found()) == []
    assert store.the_alert().acknowledged_by == "ada"
    store.judge(over(), found())
    assert (store.the_alert().status, store.the_alert().acknowledged_by) == ("open", None)
    assert store.audited() == [
        ("ada", "acknowledge_alert", "done"),
        ("ci", "acknowledge_alert", "ALERT_STATE_CONFLICT"),
    ]


def test_a_snooze_lets_waiting_messages_wait(store: Store) -> None:
    (opened,) = store.judge(found())
    until = in_(7200)
    asleep = alert_store.snooze(store.connection, store.settings, opened.id, until=until, by="ada")
    assert asleep == store.the_alert()
    assert (asleep.snoozed_until, asleep.notified_at, asleep.status) == (until, until, "open")
    store.judge(found(severity=Severity.HIGH))
    assert store.outbox() == [
        ("opened", "chat", "dropped"),
        ("escalated to high 1", "chat", "later"),
        ("escalated to high 1", "pager", "later"),
    ]
    soon = in_(60)
    alert_store.snooze(store.connection, store.settings, opened.id, until=soon, by="ada")
    assert store.the_alert().notified_at == soon
    dues = "SELECT DISTINCT due_at FROM assetclass.notification WHERE dropped_at IS NULL"
    assert store.rows(dues) == [(soon,)]
    assert store.events(opened.id) == ["opened", "snoozed", "changed", "snoozed"]
    with pytest.raises(InvalidOptionsError):
        alert_store.snooze(store.connection, store.settings, opened.id, until=in_(-5), by="ada")
    assert store.audited() == [
        ("ada", "snooze_alert", "done"),
        ("ada", "snooze_alert", "done"),
        ("ada", "snooze_alert", "INVALID_OPTIONS"),
    ]


def test_a_try_under_way_is_put_off_but_never_brought_forward(store: Store) -> None:
    store.judge(found("a"), found("b"))
    [(lease,)] = store.rows(
        "UPDATE assetclass.notification SET attempts = 1, due_at = now() + interval '70 s'"
        " WHERE alert_id = (SELECT id FROM assetclass.alert WHERE cause = 'a') RETURNING due_at"
    )
    dues = "SELECT due_at FROM assetclass.notification ORDER BY id"
    ends = "SELECT ends_at FROM assetclass.maintenance_window ORDER BY id DESC LIMIT 1"
    window = _window(store, 30)
    assert store.rows(dues) == [(lease,), *store.rows(ends)]
    ended = alert_store.end_window(store.connection, store.settings, window, by="ada")
    assert store.rows(dues) == [(lease,), (ended.ends_at,)]
    _window(store, 90)
    assert store.rows(dues) == store.rows(ends) * 2


def test_what_is_due_already_stays_due_since_then(store: Store) -> None:
    """Whoever reads the history sees how late a message is; reminders count from it."""
    (opened,) = store.judge(found())
    due = "SELECT due_at FROM assetclass.notification"
    before = store.rows(due)
    _window(store, 3600, AlertType.RUN_FAILED)
    assert store.rows(due) == before
    assert store.the_alert().notified_at == opened.notified_at


def test_whoever_delivers_is_not_waited_for(store: Store) -> None:
    """Else a channel that is slow would hold up those who judge."""
    taken, _ = store.judge(found("a"), found("b"))
    window = _window(store, 3600)
    lease = in_(70)
    of_taken = {"id": taken.id, "lease": lease}
    with (
        closing(connect(store.dsn, store.settings, purpose="test")) as other,
        transaction(other, store.settings) as delivering,
    ):
        delivering.execute(
            "UPDATE assetclass.notification SET due_at = %(lease)s, attempts = 1"
            " WHERE alert_id = %(id)s",
            of_taken,
        )
        alert_store.end_window(store.connection, store.settings, window, by="ada")
        store.judge(over("a"), over("b"))
    dues = store.rows(
        "SELECT due_at FROM assetclass.notification WHERE alert_id = %(id)s", id=taken.id
    )
    assert dues == [(lease,)]
    assert store.outbox() == [("opened", "chat", "later"), ("opened", "chat", "dropped")]


def test_what_somebody_has_taken_since_is_theirs(store: Store) -> None:
    store.judge(found())
    dues = "SELECT id, due_at FROM assetclass.notification"
    (before,) = store.rows(dues)
    stale = {"ids": [before[0]], "before": [in_(-9)], "dues": [in_(0)]}
    store.connection.execute(query("alert", "move_due"), stale)
    assert store.rows(dues) == [before]


def _window(store: Store, seconds: float, *types: AlertType, begins: float | None = None) -> int:
    return alert_store.open_window(
        store.connection,
        store.settings,
        ends_at=in_(seconds),
        reason="upgrade",
        by="ada",
        starts_at=None if begins is None else in_(begins),
        alert_types=types or None,
    ).id


def test_in_a_maintenance_window_nobody_is_told_before_it_ends(store: Store) -> None:
    store.judge(found("before"))
    window = _window(store, 3600, QUALITY)
    store.judge(found("within"), found("other", alert_type=AlertType.RUN_FAILED))
    store.judge(found("short"), over("short"))
    assert store.outbox() == [
        ("opened", "chat", "later"),
        ("opened", "chat", "later"),
        ("opened", "chat", "due"),
    ]
    ended = alert_store.end_window(store.connection, store.settings, window, by="bob")
    assert ended.ends_at <= datetime.now(UTC)
    assert {state for _, _, state in store.outbox()} == {"due"}
    assert all(each.notified_at <= in_(0) for each in store.alerts() if each.notified_at)
    with pytest.raises(AlertStateError, match="ended at"):
        alert_store.end_window(store.connection, store.settings, window, by="bob")
    assert store.audited() == [
        ("ada", "open_maintenance_window", "done"),
        ("bob", "end_maintenance_window", "done"),
        ("bob", "end_maintenance_window", "ALERT_STATE_CONFLICT"),
    ]


def test_the_end_of_a_window_does_not_cut_a_cool_down_short(store: Store) -> None:
    store.judge(found())
    store.deliver()
    store.judge(over())
    window = _window(store, 3600)
    store.judge(found())
    assert store.outbox()[-1] == ("reopened 1", "chat", "later")
    alert_store.end_window(store.connection, store.settings, window, by="ada")
    (row,) = store.rows(
        "SELECT extract(epoch FROM due_at - now())::int FROM assetclass.notification"
        " WHERE occasion = 'reopened 1'"
    )
    assert 590 <= row[0] <= 600


def test_windows_that_are_not_over_are_listed(store: Store) -> None:
    later, now = _window(store, 9000, begins=5000), _window(store, 3600, QUALITY)
    ended = _window(store, 3600)
    alert_store.end_window(store.connection, store.settings, ended, by="ada")
    listed = alert_store.windows(store.connection, store.settings)
    assert [each.id for each in listed] == [now, later]
    assert (listed[0].alert_types, listed[0].reason, listed[0].created_by) == (
        [QUALITY],
        "upgrade",
        "ada",
    )
    every = alert_store.windows(store.connection, store.settings, include_ended=True)
    assert [each.id for each in every] == [ended, now, later]
    # One that has not begun leaves nothing behind.
    alert_store.end_window(store.connection, store.settings, later, by="ada")
    assert [each.id for each in alert_store.windows(store.connection, store.settings)] == [now]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"ends_at": -5}, InvalidOptionsError),
        ({"ends_at": 31 * 86_400}, InvalidOptionsError),
        ({"ends_at": 60, "starts_at": 90}, InvalidOptionsError),
        ({"ends_at": 60, "reason": " "}, InvalidOptionsError),
        ({"ends_at": 60, "alert_types": []}, InvalidOptionsError),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(
    store: Store, values: dict[str, Any], error: type[AssetClassError]
) -> None:
    moments = {
        name: in_(value) for name, value in values.items() if name in {"ends_at", "starts_at"}
    }
    with pytest.raises(error):
        alert_store.open_window(
            store.connection,
            store.settings,
            **{"reason": "x", "by": "ada", **values, **moments},
        )
    assert alert_store.windows(store.connection, store.settings, include_ended=True) == []
    assert store.audited() == [("ada", "open_maintenance_window", "INVALID_OPTIONS")]


@pytest.mark.parametrize("number", [0, -1, 7, 2**63, 10**30])
def test_what_is_not_there_is_not_found(store: Store, number: int) -> None:
    connection, settings = store.connection, store.settings
    with pytest.raises(AlertNotFoundError, match=str(number)):
        alert_store.alert_history(connection, settings, number)
    with pytest.raises(AlertNotFoundError):
        alert_store.acknowledge(connection, settings, number, by="ada")
    with pytest.raises(AlertNotFoundError):
        alert_store.snooze(connection, settings, number, until=in_(60), by="ada")
    with pytest.raises(MaintenanceWindowNotFoundError, match=str(number)):
        alert_store.end_window(connection, settings, number, by="ada")


def test_the_most_severe_are_listed_first(store: Store) -> None:
    for cause, severity in (("a", "low"), ("b", "high"), ("c", "medium"), ("d", "high")):
        store.judge(found(cause, severity=Severity(severity)))
    for cause in ("e", "f"):
        store.judge(found(cause, severity=Severity.HIGH))
        store.judge(over(cause))
    assert [each.cause for each in store.alerts()] == ["d", "b", "c", "a", "f", "e"]
    assert [each.cause for each in store.alerts(most=5)] == ["d", "b", "c", "a", "f"]
    assert [each.cause for each in store.alerts(include_resolved=False, most=3)] == ["d", "b", "c"]


def test_no_password_of_an_error_is_stored(store: Store) -> None:
    said = "cannot parse postgresql://ann:s3cr3t-word@db/market (password=s3cr3t-word)"
    details = {"error": said, "nested": [{"why": said}]}
    store.judge(Finding("a cause", QUALITY, holds=True, summary=said, details=details))
    assert "s3cr3t-word" not in str(store.the_alert())
    assert "ann:****@db" in store.the_alert().summary
    assert store.rows("SELECT FROM assetclass.alert_event WHERE details::text ~ 's3cr3t'") == []
