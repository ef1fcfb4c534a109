"""Recovery drills: a restore that is proved, on a copy, and leaves nothing behind."""

from typing import LiteralString

import pytest
from psycopg import sql

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine import recovery_drill
from assetclass_pipeline.engine.recovery_drill import drill_recovery
from assetclass_pipeline.errors import (
    BackupDamagedError,
    BackupExpiredError,
    OperationNotFoundError,
)
from assetclass_pipeline.model.backup import DrillReport, whole_restore
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import correct_now
from assetclass_pipeline_tests.market import Bar, Market

RECORDS = 50


def drill(market: Market, correction_id: str | None = None) -> DrillReport | None:
    return drill_recovery(market.dsn, market.settings, by="test", correction_id=correction_id)


def scratch_tables(market: Market) -> list[str]:
    return [
        name
        for (name,) in market.rows(
            "SELECT relname::text FROM pg_class WHERE relname LIKE 'drill\\_%' AND relkind = 'r'"
        )
    ]


def overwrite(market: Market) -> str:
    """A correction over values that differ, so that a restore has something to put back."""
    market.list_symbols(("AAPL", "STOCK"))
    market.add(Bar(n, "AAPL", asset_class=f"OLD {n}") for n in range(RECORDS))
    market.execute("ANALYZE {}", market.market_identifier)
    return correct_now(
        market, only_process_null_asset_class=False, overwrite_existing_values=True
    ).correction_id


@pytest.mark.every_postgres
@pytest.mark.parametrize("partitioning", ["plain", "hash"])
def test_the_newest_backup_is_restored_into_a_copy_and_proved(
    make_market: MakeMarket, partitioning: str
) -> None:
    market = make_market(partitioning=partitioning)
    older = overwrite(market)
    market.execute("UPDATE {} SET asset_class = NULL WHERE id < 10", market.market_identifier)
    newest = correct_now(market).correction_id
    before = market.versions()
    report = drill(market)
    assert report is not None
    assert (report.correction_id, report.passed, report.problems) == (newest, True, [])
    assert (report.records, report.restored, report.missing, report.different) == (10, 10, 0, 0)
    assert report.restore_seconds > 0
    assert report.market_records == RECORDS
    assert (report.limit_seconds, report.within_limit) == (1800, True)
    named = drill(market, older)
    assert named is not None
    assert (named.correction_id, named.restored) == (older, RECORDS)
    assert market.versions() == before
    assert scratch_tables(market) == []
    stored = market.value(
        "SELECT verification -> 'drill' ->> 'restored' FROM assetclass.backup "
        "ORDER BY created_at LIMIT 1"
    )
    assert stored == str(RECORDS)


def test_rows_deleted_since_are_no_failure(market: Market) -> None:
    overwrite(market)
    market.execute("DELETE FROM market_data WHERE id < 5")
    market.execute("UPDATE market_data SET asset_class = 'BY HAND' WHERE id = 7")
    report = drill(market)
    assert report is not None
    assert (report.passed, report.restored, report.missing) == (True, RECORDS - 5, 5)


def test_without_a_backup_there_is_nothing_to_try(market: Market) -> None:
    assert drill(market) is None
    market.fill(RECORDS)
    correct_now(market, create_backup=False)
    assert drill(market) is None
    with pytest.raises(OperationNotFoundError):
        drill(market, "yesterday")


def test_a_restore_that_writes_something_else_fails_the_drill(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the statement of the guide were wrong: the proof does not believe it."""
    overwrite(market)

    def wrong(file: str, name: str, **parts: sql.Composable) -> object:
        if name != "restore":
            return query(file, name, **parts)
        return sql.SQL("UPDATE {scratch} SET asset_class = 'OLD 1'").format(**parts)

    monkeypatch.setattr(recovery_drill, "query", wrong)
    with pytest.raises(BackupDamagedError, match="49 of 50 rows did not hold their old value"):
        drill(market)
    assert scratch_tables(market) == []
    passed = market.value("SELECT verification -> 'drill' ->> 'passed' FROM assetclass.backup")
    assert passed == "false"


def test_an_id_that_names_several_rows_fails_the_drill(make_market: MakeMarket) -> None:
    """The restore by hand joins by id alone, and would mix them up."""
    market = make_market(key='PRIMARY KEY (id, "timestamp")')
    market.list_symbols(("AAPL", "STOCK"))
    market.add(Bar(1, "AAPL", f"2024-03-0{day}", asset_class=f"OLD {day}") for day in range(1, 5))
    correct_now(market, only_process_null_asset_class=False, overwrite_existing_values=True)
    with pytest.raises(BackupDamagedError, match="did not hold their old value"):
        drill(market)


def test_a_damaged_backup_fails_the_drill(market: Market) -> None:
    correction_id = overwrite(market)
    table = market.value("SELECT table_name FROM assetclass.backup")
    market.execute("UPDATE {} SET asset_class = 'X' WHERE seq = 1", sql.Identifier("public", table))
    with pytest.raises(BackupDamagedError, match="checksum differs"):
        drill(market)
    market.execute("DROP TABLE {}", sql.Identifier("public", table))
    assert drill(market) is None
    with pytest.raises(BackupExpiredError):
        drill(market, correction_id)


def test_values_that_the_column_refuses_today_fail_the_drill(market: Market) -> None:
    overwrite(market)
    market.execute("ALTER TABLE market_data ALTER asset_class TYPE varchar(5)")
    with pytest.raises(BackupDamagedError, match="value too long"):
        drill(market)
    assert scratch_tables(market) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER id TYPE text",
        "ALTER asset_class TYPE klass USING asset_class::klass",
    ],
)
def test_a_table_of_another_shape_fails_the_drill_and_says_so(
    market: Market, change: LiteralString
) -> None:
    """Also where the verification passes: an enum takes no text from the guide's statement."""
    overwrite(market)
    labels = sql.SQL(", ").join([sql.Literal(f"OLD {n}") for n in range(RECORDS)])
    market.execute("CREATE TYPE klass AS ENUM ('STOCK', {})", labels)
    market.connection.execute("ALTER TABLE market_data " + change)
    with pytest.raises(BackupDamagedError, match="The restore was refused: "):
        drill(market)
    assert scratch_tables(market) == []
    passed = market.value("SELECT verification -> 'drill' ->> 'passed' FROM assetclass.backup")
    assert passed == "false"


def test_the_copy_goes_when_the_drill_is_killed(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwrite(market)

    def interrupt(*_: object) -> None:
        assert len(scratch_tables(market)) == 1
        raise KeyboardInterrupt

    def until_the_restore(file: str, name: str, **parts: sql.Composable) -> object:
        if name == "restore":
            interrupt()
        return query(file, name, **parts)

    monkeypatch.setattr(recovery_drill, "query", until_the_restore)
    with pytest.raises(KeyboardInterrupt):
        drill(market)
    assert scratch_tables(market) == []


def test_copies_of_drills_that_were_killed_long_ago_go_too(market: Market) -> None:
    overwrite(market)
    market.execute("CREATE TABLE assetclass.drill_20200101_000000_0123abcd (id int)")
    market.execute("CREATE TABLE assetclass.drill_29990101_000000_0123abcd (id int)")
    drill(market)
    assert scratch_tables(market) == ["drill_29990101_000000_0123abcd"]


@pytest.mark.parametrize(
    ("records", "seconds", "market_records", "whole"),
    [
        (1000, 2.0, 1_000_000, 2000.0),
        (1000, 2.0, 0, 2.0),
        (1000, 2.0, 10, 2.0),
        (0, 0.0, 1000, None),
    ],
)
def test_what_a_whole_restore_would_take(
    records: int, seconds: float, market_records: int, whole: float | None
) -> None:
    assert whole_restore(records, seconds, market_records) == whole
