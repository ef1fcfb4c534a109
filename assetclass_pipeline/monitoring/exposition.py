"""Metrics as Prometheus reads them.

Belongs here: names, types, labels and help of every series. Does not: their values, and the alert
rules on them (deploy/prometheus).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.metrics import Histogram, Metrics, OperationCounts
from assetclass_pipeline.model.operation import Kind
from assetclass_pipeline.model.throttle import Signal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `exposition` returns."""

# Series that exist from the start: the first step up of one that just appeared is not seen.
_REASONS: Final = (*(signal.value for signal in Signal), "pause")


@dataclass(frozen=True)
class Ages:
    """A gauge that a caller adds: seconds since something was heard of, by who is watched."""

    name: str
    documentation: str
    label: str
    seconds: Mapping[str, float]


def daemon_ages(seconds: Mapping[str, float]) -> Ages:
    """Seconds since the last heartbeat of each daemon of Dagster's, by its type."""
    return Ages(
        "assetclass_daemon_heartbeat_age_seconds",
        "Since the last heartbeat of a daemon of Dagster's.",
        "daemon",
        seconds,
    )


def tick_ages(seconds: Mapping[str, float]) -> Ages:
    """Seconds since the last tick of each sensor that should be ticking, by its name."""
    return Ages(
        "assetclass_sensor_tick_age_seconds",
        "Since the last tick of a sensor that is switched on.",
        "sensor",
        seconds,
    )


def exposition(metrics: Metrics, extra: Iterable[Ages] = ()) -> bytes:
    """Prometheus's text format 0.0.4; `extra` is what the database cannot tell."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Exposed(metrics, tuple(extra)))
    return generate_latest(registry)


class _Exposed(Collector):
    def __init__(self, metrics: Metrics, extra: tuple[Ages, ...]) -> None:
        self._metrics = metrics
        self._extra = extra

    def collect(self) -> Iterator[Metric]:
        yield from _operations(self._metrics)
        yield from _records(self._metrics)
        yield from _durations(self._metrics)
        yield from _active(self._metrics)
        yield from _quality(self._metrics)
        yield from _watching(self._metrics)
        yield from _upkeep(self._metrics)
        for ages in self._extra:
            yield _labelled_gauge(ages.name, ages.documentation, ages.label, ages.seconds)


def _operations(metrics: Metrics) -> Iterator[Metric]:
    """The guide divides completed by started, so both have the same labels: none."""
    counts = metrics.operations
    yield _counter(
        "assetclass_operations_started",
        "Corrections and rollbacks that began, each once; no dry runs.",
        counts.started,
    )
    yield _counter(
        "assetclass_operations_completed", "Of these, those that succeeded.", counts.completed
    )
    yield _counter(
        "assetclass_operations_failed",
        "Ends by an error; a resumed operation may fail again.",
        counts.failed,
    )
    yield _counter(
        "assetclass_operations_cancelled", "Ends on request, of operations.", counts.cancelled
    )
    yield _counter(
        "assetclass_operations_interrupted",
        "Ends because a process died, of operations.",
        counts.interrupted,
    )
    timed_out = CounterMetricFamily(
        "assetclass_operations_timed_out",
        "Ends by the timeout (timeout) or by the nightly window (window), of operations.",
        labels=["cause"],
    )
    timed_out.add_metric(["timeout"], counts.timed_out)
    timed_out.add_metric(["window"], counts.window_closed)
    yield timed_out
    yield _counter(
        "assetclass_operations_rolled_back",
        "Corrections of which a rollback left nothing.",
        metrics.rolled_back,
    )
    yield _counter("assetclass_dry_runs_started", "Dry runs that began.", metrics.dry_runs.started)
    events = CounterMetricFamily(
        "assetclass_operation_events",
        "Starts and ends of operations by their kind; no dry runs.",
        labels=["kind", "event"],
    )
    for kind, of_kind in metrics.by_kind.items():
        for event in OperationCounts.model_fields:
            events.add_metric([kind.value, event], getattr(of_kind, event))
    yield events
    successes = GaugeMetricFamily(
        "assetclass_last_success_timestamp_seconds",
        "When an operation completed last.",
        labels=["kind"],
    )
    for success in metrics.last_successes:
        successes.add_metric([success.kind.value], _epoch(success.at))
    yield successes


def _records(metrics: Metrics) -> Iterator[Metric]:
    records = metrics.records
    for name, documentation, value in (
        ("attempted", "Planned rows that batches have dealt with.", records.attempted),
        ("corrected", "Rows that corrections have written.", records.corrected),
        ("restored", "Rows that rollbacks have written.", records.restored),
        ("skipped", "Rows that an operation left alone with a reason.", records.skipped),
        ("failed", "Rows that the database refused to change.", records.failed),
        (
            "conflicting",
            "Rows that a rollback left alone because they were changed since.",
            records.conflicting,
        ),
    ):
        yield _counter(f"assetclass_records_{name}", documentation, value)


def _durations(metrics: Metrics) -> Iterator[Metric]:
    yield _histogram(
        "assetclass_operation_duration_seconds",
        "Completed operations from start to end, without the time between an end and its resume.",
        metrics.operation_durations,
    )
    yield _histogram(
        "assetclass_batch_duration_seconds", "Batches of operations.", metrics.batch_durations
    )
    throttle = CounterMetricFamily(
        "assetclass_throttle_seconds",
        "How long operations were held, by what held them.",
        labels=["reason"],
    )
    for reason, seconds in (dict.fromkeys(_REASONS, 0.0) | metrics.throttle_seconds).items():
        throttle.add_metric([reason], seconds)
    yield throttle


def _active(metrics: Metrics) -> Iterator[Metric]:
    active = metrics.active
    running = GaugeMetricFamily(
        "assetclass_operation_active", "Whether an operation is active.", labels=["kind"]
    )
    for kind in Kind:
        running.add_metric([kind.value], int(active is not None and active.kind is kind))
    yield running
    yield _labelled_gauge(
        "assetclass_operation_active_seconds",
        "Since the active operation was requested (requested) or began (any other status), without "
        "the time before its own window opened.",
        "status",
        {active.status.value: active.seconds} if active else {"none": 0},
    )
    yield _gauge(
        "assetclass_operation_progress_percent",
        "Share of its planned rows that the active operation has dealt with; 0 without one.",
        active.progress_percent if active else 0,
    )
    yield _gauge(
        "assetclass_operation_heartbeat_age_seconds",
        "Since the process of the active operation was heard of; 0 without one.",
        (active.heartbeat_age_seconds if active else None) or 0,
    )
    yield _gauge(
        "assetclass_operation_throttle_reasons",
        "Why the active operation starts no batch now: so many reasons.",
        len(active.throttle) if active else 0,
    )


def _quality(metrics: Metrics) -> Iterator[Metric]:
    """Without a measurement there is none of these: no number is better than a wrong one."""
    quality = metrics.quality
    if quality is None:
        return
    for name, documentation, value in (
        (
            "quality_score",
            "Percent of mappable rows whose class is their symbol's.",
            quality.quality_score,
        ),
        ("completeness_percent", "Rows that have a class.", quality.completeness),
        ("integrity_percent", "Rows for which one class can be derived.", quality.integrity),
        ("orphaned_percent", "Rows whose symbol is unknown.", quality.orphaned_percent),
        (
            "correctable_percent",
            "Rows that a correction with default options would change.",
            quality.correctable_percent,
        ),
        ("correctable_records", "The same in rows.", quality.correctable),
        ("records", "Rows of the market table.", quality.total_records),
        (
            "measured_timestamp_seconds",
            "When all of these were measured.",
            _epoch(quality.measured_at),
        ),
    ):
        yield _gauge(f"assetclass_data_{name}", documentation, value)
    if quality.estimated_seconds is not None:
        yield _labelled_gauge(
            "assetclass_correction_estimate_seconds",
            "What a correction of the correctable rows would take, as a range.",
            "bound",
            quality.estimated_seconds.model_dump(),
        )


def _watching(metrics: Metrics) -> Iterator[Metric]:
    alerts = GaugeMetricFamily(
        "assetclass_alerts_open",
        "Alerts that are open or acknowledged.",
        labels=["alert_type", "severity"],
    )
    counted = {(kind.value, kind.severity.value): 0 for kind in AlertType}
    counted |= {(each.alert_type.value, each.severity.value): each.open for each in metrics.alerts}
    for labels, number in counted.items():
        alerts.add_metric([*labels], number)
    yield alerts
    notifications = metrics.notifications
    yield _gauge(
        "assetclass_notifications_waiting",
        "Messages to people that are not delivered yet.",
        notifications.waiting,
    )
    yield _gauge(
        "assetclass_notification_oldest_waiting_seconds",
        "How long the oldest of them that is due, or was refused, waits; 0 without one.",
        notifications.oldest_waiting_seconds or 0,
    )
    yield _counter(
        "assetclass_notifications_failed",
        "Messages that were given up after all tries.",
        notifications.failed,
    )
    yield _labelled_gauge(
        "assetclass_threshold",
        "The limits of the settings, by their names: percent, or seconds.",
        "name",
        metrics.thresholds,
    )
    yield _gauge(
        "assetclass_collected_timestamp_seconds",
        "When all of this was read from the database.",
        _epoch(metrics.generated_at),
    )


def _upkeep(metrics: Metrics) -> Iterator[Metric]:
    backups = metrics.backups
    yield _gauge("assetclass_backup_tables", "Backup tables that are there.", backups.tables)
    yield _gauge("assetclass_backup_bytes", "Their size.", backups.bytes)
    yield _gauge(
        "assetclass_backup_oldest_age_seconds",
        "Age of the oldest of them; 0 without one.",
        backups.oldest_age_seconds or 0,
    )
    if metrics.preview_error_percent is not None:
        yield _gauge(
            "assetclass_preview_error_percent",
            "How far the newest correction's duration lay outside its estimate; 0 inside.",
            metrics.preview_error_percent,
        )


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(name, documentation, value=value)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)


def _labelled_gauge(
    name: str, documentation: str, label: str, values: Mapping[str, float]
) -> Metric:
    gauge = GaugeMetricFamily(name, documentation, labels=[label])
    for of, value in values.items():
        gauge.add_metric([of], value)
    return gauge


def _histogram(name: str, documentation: str, found: Histogram) -> Metric:
    buckets = [
        (f"{bound:g}", count) for bound, count in zip(found.bounds, found.counts, strict=True)
    ]
    return HistogramMetricFamily(
        name,
        documentation,
        buckets=[*buckets, ("+Inf", found.count)],
        sum_value=found.total_seconds,
    )


def _epoch(moment: datetime) -> float:
    return moment.timestamp()
