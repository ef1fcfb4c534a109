"""Running the engine in tests: short calls with a market's own settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.engine.correction import CorrectionRequest, correct, plan
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.operations import get_operation, proof
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.operation import Operation, Proof
from assetclass_pipeline.model.options import CorrectionOptions, parse_options
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.rollback import parse_rollback_options
from assetclass_pipeline_tests.market import Market


def options_of(**values: Any) -> CorrectionOptions:
    """Options as a caller writes them, small batches unless told."""
    return parse_options({"batch_size": 10, **values})


def request_of(
    correction_id: str | None = None, *, scope: TimeRange = EVERYTHING, **values: Any
) -> CorrectionRequest:
    """A request for a correction, a new one unless `correction_id` names one."""
    return CorrectionRequest(
        correction_id or str(uuid4()), options_of(**values), scope, requested_by="test"
    )


def correct_now(
    market: Market, request: CorrectionRequest | None = None, **values: Any
) -> Operation:
    """One correction to its end."""
    return correct(market.dsn, market.settings, request or request_of(**values))


def undo_request_of(correction_id: str, **values: Any) -> RollbackRequest:
    """A request for a new rollback, in small batches unless told."""
    options = parse_rollback_options({"batch_size": 10, **values})
    return RollbackRequest(str(uuid4()), correction_id, options, requested_by="test")


def undo_now(market: Market, undone: Operation | str | RollbackRequest, **values: Any) -> Operation:
    """One rollback to its end."""
    if isinstance(undone, Operation):
        undone = undone.correction_id
    request = undo_request_of(undone, **values) if isinstance(undone, str) else undone
    return roll_back(market.dsn, market.settings, request)


def plan_now(market: Market, request: CorrectionRequest, *, park: bool = True) -> Operation:
    """The plan alone."""
    return plan(market.dsn, market.settings, request, park=park)


def keep_alive(market: Market) -> None:
    """As if the process of an operation went on, however long a busy machine takes to look."""
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() + interval '1 hour'")


def tables_of(market: Market) -> MarketTables:
    """The market tables as the engine sees them."""
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return inspect_market_tables(connection, market.settings, for_writing=True)


def report_of(market: Market, **arguments: Any) -> IntegrityReport:
    """The integrity report now."""
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return analyse(connection, tables_of(market), market.settings, **arguments)


def operation_of(market: Market, correction_id: str) -> Operation:
    """One operation as it stands."""
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return get_operation(connection, market.settings, correction_id)


def proof_of(market: Market, correction_id: str) -> Proof:
    """The sums of its ledger."""
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return proof(connection, market.settings, correction_id)


def holders_from_now_on(monkeypatch: pytest.MonkeyPatch) -> list[Holder]:
    """Whoever holds an operation from now on, so that a test can let their time run out."""
    holders: list[Holder] = []
    enter = Holder.__enter__

    def entered(holder: Holder) -> Holder:
        holders.append(holder)
        return enter(holder)

    monkeypatch.setattr(Holder, "__enter__", entered)
    return holders


@contextmanager
def broken_after(market: Market, batches: int) -> Iterator[None]:
    """Whatever operation runs breaks off after so many batches, and keeps what it did."""
    market.execute(
        "CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF (SELECT count(*) FROM assetclass.operation_batch JOIN assetclass.operation o"
        "     USING (correction_id) WHERE o.status = 'running') >= TG_ARGV[0]::integer"
        " THEN RAISE EXCEPTION USING ERRCODE = 'XX000', MESSAGE = 'broken off'; END IF;"
        " RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER break_off BEFORE UPDATE ON {} FOR EACH STATEMENT"
        " EXECUTE FUNCTION break_off({})",
        market.market_identifier,
        sql.Literal(batches),
    )
    try:
        yield
    finally:
        market.execute("DROP TRIGGER break_off ON {}", market.market_identifier)
        market.execute("DROP FUNCTION break_off")
