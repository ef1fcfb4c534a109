"""What a tick of a watcher costs that has a thousand runs to look through.

Belongs here: ticks beside the bare queries of the same rows. Does not: the long history of the
database under them (history.py).
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import dagster as dg
import psycopg
from dagster._core.events import DagsterEvent
from dagster._core.storage.dagster_run import DagsterRun

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.defs.dagster_home import storage_url
from assetclass_pipeline.defs.instance import open_instance
from assetclass_pipeline.settings import Settings
from benchmarks.bench import Bench
from benchmarks.databases import settings_for
from benchmarks.history import LEDGER_ROWS, build_history
from benchmarks.measures import Findings, Measure, median_seconds, milliseconds

RUNS = 1000
MOST_SECONDS = 1.0
_NAME, _DAGSTER = "ticks", "ticks_dagster"
_TIMES, _BRIEFLY = 5, 1
_JOB = "data_quality_job"

_BARE_EVENTS = """
SELECT id, event FROM event_logs WHERE dagster_event_type = ANY (%s) ORDER BY id
"""
_BARE_ENDS = """
SELECT o.*, a.* FROM assetclass.audit_log a JOIN assetclass.operation o USING (correction_id)
WHERE a.action = 'end_operation' ORDER BY a.number
"""
# As the engine writes them; the trigger numbers and chains them.
_ENDS = """
INSERT INTO assetclass.audit_log (actor, actor_kind, action, origin, parameters, outcome,
                                  correction_id)
SELECT 'benchmark', 'system', 'end_operation', 'here', jsonb_build_object(
           'kind', kind, 'dryRun', dry_run, 'epoch', epoch, 'recordsPlanned', records_planned,
           'recordsCorrected', 99000, 'recordsSkipped', 1000, 'recordsFailed', 0),
       status, correction_id
FROM (SELECT * FROM assetclass.operation WHERE status <> 'running'
      ORDER BY requested_at DESC LIMIT %s) newest ORDER BY requested_at
"""
_FORGET = "TRUNCATE assetclass.watch_position, assetclass.alert CASCADE"


def measure(bench: Bench) -> Findings:
    """The first tick of each watcher, with everything to look through, and one with nothing new."""
    ledger, runs = bench.size(LEDGER_ROWS), RUNS // 10 if bench.quick else RUNS
    times = _BRIEFLY if bench.quick else _TIMES
    bench.progress(f"Making a ledger of {ledger:,} rows and {runs:,} runs")
    dsn = build_history(bench.databases, _NAME, ledger)
    try:
        with tempfile.TemporaryDirectory(prefix="assetclass-bench-") as home:
            settings = settings_for(dsn).model_copy(
                update={"home": Path(home), "dagster_database": _DAGSTER}
            )
            with open_instance(settings, dsn) as instance:
                _make_runs(instance, runs)
                with connect(dsn, settings, purpose="benchmark") as connection:
                    connection.execute(_ENDS, (runs,))
                bench.progress("Made them")
                measures = [*_measures(instance, settings, dsn, runs, times)]
    finally:
        bench.databases.drop(_NAME)
        bench.databases.drop(_DAGSTER)
    return Findings(measures)


def _make_runs(instance: dg.DagsterInstance, runs: int) -> None:
    """Runs that ended, each third one badly, and as many evaluations of checks."""
    for number in range(runs):
        failed = number % 3 == 0
        run_id = str(uuid4())
        instance.add_run(DagsterRun(job_name=_JOB, run_id=run_id))
        kind = dg.DagsterEventType.RUN_FAILURE if failed else dg.DagsterEventType.RUN_SUCCESS
        evaluation = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("symbols"),
            check_name="reference_is_sound",
            passed=not failed,
            metadata={"value": number, "limit": 1},
        )
        for event_type, data in (
            (dg.DagsterEventType.ASSET_CHECK_EVALUATION, evaluation),
            (kind, None),
        ):
            event = DagsterEvent(event_type.value, _JOB, event_specific_data=data)
            instance.report_dagster_event(event, run_id)
    # The youngest events are left to the next tick.
    time.sleep(4)


def _measures(
    instance: dg.DagsterInstance, settings: Settings, dsn: str, runs: int, times: int
) -> Iterator[Measure]:
    defs = build_defs(settings=settings)

    def tick(name: str) -> None:
        with dg.build_sensor_context(
            instance=instance,
            sensor_name=name,
            definitions=defs,
            resources={"database": (defs.resources or {})["database"]},
        ) as context:
            said = defs.resolve_sensor_def(name).evaluate_tick(context).skip_message or ""
        if str(runs) not in said and "Nothing new" not in said:
            raise RuntimeError(f"{name} did not look at all {runs} runs: {said}")

    def first_tick(name: str) -> Callable[[], None]:
        def forget_and_tick() -> None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(_FORGET)
            tick(name)

        return forget_and_tick

    with (
        _dagster_storage(settings, dsn) as storage,
        connect(dsn, settings, purpose="benchmark") as connection,
    ):
        types = {
            "asset_check_alerts": ["ASSET_CHECK_EVALUATION"],
            "run_failure_alerts": ["PIPELINE_FAILURE", "PIPELINE_SUCCESS"],
        }
        for name, kinds in types.items():
            bare = median_seconds(
                lambda kinds=kinds: [  # type: ignore[misc]
                    json.loads(event)
                    for _, event in storage.execute(_BARE_EVENTS, (kinds,)).fetchall()
                ],
                times,
            )
            yield _judged(f"tick of {name}, {runs:,} runs", first_tick(name), bare, times)
        ends = median_seconds(lambda: connection.execute(_BARE_ENDS).fetchall(), times)
        name = "operation_alerts"
        yield _judged(f"tick of {name}, {runs:,} ended operations", first_tick(name), ends, times)
        tick(name)
        yield _judged(f"tick of {name}, nothing new", lambda: tick(name), ends, times)


def _judged(what: str, action: Callable[[], None], baseline: float, times: int) -> Measure:
    value = median_seconds(action, times)
    return Measure(
        f"{what}, against the bare query of the same rows",
        milliseconds(value),
        milliseconds(baseline),
        value / baseline,
        value,
        MOST_SECONDS,
        unit=" s",
    )


@contextmanager
def _dagster_storage(settings: Settings, dsn: str) -> Iterator[psycopg.Connection]:
    with connect(storage_url(settings, dsn), settings, purpose="benchmark") as connection:
        yield connection
