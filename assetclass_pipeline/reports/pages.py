"""Reports as pages: one HTML file each, with everything in it.

Belongs here: which template and which plots a report has, and how values are written in a page.
Does not: the numbers.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from assetclass_pipeline import __version__
from assetclass_pipeline.model.quality import Thresholds, percent
from assetclass_pipeline.model.throttle import in_bytes
from assetclass_pipeline.reports.audit import AuditReport, monthly
from assetclass_pipeline.reports.capacity import CapacityReport
from assetclass_pipeline.reports.history import ScorePoint
from assetclass_pipeline.reports.performance import PerformanceReport
from assetclass_pipeline.reports.plots import Series, bar_plot, line_plot
from assetclass_pipeline.reports.quality import QualityReport
from assetclass_pipeline.settings import Settings

Report = PerformanceReport | AuditReport | CapacityReport | QualityReport

NAMES: Final[Mapping[type[Report], str]] = {
    PerformanceReport: "performance",
    AuditReport: "audit",
    CapacityReport: "capacity",
    QualityReport: "quality",
}
_TITLES: Final = {
    "performance": "Performance of operations",
    "audit": "Data integrity audit",
    "capacity": "Capacity",
    "quality": "Data quality",
}
# By the setting that limits them.
_SCORE_PLOTS: Final[Mapping[str, Callable[[ScorePoint], float]]] = {
    "completeness": lambda point: point.completeness,
    "integrity": lambda point: point.integrity,
    "quality_score": lambda point: point.quality_score,
    "orphaned": lambda point: point.orphaned_percent,
    "correctable": lambda point: percent(point.correctable, point.total_records, of_nothing=0),
}
_QUALITY_PLOTS: Final = ("completeness", "quality_score")


def name_of(report: Report) -> str:
    """Under which name it is asked for and stored."""
    return NAMES[type(report)]


def page(report: Report, settings: Settings) -> str:
    """The report as one HTML document: styles and plots inside, nothing loaded from elsewhere."""
    name = name_of(report)
    return (
        _environment()
        .get_template(f"{name}.html.j2")
        .render(
            report=report,
            title=_TITLES[name],
            market=f"{settings.market_schema}.{settings.market_table}",
            version=__version__,
            plots={key: Markup(svg) for key, svg in _plots(report, settings).items()},  # noqa: S704 - ours
            monthly=monthly,
            limits=settings.thresholds,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("assetclass_pipeline.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "percent": _percent,
        "duration": _duration,
        "size": lambda value: "-" if value is None else in_bytes(value),
        "when": lambda moment: (
            "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"
        ),
        "class_name": _class_name,
        "number": lambda value: "-" if value is None else f"{value:,.4g}",
    }
    return environment


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _duration(seconds: float | None) -> str:
    """As a person would say it."""
    if seconds is None:
        return "-"
    if seconds < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{seconds:.1f} s"
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds, 3600)
    if whole.days:
        return f"{whole.days} d {hours} h"
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"


def _class_name(value: str | None) -> str:
    """NULL and the empty string are no names."""
    return "(NULL)" if value is None else value or "(empty)"


def _plots(report: Report, settings: Settings) -> dict[str, str]:
    if isinstance(report, PerformanceReport):
        return _performance_plots(report)
    if isinstance(report, CapacityReport):
        return _capacity_plots(report)
    names = _QUALITY_PLOTS if isinstance(report, QualityReport) else _SCORE_PLOTS
    return {name: _score_plot(name, report.scores, settings.thresholds) for name in names}


def _score_plot(name: str, scores: list[ScorePoint], limits: Thresholds) -> str:
    values = [_SCORE_PLOTS[name](point) for point in scores]
    said = name.replace("_", " ")
    moments = [point.measured_at for point in scores]
    return line_plot(
        [Series(said, moments, values)], unit=f"{said}, %", limit=getattr(limits, name)
    )


def _performance_plots(report: PerformanceReport) -> dict[str, str]:
    within_a_year = report.period.length <= timedelta(days=365)
    days = [day.day[5:] if within_a_year else day.day for day in report.days]
    succeeded = [float(day.succeeded) for day in report.days]
    others = [float(day.operations - day.succeeded) for day in report.days]
    records = [float(day.records_corrected) for day in report.days]
    return {
        "operations": bar_plot(
            days, [("succeeded", succeeded), ("others", others)], unit="operations a day"
        ),
        "records": bar_plot(days, [("rows", records)], unit="rows corrected a day"),
    }


def _capacity_plots(report: CapacityReport) -> dict[str, str]:
    moments = [point.measured_at for point in report.points]
    totals = [float(point.total_records) for point in report.points]
    ahead = band = None
    if report.forecasts and moments:
        later = [moments[-1] + timedelta(days=365 / 12 * each.months) for each in report.forecasts]
        start = totals[-1]
        ahead = Series(
            "forecast",
            [moments[-1], *later],
            [start, *(each.records.likely for each in report.forecasts)],
        )
        band = (
            [start, *(each.records.low for each in report.forecasts)],
            [start, *(each.records.high for each in report.forecasts)],
        )
    days = report.corrections
    rated = [(on.day, on.records_per_second) for on in days if on.records_per_second]
    return {
        "rows": line_plot(
            [Series("rows", moments, totals)],
            unit="rows of the table",
            ahead=ahead,
            band=band,
            wide=True,
        ),
        "durations": line_plot(
            [
                Series(
                    "seconds",
                    [on.day for on in days],
                    [on.duration_seconds for on in days],
                )
            ],
            unit="seconds of a correction",
            dots=True,
        ),
        "rates": line_plot(
            [Series("rows a second", [each[0] for each in rated], [each[1] for each in rated])],
            unit="rows a second",
            dots=True,
        ),
    }


def stamp(moment: datetime) -> str:
    """A moment in a file name, UTC."""
    return f"{moment.astimezone(UTC):%Y%m%d-%H%M%S}"
