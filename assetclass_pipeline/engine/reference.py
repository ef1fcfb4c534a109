"""Soundness of the reference: what in `symbols` makes rows unmappable, with examples."""

from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.conditions import blanks_of
from assetclass_pipeline.model.quality import ClassCount
from assetclass_pipeline.model.reference import ReferenceReport, ReferenceSample
from assetclass_pipeline.settings import Settings


def check_reference(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    *,
    samples: int = 10,
) -> ReferenceReport:
    """Counts of tickers by category, and at most `samples` of each that cannot be trusted."""
    with (
        transaction(connection, settings, read_only=True, snapshot=True),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        values = {"blanks": blanks_of(connection), "most": samples}
        counts = cursor.execute(
            query("reference", "soundness", symbols=tables.symbols), values
        ).fetchone()
        named = cursor.execute(
            query("reference", "soundness_samples", symbols=tables.symbols), values
        ).fetchall()
    counts = counts or {}
    classes = [
        ClassCount(asset_class=name, records=records) for name, records in counts.pop("classes")
    ]
    by_problem: dict[str, list[ReferenceSample]] = {}
    for row in named:
        sample = ReferenceSample(ticker=row["ticker"], classes=row["classes"] or [])
        by_problem.setdefault(row["problem"], []).append(sample)
    return ReferenceReport(**counts, classes=classes, samples=by_problem)
