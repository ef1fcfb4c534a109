"""Ten times the rows: neither the ratio to the bare UPDATE nor the client's memory may grow.

Belongs here: the two sizes and their comparison. Does not: watching memory (memory.py).
"""

from benchmarks.bench import Bench
from benchmarks.contest import Run, Runs, bare_update, compete, median, median_time
from benchmarks.measures import Findings, Measure, limited_ratio, megabytes, seconds
from benchmarks.memory import own_process

ROWS = 10_000_000
TIMES = 10
# Both ratios are measured, and each may be off by a few percent.
MOST_GROWTH, TOLERANCE = 1.0, 0.05
MOST_MEGABYTES, MOST_MEGABYTES_GROWN = 150.0, 20.0


def measure(bench: Bench) -> Findings:
    """The default options at both sizes; at the larger one a single round."""
    large = bench.size(ROWS)
    small = max(1, large // TIMES)
    bare, ours = bare_update(), own_process()
    at_small = compete(bench, small, [bare, ours], bench.rounds)
    at_large = compete(bench, large, [bare, ours], 1)
    bench.forget(large)

    def ratio(runs: Runs) -> float:
        return median_time(runs, ours.name) / median_time(runs, bare.name)

    def grown(runs: Runs) -> float:
        return median(runs, ours.name, _grown)

    measures = [
        limited_ratio(
            f"growth, {rows:,} rows: {ours.name}",
            median_time(runs, ours.name),
            median_time(runs, bare.name),
            None,
            seconds,
        )
        for rows, runs in ((small, at_small), (large, at_large))
    ]
    growth = ratio(at_large) / ratio(at_small)
    measures.append(
        Measure(
            f"growth, ratio at {large:,} rows against the one at {small:,}",
            f"{ratio(at_large):.2f}",
            f"{ratio(at_small):.2f}",
            growth,
            growth,
            MOST_GROWTH,
            tolerance=TOLERANCE,
        )
    )
    measures += [
        Measure(
            f"client memory of a correction, {rows:,} rows, over Dagster loaded",
            f"+{megabytes(grown(runs))}",
            megabytes(median(runs, ours.name, _base)),
            judged=grown(runs) / 1e6,
            limit=MOST_MEGABYTES,
            unit=" MB",
        )
        for rows, runs in ((small, at_small), (large, at_large))
    ]
    more = (grown(at_large) - grown(at_small)) / 1e6
    measures.append(
        Measure(
            f"client memory, {large:,} rows over {small:,} rows",
            f"{more:+.1f} MB",
            judged=more,
            limit=MOST_MEGABYTES_GROWN,
            unit=" MB",
        )
    )
    return Findings(measures)


def _grown(run: Run) -> float:
    return run.written.grown


def _base(run: Run) -> float:
    return run.written.base
