"""Workers and their connections."""

import os
import threading
import time
from dataclasses import replace

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline_tests.engine.runs import operation_of, plan_now, request_of
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
