"""`assetclass metrics`.

Belongs here: parsing, asking for the metrics, how they look to people. Does not: what they are
(model/metrics.py), and how they are read (monitoring/metrics.py).
"""

import sys
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from assetclass_pipeline.cli.pipeline import open_pipeline
from assetclass_pipeline.cli.presentation import (
    count,
    duration,
    for_people,
    print_model,
    section,
    table,
    verdict,
)
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.metrics import KeyMetric, Metrics
from assetclass_pipeline.model.throttle import in_bytes


def metrics(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
    ] = False,
    as_prometheus: Annotated[
        bool, typer.Option("--prometheus", help="As Prometheus reads them, and nothing else.")
    ] = False,
) -> None:
    """Show how operations went, how good the data are, which limits are not met."""
    if as_json and as_prometheus:
        raise InvalidOptionsError("Choose one of --json and --prometheus.")
    with open_pipeline() as pipeline:
        if as_prometheus:
            sys.stdout.write(pipeline.metrics_text())
            return
        found = pipeline.metrics()
    if as_json:
        print_model(found)
    else:
        for part in _for_people(found):
            for_people().print(part)


def _for_people(found: Metrics) -> list[RenderableType]:
    return [
        section("Key metrics", _key_metrics(found.key_metrics)),
        section("Operations", _windows(found)),
        section("So far", _totals(found)),
        section("Trend", _trend(found)),
    ]


def _key_metrics(metrics_of: list[KeyMetric]) -> RenderableType:
    made = table("metric", "value", "limit", "", "what to do", right=("value", "limit"))
    for metric in metrics_of:
        made.add_row(
            metric.name,
            _measured(metric.value, metric.unit),
            f"{metric.comparison} {_measured(metric.limit, metric.unit)}",
            Text("not measured", "dim") if metric.met is None else verdict(metric.met),
            metric.action if metric.met is False else "",
        )
    return made


def _measured(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return duration(value) if unit == "seconds" else f"{value:.2f} %"


def _windows(found: Metrics) -> RenderableType:
    numbers = ("ended", "completed", "success", "mean", "95 %", "longest", "errors")
    made = table("window", "kind", *numbers, right=numbers)
    for window in found.windows:
        if window.kind is None or window.ended:
            made.add_row(
                window.window,
                window.kind or "all",
                count(window.ended),
                count(window.completed),
                _measured(window.success_rate, "percent"),
                duration(window.mean_seconds),
                duration(window.p95_seconds),
                duration(window.longest_seconds),
                _measured(window.error_rate, "percent"),
            )
    return made


def _totals(found: Metrics) -> RenderableType:
    operations, records = found.operations, found.records
    held = sum(found.throttle_seconds.values())
    lines = {
        "operations": f"{count(operations.started)} started, {count(operations.completed)} "
        f"completed, {count(found.rolled_back)} rolled back; "
        f"{count(found.dry_runs.started)} dry runs",
        "other ends": f"{count(operations.failed)} failed, {count(operations.cancelled)} "
        f"cancelled, {count(operations.timed_out)} timed out, "
        f"{count(operations.window_closed)} by the window, "
        f"{count(operations.interrupted)} interrupted",
        "rows": f"{count(records.corrected)} corrected, {count(records.restored)} restored, "
        f"{count(records.skipped)} skipped, {count(records.failed)} failed, "
        f"{count(records.conflicting)} in conflict",
        "held": duration(held),
        "backups": f"{count(found.backups.tables)} tables, {in_bytes(found.backups.bytes)}",
        "open alerts": count(sum(alerts.open for alerts in found.alerts)),
    }
    made = table("", "")
    made.show_header = False
    for name, line in lines.items():
        made.add_row(name, line)
    return made


def _trend(found: Metrics) -> RenderableType:
    numbers = ("ended", "completed", "corrected", "mean", "quality score")
    made = table("day (UTC)", *numbers, right=numbers)
    for day in found.trend:
        if day.ended or day.quality_score is not None:
            made.add_row(
                day.day.isoformat(),
                count(day.ended),
                count(day.completed),
                count(day.records_corrected),
                duration(day.mean_seconds),
                _measured(day.quality_score, "percent"),
            )
    return made
