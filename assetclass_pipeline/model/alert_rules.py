"""The rules of watching: from facts to findings, without looking anything up.

Belongs here: when a condition holds and when it ends, with the numbers that say so. Does not: where
facts come from (monitoring/watching.py, defs/sensors), what a finding does to an alert
(alert_life.py). Operations are judged in operation_rules.py, measurements in quality_rules.py.

Causes, when each opens, and when it ends:

- `operation_failed:KIND`: a real operation ended failed or interrupted, or its process is gone.
  Until one of the kind succeeds (the same one resumed, or a later one), or the failed correction is
  rolled back.
- `sla:KIND`: one runs longer than the limit, found while it runs; or it used up its own timeout.
  Until a real one of the kind succeeds within the limit.
- `sla:pickup`: a request waits longer than it may. Until none does.
- `error_rate:KIND`: too many attempted rows were refused. Until one of the kind
  succeeds with fewer.
- `performance:KIND`: a row took longer than usual for kind and size. Until the next one of the kind
  that can be judged did not.
- `low_data_quality`, `data_quality_degraded`, `high_orphaned_records`: the newest quality report
  says so. Until a newer one does not.
- `check:ASSET:CHECK`: the newest evaluation failed. Until a newer one passes. Checks of
  `integrity_report` ask what those of `quality_report` ask, before a correction: they have the
  cause of the check of the same name there, on which they only warn.
- `run_failed:JOB`: a run failed that nothing else explains. Until a later run of the job succeeds.
- `tick:NAME`: the newest tick of a sensor or schedule failed. Until a newer one did not.
- `component:NAME`: one component is unhealthy in two looks in a row, or in three while others come
  and go beside it. Until it is well.
- `service`: two or more are. Until fewer than two are unhealthy.

One trouble is one alert. Three checks of `quality_report` are conditions of the guide's: with each
measurement comes an evaluation of `quality_score_at_least_90` and `quality_did_not_degrade`, and
the measurement is judged for them, because it also knows the baseline; so is `orphaned_below_5`
once HIGH_ORPHANED_RECORDS is reached, and `integrity_report` says nothing new of it meanwhile. An
evaluation that was reported without a run has no measurement and is judged itself, into the same
cause. A check that could not be computed is told of by its run, a run by its operation or the
blocking check that stopped it, and a component by the alert that speaks of the same
(TOLD_ELSEWHERE). A cancelled operation is no failure, an operation whose window closed is no
violation, and a dry run proves nothing.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final

from assetclass_pipeline.model.alert import AlertType, Finding, Severity
from assetclass_pipeline.model.alert_life import severer

INCIDENT: Final = "incident"
"""Key of a finding's details: one incident is one occurrence, however often it is looked at."""

QUALITY_REPORT: Final = "quality_report"
INTEGRITY_REPORT: Final = "integrity_report"
QUALITY_SCORE_CHECK: Final = "quality_score_at_least_90"
DEGRADATION_CHECK: Final = "quality_did_not_degrade"
ORPHANED_CHECK: Final = "orphaned_below_5"
GRAVE_CHECKS: Final = frozenset({"no_row_lost_or_invented", "backup_is_complete"})

LOW_DATA_QUALITY: Final = "low_data_quality"
DATA_QUALITY_DEGRADED: Final = "data_quality_degraded"
HIGH_ORPHANED_RECORDS: Final = "high_orphaned_records"
SERVICE: Final = "service"
# So many unhealthy components are one SERVICE_DEGRADED instead of an alert each.
_DEGRADED: Final = 2
# Of one that is unhealthy for so many looks people are told, although others have just failed too
# and may be about to make it a degraded service.
_LONGEST_WAIT: Final = 3

TOLD_ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "operation": ("operation_failed:", "sla:"),
    "requests": ("sla:",),
}
"""Components that are not judged while an alert is open whose cause begins like this."""

_LONGEST_CAUSE: Final = 400

_GUIDES_CHECKS: Final = {
    QUALITY_SCORE_CHECK: (LOW_DATA_QUALITY, AlertType.LOW_DATA_QUALITY),
    DEGRADATION_CHECK: (DATA_QUALITY_DEGRADED, AlertType.DATA_QUALITY_DEGRADED),
}
_TYPES_OF_JOBS: Final = {
    "backup_cleanup_job": AlertType.BACKUP_CLEANUP_FAILED,
    "recovery_drill_job": AlertType.RECOVERY_DRILL_FAILED,
}


@dataclass(frozen=True)
class AlertLimits:
    """Limits of the rules: percents 0..100, durations in seconds, from the settings."""

    duration: float
    pickup: float
    error_rate: float
    quality_score: float
    degradation: float
    orphaned: float
    baseline_least: int
    baseline_deviations: float
    slower_by_at_least: float


@dataclass(frozen=True)
class CheckFacts:
    """One evaluation of an asset check; `value` is what it measured, where that is one number.

    One that could not be computed failed with the step that should have done it.
    """

    asset: str
    check: str
    passed: bool
    is_error: bool
    description: str | None = None
    run_id: str | None = None
    partition: str | None = None
    value: float | None = None
    numbers: Mapping[str, object] = field(default_factory=dict)
    computed: bool = True


@dataclass(frozen=True)
class RunFacts:
    """A run that ended; `explained_by` names what its failure is told of already."""

    run_id: str
    job: str
    succeeded: bool
    message: str = ""
    explained_by: str | None = None


@dataclass(frozen=True)
class TickFacts:
    """The newest ended tick of a sensor or schedule."""

    name: str
    tick_id: int
    failed: bool
    error: str = ""


@dataclass(frozen=True)
class ComponentFacts:
    """How one part of the service is."""

    is_healthy: bool
    message: str = ""


def judge_check(facts: CheckFacts, limits: AlertLimits) -> list[Finding]:
    """What one evaluation of an asset check means; the order of evaluations is the caller's."""
    if not facts.computed and facts.run_id:
        # Its run fails for the same reason, and says it once for all checks of the step.
        return []
    on_quality = facts.asset == QUALITY_REPORT
    if on_quality and facts.check in _GUIDES_CHECKS:
        cause, alert_type = _GUIDES_CHECKS[facts.check]
        return [] if facts.run_id else [_of_check(facts, cause, alert_type, holds=not facts.passed)]
    on_integrity = facts.asset == INTEGRITY_REPORT
    many = (
        (on_quality or on_integrity)
        and facts.check == ORPHANED_CHECK
        and facts.value is not None
        and facts.value > limits.orphaned
    )
    findings = []
    if on_quality and facts.check == ORPHANED_CHECK and not facts.run_id and (many or facts.passed):
        findings.append(
            _of_check(facts, HIGH_ORPHANED_RECORDS, AlertType.HIGH_ORPHANED_RECORDS, holds=many)
        )
    findings.append(
        _of_check(
            facts,
            _named("check", QUALITY_REPORT if on_integrity else facts.asset, facts.check),
            AlertType.ASSET_CHECK_FAILED,
            # From the guide's level on it is the other alert's.
            holds=not facts.passed and not (many and on_quality),
            severity=_severity(facts),
            only_raises=on_integrity,
            told_by=HIGH_ORPHANED_RECORDS if many else None,
        )
    )
    return findings


def _named(*parts: str) -> str:
    """A cause with names that others give, who limit no length, as short as an index needs it."""
    cause = ":".join(parts)
    if len(cause) <= _LONGEST_CAUSE:
        return cause
    digest = hashlib.sha256(cause.encode(errors="replace")).hexdigest()
    return f"{cause[:_LONGEST_CAUSE]} {digest[:16]}"


def _severity(facts: CheckFacts) -> Severity:
    if facts.check in GRAVE_CHECKS:
        return Severity.HIGH
    return Severity.MEDIUM if facts.is_error else Severity.LOW


def _of_check(
    facts: CheckFacts,
    cause: str,
    alert_type: AlertType,
    *,
    holds: bool,
    severity: Severity | None = None,
    only_raises: bool = False,
    told_by: str | None = None,
) -> Finding:
    verb = "passed" if facts.passed else "failed"
    said = f": {facts.description}" if facts.description else ""
    known = {"asset": facts.asset, "check": facts.check, "partition": facts.partition}
    return Finding(
        cause,
        alert_type,
        holds=holds,
        summary=f"Check {facts.check} of {facts.asset} {verb}{said}.",
        details={name: one for name, one in known.items() if one is not None} | dict(facts.numbers),
        severity=severity,
        only_raises=only_raises,
        told_by=told_by,
        run_id=facts.run_id,
    )


def judge_run(facts: RunFacts) -> Finding | None:
    """What the end of a run means; None where its failure is told of by another alert."""
    if not facts.succeeded and facts.explained_by is not None:
        return None
    verb = "succeeded" if facts.succeeded else "failed"
    said = f": {facts.message}" if facts.message else "."
    return Finding(
        _named("run_failed", facts.job),
        _TYPES_OF_JOBS.get(facts.job, AlertType.RUN_FAILED),
        holds=not facts.succeeded,
        summary=f"Run {facts.run_id} of {facts.job} {verb}{said}",
        details={"job": facts.job},
        run_id=facts.run_id,
    )


def judge_tick(facts: TickFacts) -> Finding:
    """What the newest tick of a sensor or schedule means."""
    said = f": {facts.error}" if facts.error else "."
    return Finding(
        f"tick:{facts.name}",
        AlertType.TICK_FAILED,
        holds=facts.failed,
        summary=f"The last tick of {facts.name} {'failed' if facts.failed else 'was fine'}{said}",
        details={"name": facts.name, INCIDENT: f"tick {facts.tick_id}"},
    )


def judge_components(
    components: Mapping[str, ComponentFacts],
    looks_before: Mapping[str, int],
    unresolved: AbstractSet[str],
) -> list[Finding]:
    """What a look at all components means.

    `looks_before` says of each that the look before this one found unhealthy in how many looks in a
    row it was so: once is a flicker. `unresolved` are the causes of alerts that are open; a
    component's stays until it is well, whatever the others do.
    """
    components = {
        name: one
        for name, one in components.items()
        if not any(cause.startswith(TOLD_ELSEWHERE.get(name, ())) for cause in unresolved)
    }
    failing = {name: one for name, one in components.items() if not one.is_healthy}
    steady = {name: one for name, one in failing.items() if name in looks_before}
    findings = [
        _component(name, ComponentFacts(is_healthy=True))
        for name in components
        if name not in failing
    ]
    if len(failing) < _DEGRADED:
        findings.append(
            Finding(SERVICE, AlertType.SERVICE_DEGRADED, holds=False, summary=_well(failing))
        )
    if len(steady) >= _DEGRADED:
        findings.append(_degraded_service(steady))
    elif steady:
        [(name, one)] = steady.items()
        if len(failing) == 1:
            findings.append(_component(name, one))
        elif looks_before[name] + 1 >= _LONGEST_WAIT:
            findings.append(replace(_component(name, one), told_by=SERVICE))
    # What is not judged any more can never get well.
    gone = {
        cause
        for cause in unresolved
        if cause.startswith("component:") and cause.removeprefix("component:") not in components
    }
    findings += [
        _component(cause.removeprefix("component:"), ComponentFacts(is_healthy=True))
        for cause in sorted(gone)
    ]
    return findings


def _well(failing: Mapping[str, ComponentFacts]) -> str:
    names = ", ".join(sorted(failing))
    return f"Only {names} is unhealthy." if names else "All components are well."


def _component(name: str, facts: ComponentFacts) -> Finding:
    said = facts.message or "no reason given"
    return Finding(
        f"component:{name}",
        AlertType.COMPONENT_UNHEALTHY,
        holds=not facts.is_healthy,
        summary=f"{name} is well." if facts.is_healthy else f"{name} is unhealthy: {said}",
        details={"component": name, INCIDENT: f"component {name}"},
    )


def _degraded_service(failing: Mapping[str, ComponentFacts]) -> Finding:
    names = sorted(failing)
    return Finding(
        SERVICE,
        AlertType.SERVICE_DEGRADED,
        holds=True,
        summary=f"{len(names)} components are unhealthy: {', '.join(names)}.",
        details={
            "value": len(names),
            "limit": 1,
            "components": {name: failing[name].message for name in names},
            INCIDENT: f"components {' '.join(names)}",
        },
    )


def newest_of_each(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of events in their order, without what later ones overtook.

    The newest of a cause decides; of one that still holds, those right before it that hold too
    are its repeats, and as severe: people are told once, of how severe it is by now.
    """
    standing: dict[str, list[Finding]] = {}
    for finding in findings:
        before = standing.pop(finding.cause, [])
        repeats = finding.holds and bool(before) and before[-1].holds
        standing[finding.cause] = [*before, finding] if repeats else [finding]
    return [
        replace(finding, severity=_severity_of(run)) if len(run) > 1 else finding
        for run in standing.values()
        for finding in run
    ]


def _severity_of(run: Sequence[Finding]) -> Severity:
    """Of findings that hold one after the other: the newest's, where it may lower the others'."""
    severity = run[0].weight
    for finding in run[1:]:
        if not finding.only_raises or severer(finding.weight, severity):
            severity = finding.weight
    return severity


def only_news(findings: Iterable[Finding], unresolved: Mapping[str, str | None]) -> list[Finding]:
    """Findings without those that change nothing.

    `unresolved` maps causes of open alerts to the incident that they tell of. Left out is the end
    of what is not open, an incident that its alert tells of already, and what another one tells of.
    """
    news = []
    known = dict(unresolved)
    for finding in findings:
        incident = finding.details.get(INCIDENT)
        if finding.holds and finding.told_by in unresolved:
            continue
        if not finding.holds:
            if known.pop(finding.cause, _NOTHING) is not _NOTHING:
                news.append(finding)
        elif incident is None or known.get(finding.cause) != incident:
            known[finding.cause] = str(incident) if incident is not None else None
            news.append(finding)
    return news


_NOTHING: Final = object()
