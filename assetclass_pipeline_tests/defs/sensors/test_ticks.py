"""A tick's connection: what a watcher does when the database is there and of no use."""

import dagster as dg
import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import SecretStr

from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors import ticks
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.faults.proxy import Proxy
from assetclass_pipeline_tests.market import open_market


def ask(dsn: str, answer: object = None) -> str:
    """What a tick says that asks nothing, or this."""
    database = MarketDatabase(load_settings().model_copy(update={"database_url": SecretStr(dsn)}))
    said = ticks.ask(database, "a sensor", answer or (lambda _: dg.SkipReason("asked")))  # type: ignore[arg-type]
    assert isinstance(said, dg.SkipReason)
    return said.skip_message or ""


@pytest.mark.timeout(30)
def test_a_server_that_never_answers_holds_no_thread_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticks, "_LONGEST", 0.5)
    with open_market(database_url), Proxy(lambda: database_url) as proxy:

        def answer(connection: Connection[TupleRow]) -> dg.SkipReason:
            proxy.links[0].stall()
            connection.execute("SELECT 1")
            return dg.SkipReason("asked")

        assert "connection to PostgreSQL was lost" in ask(proxy.url(), answer)


def test_an_older_schema_is_said_and_fails_no_tick(database_url: str) -> None:
    assert "assetclass db upgrade" in ask(database_url)


def test_other_refusals_fail_the_tick(database_url: str) -> None:
    def answer(connection: Connection[TupleRow]) -> dg.SkipReason:
        connection.execute("SELECT FROM nothing")
        return dg.SkipReason("asked")

    with open_market(database_url), pytest.raises(psycopg.errors.UndefinedTable):
        ask(database_url, answer)
