"""The Dagster instance of one home directory, opened in this process, and the runs in it.

Belongs here: what `up` and `execute` must agree on so that their runs stand side by side in the UI.
Does not: definitions (assets, jobs); what can be said without importing Dagster (dagster_home).
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import GRPC_INFO_TAG

from assetclass_pipeline.defs.dagster_home import (
    LOCATION_NAME,
    dagster_home_environment,
    is_code_server_directory,
    prepare_instance,
    this_host,
)
from assetclass_pipeline.settings import Settings

__all__ = [
    "POOL",
    "PROCESS_TAG",
    "dagster_home_environment",
    "end_dead_runs",
    "keep_connections",
    "limit_pool",
    "open_instance",
    "prepare_instance",
    "process_tags",
    "remote_job_origin",
]

PROCESS_TAG = "assetclass/process"
POOL = "market_data"

# The start time of a process is derived from the clock, and moves when that is adjusted.
_CLOCK_SECONDS = 5.0

_STORAGE_STATEMENT_MILLISECONDS = 60_000
_STORAGE_RECYCLE_SECONDS = 600
_STORAGE_MORE_CONNECTIONS = 10

_IN_A_PROCESS = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


@contextmanager
def open_instance(settings: Settings, data_url: str) -> Iterator[dg.DagsterInstance]:
    """The instance that the UI shows, for use in this process; it is prepared first.

    The environment of the process carries `dagster_home_environment` meanwhile: Dagster reads it
    again for each step that it starts in a process of its own.
    """
    prepare_instance(settings, data_url)
    with (
        _environment(dagster_home_environment(settings, data_url)),
        dg.DagsterInstance.get() as instance,
    ):
        keep_connections(instance)
        limit_pool(instance)
        yield instance


def limit_pool(instance: dg.DagsterInstance) -> None:
    """Let Dagster run one writer at a time.

    The default limit of dagster.yaml holds for pools that the storage has seen: without this the
    first two runs of a new instance would run side by side, and the second be refused.
    """
    instance.event_log_storage.set_concurrency_slots(POOL, 1)


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Let this process keep its connections to Dagster's storage.

    Outside the webserver Dagster logs in anew for each event, and a run over 335 months writes
    some 1,400: two thirds of its time were spent logging in.
    """
    instance.optimize_for_webserver(
        statement_timeout=_STORAGE_STATEMENT_MILLISECONDS,
        pool_recycle=_STORAGE_RECYCLE_SECONDS,
        max_overflow=_STORAGE_MORE_CONNECTIONS,
    )


def remote_job_origin(job_name: str) -> RemoteJobOrigin:
    """What a run created outside the UI needs so that the UI knows its job, and can re-execute it.

    Only the location's name is recorded: `up` serves that location from an address that changes.
    """
    return RemoteJobOrigin(
        RemoteRepositoryOrigin(
            RegisteredCodeLocationOrigin(LOCATION_NAME), SINGLETON_REPOSITORY_NAME
        ),
        job_name,
    )


def process_tags(run_id: str) -> dict[str, str]:
    """Tags that say that this process executes the run, for `end_dead_runs`.

    The run id is part of it because a re-execution inherits the tags of its parent.
    """
    process = psutil.Process()
    created = f"{process.create_time():.2f}"
    return {PROCESS_TAG: f"{run_id}:{this_host()}:{process.pid}:{created}"}


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process on this machine is gone; returns their run ids.

    Without this they would hold the pool `market_data`, and every later run would wait for ever.
    A run in a process that lives, on another machine or of another launcher is left alone.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_IN_A_PROCESS)):
        if not _is_dead(run.run_id, run.tags):
            continue
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)
        else:
            instance.report_run_failed(
                run, "The process of this run ended before the run did. Re-execute resumes it."
            )
        ended.append(run.run_id)
    return ended


def _is_dead(run_id: str, tags: Mapping[str, str]) -> bool:
    executed, host, pid, created = (tags.get(PROCESS_TAG, "") + ":::").split(":")[:4]
    if executed == run_id:
        return host == this_host() and not _process_lives(int(pid), float(created))
    address = json.loads(tags.get(GRPC_INFO_TAG, "{}")).get("socket")
    if not address:
        return False
    return is_code_server_directory(Path(address).parent) and not Path(address).exists()


def _process_lives(pid: int, created: float) -> bool:
    try:
        return bool(abs(psutil.Process(pid).create_time() - created) < _CLOCK_SECONDS)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
