"""Messages: what a person reads at two in the morning, for every type of alert and occasion."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from assetclass_pipeline.cli.main import COMMANDS
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.monitoring.messages import (
    ADVICE,
    ADVICE_BY_STATUS,
    TITLE_MOST,
    Place,
    Surroundings,
    advice_for,
    masked,
    message_of,
    one_line,
    spoken,
    worst,
)
from assetclass_pipeline.settings import Settings, load_settings
from assetclass_pipeline_tests.monitoring.outbox import an_alert

CORRECTION = "5f0c9ab0-5f0f-4b3f-8f5f-0d3c6f3f4c11"
RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
WORKING = f"correction {CORRECTION}: correcting, 43 % of 903,000 rows"
NOW = datetime(2026, 3, 1, 2, 12, tzinfo=UTC)
PLACE = Place("db.example.com:5432", "market", "public.market_data")

# What the rules find, roughly: a summary, and numbers with their limit or baseline.
FOUND: dict[AlertType, tuple[str, dict[str, object]]] = {
    AlertType.OPERATION_FAILED: (
        "Correction failed: the error rate passed its limit",
        {"errorCode": "ERROR_RATE_EXCEEDED", "recordsFailed": 1234},
    ),
    AlertType.SLA_VIOLATION: (
        "Correction runs for 2 h 03 min, 2 h are allowed",
        {"value": 7380.0, "limit": 7200.0, "unit": "seconds"},
    ),
    AlertType.SERVICE_DEGRADED: (
        "2 components are unhealthy",
        {"components": ["dagster_daemon", "disk"]},
    ),
    AlertType.HIGH_ERROR_RATE: ("12.5 % of rows failed", {"value": 12.5, "limit": 10.0}),
    AlertType.LOW_DATA_QUALITY: ("Quality score is 88.1", {"value": 88.1, "limit": 90.0}),
    AlertType.DATA_QUALITY_DEGRADED: (
        "Quality score fell from 97 to 92",
        {"value": 92.0, "median": 97.0, "deviation": 0.41, "runs": 20},
    ),
    AlertType.HIGH_ORPHANED_RECORDS: (
        "11.2 % of rows are orphaned",
        {"value": 11.2, "limit": 10.0, "worstSymbols": ["EEK", "SKK", "TRL", "FB"]},
    ),
    AlertType.PERFORMANCE_DEGRADATION: (
        "Correction took three times as long as usual",
        {"value": 930.0, "median": 310.0, "deviation": 12.5, "runs": 18},
    ),
    AlertType.ASSET_CHECK_FAILED: (
        "Check completeness_at_least_95 of quality_report failed",
        {"asset": "quality_report", "check": "completeness_at_least_95", "value": 93.2},
    ),
    AlertType.RUN_FAILED: ("A run of data_quality_job failed", {"job": "data_quality_job"}),
    AlertType.TICK_FAILED: (
        "A tick of nightly_correction failed",
        {"instigator": "nightly_correction", "error": "connection refused"},
    ),
    AlertType.BACKUP_CLEANUP_FAILED: ("Backups could not be cleaned up", {"failed": 2}),
    AlertType.RECOVERY_DRILL_FAILED: ("3 rows were not restored", {"rowsWrong": 3}),
    AlertType.COMPONENT_UNHEALTHY: ("disk: 97 % full", {"component": "disk", "healthy": False}),
}


@pytest.fixture
def settings() -> Settings:
    return load_settings(
        alerts={
            "webserver_url": "https://dagster.example.com/",
            "runbooks_url": "https://wiki.example.com/runbooks",
        }
    )


def operation(**changed: object) -> Operation:
    made: dict[str, Any] = dict.fromkeys(Operation.model_fields)
    made |= {
        "correction_id": CORRECTION,
        "kind": "correction",
        "status": "running",
        "phase": "correcting",
        "dry_run": False,
        "requested_by": "ann",
        "requested_at": "2026-03-01T02:00:00Z",
        "options": {},
        "records_planned": 903_000,
        "records_corrected": 388_290,
        "records_skipped": 0,
        "records_failed": 0,
        "skipped_by_reason": {},
        "batches_done": 12,
        "progress_percent": 43.0,
        "throttle": [],
        "abandoned": False,
        "changes": [],
        "waits": {},
        "quarantined": [],
        "conflicts": [],
        "events": [],
    }
    return Operation.model_validate({**made, **changed})


def around(settings: Settings, active: Operation | None = None) -> Surroundings:
    return Surroundings(PLACE, active, settings, NOW)


@pytest.mark.parametrize("alert_type", AlertType)
def test_every_type_of_alert(
    alert_type: AlertType, settings: Settings, snapshot: SnapshotAssertion
) -> None:
    summary, details = FOUND[alert_type]
    alert = an_alert(
        alert_type, summary=summary, details=details, correction_id=CORRECTION, run_id="a1b2"
    )
    message = message_of(alert, "opened", around(settings))
    assert f"{message.title}\n\n{message.body}" == snapshot


@pytest.mark.parametrize(
    ("occasion", "changed"),
    [
        ("reopened 2", {"times_reopened": 2}),
        ("escalated to high 1", {"severity": "high"}),
        ("reminder 1", {"level": 2, "occurrences": 5}),
        ("reminder 4", {"level": 3, "occurrences": 5000}),
        (
            "resolved 1",
            {"status": "resolved", "resolved_at": "2026-03-01T02:10:30Z", "occurrences": 3},
        ),
    ],
)
def test_every_occasion(
    occasion: str, changed: dict[str, object], settings: Settings, snapshot: SnapshotAssertion
) -> None:
    summary, details = FOUND[AlertType.HIGH_ERROR_RATE]
    alert = an_alert(AlertType.HIGH_ERROR_RATE, summary=summary, details=details, **changed)
    message = message_of(alert, occasion, around(settings))
    assert f"{message.title}\n\n{message.body}" == snapshot
    assert message.is_over is occasion.startswith("resolved")


@pytest.mark.parametrize(
    ("active", "said"),
    [
        (None, "nothing"),
        (operation(), WORKING),
        (operation(kind="rollback"), f"rollback {CORRECTION}: restoring, 43 % of 903,000 rows"),
        (operation(status="paused"), f"correction {CORRECTION}: paused, 43 % of 903,000 rows"),
        (
            operation(status="requested", records_planned=None, progress_percent=0),
            f"correction {CORRECTION}: requested, 0 %",
        ),
        (
            operation(throttle=["standby is behind"]),
            f"{WORKING}; waits: standby is behind",
        ),
        (
            operation(dry_run=True),
            f"{WORKING} (dry run: no market row is changed)",
        ),
        (
            operation(abandoned=True),
            f"nothing; {WORKING}, but its process is gone",
        ),
    ],
)
def test_it_says_whether_anything_is_being_written(
    active: Operation | None, said: str, settings: Settings
) -> None:
    message = message_of(an_alert(), "opened", around(settings, active))
    assert f"Written now: {said}" in message.body.splitlines()


def test_the_operation_of_the_alert_is_called_so(settings: Settings) -> None:
    alert = an_alert(correction_id=CORRECTION)
    message = message_of(alert, "opened", around(settings, operation()))
    assert f"Written now: this operation {CORRECTION}: correcting" in message.body


def test_a_title_fits_into_a_text_message(settings: Settings) -> None:
    for alert_type in AlertType:
        for occasion in ("opened", "reopened 12", "reminder 99", "resolved 3"):
            alert = an_alert(alert_type, summary="x" * 1000, level=3)
            title = message_of(alert, occasion, around(settings)).title
            assert len(title) <= TITLE_MOST
            assert title.endswith("xxx...")


def test_lines_stay_lines(settings: Settings) -> None:
    alert = an_alert(summary="first\nRunbook: https://evil.example", details={"error": "a\nb"})
    message = message_of(alert, "opened", around(settings))
    assert "\n" not in message.title
    assert "What: first Runbook: https://evil.example" in message.body.splitlines()
    assert "How bad: error a b" in message.body.splitlines()


@pytest.mark.parametrize(
    "said",
    [
        "cannot reach postgresql://ann:S3CRET@db/market",
        "cannot reach postgresql://ann:S3:CR@S3CRET@db/market",
        "connection failed: host=db password=S3CRET user=ann",
        "refused: token: S3CRET",
        "cannot reach postgresql://ann:S3C/S3CRET@db/market",
        "connection failed: host=db password='S3CRET with \\' S3CRET' user=ann",
        "PGPASSWORD=S3CRET psql market",
        "GET /feed?access_token=S3CRET&page=2 was refused",
        "refused: {'user': 'ann', 'password': 'S3CRET, and more S3CRET'}",
        'refused: {"api_key": "S3CRET", "retries": 3}',
        "AWS_SECRET_ACCESS_KEY=S3CRET",
        "Authorization: Bearer S3CRET.S3CRET-S3CRET",
    ],
)
def test_passwords_are_masked(said: str, settings: Settings) -> None:
    alert = an_alert(summary=said, details={"error": said})
    for occasion in ("opened", "resolved 1"):
        message = message_of(alert, occasion, around(settings))
        assert "S3CRET" not in message.title + message.body
        assert "****" in message.body


@pytest.mark.parametrize(
    "said",
    [
        "http://127.0.0.1:3000/runs/a1b2: ask ann@example.com",
        "2 tokens were revoked; the password is wrong",
        "a bearer of bad news, and basic facts",
    ],
)
def test_what_is_no_secret_is_told(said: str) -> None:
    assert masked(said) == said


def test_a_long_text_is_masked_in_no_time() -> None:
    """With a pattern that goes back and forth it would take minutes."""
    said = "password" * 100_000 + "token=S3CRET " + "a://" * 100_000 + " password='" * 100_000
    started = monotonic()
    assert "S3CRET" not in masked(said)
    assert monotonic() - started < 60


def test_numbers_and_limits_stand_before_other_details(settings: Settings) -> None:
    details: dict[str, object] = {
        "note": "any",
        "empty": None,
        "nothing": [],
        "limit": 10.0,
        "value": 12.345,
    }
    message = message_of(an_alert(details=details), "opened", around(settings))
    assert "How bad: value 12.35; limit 10; note any" in message.body.splitlines()


def test_the_worst_places_and_what_to_do_have_lines_of_their_own(settings: Settings) -> None:
    details: dict[str, object] = {
        "value": 58.46,
        "limit": 95.0,
        "unit": "percent",
        "check": "completeness_at_least_95",
        "worstSymbols": [
            {"symbol": f"EUR{n}", "damaged": 7126, "records": 7126 + n} for n in range(7)
        ],
        "worstMonths": [{"month": "2012-08-01", "damaged": 905, "records": 951}],
        "whatToDo": "Look at the worst symbols.",
    }
    lines = message_of(an_alert(details=details), "opened", around(settings)).body.splitlines()
    assert "How bad: value 58.46 %; limit 95 %" in lines
    assert (
        "Worst symbols: EUR0 7,126 of 7,126; EUR1 7,126 of 7,127; EUR2 7,126 of 7,128; "
        "EUR3 7,126 of 7,129; EUR4 7,126 of 7,130; and 2 more" in lines
    )
    assert "Worst months: 2012-08-01 905 of 951" in lines
    assert "Do now: Look at the worst symbols." in lines


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"symbol": "FB", "records": 88, "missing": 88, "mismatched": 0}, "FB 88 of 88"),
        ({"symbol": "EEK", "records": 90, "missing": 0, "mismatched": 0}, "EEK 90"),
        ({"symbol": None, "records": 3, "missing": 1, "mismatched": 1}, "(no symbol) 2 of 3"),
        (
            {"partition": "2024-01", "records": 30, "missing": 4, "mismatched": 1, "orphaned": 9},
            "2024-01 5 of 30",
        ),
        ({"symbol": "BTC", "errorCode": "23514", "records": 45}, "BTC 45 (23514)"),
        ("EEK", "EEK"),
    ],
)
def test_a_place_as_each_rule_names_it(place: object, said: str) -> None:
    assert worst({"worstSymbols": [place]}) == [("worst symbols", said)]


# Names that mean something here; whoever reports an evaluation may give them to anything.
_FAILED_CHECK = (AlertType.ASSET_CHECK_FAILED, "opened")
_NAMES = st.sampled_from(
    [
        "value",
        "limit",
        "unit",
        "baseline",
        "status",
        "whatToDo",
        "worstSymbols",
        "worstMonths",
        "symbol",
        "month",
        "records",
        "missing",
        "mismatched",
        "damaged",
        "errorCode",
        "x",
    ]
)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(_NAMES, part, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(_NAMES, _ANYTHING, max_size=6),
    st.sampled_from(AlertType),
    st.sampled_from(["opened", "reminder 2", "resolved 1"]),
)
@example({"worstSymbols": [{"missing": "many", "mismatched": 1}]}, *_FAILED_CHECK)
@example({"status": ["failed"]}, *_FAILED_CHECK)
def test_whatever_an_evaluation_carries_can_be_told(
    details: dict[str, Any], alert_type: AlertType, occasion: str
) -> None:
    """A message that could not be written would hold up those of other alerts too."""
    alert = an_alert(alert_type, details=details)
    assert message_of(alert, occasion, around(load_settings())).body


@pytest.mark.parametrize("alert_type", AlertType)
def test_the_commands_are_those_of_the_runbook(alert_type: AlertType) -> None:
    page = (RUNBOOKS / alert_type.runbook).read_text(encoding="utf-8")
    for advice in (ADVICE[alert_type], *ADVICE_BY_STATUS.get(alert_type, {}).values()):
        for command in (advice.look, advice.act):
            program, name, *_ = command.split()
            assert program == "assetclass"
            assert name in COMMANDS
            assert command.replace(" {id}", "") in page


@pytest.mark.parametrize(
    ("alert_type", "found", "now", "act"),
    [
        # At work: it can be slowed down. Not begun, or over: it cannot.
        (AlertType.SLA_VIOLATION, "running", "running", f"tune {CORRECTION} --pace gentle"),
        (AlertType.SLA_VIOLATION, "paused", "paused", f"tune {CORRECTION} --pace gentle"),
        (AlertType.SLA_VIOLATION, "requested", "requested", "doctor"),
        (AlertType.SLA_VIOLATION, "requested", "running", f"tune {CORRECTION} --pace gentle"),
        (AlertType.SLA_VIOLATION, "timed_out", None, f"resume {CORRECTION}"),
        (AlertType.SLA_VIOLATION, "timed_out", "running", f"tune {CORRECTION} --pace gentle"),
        (AlertType.SLA_VIOLATION, "running", None, f"resume {CORRECTION}"),
        (AlertType.SLA_VIOLATION, "succeeded", None, "report performance"),
        (AlertType.HIGH_ERROR_RATE, "failed", None, f"resume {CORRECTION}"),
        (AlertType.HIGH_ERROR_RATE, "failed", "running", f"pause {CORRECTION}"),
        (
            AlertType.HIGH_ERROR_RATE,
            "succeeded",
            None,
            "execute --batch-size 100 --max-records 1000 --dry-run",
        ),
    ],
)
def test_the_next_step_is_one_that_its_operation_can_take(
    alert_type: AlertType, found: str, now: str | None, act: str, settings: Settings
) -> None:
    alert = an_alert(alert_type, details={"status": found}, correction_id=CORRECTION)
    active = None if now is None else operation(status=now)
    body = message_of(alert, "opened", around(settings, active)).body
    assert f"\nAct: assetclass {act}\n" in body
    assert f"\nDo now: {advice_for(alert, now or _over(found)).step}\n" in body


def _over(found: str) -> str:
    return "ended" if found in {"requested", "running", "paused"} else found


def test_another_operation_at_work_says_nothing_about_the_alerts_own(settings: Settings) -> None:
    alert = an_alert(
        AlertType.SLA_VIOLATION, details={"status": "timed_out"}, correction_id=CORRECTION
    )
    other = operation(correction_id=CORRECTION.replace("5f", "6f"))
    body = message_of(alert, "opened", around(settings, other)).body
    assert f"\nAct: assetclass resume {CORRECTION}\n" in body


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=12, seconds=40), "12 min"),
        (timedelta(hours=3, minutes=5), "3 h 05 min"),
        (timedelta(days=1, hours=4), "1 day 4 h"),
        (timedelta(days=9), "9 days 0 h"),
    ],
)
def test_durations_as_people_say_them(span: timedelta, said: str) -> None:
    assert spoken(span) == said


def test_a_long_line_is_cut() -> None:
    assert one_line(" a\n b ", 10) == "a b"
    assert one_line("abcdefgh", 6) == "abc..."


def test_no_character_of_a_message_steers_a_screen(settings: Settings) -> None:
    summary = "Check x failed: \x1b[2Jtext\x07 \u202eesrever"
    message = message_of(an_alert(summary=summary), "opened", around(settings))
    assert all(line.isprintable() for line in [message.title, *message.body.splitlines()])
    assert "[2Jtext" in message.body
