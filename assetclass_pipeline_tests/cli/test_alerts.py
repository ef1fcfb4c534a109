"""`assetclass alerts ...` as people and scripts call it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.alert import Alert, AlertType, Finding, Severity
from assetclass_pipeline.model.moments import parse_moment, parse_span
from assetclass_pipeline.monitoring.alert_store import judge
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market

CORRECTION = "7d0b3c1e-3b7e-4c1f-9d42-0a4f5c0a8f11"
CHANNELS = [{"name": "chat", "url": "json://localhost"}]
QUALITY = Finding(
    cause="quality score of quality_report",
    alert_type=AlertType.LOW_DATA_QUALITY,
    holds=True,
    summary="The quality score is 81.5 %, below 90 %.",
    details={"qualityScore": 81.5, "limit": 90, "worstSymbols": ["[bold]GONE", "FB"]},
)
FAILED = Finding(
    cause=f"operation {CORRECTION}",
    alert_type=AlertType.OPERATION_FAILED,
    holds=True,
    summary="The correction failed: the disk is full.",
    correction_id=CORRECTION,
    run_id="5d5a0b1c",
)


@pytest.fixture
def told(assetclass: Command) -> Command:
    """The command with a channel in its settings."""
    return replace(
        assetclass,
        settings={**assetclass.settings, "ASSETCLASS_ALERTS__CHANNELS": json.dumps(CHANNELS)},
    )


def find(market: Market, *findings: Finding) -> list[Alert]:
    settings = load_settings(alerts={"channels": CHANNELS})
    with transaction(market.connection, settings) as cursor:
        return judge(cursor, settings, findings)


def test_nothing_is_wrong(told: Command, market: Market) -> None:
    assert market.classes() == {}
    people = told("alerts", "list")
    assert (people.status, people.err) == (0, ""), people.explain()
    assert "nothing that is watched is wrong" in people.out
    assert told("alerts", "list", "--json").document == {"alerts": []}


def test_alerts_are_listed_shown_taken_and_over(told: Command, market: Market) -> None:
    find(market, QUALITY, QUALITY, FAILED)
    listed = told("alerts", "list", "--json")
    failed, quality = listed.document["alerts"]
    assert (failed["alertType"], failed["severity"], failed["status"]) == (
        "OPERATION_FAILED",
        "high",
        "open",
    )
    assert (quality["occurrences"], quality["details"]["qualityScore"]) == (2, 81.5)
    people = told("alerts", "list")
    assert people.status == 0, people.explain()
    assert people.out.index("OPERATION_FAILED") < people.out.index("LOW_DATA_QUALITY")
    assert QUALITY.summary in people.out

    number = str(failed["id"])
    taken = told("alerts", "ack", number, "--note", "mending the disk", "--json")
    assert (taken.status, taken.document["status"]) == (0, "acknowledged"), taken.explain()
    again = told("alerts", "ack", number, "--json")
    assert (again.status, again.document["errorCode"]) == (1, "ALERT_STATE_CONFLICT")

    market.execute(
        "UPDATE assetclass.notification SET delivered_at = clock_timestamp() WHERE alert_id = "
        "(SELECT id FROM assetclass.alert WHERE alert_type = 'OPERATION_FAILED')"
    )
    shown = told("alerts", "show", number)
    assert shown.status == 0, shown.explain()
    for said in (
        f"Alert {number} OPERATION_FAILED high taken by",
        FAILED.summary,
        "how often",
        "once",
        CORRECTION,
        "/runs/5d5a0b1c",
        "delivered 2",
        "acknowledged: mending the disk",
        f"Look: assetclass status {CORRECTION}",
        f"Act: assetclass resume {CORRECTION}",
        "docs/runbooks/operation-failed.md",
    ):
        assert said in shown.out, shown.explain()
    assert "alerts ack" not in shown.out
    document = told("alerts", "show", number, "--json").document
    assert [each["event"] for each in document["events"]] == ["opened", "acknowledged"]
    assert [each["occasion"] for each in document["notifications"]] == ["opened"]

    find(market, replace(FAILED, holds=False))
    assert len(told("alerts", "list", "--json").document["alerts"]) == 1
    every = told("alerts", "list", "--all")
    assert "over since" in every.out
    assert "What to do" not in told("alerts", "show", number).out


def test_what_a_rule_found_is_shown_as_text(told: Command, market: Market) -> None:
    (alert,) = find(market, QUALITY)
    find(market, replace(QUALITY, severity=Severity.HIGH))
    shown = told("alerts", "show", str(alert.id))
    assert shown.status == 0, shown.explain()
    words = " ".join(shown.out.split())
    for said in (
        "worst symbols: [bold]GONE; FB",
        "quality score: 81.5",
        "by nobody",
        "severity from medium to high",
        "dropped",
        "pending",
        f"assetclass alerts ack {alert.id}",
    ):
        assert said in words, shown.explain()


def test_a_snoozed_alert_stays_and_its_message_waits(told: Command, market: Market) -> None:
    (alert,) = find(market, QUALITY)
    snoozed = told("alerts", "snooze", str(alert.id), "--for", "2h")
    assert snoozed.status == 0, snoozed.explain()
    assert "nobody is told of it before" in snoozed.out
    assert "snoozed until" in told("alerts", "list").out
    shown = told("alerts", "show", str(alert.id))
    assert "waits until" in shown.out, shown.explain()
    later = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    again = told("alerts", "snooze", str(alert.id), "--until", later.isoformat(), "--json")
    assert datetime.fromisoformat(again.document["snoozedUntil"]) == later


def test_maintenance_windows(told: Command, market: Market) -> None:
    assert told("alerts", "maintenance", "list", "--json").document == {"windows": []}
    assert told("alerts", "maintenance", "end").status == 2
    begun = told(
        *("alerts", "maintenance", "start", "--for", "1d", "--reason", "new disks"),
        *("--type", "low-data-quality", "--json"),
    )
    assert begun.status == 0, begun.explain()
    window = begun.document
    assert (window["alertTypes"], window["reason"]) == (["LOW_DATA_QUALITY"], "new disks")
    (alert,) = find(market, QUALITY)
    assert "new disks" in told("alerts", "list").out
    assert "waits until" in told("alerts", "show", str(alert.id)).out
    assert "new disks" in told("alerts", "maintenance", "list").out
    ended = told("alerts", "maintenance", "end")
    assert ended.status == 0, ended.explain()
    assert "is over" in ended.out
    assert "pending" in told("alerts", "show", str(alert.id)).out
    gone = told("alerts", "maintenance", "list")
    assert "There is no maintenance window" in gone.out
    assert len(told("alerts", "maintenance", "list", "--all", "--json").document["windows"]) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["show", "7"], 4, "no alert 7"),
        (["ack", "99999999999999999999"], 4, "no alert 99999999999999999999"),
        (["snooze", "7", "--for", "1h"], 4, "no alert 7"),
        (["maintenance", "end", "7"], 4, "no maintenance window 7"),
        (["show", "first"], 2, "ID"),
        (["snooze", "7"], 2, "--for 2h"),
        (["snooze", "7", "--for", "1h", "--until", "2026-11-25"], 2, "--for 2h"),
        (["maintenance", "start", "--for", "1h"], 2, "--reason"),
        (["maintenance", "start", "--for", "99999d", "--reason", "x"], 2, "30 days"),
        # Whatever zone a time is given in, it is said in UTC.
        (
            ["maintenance", "start", "--until", "2020-01-01T03:00+03:00", "--reason", "x"],
            2,
            "to 2020-01-01 00:00 UTC",
        ),
        (
            ["maintenance", "start", "--for", "1h", "--reason", "x", "--type", "BAD"],
            2,
            "--type BAD",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    assetclass: Command, market: Market, arguments: list[str], status: int, says: str
) -> None:
    assert market.classes() == {}
    refused = assetclass("alerts", *arguments)
    assert refused.status == status, refused.explain()
    assert says in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("2h", {"hours": 2}),
        ("45m", {"minutes": 45}),
        ("45 min", {"minutes": 45}),
        ("1d12h", {"days": 1, "hours": 12}),
        ("1H 30M 5s", {"hours": 1, "minutes": 30, "seconds": 5}),
    ],
)
def test_spans(said: str, parts: dict[str, Any]) -> None:
    assert parse_span("--for", said) == timedelta(**parts)


@pytest.mark.parametrize("said", ["", "0h", "2", "h", "-2h", "2h30", "1e3s", "9999999999d", "PT2H"])
def test_what_is_no_span_is_refused(said: str) -> None:
    with pytest.raises(InvalidOptionsError, match="--for"):
        parse_span("--for", said)


def test_times_without_a_zone_are_utc() -> None:
    noon = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert parse_moment("--until", "2026-11-25T12:00") == noon
    assert parse_moment("--until", "2026-11-25T15:00+03:00") == noon
    with pytest.raises(InvalidOptionsError, match="--until"):
        parse_moment("--until", "tomorrow")
