"""What the writers beside a correction notice of it: their latencies by pace, batch size, workers.

Belongs here: windows, percentiles, limits, the table. Does not: the writing (writers.py).
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import psycopg

from assetclass_pipeline.model.operation import Phase
from assetclass_pipeline.model.options import CorrectionOptions, Pace
from benchmarks.bench import Bench
from benchmarks.contest import PhaseClock, Span, correct_all
from benchmarks.measures import Findings, Measure, grid, milliseconds
from benchmarks.respect import require_respect
from benchmarks.writers import Commit, Load, writers

# A p99 wants thousands of transactions; the many runs of the table have to do with fewer.
ROWS = 3_000_000
ROWS_OF_TABLE = 1_000_000
# p99 during the correction against p99 of the same writers right before it.
MOST_TIMES: dict[Pace, float | None] = {Pace.GENTLE: 2.5, Pace.BALANCED: 5.0, Pace.FAST: None}
LONGEST_STALL: dict[Pace, float | None] = {
    Pace.GENTLE: None, Pace.BALANCED: 250.0, Pace.FAST: None
}  # fmt: skip
SIZES, WORKERS = (500, 1000, 5000), (1, 2, 4)
# Fast does not pause; gentle does, whatever the size and the workers are.
PAUSES = {"none": Pace.FAST, "gentle's": Pace.GENTLE}


@dataclass(frozen=True)
class Windows:
    """Seconds of writing: not counted, counted alone, and after the correction.

    The last one is for what the correction held up to its end.
    """

    warm_up: float = 3.0
    alone: float = 15.0
    after: float = 1.0


BRIEF = Windows(warm_up=0.5, alone=1.0, after=0.5)
_READ_ALL = "SELECT count(*), sum(close) FROM market_data"


@dataclass(frozen=True)
class Latencies:
    """Seconds from when a transaction was due to its commit."""

    commits: int
    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, commits: Iterable[Commit], begin: float, end: float) -> "Latencies":
        """Of the transactions that were due in [begin, end).

        Raises RuntimeError when there was none.
        """
        taken = sorted(commit.latency for commit in commits if begin <= commit.due < end)
        if not taken:
            raise RuntimeError("No writer was at work: the correction was over at once. More rows!")
        return cls(len(taken), percentile(taken, 50), percentile(taken, 99), taken[-1])


@dataclass(frozen=True)
class Observed:
    """Writers before and during one correction, and in each of its phases; rows/s of batches."""

    alone: Latencies
    during: Latencies
    by_phase: dict[Phase, Latencies]
    rows_per_second: float

    @property
    def in_batches(self) -> Latencies:
        """While batches ran."""
        return self.by_phase[Phase.CORRECTING]


def percentile(taken: list[float], percent: int) -> float:
    """The smallest of the ascending values that `percent` of them do not exceed (nearest rank)."""
    return taken[math.ceil(len(taken) * percent / 100) - 1]


def measure(bench: Bench) -> Findings:
    """Each pace against its own minute without a correction, then the table of settings."""
    measures: list[Measure] = []
    rows, windows = bench.size(ROWS), BRIEF if bench.quick else Windows()
    for pace in MOST_TIMES:
        found = observe(bench, rows, CorrectionOptions(pace=pace), windows)
        phases = ", ".join(
            f"{phase} {milliseconds(latencies.p99)}" for phase, latencies in found.by_phase.items()
        )
        bench.progress(
            f"{rows:,} rows, writers under {pace}: alone {_shown(found.alone)}, during the "
            f"correction {_shown(found.during)}; p99 {phases}; nothing lost or overwritten"
        )
        measures += _measures(pace, rows, found)
    return Findings(measures, [_table(bench, bench.size(ROWS_OF_TABLE))])


def observe(bench: Bench, rows: int, options: CorrectionOptions, windows: Windows) -> Observed:
    """Writers for a while alone, then beside a correction; what they wrote must be respected."""
    template = bench.template(rows)
    clock = PhaseClock()
    with bench.databases.clone(template) as dsn:
        # Else the first writers would read from the disk what the correction's find in memory.
        with psycopg.connect(dsn) as connection:
            connection.execute(_READ_ALL)
        with writers(Load(dsn)) as writing:
            time.sleep(windows.warm_up)
            begin = time.monotonic()
            time.sleep(windows.alone)
            middle = time.monotonic()
            operation = correct_all(dsn, options, clock)
            end = time.monotonic()
            # Whatever was held up at the end is counted, too.
            time.sleep(windows.after)
            report = writing.stop()
        require_respect(dsn, bench.databases.url(template), report, operation)
    return Observed(
        Latencies.of(report.commits, begin, middle),
        Latencies.of(report.commits, middle, end),
        _by_phase(report.commits, clock.spans),
        operation.records_corrected / clock.seconds()[Phase.CORRECTING],
    )


def _by_phase(commits: list[Commit], spans: list[Span]) -> dict[Phase, Latencies]:
    """Phases in which any transaction was due; the first of each, later ones are for late rows."""
    found: dict[Phase, Latencies] = {}
    for span in spans:
        due = [commit for commit in commits if span.begin <= commit.due < span.end]
        if due and span.phase not in found:
            found[span.phase] = Latencies.of(due, span.begin, span.end)
    return found


def _measures(pace: Pace, rows: int, found: Observed) -> list[Measure]:
    ratio = found.during.p99 / found.alone.p99
    return [
        Measure(
            f"writers' p99, {rows:,} rows under {pace}, against no correction",
            milliseconds(found.during.p99),
            milliseconds(found.alone.p99),
            ratio,
            ratio,
            MOST_TIMES[pace],
        ),
        Measure(
            f"writers' longest wait, {rows:,} rows under {pace}",
            milliseconds(found.during.longest),
            milliseconds(found.alone.longest),
            judged=found.during.longest * 1000,
            limit=LONGEST_STALL[pace],
            unit=" ms",
        ),
    ]


def _table(bench: Bench, rows: int) -> str:
    """What writers notice of batches by size, workers and pause, and how fast these are."""
    lines = []
    settings = list(product(PAUSES.items(), WORKERS, SIZES))
    for (pause, pace), workers, size in settings[:: len(settings) - 1] if bench.quick else settings:
        options = CorrectionOptions(pace=pace, batch_size=size, workers=workers)
        found = observe(bench, rows, options, BRIEF)
        latencies = found.in_batches
        line = (
            f"{size:,}",
            str(workers),
            pause,
            f"{found.rows_per_second:,.0f}",
            milliseconds(latencies.median),
            milliseconds(latencies.p99),
            milliseconds(latencies.longest),
            f"{latencies.commits:,}",
        )
        bench.progress(f"{rows:,} rows, writers beside batches: {' | '.join(line)}")
        lines.append(line)
    return grid(
        ("batch size", "workers", "pause", "rows/s", "median", "p99", "longest", "commits"), lines
    )


def _shown(latencies: Latencies) -> str:
    return (
        f"p50 {milliseconds(latencies.median)}, p99 {milliseconds(latencies.p99)}, longest "
        f"{milliseconds(latencies.longest)} of {latencies.commits:,}"
    )
