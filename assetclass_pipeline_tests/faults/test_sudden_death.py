"""Power cuts: the correcting process or the server dies in the middle, and nothing is lost.

A trigger of the test's own counts every write of every row, so "exactly once" is seen from outside.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
import pytest

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.errors import CorrectionFailedError, OperationInProgressError
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline.model.options import parse_options
from assetclass_pipeline_tests.engine.runs import operation_of, proof_of
from assetclass_pipeline_tests.market import Market, open_market

RECORDS = 20_000
WAIT = 30.0
SETTINGS = {
    "heartbeat_interval": 0.5,
    "heartbeat_stale_after": 2,
    "retry": {"tries": 3, "first_wait": 0.05, "longest_wait": 0.2},
}


def count_writes(market: Market) -> None:
    """Every version of a row that anybody commits stands in `writes`."""
    market.execute("DROP TABLE IF EXISTS writes")
    market.execute("CREATE TABLE writes (id bigint, asset_class text)")
    market.execute(
        "CREATE OR REPLACE FUNCTION count_write() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO writes VALUES (new.id, new.asset_class); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER count_writes AFTER UPDATE ON {} "
        "FOR EACH ROW EXECUTE FUNCTION count_write()",
        market.market_identifier,
    )


def start(market: Market, correction_id: str, **options: object) -> "subprocess.Popen[bytes]":
    """The correction in a process of its own."""
    arguments = [market.dsn, correction_id, json.dumps(options), json.dumps(SETTINGS)]
    return subprocess.Popen(
        [sys.executable, "-m", "assetclass_pipeline_tests.faults.run_correction", *arguments],
        cwd=Path(__file__).parents[2],
    )


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + WAIT
    while not happened():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finish(market: Market, correction_id: str, **options: object) -> Operation:
    """Run it again to its end, as soon as the dead one is given up."""
    request = CorrectionRequest(correction_id, parse_options(options), requested_by="test")
    deadline = time.monotonic() + WAIT
    while True:
        try:
            return correct(market.dsn, market.settings, request)
        except OperationInProgressError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def assert_each_corrected_once(market: Market, correction_id: str, records: int) -> None:
    operation, proof = operation_of(market, correction_id), proof_of(market, correction_id)
    assert operation.status is Status.SUCCEEDED
    assert operation.skipped_by_reason == {}
    assert (proof.planned, proof.corrected, proof.open) == (records, records, 0)
    assert proof.unaccounted == 0
    assert sum(change.records for change in operation.changes) == records
    written = market.rows("SELECT count(*), count(DISTINCT id) FROM writes")
    assert written == [(records, records)]
    wrong = market.value(
        "SELECT count(*) FROM {} m JOIN {} s ON s.ticker = m.symbol "
        "WHERE m.asset_class IS DISTINCT FROM s.asset_class",
        market.market_identifier,
        market.symbols_identifier,
    )
    assert wrong == 0


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    """20,000 rows, every one to be corrected."""
    with open_market(database_url) as market:
        count_writes(market.fill(RECORDS))
        yield market


def batches(market: Market) -> int:
    return int(market.value("SELECT count(*) FROM assetclass.operation_batch"))


def has_plan(market: Market) -> bool:
    return bool(market.value("SELECT count(*) FROM assetclass.operation WHERE plan IS NOT NULL"))


def give_up_the_dead(market: Market) -> None:
    """Wait until the dead process has been silent for long enough."""
    deadline = time.monotonic() + WAIT
    while market.value(
        "SELECT count(*) FROM assetclass.operation_heartbeat "
        "WHERE beat_at > clock_timestamp() - interval '2 s'"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("create_backup", [True, False])
def test_killed_again_and_again_corrects_each_row_exactly_once(
    market: Market, create_backup: bool
) -> None:
    correction_id = str(uuid4())
    options = {"batch_size": 100, "workers": 2, "create_backup": create_backup}
    moments: list[Callable[[int], bool]] = [
        lambda _: has_plan(market),
        lambda before: batches(market) > before,
        lambda before: batches(market) >= before + 30,
        lambda before: batches(market) >= before + 60,
    ]
    for reached in moments:
        before = batches(market)
        process = start(market, correction_id, **options)
        try:
            wait_until(lambda: reached(before), process)  # noqa: B023 - used at once
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        # Rows and ledger in one snapshot: a batch is done and in the ledger, or not done at all.
        written, committed = market.rows(
            "SELECT (SELECT count(*) FROM writes), "
            "(SELECT coalesce(sum(records_corrected), 0) FROM assetclass.operation_batch)"
        )[0]
        assert written == committed < RECORDS
        give_up_the_dead(market)
    assert batches(market) >= 90

    finish(market, correction_id, **options)

    assert_each_corrected_once(market, correction_id, RECORDS)


def test_lost_connections_are_opened_again_and_no_row_is_written_twice(market: Market) -> None:
    """Every session of ours ends, as in a failover or by an administrator; the run goes on."""
    ended: list[Phase] = []

    def end_sessions(operation: Operation) -> None:
        if operation.phase not in {*ended, Phase.DONE}:
            ended.append(operation.phase)
            market.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'assetclass: %' AND datname = current_database()"
            )

    request = CorrectionRequest(str(uuid4()), parse_options({"batch_size": 100}))
    correct(market.dsn, market.settings, request, observe=end_sessions)

    assert set(ended) >= {Phase.PLANNING, Phase.CORRECTING, Phase.VERIFYING}
    assert_each_corrected_once(market, request.correction_id, RECORDS)


@pytest.mark.parametrize("create_backup", [True, False])
def test_server_dies_in_mid_correction(tmp_path: Path, create_backup: bool) -> None:
    """As by `pg_ctl stop -m immediate`: no checkpoint, recovery at the next start.

    An unlogged plan does not survive that: its operation says so, and a new one does the rest.
    """
    correction_id = str(uuid4())
    options = {"batch_size": 50, "workers": 2, "create_backup": create_backup}
    server = EmbeddedServer(tmp_path / "postgres", settings={"shared_buffers": "16MB"})
    with server:
        with open_market(server.url()) as market:
            count_writes(market.fill(RECORDS))
            process = start(market, correction_id, **options)
            try:
                wait_until(lambda: batches(market) >= 20, process)
                kill_server(tmp_path / "postgres")
                # It tells that it stopped, or goes on after its retries: never a silent success.
                assert process.wait(timeout=60) != 0
            finally:
                process.kill()
                process.wait()
            market.connection.close()
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            restarted = replace(market, connection=connection, dsn=server.url())
            if create_backup:
                finish(restarted, correction_id, **options)
                assert_each_corrected_once(restarted, correction_id, RECORDS)
                return
            with pytest.raises(CorrectionFailedError, match="was lost: its table was dropped or"):
                finish(restarted, correction_id, **options)
            done = operation_of(restarted, correction_id).records_corrected
            assert 0 < done < RECORDS
            rest = finish(restarted, str(uuid4()), **options)
            assert rest.records_corrected == RECORDS - done
            assert restarted.rows("SELECT count(*), count(DISTINCT id) FROM writes") == [
                (RECORDS, RECORDS)
            ]


def kill_server(directory: Path) -> None:
    """End it at once, and wait until it is gone."""
    pid = int(next(directory.rglob("postmaster.pid")).read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)
    deadline = time.monotonic() + WAIT
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
