"""What a health check costs after years: every probe of database and Dagster, beside SELECT 1.

Belongs here: checks on connections that are kept, and the first one. Does not: the history that it
runs on (history.py).
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psycopg
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from psycopg.conninfo import make_conninfo

from assetclass_pipeline.defs.dagster_probes import RELIED_SENSORS, DagsterWatch
from assetclass_pipeline.defs.instance import open_instance
from assetclass_pipeline.monitoring.database_probes import database_probes
from assetclass_pipeline.monitoring.health import Probe, check_health
from assetclass_pipeline.settings import Settings
from benchmarks.bench import Bench
from benchmarks.concurrency import percentile
from benchmarks.databases import settings_for
from benchmarks.measures import Measure, milliseconds

MOST_MILLISECONDS = 100.0
MOST_MILLISECONDS_AT_FIRST = 200.0
_TIMES, _BRIEFLY = 500, 20
_FIRST_TIMES, _FIRST_BRIEFLY = 20, 2
# Two days of skipped ticks, which is how long they are kept, of a sensor that ticks every 5 s.
_TICKS = 34_560

_MORE_TICKS = """
INSERT INTO job_ticks (job_origin_id, selector_id, status, type, "timestamp", tick_body)
SELECT job_origin_id, selector_id, status, type, "timestamp" - n * interval '5 s', tick_body
FROM job_ticks, generate_series(1, %s) n
"""
_MARKET = """
CREATE TABLE IF NOT EXISTS symbols (ticker text, asset_class text);
CREATE TABLE IF NOT EXISTS market_data (id bigint PRIMARY KEY, symbol text,
    "timestamp" timestamptz, asset_class text, updated_at timestamptz)
"""


def measure_health(bench: Bench, dsn: str, storage: str) -> list[Measure]:
    """p99 of a check on kept connections and of a first one; `storage` names Dagster's database."""
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        dagster_at_work(dsn, storage) as settings,
    ):
        connection.execute(_MARKET)
        times = _BRIEFLY if bench.quick else _TIMES
        bare = _ascending(lambda: connection.execute("SELECT 1").fetchone(), times)
        with _probes(dsn, settings) as probes:
            checks = _ascending(lambda: check_health(probes, seconds=10), times)

        def first() -> None:
            with _probes(dsn, settings) as fresh:
                check_health(fresh, seconds=10)

        firsts = _ascending(first, _FIRST_BRIEFLY if bench.quick else _FIRST_TIMES)
    bench.databases.drop(storage)
    return [
        *(
            _measure(f"health, {len(probes)} components, p{percent}, against SELECT 1", taken, base)
            for percent in (50, 99)
            for taken, base in [(percentile(checks, percent), percentile(bare, percent))]
        ),
        Measure(
            "health, the first check with all its logins, p99",
            milliseconds(percentile(firsts, 99)),
            judged=percentile(firsts, 99) * 1000,
            limit=MOST_MILLISECONDS_AT_FIRST,
            unit=" ms",
        ),
    ]


def _measure(what: str, taken: float, base: float) -> Measure:
    return Measure(
        what,
        milliseconds(taken),
        milliseconds(base),
        taken / base,
        taken * 1000,
        MOST_MILLISECONDS,
        unit=" ms",
    )


@contextmanager
def _probes(dsn: str, settings: Settings) -> Iterator[list[Probe]]:
    with database_probes(dsn, settings) as probes, DagsterWatch(settings, dsn) as watch:
        yield [*probes, *watch.probes()]


@contextmanager
def dagster_at_work(dsn: str, storage: str) -> Iterator[Settings]:
    """Settings whose Dagster has a daemon that beats and sensors that ticked often."""
    with tempfile.TemporaryDirectory(prefix="assetclass-bench-home-") as home:
        changes = {"home": Path(home), "dagster_database": storage}
        settings = settings_for(dsn).model_copy(update=changes)
        with open_instance(settings, dsn) as instance:
            for name in instance.get_required_daemon_types():
                instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), name, "benchmark", []))
            for name in sorted(RELIED_SENSORS):
                _tick(instance, name)
            with psycopg.connect(make_conninfo(dsn, dbname=storage), autocommit=True) as session:
                session.execute(_MORE_TICKS, (_TICKS,))
                session.execute("VACUUM (ANALYZE)")
        yield settings


def _tick(instance: dg.DagsterInstance, name: str) -> None:
    location = RegisteredCodeLocationOrigin("assetclass_pipeline")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    data = SensorInstigatorData(min_interval=30, last_tick_start_timestamp=time.time())
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, data)
    instance.add_instigator_state(state)
    tick = TickData(
        instigator_origin_id=state.instigator_origin_id,
        instigator_name=name,
        instigator_type=InstigatorType.SENSOR,
        status=TickStatus.SKIPPED,
        timestamp=time.time(),
        selector_id=state.selector_id,
    )
    instance.create_tick(tick)


def _ascending(action: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of so many calls after one that is not counted."""
    action()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return sorted(taken)
