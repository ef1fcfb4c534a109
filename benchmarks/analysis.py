"""What looking costs: the integrity report against count(*), and the nightly question.

Belongs here: reads on warm data. Does not: what a correction costs.
"""

import psycopg

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.indexes import ensure_indexes
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.engine.analysis import analyse, any_correctable
from assetclass_pipeline.model.options import CorrectionOptions
from benchmarks.bench import Bench
from benchmarks.contest import PhaseClock, correct_all
from benchmarks.databases import settings_for
from benchmarks.measures import (
    Findings,
    Measure,
    Progress,
    limited_ratio,
    median_seconds,
    milliseconds,
)

ROWS = 3_000_000
MOST_COUNTS = 10.0
NIGHTLY_MILLISECONDS = 50.0
_TIMES = 5


def measure(bench: Bench) -> Findings:
    """The report on damaged rows, the question on the same rows once they are corrected."""
    rows = bench.size(ROWS)
    with bench.databases.clone(bench.template(rows)) as dsn:
        found = _measure_report(dsn, rows, bench.progress)
        correct_all(dsn, CorrectionOptions(), PhaseClock())
        bench.progress(f"{rows:,} rows, analysis: corrected")
        return Findings(found + _measure_nightly_question(dsn, rows, bench.progress))


def _measure_report(dsn: str, rows: int, progress: Progress) -> list[Measure]:
    """The report with symbols, classes and months, and a count, both from memory."""
    settings = settings_for(dsn)
    with connect(dsn, settings, purpose="benchmark") as connection:
        tables = inspect_market_tables(connection, settings, for_writing=False)
        counting = median_seconds(
            lambda: connection.execute("SELECT count(*) FROM market_data").fetchone(), _TIMES
        )
        analysing = median_seconds(lambda: analyse(connection, tables, settings), _TIMES)
    progress(f"{rows:,} rows, analysis: {analysing:.2f} s, count(*): {counting:.3f} s")
    what = f"analysis, {rows:,} rows, against count(*)"
    return [limited_ratio(what, analysing, counting, MOST_COUNTS, milliseconds)]


def _measure_nightly_question(dsn: str, rows: int, progress: Progress) -> list[Measure]:
    """Whether anything is correctable, on corrected rows, without and with our indexes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Autovacuum, which is off here, has done this by the next night.
        connection.execute("VACUUM (ANALYZE) market_data")
    without = _ask(dsn)
    ensure_indexes(dsn, settings_for(dsn), progress)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ANALYZE market_data")
    taken = _ask(dsn)
    progress(f"{rows:,} rows, nightly question: {taken * 1000:.1f} ms")
    return [
        Measure(
            f"nightly question, {rows:,} corrected rows, against no index",
            milliseconds(taken),
            milliseconds(without),
            taken / without,
            taken * 1000,
            NIGHTLY_MILLISECONDS,
            " ms",
        )
    ]


def _ask(dsn: str) -> float:
    settings = settings_for(dsn)
    with connect(dsn, settings, purpose="benchmark") as connection:
        tables = inspect_market_tables(connection, settings, for_writing=False)
        if any_correctable(connection, tables, settings):
            raise RuntimeError("Something is still correctable: the question would end too early.")
        return median_seconds(lambda: any_correctable(connection, tables, settings), _TIMES)
