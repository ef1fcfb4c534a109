"""The SQL of the operations guide runs on our backup tables as it stands there.

Belongs here: its statements, word for word, and what they do to each kind of row. Does not: our own
scripts (test_manual_sql.py), which do it with more care.
"""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline_tests.engine.runs import correct_now, report_of, request_of
from assetclass_pipeline_tests.market import Bar, Market, open_market

# "Manual Database Recovery"
FIND = """
-- Find backup table
SELECT tablename FROM pg_tables
WHERE tablename LIKE 'market_data_backup_%'
ORDER BY tablename DESC LIMIT 1;
"""
RESTORE = """
-- Restore from backup (replace with actual table name)
UPDATE market_data
SET asset_class = backup.asset_class,
    updated_at = CURRENT_TIMESTAMP
FROM market_data_backup_YYYYMMDD_HHMMSS backup
WHERE market_data.id = backup.id;
"""
# "Backup Cleanup"
LIST = """
-- List backup tables
SELECT tablename FROM pg_tables
WHERE tablename LIKE 'market_data_backup_%'
ORDER BY tablename DESC;
"""
DROP = """
-- Drop old backups (adjust date as needed)
DROP TABLE IF EXISTS market_data_backup_YYYYMMDD_HHMMSS;
"""


def run(market: Market, statement: str, backup_table: str = "") -> psycopg.Cursor[tuple[object]]:
    """A statement of the guide with the one name in capitals replaced."""
    text = statement.replace("market_data_backup_YYYYMMDD_HHMMSS", backup_table)
    return market.connection.execute(sql.SQL(text))


@pytest.fixture(params=["plain", "range"])
def market(database_url: str, request: pytest.FixtureRequest) -> Iterator[Market]:
    with open_market(database_url, partitioning=request.param) as market:
        yield market.list_symbols(
            ("AAPL", "STOCK"), ("BTC", "CRYPTO"), ("TWICE", "A"), ("TWICE", "B")
        )


@pytest.mark.every_postgres
def test_restore_by_update(market: Market) -> None:
    market.add(
        [
            *(Bar(1, "AAPL"), Bar(2, "AAPL", asset_class=""), Bar(3, "BTC", asset_class="WRONG")),
            *(Bar(4, "AAPL"), Bar(5, "AAPL"), Bar(6, "AAPL"), Bar(7, "TWICE")),
            Bar(8, "AAPL", asset_class="STOCK"),
        ]
    )
    before = market.classes()
    operation = correct_now(
        market, request_of(only_process_null_asset_class=False, overwrite_existing_values=True)
    )
    market.execute("UPDATE market_data SET updated_at = NULL")
    market.execute("UPDATE market_data SET asset_class = 'LATER' WHERE id = 4")
    market.execute("UPDATE market_data SET asset_class = NULL WHERE id = 5")
    market.execute("DELETE FROM market_data WHERE id = 6")

    (found,) = run(market, FIND).fetchall()
    assert found == (operation.backup_table,)
    restored = run(market, RESTORE, str(operation.backup_table)).rowcount

    assert restored == 5
    # As before the correction, NULL, '' and wrong classes alike; row 6 stays deleted. The later
    # change of row 4 is lost: that is what this statement does worse than a rollback.
    del before[6]
    assert market.classes() == before
    assert before[4] is None
    touched = market.rows("SELECT id FROM market_data WHERE updated_at IS NOT NULL ORDER BY id")
    assert touched == [(1,), (2,), (3,), (4,), (5,)]
    # Nothing of it stands in the way of the next correction.
    assert correct_now(market).records_corrected == 4
    assert report_of(market).correctable == 0


def test_the_newest_backup_comes_first_and_old_ones_can_be_dropped(market: Market) -> None:
    market.add([Bar(1, "AAPL"), Bar(2, "BTC")])
    older = correct_now(market, request_of(target_symbols=["AAPL"])).backup_table
    newer = correct_now(market).backup_table

    assert run(market, FIND).fetchall() == [(newer,)]
    assert run(market, LIST).fetchall() == [(newer,), (older,)]
    run(market, DROP, str(older))
    assert run(market, LIST).fetchall() == [(newer,)]
