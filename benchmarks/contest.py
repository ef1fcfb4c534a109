"""Several ways to write the same rows, in turns, each on a fresh copy of the data.

Belongs here: rounds, clocks, the write-ahead log, the check that all wrote the same. Does not: who
takes part.
"""

import statistics
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psycopg

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline.model.options import CorrectionOptions
from benchmarks.bench import Bench
from benchmarks.data import CORRECTABLE_ROWS
from benchmarks.databases import settings_for

# No backup, no audit, one transaction for everything: the least that the work can cost.
_BARE_UPDATE = """
UPDATE market_data m
SET asset_class = s.asset_class, updated_at = now()
FROM symbols s
WHERE s.ticker = m.symbol AND (m.asset_class IS NULL OR m.asset_class = '')
"""
# Rows, written rows, and one number that any other class in any row would change.
_OUTCOME = """
SELECT count(*), count(*) FILTER (WHERE updated_at <> created_at),
       bit_xor(hashint8extended(id, hashtextextended(coalesce(asset_class, 'NULL'),
                                                     (updated_at <> created_at)::integer)))
FROM market_data
"""

Outcome = tuple[int, int, int]


@dataclass(frozen=True)
class Span:
    """One phase of an operation, on this machine's monotonic clock (seconds)."""

    phase: Phase
    begin: float
    end: float


@dataclass
class PhaseClock:
    """Notes when an operation was seen in which phase: an observer of `correct`."""

    spans: list[Span] = field(default_factory=list)
    _phase: Phase = Phase.STARTING
    _since: float = field(default_factory=time.monotonic)

    def __call__(self, operation: Operation) -> None:
        """Note what the operation is doing now."""
        if operation.phase is self._phase:
            return
        now = time.monotonic()
        self.spans.append(Span(self._phase, self._since, now))
        self._phase, self._since = operation.phase, now

    def seconds(self) -> dict[str, float]:
        """Seconds by phase; a phase that came twice counts twice."""
        taken: dict[str, float] = {}
        for span in self.spans:
            taken[span.phase] = taken.get(span.phase, 0.0) + span.end - span.begin
        return taken


@dataclass(frozen=True)
class Written:
    """What a contestant says about its run.

    `seconds` only where it has a better clock than ours: a process of its own has its start to
    leave out. `grown` and `base` are bytes of its resident memory.
    """

    records: int
    phases: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    base: int = 0
    grown: int = 0


@dataclass(frozen=True)
class Contestant:
    """One way to write the rows of the database that it is given; `most_rounds` if it is slow."""

    name: str
    write: Callable[[str], Written]
    most_rounds: int | None = None


@dataclass(frozen=True)
class Run:
    """One contestant's run: wall time, bytes of write-ahead log, what it left in the table."""

    seconds: float
    wal_bytes: int
    written: Written
    outcome: Outcome


Runs = dict[str, list[Run]]


def bare_update() -> Contestant:
    """The baseline of every speed: one UPDATE ... FROM symbols, one transaction."""

    def write(dsn: str) -> Written:
        with psycopg.connect(dsn, autocommit=True) as connection:
            return Written(connection.execute(_BARE_UPDATE).rowcount)

    return Contestant("bare UPDATE", write)


def engine(name: str, options: CorrectionOptions, most_rounds: int | None = None) -> Contestant:
    """A whole operation of ours in this process."""

    def write(dsn: str) -> Written:
        clock = PhaseClock()
        operation = correct_all(dsn, options, clock)
        return Written(operation.records_corrected, clock.seconds())

    return Contestant(name, write, most_rounds)


def correct_all(dsn: str, options: CorrectionOptions, clock: PhaseClock) -> Operation:
    """A correction that has to succeed. Raises RuntimeError when it ends in any other way."""
    request = CorrectionRequest(str(uuid.uuid4()), options, requested_by="benchmark")
    operation = correct(dsn, settings_for(dsn), request, observe=clock)
    if operation.status is not Status.SUCCEEDED:
        raise RuntimeError(f"The correction ended as {operation.status}: {operation.error}")
    return operation


def compete(
    bench: Bench,
    rows: int,
    contestants: Iterable[Contestant],
    rounds: int,
    *,
    template: str | None = None,
    left: int = 0,
) -> Runs:
    """The runs of every contestant by name, in `rounds` rounds, nobody always first.

    Each gets a copy of `template`, or of the damaged rows, and has to leave `left` correctable
    rows. Raises RuntimeError when one of them leaves the table in another state than the others: a
    fast wrong answer is no result.
    """
    template = template or bench.template(rows)
    competing = list(contestants)
    runs: Runs = {contestant.name: [] for contestant in competing}
    for number in range(1, rounds + 1):
        for contestant in _rotated(competing, number - 1):
            if contestant.most_rounds is not None and number > contestant.most_rounds:
                continue
            with bench.databases.clone(template) as dsn:
                run = _measured(dsn, contestant, left)
            runs[contestant.name].append(run)
            phases = ", ".join(f"{phase} {s:.1f}" for phase, s in run.written.phases.items())
            bench.progress(
                f"{rows:,} rows, round {number} of {rounds}, {contestant.name}: "
                f"{run.seconds:.2f} s" + (f" ({phases})" if phases else "")
            )
    require_same_outcome(runs)
    return runs


def require_same_outcome(runs: Runs) -> None:
    """Raises RuntimeError unless every run wrote the same rows with the same values."""
    found = {
        name: {(run.written.records, *run.outcome) for run in of_it} for name, of_it in runs.items()
    }
    if len(set().union(*found.values())) != 1:
        raise RuntimeError(f"The contestants did not write the same rows: {found}.")


def median(runs: Runs, name: str, read: Callable[[Run], float]) -> float:
    """Median of one number of a contestant's runs."""
    return statistics.median(read(run) for run in runs[name])


def median_time(runs: Runs, name: str) -> float:
    """Median seconds of a contestant's runs."""
    return median(runs, name, lambda run: run.seconds)


def _rotated(contestants: list[Contestant], by: int) -> list[Contestant]:
    start = by % len(contestants)
    return contestants[start:] + contestants[:start]


def _measured(dsn: str, contestant: Contestant, wanted_left: int) -> Run:
    with psycopg.connect(dsn, autocommit=True) as connection:
        log_before = _log_position(connection)
        started = time.perf_counter()
        written = contestant.write(dsn)
        taken = time.perf_counter() - started
        wal_bytes = _log_position(connection) - log_before
        left = connection.execute(CORRECTABLE_ROWS).fetchall()[0][0]
        outcome = connection.execute(_OUTCOME).fetchall()[0]
    if left != wanted_left:
        raise RuntimeError(
            f"{contestant.name} left {left} correctable rows instead of {wanted_left}: nothing to "
            "compare."
        )
    return Run(taken if written.seconds is None else written.seconds, wal_bytes, written, outcome)


def _log_position(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchall()[0]
    return int(row[0])
