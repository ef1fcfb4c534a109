"""The life of alerts: what each finding does, who is told when, and what holds for any sequence."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assetclass_pipeline.errors import AlertStateError, InvalidOptionsError
from assetclass_pipeline.model.alert import (
    Alert,
    AlertStatus,
    AlertType,
    Finding,
    MaintenanceWindow,
    Severity,
)
from assetclass_pipeline.model.alert_life import (
    NEW,
    Case,
    Change,
    Circumstances,
    Message,
    Outcome,
    Told,
    acknowledged,
    change,
    channels_for,
    due_at,
    is_about_the_end,
    severer,
    snoozed,
)
from assetclass_pipeline.settings import AlertSettings, Channel

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
CAUSE = "completeness of quality_report"
HIGH, MEDIUM, LOW = Severity.HIGH, Severity.MEDIUM, Severity.LOW


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def channel(name: str, *severities: Severity, level: int = 1) -> Channel:
    heard = frozenset(severities or Severity)
    return Channel(name=name, url="json://localhost", severities=heard, level=level)


POLICY = AlertSettings(
    channels=(channel("chat"), channel("pager", HIGH), channel("boss", HIGH, level=2)),
    cool_down=600,
    reopen_within=86_400,
)
QUIET = AlertSettings()


def finding(holds: bool = True, **said: Any) -> Finding:
    given = {"alert_type": AlertType.LOW_DATA_QUALITY, "summary": "80 %", **said}
    return Finding(cause=CAUSE, holds=holds, **given)


def alert(**values: Any) -> Alert:
    known: dict[str, Any] = {
        "id": 7,
        "cause": CAUSE,
        "alert_type": AlertType.LOW_DATA_QUALITY,
        "severity": MEDIUM,
        "status": AlertStatus.OPEN,
        "summary": "80 %",
        "details": {},
        "correction_id": None,
        "run_id": None,
        "opened_at": NOON,
        "last_seen_at": NOON,
        "occurrences": 1,
        "times_reopened": 0,
        "level": 1,
        "notified_at": NOON,
        "acknowledged_at": None,
        "acknowledged_by": None,
        "snoozed_until": None,
        "resolved_at": None,
    }
    return Alert(**{**known, **values})


def resolved_alert(**values: Any) -> Alert:
    return alert(**{"status": AlertStatus.RESOLVED, "resolved_at": later(60), **values})


def acknowledged_alert(**values: Any) -> Alert:
    known = {"acknowledged_at": NOON, "acknowledged_by": "ada", "status": AlertStatus.ACKNOWLEDGED}
    return alert(**{**known, **values})


def window(begins: float, ends: float, *types: AlertType) -> MaintenanceWindow:
    return MaintenanceWindow(
        id=1,
        starts_at=later(begins),
        ends_at=later(ends),
        alert_types=list(types) or None,
        reason="upgrade",
        created_by="ada",
    )


def judged(
    case: Case,
    found: Finding,
    at: float,
    policy: AlertSettings = POLICY,
    windows: Iterable[MaintenanceWindow] = (),
) -> Change:
    return change(case, found, Circumstances(later(at), policy, list(windows)))


def told(changed: Change) -> list[tuple[str, str, float]]:
    """Each message with its seconds after noon."""
    return [
        (each.occasion, each.channel, (each.due_at - NOON).total_seconds())
        for each in changed.messages
    ]


KNOWN = Told(last_at=NOON, unaware_of_end=frozenset({"chat"}), said=frozenset({("opened", "chat")}))


@pytest.mark.parametrize(
    ("before", "holds", "at", "outcome"),
    [
        (None, True, 0, Outcome.OPENED),
        (None, False, 0, Outcome.NOTHING),
        (alert(), True, 5, Outcome.REPEATED),
        (alert(), False, 5, Outcome.RESOLVED),
        (acknowledged_alert(), True, 5, Outcome.REPEATED),
        (acknowledged_alert(), False, 5, Outcome.RESOLVED),
        (resolved_alert(), False, 90, Outcome.NOTHING),
        (resolved_alert(), True, 90, Outcome.REOPENED),
        (resolved_alert(), True, 60 + 86_400, Outcome.REOPENED),
        (resolved_alert(), True, 61 + 86_400, Outcome.OPENED),
        (alert(severity=LOW), True, 5, Outcome.CHANGED),
        (alert(severity=HIGH), True, 5, Outcome.CHANGED),
        (alert(alert_type=AlertType.RUN_FAILED), True, 5, Outcome.CHANGED),
    ],
)
def test_what_a_finding_does(
    before: Alert | None, holds: bool, at: float, outcome: Outcome
) -> None:
    assert judged(Case(before), finding(holds), at).outcome is outcome


@pytest.mark.parametrize(("before", "after"), [(HIGH, HIGH), (MEDIUM, MEDIUM), (LOW, MEDIUM)])
def test_a_finding_that_only_raises_makes_nothing_less_severe(
    before: Severity, after: Severity
) -> None:
    found = finding(only_raises=True, summary="75 %")
    seen = judged(Case(alert(severity=before)), found, 5)
    assert (seen.case.alert or alert()).severity is after
    assert (seen.outcome is Outcome.CHANGED) is (before is not after)


def test_a_new_alert_is_what_was_found() -> None:
    found = finding(
        summary="70 %", details={"completeness": 70}, correction_id="a", run_id="b", severity=HIGH
    )
    opened = judged(Case(), found, 0, QUIET).case.alert
    assert opened == alert(
        id=NEW,
        severity=HIGH,
        summary="70 %",
        details={"completeness": 70},
        correction_id="a",
        run_id="b",
        notified_at=None,
    )


def test_a_repeat_is_counted_with_its_news_and_tells_nobody() -> None:
    before = Case(acknowledged_alert(correction_id="a"), KNOWN)
    repeated = judged(before, finding(summary="75 %", details={"rows": 3}, run_id="b"), 5)
    assert repeated.case.alert == acknowledged_alert(
        occurrences=2,
        last_seen_at=later(5),
        summary="75 %",
        details={"rows": 3},
        correction_id="a",
        run_id="b",
    )
    assert (repeated.messages, repeated.drops_waiting) == ((), False)
    assert not repeated.outcome.is_event


def test_a_new_row_begins_when_a_cause_comes_back_late() -> None:
    late = judged(Case(resolved_alert(times_reopened=3), KNOWN), finding(), 90_000)
    assert late.case.alert is not None
    assert (late.case.alert.id, late.case.alert.times_reopened) == (NEW, 0)
    # Neither its cool-down nor what was said of the old one counts.
    assert told(late) == [("opened", "chat", 90_000)]


def test_a_reopened_alert_counts_anew_and_nobody_has_acknowledged_it() -> None:
    before = acknowledged_alert(
        status=AlertStatus.RESOLVED,
        resolved_at=later(60),
        occurrences=9,
        level=2,
        snoozed_until=later(50),
    )
    back = judged(Case(before, KNOWN), finding(), 700).case.alert
    assert back == alert(
        opened_at=later(700),
        last_seen_at=later(700),
        times_reopened=1,
        notified_at=later(700),
        snoozed_until=later(50),
    )


def test_resolving_keeps_who_acknowledged_and_what_it_was() -> None:
    over = judged(Case(acknowledged_alert(), KNOWN), finding(False, summary="97 %"), 60)
    assert over.case.alert == acknowledged_alert(
        status=AlertStatus.RESOLVED, resolved_at=later(60), notified_at=later(60)
    )
    assert over.details == {"summary": "97 %", "occurrences": 1}


@pytest.mark.parametrize(
    ("severity", "level", "names"),
    [
        (LOW, 1, ("chat",)),
        (HIGH, 1, ("chat", "pager")),
        (HIGH, 2, ("chat", "pager", "boss")),
        (MEDIUM, 3, ("chat",)),
    ],
)
def test_routing(severity: Severity, level: int, names: tuple[str, ...]) -> None:
    assert channels_for(severity, level, POLICY.channels) == names


@pytest.mark.parametrize(
    ("begins", "snoozed_for", "windows", "due"),
    [
        (0, None, [], 0),
        (0, 30, [], 30),
        (40, 30, [], 40),
        (0, None, [window(-10, 100)], 100),
        (0, None, [window(0, 100)], 100),
        (100, None, [window(0, 100)], 100),
        (0, None, [window(1, 100)], 0),
        (0, 30, [window(20, 100)], 100),
        (0, None, [window(-1, 50), window(50, 80), window(70, 200)], 200),
        (0, None, [window(70, 200), window(50, 80), window(-1, 50)], 200),
        (0, None, [window(-1, 50, AlertType.RUN_FAILED)], 0),
        (0, None, [window(-1, 50, AlertType.RUN_FAILED, AlertType.LOW_DATA_QUALITY)], 50),
    ],
)
def test_people_are_left_alone_while_they_asked_for_it(
    begins: float, snoozed_for: float | None, windows: list[MaintenanceWindow], due: float
) -> None:
    snoozed_until = None if snoozed_for is None else later(snoozed_for)
    asked = due_at(AlertType.LOW_DATA_QUALITY, later(begins), windows, snoozed_until=snoozed_until)
    assert asked == later(due)


@pytest.mark.parametrize(
    ("case", "found", "at", "messages", "drops"),
    [
        # It opens: those of level 1 who hear of its severity.
        (Case(), finding(), 0, [("opened", "chat", 0)], False),
        (
            Case(),
            finding(severity=HIGH),
            0,
            [("opened", "chat", 0), ("opened", "pager", 0)],
            False,
        ),
        # It gets more severe: whoever hears of that now, at once; less severe: nobody.
        (
            Case(alert(severity=LOW), KNOWN),
            finding(),
            5,
            [("escalated to medium 1", "chat", 5)],
            True,
        ),
        (
            Case(alert(severity=LOW, level=2, times_reopened=2), KNOWN),
            finding(severity=HIGH),
            5,
            [("escalated to high 3", name, 5) for name in ("chat", "pager", "boss")],
            True,
        ),
        (Case(alert(severity=HIGH), KNOWN), finding(), 5, [], False),
        (Case(alert(alert_type=AlertType.RUN_FAILED), KNOWN), finding(), 5, [], False),
        (
            Case(
                alert(severity=LOW),
                replace(KNOWN, said=frozenset({("escalated to medium 1", "chat")})),
            ),
            finding(),
            5,
            [],
            False,
        ),
        # It is over: those who were told of it.
        (Case(alert(), KNOWN), finding(False), 5, [("resolved 1", "chat", 5)], True),
        (Case(alert(), Told()), finding(False), 5, [], True),
        (
            Case(alert(), replace(KNOWN, unaware_of_end=frozenset({"chat", "gone"}))),
            finding(False),
            5,
            [("resolved 1", "chat", 5)],
            True,
        ),
        # It comes back: not before the cool-down since anybody was last told.
        (Case(resolved_alert(), KNOWN), finding(), 90, [("reopened 1", "chat", 600)], True),
        (Case(resolved_alert(), KNOWN), finding(), 900, [("reopened 1", "chat", 900)], True),
        (Case(resolved_alert(), Told()), finding(), 90, [("reopened 1", "chat", 90)], True),
        (
            Case(resolved_alert(times_reopened=4), KNOWN),
            finding(),
            900,
            [("reopened 5", "chat", 900)],
            True,
        ),
        # A snooze outlives that.
        (
            Case(resolved_alert(snoozed_until=later(2000)), KNOWN),
            finding(),
            90,
            [("reopened 1", "chat", 2000)],
            True,
        ),
        (
            Case(alert(severity=LOW, snoozed_until=later(2000)), KNOWN),
            finding(),
            5,
            [("escalated to medium 1", "chat", 2000)],
            True,
        ),
    ],
)
def test_who_is_told_when(
    case: Case, found: Finding, at: float, messages: list[tuple[str, str, float]], drops: bool
) -> None:
    changed = judged(case, found, at)
    assert told(changed) == messages
    assert changed.drops_waiting is drops
    assert changed.case.alert is not None
    if messages:
        assert changed.case.alert.notified_at == later(messages[0][2])


def test_a_maintenance_window_delays_what_opens_in_it() -> None:
    opened = judged(Case(), finding(), 0, windows=[window(-60, 3600)])
    assert told(opened) == [("opened", "chat", 3600)]
    over = judged(opened.case, finding(False), 60, windows=[window(-60, 3600)])
    # Nobody was told: what waits is dropped, and there is no end to tell of.
    assert (told(over), over.drops_waiting) == ([], True)
    assert over.case.alert is not None
    assert over.case.alert.notified_at is None


def test_nobody_needs_to_be_told_of_the_end() -> None:
    silent = POLICY.model_copy(update={"notify_resolved": False})
    assert told(judged(Case(alert(), KNOWN), finding(False), 5, silent)) == []


def test_without_channels_an_alert_opens_all_the_same() -> None:
    opened = judged(Case(), finding(), 0, QUIET)
    assert (opened.outcome, opened.messages) == (Outcome.OPENED, ())
    assert opened.case.alert is not None
    assert opened.case.alert.notified_at is None


def test_a_flapping_cause_is_told_once_in_a_cool_down_and_not_put_off_for_ever() -> None:
    opened = judged(Case(), finding(), 0)
    case = Case(opened.case.alert, replace(KNOWN, unaware_of_end=frozenset()))
    due = set()
    for second in range(60, 600, 60):
        case = judged(case, finding(False), second).case
        back = judged(case, finding(), second + 1)
        due |= {each.due_at for each in back.messages}
        case = back.case
    assert due == {later(600)}


@pytest.mark.parametrize("status", [AlertStatus.OPEN, AlertStatus.ACKNOWLEDGED])
def test_only_an_open_alert_can_be_acknowledged(status: AlertStatus) -> None:
    taken = acknowledged(alert(), by="ada", now=later(9))
    assert (taken.status, taken.acknowledged_by, taken.acknowledged_at) == (
        AlertStatus.ACKNOWLEDGED,
        "ada",
        later(9),
    )
    with pytest.raises(AlertStateError, match="by ada"):
        acknowledged(taken, by="bob", now=later(10))
    with pytest.raises(AlertStateError, match="resolved by itself"):
        acknowledged(resolved_alert(), by="bob", now=later(100))
    assert snoozed(alert(status=status), until=later(60), now=NOON).snoozed_until == later(60)


@pytest.mark.parametrize("seconds", [-1, 0, 30 * 86_400 + 1])
def test_a_snooze_ends_in_the_next_days(seconds: float) -> None:
    with pytest.raises(InvalidOptionsError, match="30 days"):
        snoozed(alert(), until=later(seconds), now=NOON)
    assert snoozed(alert(), until=later(30 * 86_400), now=NOON).status is AlertStatus.OPEN
    with pytest.raises(AlertStateError):
        snoozed(resolved_alert(), until=later(60), now=NOON)


def test_severities_have_an_order() -> None:
    assert severer(HIGH, MEDIUM)
    assert severer(MEDIUM, LOW)
    assert not severer(LOW, LOW)
    assert not severer(LOW, HIGH)


class Watch:
    """Alerts and outbox in memory; a message that is due is delivered before the next finding."""

    def __init__(self) -> None:
        self.alerts: dict[str, list[Case]] = {}
        self.waiting: list[tuple[int, str, Message]] = []
        self.told: list[tuple[int, str, Message]] = []
        self.put: list[tuple[int, str, str, str]] = []

    def judge(self, found: Finding, now: datetime) -> Change:
        cases = self.alerts.setdefault(found.cause, [])
        newest = cases[-1] if cases else Case()
        changed = change(newest, found, Circumstances(now, POLICY))
        if changed.outcome is Outcome.OPENED:
            cases.append(changed.case)
        elif cases:
            cases[-1] = changed.case
        row = len(cases)
        if changed.drops_waiting:
            kept = {each.occasion for each in changed.messages}
            self.waiting = [
                (of, cause, each)
                for of, cause, each in self.waiting
                if (of, cause) != (row, found.cause) or each.occasion in kept
            ]
        for message in changed.messages:
            self.waiting.append((row, found.cause, message))
            self.put.append((row, found.cause, message.occasion, message.channel))
        return changed

    def deliver(self, now: datetime) -> None:
        due = [each for each in self.waiting if each[2].due_at <= now]
        self.waiting = [each for each in self.waiting if each[2].due_at > now]
        for row, cause, message in due:
            self.told.append((row, cause, message))
            case = self.alerts[cause][row - 1]
            unaware = case.told.unaware_of_end
            if is_about_the_end(message.occasion):
                unaware -= {message.channel}
            else:
                unaware |= {message.channel}
            known = replace(case.told, last_at=now, unaware_of_end=unaware)
            self.alerts[cause][row - 1] = replace(case, told=known)


Looks = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.booleans(),
        st.sampled_from(Severity),
        st.sampled_from([1, 30, 700, 100_000]),
        st.booleans(),
    ),
    max_size=40,
)


@given(Looks)
def test_any_sequence_of_findings(looks: list[tuple[str, bool, Severity, int, bool]]) -> None:
    watch, now = Watch(), NOON
    holding: Counter[str] = Counter()
    for cause, holds, severity, seconds, delivering in looks:
        now += timedelta(seconds=seconds)
        if delivering:
            watch.deliver(now)
        found = replace(finding(holds, severity=severity), cause=cause)
        changed = watch.judge(found, now)
        if changed.outcome in {Outcome.OPENED, Outcome.REOPENED}:
            holding[cause] = 0
        holding[cause] += holds
        cases = [case.alert for case in watch.alerts[cause] if case.alert is not None]
        unresolved = [each for each in cases if each.is_unresolved]
        # Its condition holds if and only if exactly one alert says so, and that is the newest.
        assert len(unresolved) == int(holds)
        if holds:
            assert unresolved[0] is cases[-1]
            assert unresolved[0].occurrences == holding[cause]
            assert (unresolved[0].severity, unresolved[0].last_seen_at) == (severity, now)
            assert unresolved[0].resolved_at is None
        elif cases:
            assert cases[-1].resolved_at is not None
    assert len(watch.put) == len(set(watch.put)), "one message for an occasion and channel"
    _endings_follow_openings(watch)
    _whoever_was_told_is_told_of_the_end(watch, now)


def _endings_follow_openings(watch: Watch) -> None:
    heard: dict[tuple[int, str, str], bool] = {}
    for row, cause, message in watch.told:
        key = (row, cause, message.channel)
        if is_about_the_end(message.occasion):
            assert heard.get(key), "nobody hears of the end of what they were not told of"
        heard[key] = not is_about_the_end(message.occasion)


def _whoever_was_told_is_told_of_the_end(watch: Watch, now: datetime) -> None:
    watch.deliver(now + timedelta(days=1))
    for cases in watch.alerts.values():
        for case in cases:
            assert case.alert is not None
            if not case.alert.is_unresolved:
                assert case.told.unaware_of_end == frozenset()
