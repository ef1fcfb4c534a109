"""Dagster's events, read in bounded batches in the order of their ids.

Belongs here: which events come next, and whose they are. Does not: what they mean.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import dagster as dg
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors.ticks import Answer, watch
from assetclass_pipeline.errors import ServicesError
from assetclass_pipeline.monitoring.watching import FIRST_LOOK_BACK, Batch, Look, look_through

SETTLED_AFTER: Final = 3.0
"""Seconds that an event must be old.

An id is given out before its event is committed, so a lower one may appear after a higher one. An
INSERT that takes longer than this would have to run into it for an event to be passed over.
"""

_CLOCKS_DIFFER: Final = 60.0
"""Seconds by which an event may seem to be of the future and still be waited for: one machine whose
clock is far ahead must not hold up the events of all others."""

_ALL_ASSETS_JOB = "__ASSET_JOB"


@dataclass(frozen=True)
class Events:
    """Some events in ascending order; `position` is the id behind which the next ones are."""

    records: Sequence[dg.EventLogRecord]
    position: int
    is_full: bool


def source_of(instance: dg.DagsterInstance) -> str:
    """Whose event ids they are: another storage numbers its events anew. Raises ServicesError."""
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        raise ServicesError(
            f"Events of Dagster's {type(storage).__name__} cannot be watched: use PostgreSQL, as "
            "`assetclass up` does."
        )
    return storage.get_run_storage_id()


def events_after(
    instance: dg.DagsterInstance,
    types: Sequence[dg.DagsterEventType],
    after: int | None,
    *,
    most: int,
) -> Events:
    """The next events of these types behind `after`, or without it of the last 24 hours."""
    if after is None:
        after = _start(instance, types)
    found = [
        record
        for event_type in types
        for record in instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(event_type, after_cursor=after), limit=most, ascending=True
        )
    ]
    # The first ones of all types together: none of them lies behind the end of a type of which
    # there is more, because that alone would fill the batch.
    found.sort(key=lambda record: record.storage_id)
    is_full = len(found) >= most
    settled = []
    now = time.time()
    for record in found[:most]:
        if now - SETTLED_AFTER < record.timestamp < now + _CLOCKS_DIFFER:
            is_full = False
            break
        settled.append(record)
    return Events(settled, settled[-1].storage_id if settled else after, is_full)


def _start(instance: dg.DagsterInstance, types: Sequence[dg.DagsterEventType]) -> int:
    """The id of the newest event that is too old for the first look."""
    before = time.time() - FIRST_LOOK_BACK
    newest = [
        record.storage_id
        for event_type in types
        for record in instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(event_type, before_timestamp=before), limit=1
        )
    ]
    return max(newest, default=0)


def watch_events(
    context: dg.SensorEvaluationContext,
    database: MarketDatabase,
    watcher: str,
    read: Callable[[Cursor[TupleRow], int | None], Batch],
) -> Answer:
    """One tick of a watcher of this instance's events."""

    def look(connection: Connection[TupleRow]) -> Look:
        source = source_of(context.instance)
        found = look_through(
            connection, database.settings, watcher=watcher, source=source, read=read
        )
        # For people only: the truth is in the database, beside the alerts.
        context.update_cursor(str(found.position))
        return found

    return watch(database, watcher, look)


@dataclass(frozen=True)
class Ours:
    """What of an instance, which others may share, is this pipeline's."""

    assets: frozenset[dg.AssetKey]
    jobs: frozenset[str]
    location: str | None = None

    @classmethod
    def of(cls, context: dg.SensorEvaluationContext) -> "Ours":
        """That of the code location in which a sensor is evaluated."""
        repository = context.repository_def
        origin = context.code_location_origin
        if repository is None:
            raise ServicesError("A watcher must be evaluated within its code location.")
        return cls(
            frozenset(repository.asset_graph.get_all_asset_keys()),
            frozenset(repository.job_names) - {_ALL_ASSETS_JOB},
            origin.location_name if origin else None,
        )

    def has_run(self, run: DagsterRun) -> bool:
        """Whether a run is of a job of ours, or about assets of ours."""
        if run.asset_selection or run.asset_check_selection:
            about = {*(run.asset_selection or ())}
            about |= {check.asset_key for check in run.asset_check_selection or ()}
            return bool(about & self.assets)
        origin = run.remote_job_origin
        if (
            origin is not None
            and self.location is not None
            and origin.location_name != self.location
        ):
            return False
        return run.job_name in self.jobs or run.job_name == _ALL_ASSETS_JOB


def runs_of(
    instance: dg.DagsterInstance, records: Sequence[dg.EventLogRecord]
) -> Mapping[str, DagsterRun]:
    """The runs that these events belong to, by run id; a run that was deleted is not among them."""
    ids = sorted({record.run_id for record in records if record.run_id})
    if not ids:
        return {}
    return {run.run_id: run for run in instance.get_runs(dg.RunsFilter(run_ids=ids))}
