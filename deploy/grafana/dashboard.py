"""The Grafana dashboard: `python -m deploy.grafana.dashboard` writes assetclass.json beside this.

Belongs here: which panels, their queries, limits and words. Does not: the metrics
(assetclass_pipeline/monitoring/exposition.py), and the alert rules on them (deploy/prometheus).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
)

FILE: Final = Path(__file__).with_name("assetclass.json")

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_GOOD, _BAD = "green", "red"
_HEIGHT: Final = {"stat": 5, "graph": 8, "bars": 8}


@dataclass(frozen=True)
class Panel:
    """One picture: `queries` are PromQL by legend; `good` says on which side of `limit` it is."""

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    shape: str = "graph"
    width: int = 8
    limit: float | None = None
    good: str = "above"
    runbook: str | None = None


GUIDE: Final = {
    "Operations per day": "increase(assetclass_operations_started_total[24h])",
    "Success rate": (
        "rate(assetclass_operations_completed_total[5m]) / "
        "rate(assetclass_operations_started_total[5m]) * 100"
    ),
    "Average duration": (
        "rate(assetclass_operation_duration_seconds_sum[5m]) / "
        "rate(assetclass_operation_duration_seconds_count[5m])"
    ),
    "Data quality score": "assetclass_data_quality_score",
}
"""The operators' guide's own queries, by the titles of their panels."""

ROWS: Final[Mapping[str, Sequence[Panel]]] = {
    "Data quality": (
        Panel(
            "Data quality score",
            "Percent of mappable rows whose class is their symbol's. Below 90: schedule a "
            "correction.",
            {"score": GUIDE["Data quality score"]},
            "percent",
            "stat",
            4,
            limit=90,
            runbook="low-data-quality.md",
        ),
        Panel(
            "Completeness",
            "Percent of rows that have a class.",
            {"completeness": "assetclass_data_completeness_percent"},
            "percent",
            "stat",
            4,
            limit=95,
            runbook="low-data-quality.md",
        ),
        Panel(
            "Integrity",
            "Percent of rows for which exactly one class can be derived.",
            {"integrity": "assetclass_data_integrity_percent"},
            "percent",
            "stat",
            4,
            limit=90,
            runbook="low-data-quality.md",
        ),
        Panel(
            "Orphaned",
            "Percent of rows whose symbol is unknown.",
            {"orphaned": "assetclass_data_orphaned_percent"},
            "percent",
            "stat",
            4,
            limit=5,
            good="below",
            runbook="high-orphaned-records.md",
        ),
        Panel(
            "Records needing correction",
            "Percent of rows that a correction with default options would change. Above 10: plan "
            "a correction run.",
            {"correctable": "assetclass_data_correctable_percent"},
            "percent",
            "stat",
            4,
            limit=10,
            good="below",
            runbook="low-data-quality.md",
        ),
        Panel(
            "Measured",
            "Age of these numbers. They are measured once a day and after each correction.",
            {"age": "time() - assetclass_data_measured_timestamp_seconds"},
            "s",
            "stat",
            4,
            limit=26 * 3600,
            good="below",
            runbook="tick-failed.md",
        ),
        Panel(
            "Scores over time",
            "What each measurement found.",
            {
                "quality score": "assetclass_data_quality_score",
                "completeness": "assetclass_data_completeness_percent",
                "integrity": "assetclass_data_integrity_percent",
                "orphaned": "assetclass_data_orphaned_percent",
            },
            "percent",
            width=12,
        ),
        Panel(
            "Correctable rows",
            "Rows that a correction would change, beside all rows of the market table.",
            {
                "correctable": "assetclass_data_correctable_records",
                "all": "assetclass_data_records",
            },
            width=6,
        ),
        Panel(
            "A correction would take",
            "Estimated for the correctable rows, as a range.",
            {"{{bound}}": "assetclass_correction_estimate_seconds"},
            "s",
            width=6,
        ),
    ),
    "Operations": (
        Panel(
            "Operations per day",
            "Corrections and rollbacks that began within 24 hours; no dry runs.",
            {"started": GUIDE["Operations per day"]},
            shape="stat",
            width=4,
        ),
        Panel(
            "Success rate",
            "Completed of started operations within five minutes, where any started. Below 95: "
            "investigate failures.",
            {"success": GUIDE["Success rate"]},
            "percent",
            "stat",
            4,
            limit=95,
            runbook="operation-failed.md",
        ),
        Panel(
            "Success rate of a week",
            "The same over seven days, which no operation outlives.",
            {"success": "assetclass:success_rate_percent:7d"},
            "percent",
            "stat",
            4,
            limit=95,
            runbook="operation-failed.md",
        ),
        Panel(
            "Average duration",
            "Of operations that completed within five minutes. Above two hours: check performance.",
            {"mean": GUIDE["Average duration"]},
            "s",
            "stat",
            4,
            limit=7200,
            good="below",
            runbook="sla-violation.md",
        ),
        Panel(
            "Error rate of a day",
            "Rows that the database refused, percent of those dealt with. Above 5: review error "
            "patterns.",
            {"errors": "assetclass:error_rate_percent:24h"},
            "percent",
            "stat",
            4,
            limit=5,
            good="below",
            runbook="high-error-rate.md",
        ),
        Panel(
            "Last correction completed",
            "The nightly one completes once a day.",
            {"ago": 'time() - assetclass_last_success_timestamp_seconds{kind="correction"}'},
            "s",
            "stat",
            4,
            limit=26 * 3600,
            good="below",
            runbook="operation-failed.md",
        ),
        Panel(
            "Ends",
            "How operations ended, within each hour.",
            {
                "{{kind}} {{event}}": (
                    "sum by (kind, event) "
                    '(increase(assetclass_operation_events_total{event!="started"}[1h]))'
                )
            },
            shape="bars",
        ),
        Panel(
            "Duration",
            "Half of the operations of a week took at most the lower line, 95 % the upper one.",
            {
                f"{share * 100:g} %": (
                    f"histogram_quantile({share:g}, "
                    "rate(assetclass_operation_duration_seconds_bucket[7d]))"
                )
                for share in (0.5, 0.95)
            },
            "s",
            limit=7200,
            good="below",
            runbook="sla-violation.md",
        ),
        Panel(
            "Active operation",
            "How far the active operation is; 0 without one.",
            {"progress": "assetclass_operation_progress_percent"},
            "percent",
            width=4,
        ),
        Panel(
            "Active for",
            "Since the active operation began, or was requested.",
            {"{{status}}": "assetclass_operation_active_seconds"},
            "s",
            width=4,
            limit=7200,
            good="below",
            runbook="sla-violation.md",
        ),
    ),
    "Throughput": (
        Panel(
            "Rows",
            "Rows a second that were corrected, restored, refused, skipped, or in conflict.",
            {
                name: f"rate(assetclass_records_{name}_total[$__rate_interval])"
                for name in ("corrected", "restored", "failed", "skipped", "conflicting")
            },
            "rowsps",
            runbook="performance-degradation.md",
        ),
        Panel(
            "Batches",
            "95 % of the batches took at most that.",
            {
                "95 %": (
                    "histogram_quantile(0.95, "
                    "rate(assetclass_batch_duration_seconds_bucket[$__rate_interval]))"
                ),
                "mean": (
                    "rate(assetclass_batch_duration_seconds_sum[$__rate_interval]) / "
                    "rate(assetclass_batch_duration_seconds_count[$__rate_interval])"
                ),
            },
            "s",
            runbook="performance-degradation.md",
        ),
        Panel(
            "How far estimates are off",
            "How far the newest correction's duration lay outside its preview, percent of the "
            "nearer bound.",
            {"error": "assetclass_preview_error_percent"},
            "percent",
        ),
    ),
    "Throttle": (
        Panel(
            "Held by",
            "Share of the time that operations were held, by what held them.",
            {"{{reason}}": "rate(assetclass_throttle_seconds_total[$__rate_interval])"},
            "percentunit",
            "bars",
            16,
        ),
        Panel(
            "Reasons now",
            "How many reasons keep the active operation from its next batch.",
            {"reasons": "assetclass_operation_throttle_reasons"},
        ),
    ),
    "Alerts": (
        Panel(
            "Open alerts",
            "By type; each has a page that says what to do.",
            {"{{alert_type}}": "sum by (alert_type) (assetclass_alerts_open)"},
            shape="bars",
            width=12,
        ),
        Panel(
            "Open alerts by severity",
            "High: at once. Medium: today. Low: this week.",
            {"{{severity}}": "sum by (severity) (assetclass_alerts_open)"},
            shape="stat",
            width=6,
            limit=1,
            good="below",
        ),
        Panel(
            "Messages to people",
            "Messages that wait, and how long the oldest waits; those given up within a day.",
            {
                "waiting": "assetclass_notifications_waiting",
                "given up": "increase(assetclass_notifications_failed_total[24h])",
            },
            shape="stat",
            width=6,
            limit=10,
            good="below",
        ),
    ),
    "Backups": (
        Panel(
            "Size of all backups",
            "Backup tables go to the archive when they expire.",
            {"bytes": "assetclass_backup_bytes"},
            "bytes",
            width=12,
            runbook="backup-cleanup-failed.md",
        ),
        Panel(
            "Backup tables",
            "Backup tables that are there.",
            {"tables": "assetclass_backup_tables"},
            shape="stat",
            width=6,
        ),
        Panel(
            "Oldest backup",
            "Backups are dropped after 30 days, unless held or needed.",
            {"age": "assetclass_backup_oldest_age_seconds"},
            "s",
            "stat",
            6,
            limit=40 * 86_400,
            good="below",
            runbook="backup-cleanup-failed.md",
        ),
    ),
    "Watchers": (
        Panel(
            "API",
            "Whether the API answers Prometheus.",
            {"{{instance}}": 'up{job="assetclass"}'},
            shape="stat",
            width=4,
            limit=1,
            runbook="service-degraded.md",
        ),
        Panel(
            "Dagster's daemons",
            "Since each was heard of; without them no sensor and no schedule runs.",
            {"{{daemon}}": "assetclass_daemon_heartbeat_age_seconds"},
            "s",
            limit=300,
            good="below",
            runbook="service-degraded.md",
        ),
        Panel(
            "Sensors",
            "Since each ticked.",
            {"{{sensor}}": "assetclass_sensor_tick_age_seconds"},
            "s",
            limit=900,
            good="below",
            runbook="tick-failed.md",
        ),
        Panel(
            "Age of these numbers",
            "Since they were read from the database.",
            {"age": "time() - assetclass_collected_timestamp_seconds"},
            "s",
            "stat",
            4,
            limit=300,
            good="below",
            runbook="service-degraded.md",
        ),
    ),
}


def build() -> str:
    """The dashboard as Grafana imports it."""
    made = (
        dashboard.Dashboard("AssetClass pipeline")
        .uid("assetclass")
        .description("Corrections of asset_class: data quality, operations, alerts, watchers.")
        .tags(["assetclass"])
        .timezone("browser")
        .refresh("30s")
        .time("now-7d", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(
            dashboard.TextBoxVariable("runbooks")
            .label("Where runbooks are")
            .default_value("https://runbooks.example.com")
        )
    )
    number = 0
    for title, panels in ROWS.items():
        number += 1
        made = made.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            made = made.with_panel(_picture(panel).id(number))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _picture(panel: Panel) -> stat.Panel | timeseries.Panel:
    made = _stat(panel) if panel.shape == "stat" else _graph(panel)
    made = (
        made.title(panel.title)
        .description(panel.description)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(_HEIGHT[panel.shape])
        .thresholds(_thresholds(panel))
    )
    for place, (legend, expression) in enumerate(panel.queries.items()):
        query = (
            prometheus.Dataquery()
            .expr(expression)
            .legend_format(legend)
            .ref_id(chr(ord("A") + place))
            .datasource(_SOURCE)
        )
        made = made.with_target(query.instant() if panel.shape == "stat" else query.range())
    if panel.runbook is not None:
        link = dashboard.DashboardLink("What to do").type(DashboardLinkType.LINK)
        made = made.links([link.url(f"${{runbooks}}/{panel.runbook}").target_blank(True)])
    return made


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .decimals(2 if panel.unit == "percent" else 0)
        .no_value("none")
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _graph(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    )
    made = timeseries.Panel().min(0).legend(legend)
    if panel.shape == "bars":
        made = made.draw_style(GraphDrawStyle.BARS).fill_opacity(80)
        made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.limit is not None:
        style = common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
        made = made.thresholds_style(style)
    return made


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    below, above = (_BAD, _GOOD) if panel.good == "above" else (_GOOD, _BAD)
    steps = [Threshold(value=None, color=_GOOD)]
    if panel.limit is not None:
        steps = [Threshold(value=None, color=below), Threshold(value=panel.limit, color=above)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")
