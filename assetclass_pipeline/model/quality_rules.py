"""Rules about measurements: the score is low, it fell, too many rows are orphaned.

Belongs here: when these conditions hold and end (alert_rules.py lists all of them). Does not: the
asset checks on the same numbers, and measuring.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.model.alert_rules import (
    DATA_QUALITY_DEGRADED,
    HIGH_ORPHANED_RECORDS,
    INCIDENT,
    LOW_DATA_QUALITY,
    AlertLimits,
)
from assetclass_pipeline.model.baseline import Judgement, judge


@dataclass(frozen=True)
class QualityFacts:
    """A measurement of `quality_report` (percents 0..100) and its worst symbols and months."""

    measurement_id: int
    measured_at: datetime
    total_records: int
    quality_score: float
    orphaned_percent: float
    run_id: str | None = None
    correction_id: str | None = None
    worst_symbols: tuple[Mapping[str, object], ...] = ()
    worst_months: tuple[Mapping[str, object], ...] = ()
    orphaned_symbols: tuple[Mapping[str, object], ...] = ()


def judge_quality(
    facts: QualityFacts, past: Sequence[float], limits: AlertLimits, *, last: float | None
) -> list[Finding]:
    """What the newest measurement means.

    `past` are the quality scores of earlier ones of the same size class, `last` is that of the one
    before it, of whatever size. With too few for a baseline it is compared with that one, as the
    asset check does it.
    """
    found = judge(
        facts.quality_score,
        past,
        worse="lower",
        least=limits.baseline_least,
        deviations=limits.baseline_deviations,
        floor=limits.degradation,
    )
    return [
        _low_quality(facts, limits),
        _degraded(facts, found or _against_last(facts.quality_score, last, limits)),
        _orphaned(facts, limits),
    ]


def _measured(facts: QualityFacts, **numbers: object) -> dict[str, object]:
    return {
        **numbers,
        "unit": "percent",
        "totalRecords": facts.total_records,
        "measuredAt": facts.measured_at.isoformat(),
        INCIDENT: f"measurement {facts.measurement_id}",
    }


def _of_measurement(
    facts: QualityFacts,
    cause: str,
    alert_type: AlertType,
    summary: str,
    details: Mapping[str, object],
    *,
    holds: bool,
) -> Finding:
    return Finding(
        cause,
        alert_type,
        holds=holds,
        summary=summary,
        details=details,
        correction_id=facts.correction_id,
        run_id=facts.run_id,
    )


def _low_quality(facts: QualityFacts, limits: AlertLimits) -> Finding:
    return _of_measurement(
        facts,
        LOW_DATA_QUALITY,
        AlertType.LOW_DATA_QUALITY,
        f"Quality score {facts.quality_score:.2f} %, must be at least {limits.quality_score:g} %.",
        _measured(
            facts,
            value=round(facts.quality_score, 2),
            limit=limits.quality_score,
            worstSymbols=list(facts.worst_symbols),
            worstMonths=list(facts.worst_months),
        ),
        holds=facts.quality_score < limits.quality_score,
    )


def _degraded(facts: QualityFacts, found: Judgement) -> Finding:
    lost = found.median - facts.quality_score
    usual = f"{found.median:.2f} % ({'median of ' if found.runs > 1 else ''}{found.runs} before)"
    return _of_measurement(
        facts,
        DATA_QUALITY_DEGRADED,
        AlertType.DATA_QUALITY_DEGRADED,
        (
            f"Quality score {facts.quality_score:.2f} % after {usual}: {lost:.2f} points lower, "
            f"limit {found.limit:.2f} %."
        ),
        _measured(
            facts,
            **found.numbers,
            pointsLost=round(lost, 2),
            worstSymbols=list(facts.worst_symbols),
            worstMonths=list(facts.worst_months),
        ),
        holds=found.is_unusual,
    )


def _against_last(score: float, last: float | None, limits: AlertLimits) -> Judgement:
    before = score if last is None else last
    limit = before - limits.degradation
    runs = 0 if last is None else 1
    return Judgement(score, before, 0.0, limit, runs, is_unusual=score < limit)


def _orphaned(facts: QualityFacts, limits: AlertLimits) -> Finding:
    return _of_measurement(
        facts,
        HIGH_ORPHANED_RECORDS,
        AlertType.HIGH_ORPHANED_RECORDS,
        (
            f"{facts.orphaned_percent:.2f} % of the rows have a symbol that symbols does not know, "
            f"limit {limits.orphaned:g} %."
        ),
        _measured(
            facts,
            value=round(facts.orphaned_percent, 2),
            limit=limits.orphaned,
            worstSymbols=list(facts.orphaned_symbols),
        ),
        holds=facts.orphaned_percent > limits.orphaned,
    )
