"""The server crashes and forgets batches that it had confirmed: their commits do not wait for it.

The correction outlives the crash: its own idea of what is done is wrong then, the ledger's is not.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.operations import get_operation, proof
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline_tests.engine.runs import correct_now, request_of
from assetclass_pipeline_tests.faults.scene import PATIENCE
from assetclass_pipeline_tests.faults.victim import Victim
from assetclass_pipeline_tests.market import Market, open_market

# So many that batches are still written when the server is down at last.
RECORDS = 12_000
CRASHES = 8
# What is not flushed by a commit that waits is still in memory when the server dies.
FORGETFUL = {
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "wal_buffers": "16MB",
    "wal_writer_delay": "10s",
    "wal_writer_flush_after": "1GB",
}


@pytest.fixture
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with Victim(tmp_path_factory.mktemp("forgetful"), FORGETFUL) as victim:
        yield victim


def crash_in_mid_run(victim: Victim, market: Market, **options: Any) -> Operation | Exception:
    """How a correction ended whose server died, and came back, after a hundred batches."""
    # Fewer heartbeats: each of them waits for the disk, and takes the batches before it along.
    quiet = market.settings.model_copy(
        update={"heartbeat_interval": 5, "heartbeat_stale_after": 60}
    )
    asked = request_of(workers=2, **options)
    ended: list[Operation | Exception] = []

    def run() -> None:
        try:
            ended.append(correct(market.dsn, quiet, asked))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while market.value("SELECT count(*) FROM assetclass.operation_batch") < 100:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    victim.stop_immediately()
    victim.start()
    thread.join(2 * PATIENCE)
    assert not thread.is_alive()
    return ended[0]


def missing(victim: Victim) -> int:
    with psycopg.connect(victim.url()) as connection:
        row = connection.execute("SELECT count(*) FROM market_data WHERE asset_class IS NULL")
        return int((row.fetchone() or (0,))[0])


def test_they_are_done_again_by_the_same_run(forgetful: Victim) -> None:
    """A commit that waits may take the batches along just before the crash; then once more."""
    for _ in range(CRASHES):
        with open_market(forgetful.url()) as market:
            ended = crash_in_mid_run(forgetful, market.fill(RECORDS))
            assert isinstance(ended, Operation), ended
            assert (ended.status, ended.records_corrected) == (Status.SUCCEEDED, RECORDS)
            with connect(forgetful.url(), market.settings, purpose="test") as connection:
                sums = proof(connection, market.settings, ended.correction_id)
            assert (sums.open, sums.unaccounted) == (0, 0)
            assert missing(forgetful) == 0
        if "batches_were_lost" in {event.event for event in ended.events}:
            return
    pytest.fail("no crash lost a batch")


def test_an_unlogged_plan_is_empty_then_and_the_run_says_so(forgetful: Victim) -> None:
    """Instead of skipping the rest of an empty plan and planning all rows once more."""
    with open_market(forgetful.url()) as market:
        ended = crash_in_mid_run(forgetful, market.fill(RECORDS), create_backup=False)
        assert isinstance(ended, CorrectionFailedError), ended
        assert "was lost" in str(ended)
        with connect(forgetful.url(), market.settings, purpose="test") as connection:
            (name,) = connection.execute(
                "SELECT correction_id::text FROM assetclass.operation"
            ).fetchone() or ("",)
            failed = get_operation(connection, market.settings, name)
        assert failed.status is Status.FAILED
        assert (failed.records_planned, failed.records_skipped) == (RECORDS, 0)
        rest = correct_now(market, create_backup=False)
        assert failed.records_corrected + rest.records_corrected == RECORDS
        assert missing(forgetful) == 0
