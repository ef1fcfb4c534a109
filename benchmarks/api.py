"""What callers of the API wait for while a correction runs, beside a bare server in its place.

Belongs here: latencies over HTTP, many callers at once, `analyze` against the engine. Does not: the
asking (callers.py).
"""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

from assetclass_pipeline.api.app import BASE_PATH
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.token import Role
from benchmarks.bench import Bench
from benchmarks.callers import Answer, Asking, callers
from benchmarks.concurrency import percentile
from benchmarks.contest import PhaseClock, correct_all
from benchmarks.databases import settings_for
from benchmarks.health import dagster_at_work
from benchmarks.measures import Findings, Measure, limited_ratio, median_seconds, milliseconds
from benchmarks.services import environment, free_port, make_token, running

ROWS = 3_000_000
MOST_OF_ENGINE = 1.2
LIMITS = {"status": 50.0, "health": 50.0, "metrics": 100.0}
"""Milliseconds, p99."""
MANY = 100
# Metrics are asked for far more often than Prometheus does.
_PATTERN = ("status", "health", "status", "health", "metrics")
_PATHS = tuple(f"{BASE_PATH}/{call}" for call in _PATTERN)
_STORAGE = "api_dagster"
_WARM_UP = 5.0
_TIMES = 5
_LONGEST_START = 60.0
_READ_ALL = "SELECT count(*), sum(close) FROM market_data"


def measure(bench: Bench) -> Findings:
    """Latencies and failures during corrections, then `analyze`."""
    return Findings([*_during_corrections(bench), *_analyze(bench)])


def _during_corrections(bench: Bench) -> Iterator[Measure]:
    rows = bench.size(ROWS)
    bare = _beside_a_correction(bench, rows, is_bare=True)
    few = _beside_a_correction(bench, rows)
    many = _beside_a_correction(bench, rows, connections=MANY)
    base = percentile(_ascending(bare, _PATTERN), 99)
    for call, limit in LIMITS.items():
        found = percentile(_ascending(few, [call]), 99)
        yield Measure(
            f"{call}, p99 at 200 requests/s beside a correction, against a bare server",
            milliseconds(found),
            milliseconds(base),
            found / base,
            found * 1000,
            limit,
            unit=" ms",
        )
    crowd = percentile(_ascending(many, _PATTERN), 99)
    yield Measure(
        f"{MANY} callers beside a correction, p99, against a bare server",
        milliseconds(crowd),
        milliseconds(base),
        crowd / base,
    )
    failed = [answer.error for answer in [*few, *many] if answer.error]
    for error in failed[:3]:
        bench.progress(f"Failed: {error}")
    yield Measure(
        f"failed requests, {len(few) + len(many):,} in all",
        f"{len(failed)}",
        judged=len(failed),
        limit=0,
    )


def _ascending(answers: Sequence[Answer], calls: Sequence[str]) -> list[float]:
    return sorted(answer.latency for answer in answers if answer.path.rpartition("/")[2] in calls)


def _beside_a_correction(
    bench: Bench, rows: int, *, connections: int = 20, is_bare: bool = False
) -> list[Answer]:
    with bench.databases.clone(bench.template(rows)) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute(_READ_ALL)
        with dagster_at_work(dsn, _STORAGE) as settings:
            arguments = (
                ["benchmarks.bare_server"] if is_bare else ["assetclass_pipeline.api", "--port"]
            )
            with _serving(arguments, dsn, str(settings.home)) as port:
                asking = Asking(port, _PATHS, make_token(dsn, Role.VIEWER), connections=connections)
                with callers(asking) as asked:
                    # Its first answers wait for logins, to the database and to Dagster's.
                    time.sleep(_WARM_UP)
                    begin = time.monotonic()
                    correct_all(dsn, CorrectionOptions(), PhaseClock())
                    answers = [answer for answer in asked.stop() if answer.due >= begin]
        bench.databases.drop(_STORAGE)
    p99 = milliseconds(percentile(_ascending(answers, _PATTERN), 99))
    who = "a bare server" if is_bare else "the API"
    bench.progress(
        f"{rows:,} rows, {len(answers):,} requests of {connections} callers to {who}: p99 {p99}"
    )
    return answers


def _analyze(bench: Bench) -> Iterator[Measure]:
    rows = bench.size(ROWS)
    with (
        bench.databases.clone(bench.template(rows)) as dsn,
        tempfile.TemporaryDirectory(prefix="assetclass-bench-home-") as home,
    ):
        settings = settings_for(dsn)
        with connect(dsn, settings, purpose="benchmark") as connection:
            tables = inspect_market_tables(connection, settings, for_writing=False)
            of_engine = median_seconds(lambda: analyse(connection, tables, settings), _TIMES)
        with _serving(["assetclass_pipeline.api", "--port"], dsn, home) as port:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{BASE_PATH}/analyze",
                headers={"Authorization": f"Bearer {make_token(dsn, Role.VIEWER)}"},
            )
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            of_api = median_seconds(lambda: opener.open(request).read(), _TIMES)
    what = f"analyze over HTTP, {rows:,} rows, against the engine"
    yield limited_ratio(what, of_api, of_engine, MOST_OF_ENGINE, milliseconds)


@contextmanager
def _serving(arguments: Sequence[str], dsn: str, home: str) -> Iterator[int]:
    """Port of a server in a process of its own, which listens when this returns."""
    port = free_port()
    command = [sys.executable, "-m", *arguments, str(port)]
    with running(command, environment(dsn, _STORAGE, home)) as process:
        _await(process, port)
        yield port


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _LONGEST_START
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"The server did not begin to listen within {_LONGEST_START:g} seconds.")
