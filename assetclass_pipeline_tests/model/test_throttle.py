"""The throttle's decisions: limits from text, readings into reasons, ages from repeated looks."""

import math
from datetime import datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from assetclass_pipeline.errors import InvalidOptionsError, InvalidSettingsError
from assetclass_pipeline.model.throttle import (
    Age,
    BlockedSession,
    FirstSeen,
    LagClock,
    Readings,
    Signal,
    Slot,
    Standby,
    ThrottleLimits,
    VacuumHolder,
    files_behind,
    in_bytes,
    is_within,
    reasons,
    signals_on,
    with_changes,
)
from assetclass_pipeline.settings import load_settings

MIB = 1024**2
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=ZoneInfo("Europe/Istanbul"))
ALL_OFF = ThrottleLimits(
    lag_bytes=None,
    lag_seconds=None,
    slot_wal_bytes=None,
    archive_backlog=None,
    blocked_seconds=None,
    oldest_transaction_seconds=None,
    free_disk_bytes=None,
)
UNREADABLE = Standby("b", None, None)


def only(**limits: Any) -> ThrottleLimits:
    """Limits of which only these are on."""
    return with_changes(ALL_OFF, limits)


def test_defaults() -> None:
    assert ThrottleLimits().model_dump(mode="json", by_alias=True) == {
        "lagBytes": 64 * MIB,
        "lagSeconds": 10,
        "standbys": [],
        "ignoredStandbys": [],
        "slotWalBytes": 4096 * MIB,
        "archiveBacklog": 64,
        "blockedSeconds": 0.5,
        "oldestTransactionSeconds": 3600,
        "freeDiskBytes": 1024 * MIB,
        "window": None,
        "condition": None,
        "pollSeconds": 1.0,
        "starvedAfterSeconds": 300,
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("LAG_BYTES", "1000", 1000),
        ("LAG_BYTES", "2 MiB", 2 * MIB),
        ("LAG_BYTES", "null", None),
        ("LAG_SECONDS", "2.5", 2.5),
        ("LAG_SECONDS", "None", None),
        ("FREE_DISK_BYTES", "off", None),
        ("STANDBYS", "a, b", ("a", "b")),
        ("STANDBYS", '["a", "b"]', ("a", "b")),
        ("STANDBYS", "", ()),
        ("WINDOW", "22:00-06:00", "22:00-06:00"),
        ("WINDOW", "2:30 - 3:15", "02:30-03:15"),
        ("WINDOW", "", None),
        ("CONDITION", "SELECT true", "SELECT true"),
    ],
)
def test_limits_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"ASSETCLASS_THROTTLE__{name}", text)
    assert getattr(load_settings().throttle, name.lower()) == value


def test_a_wrong_limit_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETCLASS_THROTTLE__LAG_BYTES", "0")
    with pytest.raises(InvalidSettingsError, match=r"THROTTLE__LAG.?BYTES: .*equal to 1"):
        load_settings()


def test_live_changes_leave_the_rest_and_the_original() -> None:
    before = ThrottleLimits(window="01:00-02:00", condition="SELECT true")
    after = with_changes(before, {"lagSeconds": 5, "window": None, "standbys": ["a"]})
    assert after == ThrottleLimits(lag_seconds=5, standbys=("a",), condition="SELECT true")
    assert before.lag_seconds == 10
    assert with_changes(after, {"lag_seconds": "off"}).lag_seconds is None
    assert with_changes(after, {}) == after


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lagSeconds": 0}, "lagSeconds: .*greater than 0"),
        ({"lag_seconds": -1}, "lagSeconds: .*greater than 0"),
        ({"lagSeconds": "inf"}, "lagSeconds: .*finite"),
        ({"lagBytes": "much"}, "lagBytes: "),
        ({"archiveBacklog": -1}, "archiveBacklog: .*greater than or equal to 0"),
        ({"pollSeconds": 0}, "pollSeconds: .*greater than or equal to 0.1"),
        ({"pollSeconds": None}, "pollSeconds: .*number"),
        ({"window": "22-06"}, 'window: write it as "HH:MM-HH:MM"'),
        ({"window": "24:00-06:00"}, "window: .*from 00:00 to 23:59"),
        ({"window": "06:00-06:00"}, "window: .*for all day write null"),
        ({"window": 6}, "window: write it"),
        ({"lag": 5}, "lag: unknown option"),
        ({"condition": "SELECT true"}, "condition: .*set ASSETCLASS_THROTTLE__CONDITION"),
        ({"condition": None}, "condition: cannot be changed"),
        ({"lagSeconds": 0, "window": "x"}, "lagSeconds: .*; window: "),
    ],
)
def test_live_changes_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidOptionsError, match=says):
        with_changes(ThrottleLimits(), changes)


@pytest.mark.parametrize(
    ("hours", "open_at", "closed_at"),
    [
        ((time(9), time(17)), ["09:00", "12:00", "16:59"], ["08:59", "17:00", "23:00", "00:00"]),
        ((time(22), time(6)), ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        ((time(22), time(0)), ["22:00", "23:59"], ["00:00", "21:59"]),
        ((time(0), time(6)), ["00:00", "05:59"], ["06:00", "23:59"]),
    ],
)
def test_windows(hours: tuple[time, time], open_at: list[str], closed_at: list[str]) -> None:
    assert all(is_within(hours, time.fromisoformat(moment)) for moment in open_at)
    assert not any(is_within(hours, time.fromisoformat(moment)) for moment in closed_at)


@pytest.mark.parametrize(
    ("limits", "readings", "signal", "message"),
    [
        (
            {"lagBytes": MIB},
            Readings(standbys=(Standby("a", 2 * MIB, 0), Standby("b", MIB, 99))),
            Signal.REPLICATION_LAG,
            "Standby a has not replayed 2 MiB of WAL yet; the limit is 1 MiB.",
        ),
        (
            {"lagSeconds": 5},
            Readings(standbys=(Standby("a", 9 * MIB, 7.25), Standby("b", 0, 5))),
            Signal.REPLICATION_LAG,
            "Standby a is 7.25 s behind; the limit is 5 s.",
        ),
        (
            {"lagSeconds": 5},
            Readings(role='my"role', standbys=(UNREADABLE,)),
            Signal.REPLICATION_LAG,
            (
                'The lag of standby b cannot be seen: GRANT pg_monitor TO "my""role", or turn the '
                "signal off (lagBytes: null, lagSeconds: null)."
            ),
        ),
        (
            {"lagBytes": 5},
            Readings(problems={Signal.REPLICATION_LAG: "recovery is in progress"}),
            Signal.REPLICATION_LAG,
            (
                "The standbys' lag cannot be read: recovery is in progress. Mend that, or turn the "
                "signal off (lagBytes: null, lagSeconds: null, standbys: [])."
            ),
        ),
        (
            {"standbys": ["a", "b"]},
            Readings(standbys=(UNREADABLE,)),
            Signal.MISSING_STANDBY,
            (
                "Standby a is not streaming, so how far it is behind cannot be known: start it, or "
                "take it out of the limit standbys."
            ),
        ),
        (
            {"slotWalBytes": MIB},
            Readings(slots=(Slot("used", MIB, True), Slot("left", 3 * MIB, False))),
            Signal.SLOT_WAL,
            (
                "Replication slot left (nobody uses it) keeps 3 MiB of WAL; the limit is 1 MiB. A "
                "full WAL disk stops the server: let its consumer catch up, or drop the slot."
            ),
        ),
        (
            {"archiveBacklog": 2},
            Readings(archive_backlog=3),
            Signal.ARCHIVE_BACKLOG,
            (
                "3 WAL files wait to be archived; the limit is 2. If their number does not fall, "
                "see pg_stat_archiver and the server's log."
            ),
        ),
        (
            {"blockedSeconds": 0.5},
            Readings(
                blocked=(BlockedSession(1, 0.75), BlockedSession(2, 2), BlockedSession(3, 0.25))
            ),
            Signal.BLOCKED_SESSIONS,
            "2 sessions wait for a lock of ours, process 2 since 2 s; the limit is 0.5 s.",
        ),
        (
            {"oldestTransactionSeconds": 3600},
            Readings(vacuum_holders=(VacuumHolder("session 7", 7200), VacuumHolder("x", 3600))),
            Signal.OLD_TRANSACTION,
            (
                "Vacuum is held back since 120 min by session 7; the limit is 60 min. End it, or "
                "raise the limit."
            ),
        ),
        (
            {"oldestTransactionSeconds": 3600},
            Readings(
                role="app", vacuum_holders=(VacuumHolder("s 7", None), VacuumHolder("s 8", None))
            ),
            Signal.OLD_TRANSACTION,
            (
                "Since when vacuum is held back by s 7 (and 1 more) cannot be seen by this role: "
                'wait for its end, or GRANT pg_monitor TO "app", or turn the signal off '
                "(oldestTransactionSeconds: null)."
            ),
        ),
        (
            {"freeDiskBytes": 5 * MIB},
            Readings(free_disk={"/data": 4 * MIB, "/wal": 5 * MIB}),
            Signal.FREE_DISK,
            "4 MiB are free on the disk of /data; at least 5 MiB are asked for. Free some space.",
        ),
        (
            {"window": "22:00-06:30"},
            Readings(),
            Signal.WINDOW,
            "It is 12:00 (+03), and the window is 22:00-06:30; it opens in 10 h 00 min.",
        ),
        (
            {"window": "11:30-12:00"},
            Readings(),
            Signal.WINDOW,
            "It is 12:00 (+03), and the window is 11:30-12:00; it opens in 23 h 30 min.",
        ),
    ],
)
def test_each_signal_has_its_reason(
    limits: dict[str, Any], readings: Readings, signal: Signal, message: str
) -> None:
    found = reasons(readings, only(**limits), NOON)
    assert [(reason.signal, reason.message) for reason in found] == [(signal, message)]
    assert reasons(readings, ALL_OFF, NOON) == []


@pytest.mark.parametrize(
    ("value", "says"), [(True, None), (False, "is false"), (None, "is NULL or no row")]
)
def test_the_condition_goes_on_at_true_only(value: bool | None, says: str | None) -> None:
    limits = ALL_OFF.model_copy(update={"condition": "SELECT something"})
    found = [reason.message for reason in reasons(Readings(condition=value), limits, NOON)]
    assert found == (
        [] if says is None else [f"The throttle's condition {says}; it goes on at true."]
    )


@pytest.mark.parametrize("signal", sorted(signals_on(ThrottleLimits(condition="SELECT true"))))
def test_a_signal_that_could_not_be_read_means_wait(signal: Signal) -> None:
    limits = ThrottleLimits(condition="SELECT true")
    readings = Readings(condition=True, problems={signal: "no such luck"})
    (reason,) = reasons(readings, limits, NOON)
    assert reason.signal is signal
    assert "cannot be read: no such luck. Mend that, or turn the signal off (" in reason.message
    assert ("ASSETCLASS_THROTTLE__CONDITION)." in reason.message) is (signal is Signal.CONDITION)
    assert reasons(readings, ALL_OFF, NOON) == []


def test_without_a_server_nothing_else_is_known() -> None:
    readings = Readings(standbys=(UNREADABLE,), problems={Signal.SERVER: "It does not answer."})
    found = reasons(readings, ThrottleLimits(standbys=("a",), window="01:00-02:00"), NOON)
    assert [(reason.signal, reason.message) for reason in found] == [
        (Signal.SERVER, "It does not answer.")
    ]


def test_the_lag_of_an_ignored_standby_does_not_matter() -> None:
    readings = Readings(standbys=(Standby("delayed", 10**9, 3600), UNREADABLE))
    assert reasons(readings, ThrottleLimits(ignored_standbys=("delayed", "b")), NOON) == []


def test_values_at_their_limits_do_not_wait() -> None:
    limits = ThrottleLimits()
    readings = Readings(
        standbys=(Standby("a", 64 * MIB, 10),),
        slots=(Slot("s", 4096 * MIB, False),),
        archive_backlog=64,
        blocked=(BlockedSession(1, 0.5),),
        vacuum_holders=(VacuumHolder("session 7", 3600),),
        free_disk={"/data": 5120 * MIB},
    )
    assert reasons(readings, limits, NOON) == []


def test_what_was_there_first_may_be_of_any_age_and_what_came_later_not() -> None:
    seen: FirstSeen[str] = FirstSeen()
    assert seen.look(["a"], 100) == {"a": Age(0, math.inf)}
    assert seen.look(["a", "b"], 101) == {"a": Age(1, math.inf), "b": Age(0, 1)}
    assert seen.look(["b"], 105) == {"b": Age(4, 5)}
    assert seen.look(["a", "b"], 107) == {"a": Age(0, 2), "b": Age(6, 7)}


def test_a_standby_is_behind_since_the_first_position_it_has_not_replayed() -> None:
    clock: LagClock[str] = LagClock()
    assert clock.look({"a": (100, 100), "b": (100, 50)}, 10) == {"a": 0, "b": 0}
    assert clock.look({"a": (200, 150), "b": (200, 50)}, 12) == {"a": 0, "b": 2}
    # Some of it came through, but not yet what was written at the first look.
    assert clock.look({"a": (300, 199), "b": (300, 99)}, 15) == {"a": 3, "b": 5}
    # All of that came through: what is missing was written later.
    assert clock.look({"a": (400, 200), "b": (400, 400)}, 16) == {"a": 0, "b": 0}
    assert clock.look({"a": (400, 200)}, 18) == {"a": 2}


@pytest.mark.parametrize(
    ("position", "archived", "behind"),
    [
        (5 * 16 * MIB, "000000010000000000000004", 0),
        (5 * 16 * MIB + 99, "000000010000000000000004", 0),
        (5 * 16 * MIB - 1, "000000010000000000000001", 2),
        (5 * 16 * MIB, "000000010000000000000001", 3),
        (2**32 + 2 * 16 * MIB, "0000000100000000000000FE", 3),
        (7 * 16 * MIB, "000000030000000000000003", 3),
        (5 * 16 * MIB, "000000010000000000000003.00000028.backup", 1),
        (5 * 16 * MIB, "000000010000000000000006", 0),
        (5 * 16 * MIB, "00000002.history", None),
        (5 * 16 * MIB, "", None),
    ],
)
def test_files_between_the_archived_one_and_the_position(
    position: int, archived: str, behind: int | None
) -> None:
    assert files_behind(position, archived, 16 * MIB) == behind


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 bytes"),
        (1010, "1010 bytes"),
        (1024, "1 KiB"),
        (1_000 * 1024, "1000 KiB"),
        (26_214_400, "25 MiB"),
        (1.5 * 1024**3, "1.5 GiB"),
        (3 * 1024**5, "3070 TiB"),
    ],
)
def test_sizes_are_shown_in_three_digits_without_an_exponent(value: float, shown: str) -> None:
    assert in_bytes(value) == shown
