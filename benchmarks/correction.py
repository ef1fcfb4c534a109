"""A whole correction against one bare UPDATE of the same rows: time, write-ahead log, phases.

Belongs here: the contestants and their rounds. Does not: the client's memory (memory.py).
"""

import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline.model.options import CorrectionOptions, Pace
from benchmarks.data import CORRECTABLE_ROWS
from benchmarks.databases import Databases, settings_for
from benchmarks.measures import (
    Measure,
    Progress,
    limited_ratio,
    megabytes,
    seconds,
)

LONGEST_RATIO = 0.9
BARE = "bare UPDATE"
# No backup, no audit, one transaction for everything: the least that the work can cost.
_BARE_UPDATE = """
UPDATE market_data m
SET asset_class = s.asset_class, updated_at = now()
FROM symbols s
WHERE s.ticker = m.symbol AND (m.asset_class IS NULL OR m.asset_class = '')
"""

Phases = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One contestant's run: wall time, bytes of write-ahead log, rows, seconds by phase."""

    seconds: float
    wal_bytes: int
    records: int
    phases: Phases = field(default_factory=dict)


@dataclass
class _PhaseClock:
    """Adds up how long an operation was seen in each phase."""

    phases: Phases = field(default_factory=dict)
    _phase: Phase = Phase.STARTING
    _since: float = field(default_factory=time.perf_counter)

    def __call__(self, operation: Operation) -> None:
        now = time.perf_counter()
        self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = operation.phase, now


def contestants() -> dict[str, CorrectionOptions]:
    """The options that are compared, the default ones first."""
    return {
        f"engine, batches of {size}, {pace}": CorrectionOptions(batch_size=size, pace=pace)
        for pace in (Pace.BALANCED, Pace.FAST)
        for size in (1000, 5000)
    }


def compare(
    databases: Databases,
    template: str,
    rows: int,
    rounds: int,
    progress: Progress,
    *,
    only_default: bool = False,
) -> list[Measure]:
    """Medians of `rounds` rounds; in each, every contestant gets a fresh copy of the data."""
    engines = list(contestants())[: 1 if only_default else None]
    runs: dict[str, list[Run]] = {name: [] for name in (BARE, *engines)}
    for number in range(1, rounds + 1):
        for name, found in _rotated(runs, number - 1).items():
            with databases.clone(template) as dsn:
                run = _measured(dsn, name)
            found.append(run)
            phases = ", ".join(f"{phase} {taken:.1f}" for phase, taken in run.phases.items())
            progress(
                f"{rows:,} rows, round {number} of {rounds}, {name}: {run.seconds:.2f} s"
                + (f" ({phases})" if phases else "")
            )
    _require_same_rows(runs)
    return [measure for name in engines for measure in _measures(rows, name, runs)]


def _rotated(runs: dict[str, list[Run]], by: int) -> dict[str, list[Run]]:
    """Nobody always comes first, or after the same one."""
    names = list(runs)
    start = by % len(names)
    return {name: runs[name] for name in names[start:] + names[:start]}


def _measured(dsn: str, name: str) -> Run:
    clock = _PhaseClock()
    with psycopg.connect(dsn, autocommit=True) as connection:
        log_before = _log_position(connection)
        started = time.perf_counter()
        if name == BARE:
            records = connection.execute(_BARE_UPDATE).rowcount
        else:
            records = _correct(dsn, contestants()[name], clock)
        taken = time.perf_counter() - started
        wal_bytes = _log_position(connection) - log_before
        left = connection.execute(CORRECTABLE_ROWS).fetchall()[0][0]
    if left:
        raise RuntimeError(f"{name} left {left} correctable rows: there is nothing to compare.")
    return Run(taken, wal_bytes, records, clock.phases)


def _correct(dsn: str, options: CorrectionOptions, clock: _PhaseClock) -> int:
    request = CorrectionRequest(str(uuid.uuid4()), options, requested_by="benchmark")
    operation = correct(dsn, settings_for(dsn), request, observe=clock)
    if operation.status is not Status.SUCCEEDED:
        raise RuntimeError(f"The correction ended as {operation.status}: {operation.error}")
    return operation.records_corrected


def _log_position(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchall()[0]
    return int(row[0])


def _require_same_rows(runs: dict[str, list[Run]]) -> None:
    counts = {run.records for found in runs.values() for run in found}
    if len(counts) != 1:
        raise RuntimeError(f"The contestants wrote different numbers of rows: {sorted(counts)}.")


def _measures(rows: int, name: str, runs: dict[str, list[Run]]) -> list[Measure]:
    default = name == next(iter(contestants()))
    what = f"correction, {rows:,} rows: {name}{' (default)' if default else ''}"

    def median(of: str, read: Callable[[Run], float]) -> float:
        return statistics.median(read(run) for run in runs[of])

    measures = [
        limited_ratio(
            what,
            median(name, lambda run: run.seconds),
            median(BARE, lambda run: run.seconds),
            LONGEST_RATIO,
            seconds,
        )
    ]
    if default:
        measures.append(
            limited_ratio(
                f"write-ahead log, {rows:,} rows: default options",
                median(name, lambda run: run.wal_bytes),
                median(BARE, lambda run: run.wal_bytes),
                None,
                megabytes,
            )
        )
    return measures
