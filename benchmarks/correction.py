"""A whole correction under each pace against one bare UPDATE of the same rows.

Belongs here: who is compared, and the limits. Does not: how (contest.py), growth (growth.py).
"""

from assetclass_pipeline.model.options import CorrectionOptions, Pace
from benchmarks.bench import Bench
from benchmarks.contest import bare_update, compete, engine, median, median_time
from benchmarks.measures import Findings, limited_ratio, megabytes, seconds

ROWS = 3_000_000
# By pace, default options otherwise. Gentle pauses on purpose, so that it has no limit.
LONGEST = {Pace.BALANCED: 0.95, Pace.FAST: 0.75, Pace.GENTLE: None}
MOST_LOG = 1.2


def measure(bench: Bench) -> Findings:
    """Time by pace, and the write-ahead log of the default options."""
    rows, bare = bench.size(ROWS), bare_update()
    engines = {
        pace: engine(
            f"{pace} (default)" if pace is CorrectionOptions().pace else pace,
            CorrectionOptions(pace=pace),
            most_rounds=1 if pace is Pace.GENTLE else None,
        )
        for pace in LONGEST
    }
    runs = compete(bench, rows, [bare, *engines.values()], bench.rounds)
    measures = [
        limited_ratio(
            f"correction, {rows:,} rows: {contestant.name}",
            median_time(runs, contestant.name),
            median_time(runs, bare.name),
            LONGEST[pace],
            seconds,
        )
        for pace, contestant in engines.items()
    ]
    log = limited_ratio(
        f"write-ahead log, {rows:,} rows: default options",
        median(runs, engines[CorrectionOptions().pace].name, lambda run: run.wal_bytes),
        median(runs, bare.name, lambda run: run.wal_bytes),
        MOST_LOG,
        megabytes,
    )
    return Findings([*measures, log])
