"""Workers and their connections."""

import os
import threading
import time
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.tempo import Tempo
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.pacing import SMALLEST_FLOOR
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline.settings import SessionLimits
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import operation_of, options_of, plan_now, request_of
from assetclass_pipeline_tests.engine.test_control import WAIT, Running, slow
from assetclass_pipeline_tests.market import Market

# Its own, the heartbeat's, the throttle's, and one that writes.
CONNECTIONS = 4


def with_so_many_connections(market: Market, most: int) -> str:
    """The DSN of a role that may do all that is needed, on so many connections."""
    name = f"narrow_{os.getpid()}"
    role = sql.Identifier(name)
    market.execute("DROP ROLE IF EXISTS {}", role)
    market.execute("CREATE ROLE {} LOGIN PASSWORD 'x' CONNECTION LIMIT {}", role, sql.Literal(most))
    market.execute("GRANT pg_read_all_data, pg_write_all_data, pg_monitor TO {}", role)
    market.execute("GRANT ALL ON SCHEMA public, assetclass TO {}", role)
    return make_conninfo(market.dsn, user=name, password="x")


def forget_role(market: Market) -> None:
    role = sql.Identifier(f"narrow_{os.getpid()}")
    market.execute("REASSIGN OWNED BY {} TO CURRENT_USER", role)
    market.execute("DROP OWNED BY {}", role)
    market.execute("DROP ROLE {}", role)


def test_a_worker_without_a_connection_holds_up_nobody(market: Market) -> None:
    """Guard: no free connection is not a server that is away, for which everybody waits."""
    request = request_of(batch_size=100, workers=3)
    plan_now(slow(market), request)
    dsn = with_so_many_connections(market, CONNECTIONS)
    try:
        operation = correct(dsn, market.settings, request)
    finally:
        forget_role(market)
    assert operation.status is Status.SUCCEEDED
    ended = operation_of(market, request.correction_id)
    assert "no_free_connection" in {event.event for event in ended.events}
    assert "server" not in ended.waits


def test_whoever_has_no_connection_at_all_waits_for_one(market: Market) -> None:
    """Guard: patience; the status says what it waits for."""
    request = request_of(batch_size=500, workers=1)
    plan_now(slow(market), request)
    dsn = with_so_many_connections(market, CONNECTIONS)
    try:
        with psycopg.connect(dsn) as other:
            correction = Running(replace(market, dsn=dsn), request)
            thread = threading.Thread(target=correction.run)
            thread.start()
            deadline = time.monotonic() + WAIT
            while "for a connection" not in " ".join(
                operation_of(market, request.correction_id).throttle
            ):
                assert time.monotonic() < deadline, correction.ended
                time.sleep(0.05)
            other.close()
            thread.join(WAIT)
    finally:
        forget_role(market)
    assert isinstance(correction.ended[0], Operation), correction.ended
    assert correction.ended[0].status is Status.SUCCEEDED


def slow_down_each_row(market: Market) -> None:
    """By 5 ms, so that 200 rows take longer than a second."""
    market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.005); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION rest()",
        market.market_identifier,
    )


def test_a_batch_that_takes_too_long_is_halved_and_later_ones_are_smaller(
    make_market: MakeMarket,
) -> None:
    """Guard: as it is, the server would end it each time that it is tried."""
    records, size = 600, 300
    market = make_market(session=SessionLimits(statement_timeout=1)).fill(records)
    request = request_of(batch_size=size, workers=1)
    plan_now(market, request)
    slow_down_each_row(market)
    operation = correct(market.dsn, market.settings, request)
    assert (operation.status, operation.records_corrected) == (Status.SUCCEEDED, records)
    batches = market.rows(
        "SELECT first_seq, last_seq - first_seq + 1 FROM assetclass.operation_batch WHERE pass = 0"
    )
    assert max(rows for _, rows in batches) <= size // 2
    assert max(rows for first, rows in batches if first > size) <= SMALLEST_FLOOR


def test_moved_rows_that_take_too_long_are_written_in_smaller_parts(
    make_market: MakeMarket,
) -> None:
    """Guard: the sweep halves what the server ends, too."""
    records = 300
    market = make_market(session=SessionLimits(statement_timeout=1)).fill(records)
    request = request_of(batch_size=records, workers=1)
    plan_now(market, request)
    market.execute("UPDATE {} SET close = 2", market.market_identifier)
    slow_down_each_row(market)
    operation = correct(market.dsn, market.settings, request)
    assert (operation.records_corrected, operation.skipped_by_reason) == (records, {})


def test_the_last_part_of_a_halved_batch_is_not_taken_for_a_whole_one() -> None:
    """Guard: a row that was refused alone costs nothing; batches must not grow by that."""
    tempo = Tempo(options_of(batch_size=None), 200_000, Tuning)
    size = tempo.pacing.batch_size
    tempo.took(1, 0.001, of=size)
    assert tempo.pacing.batch_size == size
    tempo.took(size, 0.001, of=size)
    assert tempo.pacing.batch_size > size


@pytest.mark.parametrize("parked", [True, False])
def test_the_first_batch_is_no_larger_than_its_rehearsal_allows(
    market: Market, *, parked: bool
) -> None:
    """Guard: where a row costs 5 ms, 500 of them would be locked for 2.5 s."""
    slow_down_each_row(market.fill(300))
    request = request_of(batch_size=None, workers=1)
    if parked:
        # Another process reads what a row cost.
        plan_now(market, request)
    operation = correct(market.dsn, market.settings, request)
    assert operation.records_corrected == 300
    largest = "SELECT max(last_seq - first_seq + 1) FROM assetclass.operation_batch"
    assert market.value(largest) == SMALLEST_FLOOR
