"""Rules about operations: failed, too long, too many refused rows, slower than usual.

Belongs here: when these conditions hold and end (alert_rules.py lists all of them). Does not: where
the facts come from (monitoring/watching.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.model.alert_rules import INCIDENT, AlertLimits
from assetclass_pipeline.model.baseline import judge
from assetclass_pipeline.model.operation import Kind, Status

# Of fewer attempted rows one or two that are refused say nothing about a rate.
LEAST_ROWS_OF_AN_ERROR_RATE: Final = 20

PICKUP: Final = "sla:pickup"


@dataclass(frozen=True)
class OperationFacts:
    """An operation as it stood when it ended, or as it stands while it is active.

    `running_seconds` leaves out the time between two processes and that before its own window
    opened, `work_seconds` all waits. `attempted` rows were corrected, skipped or refused; `failed`
    ones were refused. `past_seconds_per_row` are those of earlier operations of the kind and size.
    `epoch` tells its tries apart. `settles` of a rollback: no failed correction is left behind it.
    """

    correction_id: str
    kind: Kind
    status: Status
    dry_run: bool = False
    epoch: int = 0
    run_id: str | None = None
    requested_by: str = ""
    phase: str = ""
    error_code: str | None = None
    error_message: str | None = None
    timeout: str | None = None
    window_closed: bool = False
    abandoned: bool = False
    silent_seconds: float | None = None
    requested_seconds: float = 0
    running_seconds: float = 0
    work_seconds: float = 0
    attempted: int = 0
    failed: int = 0
    worst_symbols: tuple[Mapping[str, object], ...] = ()
    past_seconds_per_row: tuple[float, ...] = ()
    settles: bool = False


def judge_ended(facts: OperationFacts, limits: AlertLimits) -> list[Finding]:
    """What the end of an operation means."""
    findings = [
        _failure(facts),
        *_sla_of_ended(facts, limits),
        _error_rate(facts, limits),
        _performance(facts, limits),
    ]
    if facts.settles and _succeeded(facts) and facts.kind is Kind.ROLLBACK:
        findings.append(
            Finding(
                cause=f"operation_failed:{Kind.CORRECTION}",
                alert_type=AlertType.OPERATION_FAILED,
                holds=False,
                summary=f"The failed correction was rolled back by {facts.correction_id}.",
            )
        )
    return [finding for finding in findings if finding is not None]


def judge_active(facts: OperationFacts | None, limits: AlertLimits) -> list[Finding]:
    """What is wrong with the active operation now; None when there is none."""
    waits = facts is not None and facts.status is Status.REQUESTED
    too_long = waits and facts is not None and facts.requested_seconds > limits.pickup
    if facts is None or not too_long:
        findings = [
            Finding(PICKUP, AlertType.SLA_VIOLATION, holds=False, summary="No request waits.")
        ]
    else:
        findings = [_not_picked_up(facts, limits)]
    if facts is None or waits:
        return findings
    if facts.abandoned and not facts.dry_run:
        findings.append(_abandoned(facts))
    if facts.running_seconds > limits.duration:
        findings.append(_too_long(facts, limits.duration))
    return findings


def _succeeded(facts: OperationFacts) -> bool:
    return facts.status is Status.SUCCEEDED and not facts.dry_run


def _incident(facts: OperationFacts) -> str:
    """One try of one operation. Ending an abandoned one raises its epoch, and is no other try."""
    taken_away = facts.error_code == "OPERATION_INTERRUPTED"
    return f"{facts.correction_id} {facts.epoch - taken_away}"


def _about(
    facts: OperationFacts, *, incident: str | None = None, **numbers: object
) -> dict[str, object]:
    known = {
        "kind": facts.kind.value,
        "status": facts.status.value,
        "phase": facts.phase or None,
        "requestedBy": facts.requested_by or None,
        **numbers,
        INCIDENT: incident or _incident(facts),
    }
    return {name: value for name, value in known.items() if value is not None}


def _failure(facts: OperationFacts) -> Finding | None:
    cause = f"operation_failed:{facts.kind}"
    if _succeeded(facts):
        return Finding(
            cause,
            AlertType.OPERATION_FAILED,
            holds=False,
            summary=f"{facts.kind.capitalize()} {facts.correction_id} succeeded.",
        )
    if facts.dry_run or facts.status not in {Status.FAILED, Status.INTERRUPTED}:
        return None
    said = f": {facts.error_message}" if facts.error_message else "."
    return Finding(
        cause,
        AlertType.OPERATION_FAILED,
        holds=True,
        summary=f"{facts.kind.capitalize()} {facts.correction_id} {_ENDED[facts.status]}{said}",
        details=_about(
            facts,
            errorCode=facts.error_code,
            recordsAttempted=facts.attempted,
            recordsFailed=facts.failed,
        ),
        correction_id=facts.correction_id,
        run_id=facts.run_id,
    )


_ENDED: Final = {Status.FAILED: "failed", Status.INTERRUPTED: "was interrupted"}


def _abandoned(facts: OperationFacts) -> Finding:
    return Finding(
        f"operation_failed:{facts.kind}",
        AlertType.OPERATION_FAILED,
        holds=True,
        summary=(
            f"{facts.kind.capitalize()} {facts.correction_id} is {facts.status}, but its process "
            f"has not been heard of for {facts.silent_seconds or 0:.0f} s: it is gone."
        ),
        details=_about(facts, errorCode="ABANDONED", silentSeconds=facts.silent_seconds),
        correction_id=facts.correction_id,
        run_id=facts.run_id,
    )


def _not_picked_up(facts: OperationFacts, limits: AlertLimits) -> Finding:
    return Finding(
        PICKUP,
        AlertType.SLA_VIOLATION,
        holds=True,
        summary=(
            f"{facts.kind.capitalize()} {facts.correction_id} was requested "
            f"{facts.requested_seconds:.0f} s ago and nobody has begun it "
            f"(limit {limits.pickup:g} s)."
        ),
        details=_about(
            facts, value=round(facts.requested_seconds, 1), limit=limits.pickup, unit="seconds"
        ),
        correction_id=facts.correction_id,
        run_id=facts.run_id,
    )


def _too_long(facts: OperationFacts, limit: float) -> Finding:
    state = f"is {facts.status} for" if facts.status in _AT_WORK else "took"
    return Finding(
        f"sla:{facts.kind}",
        AlertType.SLA_VIOLATION,
        holds=True,
        summary=(
            f"{facts.kind.capitalize()} {facts.correction_id} {state} "
            f"{facts.running_seconds:,.0f} s, limit {limit:,.0f} s."
        ),
        details=_about(
            facts,
            # All its tries together run too long, and once.
            incident=facts.correction_id,
            value=round(facts.running_seconds, 1),
            limit=limit,
            unit="seconds",
        ),
        correction_id=facts.correction_id,
        run_id=facts.run_id,
    )


_AT_WORK: Final = frozenset({Status.RUNNING, Status.PAUSED})


def _sla_of_ended(facts: OperationFacts, limits: AlertLimits) -> list[Finding]:
    if facts.status is Status.PLANNED:
        return []
    if facts.running_seconds > limits.duration:
        return [_too_long(facts, limits.duration)]
    if facts.status is Status.TIMED_OUT and not facts.window_closed:
        return [
            Finding(
                f"sla:{facts.kind}",
                AlertType.SLA_VIOLATION,
                holds=True,
                summary=(
                    f"{facts.kind.capitalize()} {facts.correction_id} used up its timeout"
                    f"{f' of {facts.timeout}' if facts.timeout else ''} after "
                    f"{facts.running_seconds:,.0f} s and stopped before it was done."
                ),
                details=_about(
                    facts,
                    value=round(facts.running_seconds, 1),
                    limit=facts.timeout,
                    unit="seconds",
                ),
                correction_id=facts.correction_id,
                run_id=facts.run_id,
            )
        ]
    if not _succeeded(facts):
        return []
    return [
        Finding(
            f"sla:{facts.kind}",
            AlertType.SLA_VIOLATION,
            holds=False,
            summary=(
                f"{facts.kind.capitalize()} {facts.correction_id} took "
                f"{facts.running_seconds:,.0f} s, within the limit."
            ),
        )
    ]


def _error_rate(facts: OperationFacts, limits: AlertLimits) -> Finding | None:
    if facts.dry_run or facts.status is Status.PLANNED:
        return None
    rate = 100 * facts.failed / facts.attempted if facts.attempted else 0.0
    if rate <= limits.error_rate:
        # One that stopped early may not have come to the rows that are refused.
        if not _succeeded(facts):
            return None
        holds = False
    elif facts.attempted < LEAST_ROWS_OF_AN_ERROR_RATE:
        return None
    else:
        holds = True
    return Finding(
        f"error_rate:{facts.kind}",
        AlertType.HIGH_ERROR_RATE,
        holds=holds,
        summary=(
            f"The database refused {facts.failed:,} of {facts.attempted:,} rows ({rate:.1f} %) of "
            f"{facts.kind} {facts.correction_id}, limit {limits.error_rate:g} %."
        ),
        details=_about(
            facts,
            value=round(rate, 2),
            limit=limits.error_rate,
            unit="percent",
            recordsAttempted=facts.attempted,
            recordsFailed=facts.failed,
            worstSymbols=list(facts.worst_symbols),
        ),
        correction_id=facts.correction_id,
        run_id=facts.run_id,
    )


def _performance(facts: OperationFacts, limits: AlertLimits) -> Finding | None:
    if not _succeeded(facts) or not facts.attempted:
        return None
    found = judge(
        facts.work_seconds / facts.attempted,
        facts.past_seconds_per_row,
        worse="higher",
        least=limits.baseline_least,
        deviations=limits.baseline_deviations,
        floor=limits.slower_by_at_least / facts.attempted,
    )
    if found is None:
        return None
    lost = (found.value - found.median) * facts.attempted
    return Finding(
        f"performance:{facts.kind}",
        AlertType.PERFORMANCE_DEGRADATION,
        holds=found.is_unusual,
        summary=(
            f"{facts.kind.capitalize()} {facts.correction_id} worked {facts.work_seconds:,.0f} s "
            f"on {facts.attempted:,} rows, {max(0.0, lost):,.0f} s more than usual: "
            f"{1000 * found.value:.3g} ms a row, median of {found.runs} earlier ones "
            f"{1000 * found.median:.3g} ms, limit {1000 * found.limit:.3g} ms."
        ),
        details=found.numbers
        | _about(
            facts,
            unit="seconds per row",
            workSeconds=round(facts.work_seconds, 1),
            secondsLost=round(lost, 1),
            recordsAttempted=facts.attempted,
        ),
        correction_id=facts.correction_id,
        run_id=facts.run_id,
    )
