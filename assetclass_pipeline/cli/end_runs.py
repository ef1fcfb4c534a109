"""`python -m assetclass_pipeline.cli.end_runs SOCKET SECONDS`: ends the runs of one code server.

Belongs here: what `up` does with runs in progress before it stops the code server, which would
leave them behind. In a process of its own for the same reason as the preflight.
"""

import os
import sys
import time
from pathlib import Path

import dagster as dg
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import deserialize_value

from assetclass_pipeline.cli.marked_processes import (
    MARK_VARIABLE,
    end_processes,
    is_run_worker,
    marked_processes,
)
from assetclass_pipeline.defs.instance import open_instance
from assetclass_pipeline.settings import load_settings

_POLL_SECONDS = 0.2


def main() -> int:
    """Terminate, wait, then kill; afterwards every run is in a final state. Returns 0."""
    socket, patience = Path(sys.argv[1]), float(sys.argv[2])
    settings = load_settings()
    if settings.database_url is None:
        raise SystemExit("ASSETCLASS_DATABASE_URL must be set; `assetclass up` does that.")
    with open_instance(settings, settings.database_url.get_secret_value()) as instance:
        run_ids = _runs_of(socket)
        for run_id in run_ids:
            instance.run_coordinator.cancel_run(run_id)
        deadline = time.monotonic() + patience
        while _unfinished(instance, run_ids) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        workers = [p for p in marked_processes(os.environ[MARK_VARIABLE]) if is_run_worker(p)]
        # A run is final a moment before its process has ended.
        end_processes(workers, patience=3)
        for run in _unfinished(instance, run_ids):
            instance.report_run_canceled(
                run, f"The run did not stop within {patience:.0f} s; its process was ended."
            )
    return 0


def _runs_of(socket: Path) -> list[str]:
    answer = deserialize_value(
        DagsterGrpcClient(socket=str(socket)).get_current_runs(), GetCurrentRunsResult
    )
    return list(answer.current_runs)


def _unfinished(instance: dg.DagsterInstance, run_ids: list[str]) -> list[dg.DagsterRun]:
    runs = [instance.get_run_by_id(run_id) for run_id in run_ids]
    return [run for run in runs if run is not None and not run.is_finished]


if __name__ == "__main__":
    sys.exit(main())
