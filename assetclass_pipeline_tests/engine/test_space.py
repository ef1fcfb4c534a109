"""New versions stay on their page where no index forbids it, and cost no index entries."""

from typing import LiteralString

import pytest
from psycopg import sql

from assetclass_pipeline.engine.plan import PlanState
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline_tests.engine.runs import correct_now
from assetclass_pipeline_tests.market import Market

RECORDS = 20_000
SIZE = "SELECT pg_indexes_size('market_data')"
BACKWARDS: LiteralString = (
    "SELECT count(*) FILTER (WHERE source_address < before) FROM ("
    "SELECT *, lag(source_address) OVER (ORDER BY seq) AS before FROM {}) numbered"
)


def backup_of(market: Market, operation: Operation) -> sql.Identifier:
    """The operation's backup table."""
    return sql.Identifier(market.schema, str(operation.backup_table))


@pytest.mark.every_postgres
def test_densely_damaged_pages_are_visited_again_and_indexes_hardly_grow(market: Market) -> None:
    market.fill(RECORDS, missing_every=2)
    market.execute('CREATE INDEX ON {} (symbol, "timestamp")', market.market_identifier)
    before = market.value(SIZE)
    operation = correct_now(market, batch_size=250, workers=1)
    assert operation.records_corrected == RECORDS // 2
    assert market.value(BACKWARDS, backup_of(market, operation)) > 0
    # Half of the rows are new versions: with an entry for each the indexes would grow by half.
    assert market.value(SIZE) < 1.3 * before


@pytest.mark.parametrize(
    "index",
    [
        "CREATE INDEX ON {} (asset_class)",
        "CREATE INDEX ON {} (symbol) WHERE asset_class IS NULL",
        "CREATE INDEX ON {} (lower(asset_class))",
        "CREATE INDEX ON {} (updated_at)",
    ],
)
def test_an_index_that_mentions_a_written_column_keeps_the_physical_order(
    market: Market, index: LiteralString
) -> None:
    market.fill(2000, missing_every=2)
    market.execute(index, market.market_identifier)
    operation = correct_now(market, batch_size=250, workers=1)
    plan = PlanState.model_validate(market.value("SELECT plan FROM assetclass.operation"))
    assert plan.reusing == []
    assert market.value(BACKWARDS, backup_of(market, operation)) == 0


def test_sparse_damage_is_read_in_physical_order(market: Market) -> None:
    market.fill(RECORDS, missing_every=500)
    operation = correct_now(market, batch_size=10, workers=1)
    assert operation.records_corrected == RECORDS // 500
    assert market.value(BACKWARDS, backup_of(market, operation)) == 0
