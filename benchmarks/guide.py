"""The operations guide's time limits, over HTTP: `assetclass up` at work on a large table.

Belongs here: one measure of each call that the guide gives a limit for. Does not: latencies under
load (api.py), and ratios to a bare UPDATE (correction.py, undo.py).
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from assetclass_pipeline.client import AssetClassClient
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.token import Role
from benchmarks.bench import Bench
from benchmarks.measures import Findings, Measure, seconds
from benchmarks.services import environment, free_port, make_token, running

ROWS = 10_000_000
LIMITS = {
    "analyze": 30.0,
    "preview": 60.0,
    "execute": 7200.0,
    "validate": 300.0,
    "status": 5.0,
    "rollback": 1800.0,
    "health": 2.0,
    "metrics": 5.0,
}
"""Seconds, as the guide gives them."""
_STORAGE = "guide_dagster"
_LONGEST_START = 180.0
# Of a fresh `up`, whose parts are not all there yet.
_BETWEEN_LOOKS = 1.0
_READ_ALL = "SELECT count(*), sum(close) FROM market_data"


def measure(bench: Bench) -> Findings:
    """Seconds of each call, of `execute` and `rollback` to the end of the operation."""
    rows = bench.size(ROWS)
    with bench.databases.clone(bench.template(rows)) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute(_READ_ALL)
            read = _seconds(lambda: connection.execute(_READ_ALL))
        bench.progress(f"{rows:,} rows are read in {seconds(read)}")
        with _up(bench, dsn) as client:
            measures = [*_measures(bench, client, rows, read)]
    bench.databases.drop(_STORAGE)
    return Findings(measures)


def _measures(bench: Bench, client: AssetClassClient, rows: int, read: float) -> Iterator[Measure]:
    ended: dict[str, Operation] = {}

    def follow(call: str, correction_id: str) -> None:
        ended[call] = client.follow(correction_id)

    def roll_back() -> None:
        follow("rollback", client.rollback(ended["execute"].correction_id))

    calls: dict[str, Callable[[], object]] = {
        "analyze": client.analyze,
        "preview": client.preview,
        "execute": lambda: follow("execute", client.execute()),
        "validate": client.validate,
        "status": client.status,
        "health": client.health,
        "metrics": client.metrics,
        "rollback": roll_back,
    }
    for call, ask in calls.items():
        taken = _seconds(ask)
        operation = ended.get(call)
        if operation is not None and operation.status is not Status.SUCCEEDED:
            raise RuntimeError(f"The {call} is {operation.status}: {operation.error}")
        written = "" if operation is None else f", {operation.records_corrected:,} of them written"
        bench.progress(f"{call}: {seconds(taken)}{written}")
        yield Measure(
            f"{call} over HTTP, {rows:,} rows{written}, against one read of the table",
            seconds(taken),
            seconds(read),
            taken / read,
            taken,
            LIMITS[call],
            unit=" s",
        )


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@contextmanager
def _up(bench: Bench, dsn: str) -> Iterator[AssetClassClient]:
    """A caller of `assetclass up`, once all of its parts are well."""
    bench.databases.create(_STORAGE)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="assetclass-bench-home-") as home:
        ours = {"ASSETCLASS_WEBSERVER_PORT": str(free_port()), "ASSETCLASS_API_PORT": str(port)}
        command = [str(Path(sys.executable).with_name("assetclass")), "up"]
        with (
            running(command, environment(dsn, _STORAGE, home, **ours)) as process,
            AssetClassClient(f"http://127.0.0.1:{port}", make_token(dsn, Role.ADMIN)) as client,
        ):
            _await(process, client)
            yield client


def _await(process: subprocess.Popen[bytes], client: AssetClassClient) -> None:
    deadline = time.monotonic() + _LONGEST_START
    failing = ["everything"]
    while process.poll() is None and time.monotonic() < deadline:
        try:
            health = client.health()
        except AssetClassError as error:
            failing = [str(error)]
        else:
            if health.is_healthy:
                return
            failing = list(health.failing)
        time.sleep(_BETWEEN_LOOKS)
    raise RuntimeError(f"`assetclass up` is not well: {', '.join(failing)}")
