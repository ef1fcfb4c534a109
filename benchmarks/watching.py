"""What watching costs after years: a scrape of the metrics, a health check, beside bare questions.

Belongs here: reading a long history. Does not: how that is made (history.py).
"""

import gc
import time
from collections.abc import Callable

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.monitoring.metrics import collect, exposition
from benchmarks.bench import Bench
from benchmarks.concurrency import percentile
from benchmarks.databases import settings_for
from benchmarks.health import measure_health
from benchmarks.history import BATCHES, LEDGER_ROWS, build_history
from benchmarks.measures import Findings, Measure, median_seconds, milliseconds

MOST_MILLISECONDS = 100.0
_NAME = "history"
_TIMES, _BRIEFLY = 500, 20

# What a scrape would do that keeps no totals: the ledger's share of it alone.
_NAIVE = """
SELECT o.kind, o.status, count(DISTINCT o.correction_id), sum(b.records_corrected),
       sum(b.duration_ms), count(*) FILTER (WHERE b.duration_ms <= 1000)
FROM assetclass.operation o JOIN assetclass.operation_batch b USING (correction_id)
GROUP BY o.kind, o.status
"""


def measure(bench: Bench) -> Findings:
    """p50 and p99 of a scrape (reading everything, writing it for Prometheus) and of health."""
    ledger = bench.size(LEDGER_ROWS)
    bench.progress(f"Making a ledger of {ledger:,} rows")
    dsn = build_history(bench.databases, _NAME, ledger)
    settings = settings_for(dsn)
    try:
        with connect(dsn, settings, purpose="benchmark") as connection:
            naive = median_seconds(lambda: connection.execute(_NAIVE).fetchall(), 5)
            scrapes = _latencies(
                lambda: exposition(collect(connection, settings)),
                _BRIEFLY if bench.quick else _TIMES,
            )
        bench.progress("Asking for health")
        health = measure_health(bench, dsn, f"{_NAME}_dagster")
    finally:
        bench.databases.drop(_NAME)
    history = f"{ledger // BATCHES:,} operations, {ledger:,} ledger rows"
    return Findings(
        [
            Measure(
                f"scrape, {history}, p{percent}, against summing up the ledger",
                milliseconds(value),
                milliseconds(naive),
                value / naive,
                value * 1000 if percent == 99 else None,  # noqa: PLR2004 - the one with a limit
                MOST_MILLISECONDS if percent == 99 else None,  # noqa: PLR2004
                unit=" ms",
            )
            for percent in (50, 99)
            for value in (percentile(scrapes, percent),)
        ]
        + health
    )


def _latencies(action: Callable[[], object], times: int) -> list[float]:
    """Ascending seconds of each of so many calls after one that is not counted."""
    action()
    gc.collect()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return sorted(taken)
