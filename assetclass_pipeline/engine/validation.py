"""Validation: the thresholds by a fresh scan, and what is wrong by type with samples."""

from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import scan
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.engine.conditions import blanks_of
from assetclass_pipeline.model.validation import Validation, ValidationProblem
from assetclass_pipeline.settings import Settings

MOST_SAMPLES = 5


def validate(
    connection: Connection[TupleRow], tables: MarketTables, settings: Settings
) -> Validation:
    """Whether every threshold is met now; each kind of damage with at most 5 rows of it."""
    report = analyse(connection, tables, settings)
    statement = query(
        "analysis",
        "damaged_rows",
        market=tables.market,
        categories=query("reference", "categories", symbols=tables.symbols),
    )
    kinds = {issue.code: issue for issue in report.issues}
    samples: dict[str, list[dict[str, object]]] = {}
    with (
        scan(connection, settings),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        for code in kinds:
            values = {"blanks": blanks_of(connection), "kind": code, "most": MOST_SAMPLES}
            samples[code] = cursor.execute(statement, values).fetchall()
    return Validation(
        passed=not report.failed_thresholds,
        failed_thresholds=report.failed_thresholds,
        errors=[
            ValidationProblem(
                type=code, records=issue.records, message=issue.message, samples=samples[code]
            )
            for code, issue in kinds.items()
        ],
        report=report,
    )
