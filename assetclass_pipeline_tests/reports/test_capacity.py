"""The capacity report: sizes as the server has them, growth and forecasts by hand."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.engine.disk_space import Free
from assetclass_pipeline.reports import capacity
from assetclass_pipeline.reports.capacity import CapacityReport, capacity_report
from assetclass_pipeline_tests.engine.runs import correct_now, tables_of
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.reports.seeds import Seed, add_measurement, add_operations

DAY = timedelta(days=1)
MONTH = 365 / 12


def report_of(market: Market) -> CapacityReport:
    tables = tables_of(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return capacity_report(connection, tables, market.settings)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


def grow(market: Market, now: datetime, a_day: int = 100) -> None:
    for day in range(30, 0, -1):
        add_measurement(market, now - day * DAY, total_records=10_000 - a_day * day)


def test_sizes_are_the_servers(market: Market) -> None:
    market.fill(3000, missing_every=2)
    market.execute("CREATE INDEX ON market_data (symbol)")
    correct_now(market)
    market.execute(
        "INSERT INTO assetclass.archive (correction_id, file_name, records, bytes, sha256,"
        " expires_at, removed_at) SELECT correction_id, 'a', 1, 4711, '', now(), NULL"
        " FROM assetclass.operation"
    )
    report = report_of(market)
    table, indexes = market.rows(
        "SELECT pg_table_size('market_data'), pg_indexes_size('market_data')"
    )[0]
    backup = market.execute(
        "SELECT pg_total_relation_size(%s::regclass)", values=(market.backup_tables()[0],)
    ).fetchall()[0][0]
    assert (report.table_bytes, report.index_bytes) == (table, indexes)
    assert (report.backups, report.backup_bytes) == (1, backup)
    assert (report.archives, report.archive_bytes) == (1, 4711)
    assert (report.largest_operation, report.wal_of_largest) == (1500, 1500 * 1200)
    market.execute("DROP TABLE {}", sql.Identifier(market.backup_tables()[0]))
    assert (report_of(market).backups, report_of(market).backup_bytes) == (0, 0)


def test_of_a_partitioned_table_the_leaves_count(database_url: str) -> None:
    with open_market(database_url, partitioning="range") as market:
        market.fill(2000)
        total = market.value(
            "SELECT sum(pg_table_size(relid)) FROM pg_partition_tree('market_data') WHERE isleaf"
        )
        assert report_of(market).table_bytes == total > 0


def test_growth_and_where_it_leads(
    market: Market, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.fill(1000)
    grow(market, now)
    free = Free(data=10_000_000, wal=None)
    monkeypatch.setattr(capacity, "free_disk", lambda *_: free)
    report = report_of(market)
    assert report.total_records == 9900
    growth = report.records_a_month
    assert growth is not None
    assert growth.likely == pytest.approx(100 * MONTH, rel=1e-6)
    each = (report.table_bytes + report.index_bytes) / 9900
    assert report.bytes_a_row == each
    quarter, half, year = report.forecasts
    assert (quarter.months, half.months, year.months) == (3, 6, 12)
    assert year.records.likely == pytest.approx(9900 + 36_500, rel=1e-6)
    assert year.table_bytes is not None
    assert year.table_bytes.likely == pytest.approx((9900 + 36_500) * each, rel=1e-6)
    days = report.days_until_full
    assert days is not None
    assert days.likely == pytest.approx(free.data / (100 * each), rel=1e-6)
    assert days.low <= days.likely <= days.high


def test_free_bytes_are_those_of_the_servers_disk(
    market: Market, postgres_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "postgres").symlink_to(postgres_server._files.directory)
    settings = market.settings.model_copy(update={"home": tmp_path})
    tables = tables_of(market)
    with connect(market.dsn, settings, purpose="test") as connection:
        found = capacity_report(connection, tables, settings).disk_free_bytes
    assert found == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_a_disk_that_is_nearly_full_is_said(
    market: Market, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.fill(1000)
    grow(market, now)
    monkeypatch.setattr(capacity, "free_disk", lambda *_: Free(data=100_000, wal=None))
    add_operations(market, Seed("big", now - DAY, planned=1000, corrected=1000))
    said = " ".join(report_of(market).findings)
    assert "At this growth the data disk is full in" in said
    assert "1.14 MiB of WAL where 97.7 KiB are free" in said


@pytest.mark.parametrize("a_day", [0, -100])
def test_what_does_not_grow_fills_no_disk(
    market: Market, now: datetime, a_day: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.fill(1000)
    grow(market, now, a_day)
    monkeypatch.setattr(capacity, "free_disk", lambda *_: Free(data=1, wal=None))
    report = report_of(market)
    assert report.days_until_full is None
    assert all(each.records.low >= 0 for each in report.forecasts)


def test_corrections_become_slower(market: Market, now: datetime) -> None:
    add_operations(
        market,
        *(
            Seed(f"op {day}", now - day * DAY, seconds=200.0 - 2 * day, planned=1000)
            for day in range(1, 20)
        ),
        Seed("failed", now - DAY, seconds=9999, status="failed"),
        Seed("undo", now - DAY, seconds=9999, kind="rollback"),
    )
    report = report_of(market)
    assert len(report.corrections) == 19
    slower = report.seconds_a_month
    assert slower is not None
    assert slower.likely == pytest.approx(2 * MONTH, rel=1e-3)
    assert report.rate_a_month is not None
    assert report.rate_a_month.high < 0
    assert any("Batches become slower" in said for said in report.findings)


def test_too_young_for_a_forecast(market: Market) -> None:
    report = report_of(market)
    assert (report.total_records, report.records_a_month, report.forecasts) == (None, None, [])
    assert any("at least 5 days, and there are 0" in said for said in report.findings)
