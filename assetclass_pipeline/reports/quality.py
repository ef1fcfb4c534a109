"""The latest integrity report, as it was stored, for people.

Belongs here: finding it, with the scores of the year before it. Does not: measuring.
"""

from datetime import timedelta
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.wire import Moment, WireModel
from assetclass_pipeline.reports.history import Period, ScorePoint, daily_scores, now
from assetclass_pipeline.settings import Settings

_YEAR: Final = timedelta(days=365)


class QualityReport(WireModel):
    """The newest measurement and who made it; all three are None where there is none yet."""

    generated_at: Moment
    measured_at: Moment | None
    source: str | None
    report: IntegrityReport | None
    scores: list[ScorePoint]


def quality_report(connection: Connection[TupleRow], settings: Settings) -> QualityReport:
    """What is stored; nothing is measured."""
    period = Period.of(None, now(), usual=_YEAR)
    with transaction(connection, settings, read_only=True, snapshot=True) as cursor:
        row = cursor.execute(query("reports", "latest_report")).fetchone()
        scores = daily_scores(cursor, period)
    measured_at, source, report = row or (None, None, None)
    return QualityReport(
        generated_at=now(),
        measured_at=measured_at,
        source=source,
        report=IntegrityReport.model_validate(report) if report else None,
        scores=scores,
    )
