"""How long a request waits, for the health probe and for the alert alike."""

from collections.abc import Iterator

import pytest

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.control import ask_to_cancel
from assetclass_pipeline.engine.requests import (
    note_run,
    request_correction,
    resume,
    waiting_request,
)
from assetclass_pipeline.engine.silence import silence, silence_limits
from assetclass_pipeline.monitoring.watching import active_operation
from assetclass_pipeline_tests.engine.runs import request_of
from assetclass_pipeline_tests.market import Market, open_market


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


def ask(market: Market) -> str:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return request_correction(connection, market.settings, request_of()).correction_id


def launch(market: Market) -> None:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        waiting = waiting_request(connection, market.settings)
        assert waiting is not None
        note_run(connection, market.settings, waiting, "run-1")


def ask_again(market: Market, correction_id: str) -> None:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        ask_to_cancel(connection, market.settings, correction_id, by="test")
        resume(connection, market.settings, correction_id, by="test")


def seconds(market: Market) -> tuple[float, float]:
    """As the alert and as the health probe see it."""
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        facts = active_operation(cursor, market.settings)
        assert facts is not None
        statement = query(
            "health",
            "active_operation",
            silence=silence(),
            is_abandoned=query("operation", "is_abandoned", silence=silence()),
        )
        cursor.execute(statement, silence_limits(market.settings))
        names = [column.name for column in cursor.description or ()]
        row = dict(zip(names, cursor.fetchone() or (), strict=True))
    return round(facts.requested_seconds, -1), round(row["waited"], -1)


def let_pass(market: Market) -> None:
    """A hundred seconds."""
    market.execute("UPDATE assetclass.operation SET requested_at = requested_at - interval '100 s'")
    market.execute(
        "UPDATE assetclass.operation_request SET requested_at = requested_at - interval '100 s'"
    )


def test_what_nobody_launches_waits(market: Market) -> None:
    ask(market)
    let_pass(market)
    assert seconds(market) == (100, 100)


def test_what_is_launched_waits_for_nobody(market: Market) -> None:
    ask(market)
    let_pass(market)
    launch(market)
    assert seconds(market) == (0, 0)


def test_what_is_asked_for_again_waits_since_then(market: Market) -> None:
    correction_id = ask(market)
    let_pass(market)
    launch(market)
    ask_again(market, correction_id)
    assert seconds(market) == (0, 0)
    let_pass(market)
    assert seconds(market) == (100, 100)
