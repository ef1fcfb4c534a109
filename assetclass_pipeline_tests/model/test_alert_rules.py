"""The rules of watching, as tables: just below a limit, at it, above it; when it ends."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from assetclass_pipeline.defs import checks
from assetclass_pipeline.defs.jobs import CORRECTION_JOB
from assetclass_pipeline.defs.upkeep import BACKUP_CLEANUP_JOB, RECOVERY_DRILL_JOB
from assetclass_pipeline.model import alert_rules
from assetclass_pipeline.model.alert import AlertType, Finding, Severity
from assetclass_pipeline.model.alert_rules import (
    AlertLimits,
    CheckFacts,
    ComponentFacts,
    RunFacts,
    TickFacts,
    judge_check,
    judge_components,
    judge_run,
    judge_tick,
    newest_of_each,
    only_news,
)
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.operation_rules import (
    OperationFacts,
    judge_active,
    judge_ended,
)
from assetclass_pipeline.model.quality_rules import QualityFacts, judge_quality

LIMITS = AlertLimits(
    duration=7200,
    pickup=60,
    error_rate=10,
    quality_score=90,
    degradation=1,
    orphaned=10,
    baseline_least=5,
    baseline_deviations=4,
    slower_by_at_least=60,
)
ID = "11111111-2222-4333-8444-555555555555"


def operation(**facts: Any) -> OperationFacts:
    """A real correction that succeeded, but for what is said."""
    defaults: dict[str, Any] = {
        "correction_id": ID,
        "kind": Kind.CORRECTION,
        "status": Status.SUCCEEDED,
        "epoch": 1,
    }
    return OperationFacts(**defaults | facts)


def verdicts(findings: list[Finding]) -> dict[str, bool]:
    """Whether it holds, by cause."""
    assert len({finding.cause for finding in findings}) == len(findings)
    return {finding.cause: finding.holds for finding in findings}


def the(cause: str, findings: list[Finding]) -> Finding:
    [found] = [finding for finding in findings if finding.cause == cause]
    return found


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("status", "dry_run", "holds"),
    [
        (Status.FAILED, False, True),
        (Status.INTERRUPTED, False, True),
        (Status.SUCCEEDED, False, False),
        (Status.FAILED, True, None),
        (Status.INTERRUPTED, True, None),
        (Status.SUCCEEDED, True, None),
        (Status.CANCELLED, False, None),
        (Status.TIMED_OUT, False, None),
        (Status.PLANNED, False, None),
    ],
)
def test_operation_failed(kind: Kind, status: Status, *, dry_run: bool, holds: bool | None) -> None:
    facts = operation(kind=kind, status=status, dry_run=dry_run, error_message="No room.")
    found = judge_ended(facts, LIMITS)
    assert verdicts(found).get(f"operation_failed:{kind}") is holds
    if holds:
        finding = the(f"operation_failed:{kind}", found)
        assert finding.alert_type is AlertType.OPERATION_FAILED
        assert finding.weight is Severity.HIGH
        assert finding.correction_id == ID
        assert finding.summary.endswith("No room.")


@pytest.mark.parametrize(
    ("status", "settles", "ends"),
    [
        (Status.SUCCEEDED, True, True),
        (Status.SUCCEEDED, False, False),
        (Status.FAILED, True, False),
    ],
)
def test_a_rollback_ends_the_failure_of_what_it_rolled_back(
    status: Status, *, settles: bool, ends: bool
) -> None:
    facts = operation(kind=Kind.ROLLBACK, status=status, settles=settles)
    found = verdicts(judge_ended(facts, LIMITS))
    assert found.get("operation_failed:correction") is (False if ends else None)


def test_an_abandoned_operation_has_failed_and_ending_it_is_the_same_incident() -> None:
    running = operation(status=Status.RUNNING, abandoned=True, silent_seconds=90, epoch=3)
    [found] = [one for one in judge_active(running, LIMITS) if one.holds]
    assert found.cause == "operation_failed:correction"
    assert "90 s" in found.summary
    taken_away = operation(status=Status.INTERRUPTED, epoch=4, error_code="OPERATION_INTERRUPTED")
    ended = the(found.cause, judge_ended(taken_away, LIMITS))
    assert ended.details["incident"] == found.details["incident"]
    again = operation(status=Status.FAILED, epoch=4)
    other = the(found.cause, judge_ended(again, LIMITS))
    assert other.details["incident"] != found.details["incident"]


def test_an_abandoned_dry_run_is_no_failure() -> None:
    facts = operation(status=Status.RUNNING, abandoned=True, dry_run=True)
    assert not any(finding.holds for finding in judge_active(facts, LIMITS))


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED])
@pytest.mark.parametrize(("seconds", "holds"), [(7199.9, None), (7200.0, None), (7200.1, True)])
def test_sla_while_it_runs(status: Status, seconds: float, *, holds: bool | None) -> None:
    found = judge_active(operation(status=status, running_seconds=seconds), LIMITS)
    assert verdicts(found).get("sla:correction") is holds


@pytest.mark.parametrize(
    ("facts", "holds"),
    [
        ({"running_seconds": 7199.9}, False),
        ({"running_seconds": 7200.0}, False),
        ({"running_seconds": 7200.1}, True),
        ({"status": Status.FAILED, "running_seconds": 7200.1}, True),
        ({"status": Status.FAILED, "running_seconds": 1.0}, None),
        ({"status": Status.CANCELLED, "running_seconds": 1.0}, None),
        ({"status": Status.TIMED_OUT, "running_seconds": 60.0}, True),
        ({"status": Status.TIMED_OUT, "running_seconds": 60.0, "window_closed": True}, None),
        ({"status": Status.TIMED_OUT, "running_seconds": 7200.1, "window_closed": True}, True),
        ({"status": Status.PLANNED, "running_seconds": 7200.1}, None),
        ({"dry_run": True, "running_seconds": 1.0}, None),
        ({"dry_run": True, "running_seconds": 7200.1}, True),
    ],
)
def test_sla_of_one_that_ended(facts: dict[str, Any], *, holds: bool | None) -> None:
    found = judge_ended(operation(**facts), LIMITS)
    assert verdicts(found).get("sla:correction") is holds
    if holds:
        violation = the("sla:correction", found)
        assert (violation.alert_type, violation.weight) == (
            AlertType.SLA_VIOLATION,
            Severity.HIGH,
        )


def test_running_too_long_and_having_taken_too_long_are_one_incident() -> None:
    running = operation(status=Status.RUNNING, running_seconds=7300)
    ended = operation(status=Status.SUCCEEDED, running_seconds=9000)
    first = the("sla:correction", judge_active(running, LIMITS))
    last = the("sla:correction", judge_ended(ended, LIMITS))
    assert first.details["incident"] == last.details["incident"]
    assert (last.details["value"], last.details["limit"]) == (9000, 7200)


@pytest.mark.parametrize(("seconds", "holds"), [(59.9, False), (60.0, False), (60.1, True)])
def test_a_request_must_be_picked_up(seconds: float, *, holds: bool) -> None:
    facts = operation(status=Status.REQUESTED, requested_seconds=seconds)
    assert verdicts(judge_active(facts, LIMITS)) == {"sla:pickup": holds}


def test_with_nothing_active_no_request_waits() -> None:
    assert verdicts(judge_active(None, LIMITS)) == {"sla:pickup": False}


@pytest.mark.parametrize(
    ("attempted", "failed", "facts", "holds"),
    [
        (1000, 99, {}, False),
        (1000, 100, {}, False),
        (1000, 101, {}, True),
        (19, 19, {}, None),
        (20, 2, {}, False),
        (20, 3, {}, True),
        (0, 0, {}, False),
        (1000, 101, {"status": Status.FAILED}, True),
        (1000, 99, {"status": Status.FAILED}, None),
        (1000, 101, {"status": Status.CANCELLED}, True),
        (1000, 101, {"dry_run": True}, None),
        (1000, 101, {"status": Status.PLANNED}, None),
    ],
)
def test_high_error_rate(
    attempted: int, failed: int, facts: dict[str, Any], *, holds: bool | None
) -> None:
    worst = ({"symbol": "AAPL", "errorCode": "23514", "records": failed},)
    found = judge_ended(
        operation(attempted=attempted, failed=failed, worst_symbols=worst, **facts), LIMITS
    )
    assert verdicts(found).get("error_rate:correction") is holds
    if holds:
        finding = the("error_rate:correction", found)
        assert finding.weight is Severity.MEDIUM
        assert finding.details["worstSymbols"] == [*worst]
        assert finding.details["value"] == pytest.approx(100 * failed / attempted)


# 131,072 rows took 128 s each time (exact in binary): without scatter a run may lose 60 s.
ROWS = 2**17
USUAL = 2**-10
STEADY = (USUAL,) * 5
SCATTERED = tuple(part * USUAL for part in (0.6, 0.8, 1, 1.2, 1.4))


@pytest.mark.parametrize(
    ("seconds", "past", "holds"),
    [
        (188.0, STEADY, False),
        (188.1, STEADY, True),
        (10.0, STEADY, False),
        (1000.0, STEADY[:4], None),
        # The scaled MAD is 0.29652 of the median: four of them are 151.8 s.
        (279.8, SCATTERED, False),
        (279.9, SCATTERED, True),
    ],
)
def test_performance_degradation(
    seconds: float, past: tuple[float, ...], *, holds: bool | None
) -> None:
    facts = operation(attempted=ROWS, work_seconds=seconds, past_seconds_per_row=past)
    found = judge_ended(facts, LIMITS)
    assert verdicts(found).get("performance:correction") is holds
    if holds:
        finding = the("performance:correction", found)
        assert finding.weight is Severity.LOW
        assert finding.details["secondsLost"] == pytest.approx(seconds - 128)
        baseline = finding.details["baseline"]
        assert isinstance(baseline, dict)
        assert (baseline["median"], baseline["runs"]) == (pytest.approx(USUAL), 5)


@pytest.mark.parametrize("facts", [{"status": Status.FAILED}, {"dry_run": True}, {"attempted": 0}])
def test_only_real_work_that_was_done_tells_of_speed(facts: dict[str, Any]) -> None:
    slow = {"attempted": 1000, "work_seconds": 9000.0, "past_seconds_per_row": STEADY}
    found = judge_ended(operation(**slow | facts), LIMITS)
    assert "performance:correction" not in verdicts(found)


def measurement(**facts: Any) -> QualityFacts:
    """A good one, but for what is said."""
    defaults: dict[str, Any] = {
        "measurement_id": 7,
        "measured_at": datetime(2026, 3, 1, 6, tzinfo=UTC),
        "total_records": 1000,
        "quality_score": 100.0,
        "orphaned_percent": 0.0,
    }
    return QualityFacts(**defaults | facts)


@pytest.mark.parametrize(("score", "holds"), [(90.01, False), (90.0, False), (89.99, True)])
def test_low_data_quality(score: float, *, holds: bool) -> None:
    symbols = ({"symbol": "BTC", "records": 9, "missing": 9, "mismatched": 0},)
    facts = measurement(quality_score=score, worst_symbols=symbols)
    finding = the("low_data_quality", judge_quality(facts, [], LIMITS, last=None))
    assert finding.holds is holds
    assert finding.weight is Severity.MEDIUM
    assert (finding.details["value"], finding.details["limit"]) == (score, 90)
    assert finding.details["worstSymbols"] == [*symbols]


@pytest.mark.parametrize(
    ("score", "past", "last", "holds"),
    [
        # Without scatter a point may be lost.
        (98.01, [99.0] * 5, 99.0, False),
        (98.0, [99.0] * 5, 99.0, False),
        (97.99, [99.0] * 5, 99.0, True),
        # It scatters: median 97, scaled MAD 1.4826, four of them 5.93 points.
        (91.1, [99.0, 98.0, 97.0, 96.0, 95.0], 99.0, False),
        (91.0, [99.0, 98.0, 97.0, 96.0, 95.0], 99.0, True),
        # Too few: the last one is what counts.
        (98.0, [99.0] * 4, 99.0, False),
        (97.99, [99.0] * 4, 99.0, True),
        (97.99, [], 99.0, True),
        (97.99, [], None, False),
        # The last one was bad already: what is usual counts.
        (90.0, [99.0] * 5, 90.0, True),
        (100.0, [99.0] * 5, 99.0, False),
    ],
)
def test_data_quality_degraded(
    score: float, past: list[float], last: float | None, *, holds: bool
) -> None:
    found = judge_quality(measurement(quality_score=score), past, LIMITS, last=last)
    finding = the("data_quality_degraded", found)
    assert finding.holds is holds
    assert finding.weight is Severity.MEDIUM
    assert {"value", "limit", "baseline", "pointsLost"} <= finding.details.keys()


@pytest.mark.parametrize(("percent", "holds"), [(9.99, False), (10.0, False), (10.01, True)])
def test_high_orphaned_records(percent: float, *, holds: bool) -> None:
    found = judge_quality(measurement(orphaned_percent=percent), [], LIMITS, last=None)
    finding = the("high_orphaned_records", found)
    assert finding.holds is holds
    assert finding.weight is Severity.LOW


def check(asset: str, name: str, **facts: Any) -> CheckFacts:
    """A failed ERROR of a run, but for what is said."""
    defaults: dict[str, Any] = {"passed": False, "is_error": True, "run_id": "a run"}
    return CheckFacts(asset, name, **defaults | facts)


@pytest.mark.parametrize(
    ("asset", "name", "is_error", "severity"),
    [
        ("quality_report", "completeness_at_least_95", True, Severity.MEDIUM),
        ("quality_report", "correctable_at_most_10_percent", False, Severity.LOW),
        ("symbols", "reference_is_sound", True, Severity.MEDIUM),
        ("symbols", "reference_is_sound", False, Severity.LOW),
        ("corrected_market_data", "no_row_lost_or_invented", True, Severity.HIGH),
        ("market_data_backup", "backup_is_complete", True, Severity.HIGH),
    ],
)
def test_a_failed_check_is_one_alert(
    asset: str, name: str, *, is_error: bool, severity: Severity
) -> None:
    [failed] = judge_check(check(asset, name, is_error=is_error), LIMITS)
    assert (failed.cause, failed.holds, failed.weight) == (f"check:{asset}:{name}", True, severity)
    assert failed.alert_type is AlertType.ASSET_CHECK_FAILED
    passed = judge_check(check(asset, name, is_error=is_error, passed=True), LIMITS)
    assert verdicts(passed)[failed.cause] is False


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("quality_score_at_least_90", "low_data_quality"),
        ("quality_did_not_degrade", "data_quality_degraded"),
    ],
)
@pytest.mark.parametrize("passed", [True, False])
def test_the_guides_checks_are_judged_by_their_measurement_or_else_into_its_cause(
    name: str, cause: str, *, passed: bool
) -> None:
    measured = check("quality_report", name, passed=passed)
    assert judge_check(measured, LIMITS) == []
    reported = check("quality_report", name, passed=passed, run_id=None)
    [finding] = judge_check(reported, LIMITS)
    assert (finding.cause, finding.holds) == (cause, not passed)
    assert finding.weight is Severity.MEDIUM


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"value": 9.9}, {"check:quality_report:orphaned_below_5": True}),
        ({"value": 10.0}, {"check:quality_report:orphaned_below_5": True}),
        ({"value": 10.1}, {"check:quality_report:orphaned_below_5": False}),
        ({"value": None}, {"check:quality_report:orphaned_below_5": True}),
        (
            {"value": 10.1, "run_id": None},
            {"high_orphaned_records": True, "check:quality_report:orphaned_below_5": False},
        ),
        ({"value": 1.0, "passed": True}, {"check:quality_report:orphaned_below_5": False}),
        (
            {"value": 1.0, "passed": True, "run_id": None},
            {
                "high_orphaned_records": False,
                "check:quality_report:orphaned_below_5": False,
            },
        ),
    ],
)
def test_orphaned_rows_are_the_checks_alert_up_to_the_guides_level(
    facts: dict[str, Any], found: dict[str, bool]
) -> None:
    assert verdicts(judge_check(check("quality_report", "orphaned_below_5", **facts), LIMITS)) == (
        found
    )


def test_damage_before_a_correction_and_after_it_is_one_trouble() -> None:
    name = "completeness_at_least_95"
    [before] = judge_check(check("integrity_report", name, is_error=False), LIMITS)
    assert (before.holds, before.weight, before.only_raises) == (True, Severity.LOW, True)
    [still] = judge_check(check("quality_report", name), LIMITS)
    assert (still.holds, still.weight, still.only_raises) == (True, Severity.MEDIUM, False)
    assert before.cause == still.cause
    for asset in ("integrity_report", "quality_report"):
        [over] = judge_check(check(asset, name, passed=True), LIMITS)
        assert (over.cause, over.holds) == (still.cause, False)


@pytest.mark.parametrize(
    ("value", "told"),
    [(10.0, True), (10.1, False)],
)
def test_orphaned_rows_before_a_correction_are_the_same_trouble(
    value: float, *, told: bool
) -> None:
    before = check("integrity_report", "orphaned_below_5", is_error=False, value=value)
    found = judge_check(before, LIMITS)
    assert verdicts(found) == {"check:quality_report:orphaned_below_5": True}
    # Nothing is lost when the other alert is not open, as when nobody measures afterwards.
    assert only_news(found, {}) == found
    assert bool(only_news(found, {"high_orphaned_records": None})) is told


@pytest.mark.parametrize(
    ("job", "alert_type", "severity"),
    [
        (CORRECTION_JOB, AlertType.RUN_FAILED, Severity.MEDIUM),
        ("anything_else", AlertType.RUN_FAILED, Severity.MEDIUM),
        (BACKUP_CLEANUP_JOB, AlertType.BACKUP_CLEANUP_FAILED, Severity.MEDIUM),
        (RECOVERY_DRILL_JOB, AlertType.RECOVERY_DRILL_FAILED, Severity.HIGH),
    ],
)
def test_a_failed_run(job: str, alert_type: AlertType, severity: Severity) -> None:
    failed = judge_run(RunFacts("r1", job, succeeded=False, message="No room."))
    assert failed is not None
    assert (failed.cause, failed.alert_type, failed.weight, failed.holds) == (
        f"run_failed:{job}",
        alert_type,
        severity,
        True,
    )
    assert "No room." in failed.summary
    later = judge_run(RunFacts("r2", job, succeeded=True))
    assert later is not None
    assert (later.cause, later.holds) == (failed.cause, False)


def test_a_failed_run_that_its_operation_explains_is_no_alert_of_its_own() -> None:
    facts = RunFacts("r1", CORRECTION_JOB, succeeded=False, explained_by="failed correction x")
    assert judge_run(facts) is None


@pytest.mark.parametrize("failed", [True, False])
def test_a_failed_tick(*, failed: bool) -> None:
    finding = judge_tick(TickFacts("nightly_correction", 12, failed, "It broke."))
    assert (finding.cause, finding.holds) == ("tick:nightly_correction", failed)
    assert finding.alert_type is AlertType.TICK_FAILED


WELL, ILL = ComponentFacts(is_healthy=True), ComponentFacts(is_healthy=False, message="gone")


@pytest.mark.parametrize(
    ("now", "before", "unresolved", "found"),
    [
        ("", "", "", {"component:a": False, "component:b": False, "service": False}),
        # Once is a flicker.
        ("a", "", "", {"component:b": False, "service": False}),
        ("a", "b", "", {"component:b": False, "service": False}),
        ("ab", "", "", {}),
        ("ab", "a", "", {}),
        # Twice in a row is trouble.
        ("a", "a", "", {"component:a": True, "component:b": False, "service": False}),
        ("ab", "ab", "", {"service": True}),
        # Three times in a row, although something else has just failed beside it.
        ("ab", "aa", "", {"component:a": True}),
        # The alert of one stays as it is while others join it, and ends with its component.
        ("ab", "ab", "component:a", {"service": True}),
        (
            "b",
            "ab",
            "component:a service",
            {"component:a": False, "component:b": True, "service": False},
        ),
        # What is no component any more is no trouble.
        ("b", "", "component:c", {"component:a": False, "component:c": False, "service": False}),
    ],
)
def test_components(now: str, before: str, unresolved: str, found: dict[str, bool]) -> None:
    components = {name: ILL if name in now else WELL for name in "ab"}
    findings = judge_components(components, Counter(before), {*unresolved.split()})
    assert verdicts(findings) == found


def test_a_degraded_service_tells_of_whatever_stays_unhealthy() -> None:
    findings = judge_components({"a": ILL, "b": ILL}, {"a": 2}, {"service"})
    assert only_news(findings, {"service": None}) == []


def test_a_degraded_service_names_its_components() -> None:
    findings = judge_components({"a": ILL, "b": ILL}, {"a": 1, "b": 1}, set())
    service = the("service", findings)
    assert service.weight is Severity.HIGH
    assert service.details["components"] == {"a": "gone", "b": "gone"}


def finding(cause: str, *, holds: bool, incident: str | None = None) -> Finding:
    details = {} if incident is None else {"incident": incident}
    return Finding(cause, AlertType.RUN_FAILED, holds=holds, summary="x", details=details)


@pytest.mark.parametrize(
    ("events", "standing"),
    [
        ("a+ a-", "a-"),
        ("a- a+", "a+"),
        ("a+ a- a+ a+", "a+ a+"),
        ("a+ b+ a+ b-", "a+ a+ b-"),
        ("a- a-", "a-"),
    ],
)
def test_the_newest_event_of_a_cause_decides(events: str, standing: str) -> None:
    findings = [finding(event[0], holds=event[1] == "+") for event in events.split()]
    found = [f"{one.cause}{'+' if one.holds else '-'}" for one in newest_of_each(findings)]
    assert found == standing.split()


@pytest.mark.parametrize(
    ("assets", "severity"),
    [
        (["integrity_report"], Severity.LOW),
        (["integrity_report", "quality_report"], Severity.MEDIUM),
        (["quality_report", "integrity_report"], Severity.MEDIUM),
        (["integrity_report", "quality_report", "integrity_report"], Severity.MEDIUM),
    ],
)
def test_repeats_of_one_look_are_told_at_once_as_severe_as_they_are(
    assets: list[str], severity: Severity
) -> None:
    found = [
        finding
        for asset in assets
        for finding in judge_check(
            check(asset, "integrity_at_least_90", is_error=asset == "quality_report"), LIMITS
        )
    ]
    assert [one.weight for one in newest_of_each(found)] == [severity] * len(assets)


def test_only_news_is_judged() -> None:
    unresolved = {"open": "incident 1", "events": None}
    findings = [
        finding("open", holds=True, incident="incident 1"),
        finding("open", holds=True, incident="incident 2"),
        finding("closed", holds=False),
        finding("events", holds=True),
        finding("new", holds=True, incident="incident 1"),
        finding("new", holds=True, incident="incident 1"),
        finding("new", holds=False),
        finding("new", holds=False),
    ]
    assert only_news(findings, unresolved) == [findings[1], findings[3], findings[4], findings[6]]


def test_the_rules_name_checks_as_dagster_does() -> None:
    quality = {check.name for check in (*checks.GUIDE_THRESHOLDS, *checks.QUALITY_THRESHOLDS)}
    assert {alert_rules.QUALITY_SCORE_CHECK, alert_rules.ORPHANED_CHECK} <= quality
    assert alert_rules.DEGRADATION_CHECK == checks.QUALITY_DID_NOT_DEGRADE
    grave = {checks.NO_ROW_LOST_OR_INVENTED, checks.BACKUP_IS_COMPLETE}
    assert grave == alert_rules.GRAVE_CHECKS
