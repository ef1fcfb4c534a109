"""Metrics as values: what is counted, what was measured, and the guide's limits on both.

Belongs here: their JSON form, and whether the guide's key metrics are met. Does not: how they are
read (monitoring/metrics.py), and their Prometheus form (monitoring/exposition.py).
"""

from datetime import date
from typing import Annotated, Final

from pydantic import Field, PlainSerializer
from pydantic.alias_generators import to_camel

from assetclass_pipeline.model.alert import AlertType, Severity
from assetclass_pipeline.model.operation import Kind, Phase, Status
from assetclass_pipeline.model.quality import SecondsRange, Thresholds, percent
from assetclass_pipeline.model.wire import Moment, Percent, Seconds, WireModel

OPERATION_BOUNDS: Final = (1.0, 5, 15, 60, 300, 600, 1800, 3600, 7200, 14_400, 28_800, 86_400)
"""Upper bounds, in seconds, of the durations of operations; the guide's limit is one of them."""

BATCH_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Those of batches, as assetclass.operation_total has a column for each."""

WINDOWS: Final = {"24h": 1, "7d": 7, "30d": 30}
"""Days of each window of time that is looked back on."""

_JUDGED_WINDOW: Final = "7d"


Limits = Annotated[
    dict[str, float],
    PlainSerializer(
        lambda limits: {to_camel(name): limit for name, limit in limits.items()},
        return_type=dict[str, float],
        when_used="json",
    ),
]
"""By the settings' names, which JSON writes in camelCase."""


class OperationCounts(WireModel):
    """How often operations of a kind, or of all kinds, came to something; dry runs stand apart.

    An operation starts once, and completes once at most, however often it is resumed; each of its
    other ends counts. So `completed` never exceeds `started`, and nothing ever goes down.
    """

    started: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = Field(0, description="by the option timeout")
    window_closed: int = Field(0, description="ends that the next night goes on from")
    interrupted: int = 0


class RecordCounts(WireModel):
    """Rows; what was skipped, refused or in conflict counts when an operation ends, and stays."""

    attempted: int = Field(description="planned rows that batches have dealt with")
    corrected: int
    restored: int = Field(description="by rollbacks")
    skipped: int
    failed: int
    conflicting: int


class Histogram(WireModel):
    """Durations: `counts[n]` of them took at most `bounds[n]` seconds; `count` is all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    count: int
    total_seconds: Seconds


class Window(WireModel):
    """What ended in a window of time; `kind` None is all kinds. None where nothing tells.

    `success_rate` is the completed share of what ended: cancelled by a person or cut off by the
    window is not completed. Durations are of completed operations, but for the longest.
    """

    window: str
    kind: Kind | None
    ended: int
    completed: int
    success_rate: Percent | None
    mean_seconds: Seconds | None
    p95_seconds: Seconds | None
    longest_seconds: Seconds | None
    mean_records: float | None
    error_rate: Percent | None


class DataQuality(WireModel):
    """The newest measurement; `estimated_seconds` is what a correction would take."""

    measured_at: Moment
    total_records: int
    completeness: Percent
    integrity: Percent
    orphaned_percent: Percent
    quality_score: Percent
    correctable: int
    correctable_percent: Percent
    estimated_seconds: SecondsRange | None


class OpenAlerts(WireModel):
    """Alerts that are open or acknowledged."""

    alert_type: AlertType
    severity: Severity
    open: int


class NotificationCounts(WireModel):
    """Messages that wait to be delivered, and those that were given up after an error."""

    waiting: int
    oldest_waiting_seconds: Seconds | None
    failed: int


class BackupTotals(WireModel):
    """Backup tables that are there; bytes as they were when each was complete."""

    tables: int
    bytes: int
    oldest_age_seconds: Seconds | None


class ActiveOperation(WireModel):
    """What keeps every other operation out; `seconds` since its start, or since its request.

    Left out is the time between an end and its resume, and that before its own window opened.
    """

    correction_id: str
    kind: Kind
    status: Status
    phase: Phase
    dry_run: bool
    seconds: Seconds
    heartbeat_age_seconds: Seconds | None
    progress_percent: Percent
    throttle: list[str]


class Day(WireModel):
    """One day (UTC); its quality is what was measured last, None where nothing was."""

    day: date
    ended: int
    completed: int
    records_corrected: int
    mean_seconds: Seconds | None
    quality_score: Percent | None


class LastSuccess(WireModel):
    """When an operation of a kind completed last."""

    kind: Kind
    at: Moment


class KeyMetric(WireModel):
    """One line of the guide's table: `met` is None where nothing was measured yet."""

    name: str
    value: Percent | None
    unit: str
    comparison: str = Field(description="what is fine: >= or <=")
    limit: float
    met: bool | None
    action: str = Field(description="what to do when it is not met")


class Metrics(WireModel):
    """Everything that dashboards show, of one moment."""

    generated_at: Moment
    operations: OperationCounts
    by_kind: dict[Kind, OperationCounts]
    dry_runs: OperationCounts
    rolled_back: int = Field(description="corrections of which nothing is left")
    records: RecordCounts
    operation_durations: Histogram
    batch_durations: Histogram
    windows: list[Window]
    last_successes: list[LastSuccess]
    trend: list[Day]
    throttle_seconds: dict[str, Seconds]
    preview_error_percent: float | None
    quality: DataQuality | None
    active: ActiveOperation | None
    alerts: list[OpenAlerts]
    notifications: NotificationCounts
    backups: BackupTotals
    thresholds: Limits
    key_metrics: list[KeyMetric]


def key_metrics(
    limits: Thresholds,
    windows: list[Window],
    quality: DataQuality | None,
    active: ActiveOperation | None,
) -> list[KeyMetric]:
    """The guide's table; what is about operations looks back on the last seven days."""
    week = next((w for w in windows if (w.window, w.kind) == (_JUDGED_WINDOW, None)), None)
    longest = [week.longest_seconds or 0.0] if week and week.ended else []
    if active is not None and active.status is not Status.REQUESTED:
        longest.append(active.seconds)
    return [
        _at_least(
            "Operation Success Rate",
            week.success_rate if week else None,
            limits.success_rate,
            action="Investigate failures",
        ),
        _at_least(
            "Data Quality Score",
            quality.quality_score if quality else None,
            limits.quality_score,
            action="Schedule correction",
        ),
        _at_most(
            "Operation Duration",
            max(longest, default=None),
            limits.duration,
            unit="seconds",
            action="Check performance",
        ),
        _at_most(
            "Error Rate",
            week.error_rate if week else None,
            limits.error_rate,
            action="Review error patterns",
        ),
        _at_most(
            "Records Needing Correction",
            quality.correctable_percent if quality else None,
            limits.correctable,
            action="Plan correction run",
        ),
    ]


def _at_least(name: str, value: float | None, limit: float, *, action: str) -> KeyMetric:
    return KeyMetric(
        name=name,
        value=value,
        unit="percent",
        comparison=">=",
        limit=limit,
        met=None if value is None else value >= limit,
        action=action,
    )


def _at_most(
    name: str, value: float | None, limit: float, *, action: str, unit: str = "percent"
) -> KeyMetric:
    return KeyMetric(
        name=name,
        value=value,
        unit=unit,
        comparison="<=",
        limit=limit,
        met=None if value is None else value <= limit,
        action=action,
    )


def share(part: int, whole: int) -> float | None:
    """Percent 0..100; None of nothing."""
    return percent(part, whole, of_nothing=0) if whole else None
