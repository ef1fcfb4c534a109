"""The demo's tables in PostgreSQL: what is in them, and what is never replaced by them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.demo.load import LoadedDemo, load_demo
from assetclass_pipeline.demo.sources import SourceFiles
from assetclass_pipeline.errors import DatabaseUnavailableError, DemoDataError
from assetclass_pipeline.settings import Settings, load_settings
from assetclass_pipeline_tests.conftest import fresh_database

# The words of design.md section 2 as one plain statement, written apart from the engine's own.
CATEGORIES = """
WITH derived AS (
    SELECT
        ticker,
        count(DISTINCT asset_class) FILTER (WHERE trim(asset_class) <> '') AS classes,
        min(asset_class) FILTER (WHERE trim(asset_class) <> '') AS asset_class
    FROM symbols
    GROUP BY ticker
)
SELECT
    CASE
        WHEN d.ticker IS NULL THEN 'orphaned'
        WHEN d.classes = 0 THEN 'unclassified'
        WHEN d.classes > 1 THEN 'ambiguous'
        WHEN coalesce(m.asset_class, '') = '' THEN 'correctable ' || d.asset_class
        WHEN m.asset_class <> d.asset_class THEN 'mismatched'
        ELSE 'right'
    END AS category,
    count(*)
FROM market_data AS m
LEFT JOIN derived AS d ON d.ticker = m.symbol
GROUP BY 1
"""


def _load(url: str, sources: SourceFiles, settings: Settings | None = None) -> LoadedDemo:
    return load_demo(url, settings or load_settings(), sources, report=print)


@dataclass(frozen=True)
class Demo:
    """A loaded demo that tests only read."""

    url: str
    loaded: LoadedDemo


@pytest.fixture(scope="module")
def demo(postgres_server: EmbeddedServer, sources: SourceFiles) -> Iterator[Demo]:
    with fresh_database(postgres_server) as url:
        yield Demo(url, _load(url, sources))


def test_all_rows_arrive_in_seconds(demo: Demo) -> None:
    assert (demo.loaded.symbols, demo.loaded.bars) == (146_828, 251_315)
    assert (demo.loaded.first, demo.loaded.last) == (date(1999, 1, 4), date(2026, 10, 30))
    # A generous bound for a busy machine; it takes 3 s on an idle one.
    assert 0 < demo.loaded.seconds < 30


def test_the_damage_is_real(demo: Demo) -> None:
    with psycopg.connect(demo.url) as connection:
        found: dict[str, int] = dict(connection.execute(CATEGORIES).fetchall())
        orphans = connection.execute(
            "SELECT DISTINCT symbol FROM market_data"
            " WHERE NOT EXISTS (SELECT FROM symbols WHERE ticker = symbol) ORDER BY 1"
        ).fetchall()
    assert found == {
        "correctable FOREX": 208_514,
        "correctable STOCK_NASDAQ": 8_688,
        "correctable STOCK_NYSE": 3_270,
        "correctable CRYPTO": 5_385,
        "mismatched": 12_074,
        "orphaned": 13_188,
        "unclassified": 196,
    }
    assert [symbol[3:6] for (symbol,) in orphans] == ["EEK", "MTL", "ROL", "SIT", "SKK", "TRL"]


def test_the_reference_is_as_imperfect_as_its_sources(demo: Demo) -> None:
    with psycopg.connect(demo.url) as connection:
        found = connection.execute(
            "SELECT count(*) FILTER (WHERE classes > 1), count(*) FILTER (WHERE classes = 0),"
            " count(*) FILTER (WHERE ticker <> trim(ticker))"
            " FROM (SELECT ticker, count(DISTINCT asset_class) AS classes"
            "       FROM symbols GROUP BY ticker) AS per_ticker"
        ).fetchone()
    assert found == (497, 8_694, 2)


def test_prices_keep_every_digit_and_unknown_prices_are_null(demo: Demo) -> None:
    with psycopg.connect(demo.url) as connection:
        rows = connection.execute(
            "SELECT symbol, open::text, close::text, volume, updated_at = created_at"
            ' FROM market_data WHERE (symbol, "timestamp") IN'
            " (('BTC-USD', '2010-07-20Z'), ('IBM', '2000-03-01Z')) ORDER BY 1"
        ).fetchall()
    assert rows == [
        ("BTC-USD", None, "0.0747357288135593", None, True),
        ("IBM", "102.0", "100.25", 10807800, True),
    ]


def test_a_second_load_starts_clean(database_url: str, sources: SourceFiles) -> None:
    first = _load(database_url, sources)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE market_data SET asset_class = 'WRONG' WHERE symbol = 'IBM'")
        connection.execute("DELETE FROM symbols")

    second = _load(database_url, sources)

    assert (second.symbols, second.bars) == (first.symbols, first.bars)
    with psycopg.connect(database_url) as connection:
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM symbols), (SELECT count(*) FROM market_data),"
            " (SELECT count(*) FROM market_data WHERE asset_class = 'WRONG'),"
            " (SELECT min(id) FROM market_data)"
        ).fetchone()
    assert counts == (146_828, 251_315, 0, 1)


@pytest.mark.parametrize(
    ("made_by_others", "name"),
    [
        ("CREATE TABLE market_data AS SELECT 1 AS price", "public.market_data"),
        ("CREATE VIEW symbols AS SELECT 1 AS price", "public.symbols"),
        (
            "CREATE TABLE symbols AS SELECT 1 AS price; COMMENT ON TABLE symbols IS 'ours'",
            "public.symbols",
        ),
    ],
)
def test_tables_of_others_are_never_dropped(
    database_url: str, sources: SourceFiles, made_by_others: str, name: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(made_by_others)

    with pytest.raises(DemoDataError, match=name):
        _load(database_url, sources)

    with psycopg.connect(database_url) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchall()
        kept = sql.SQL("SELECT price FROM {}").format(sql.Identifier(*name.split(".")))
        assert connection.execute(kept).fetchone() == (1,)
    assert tables == [(name.removeprefix("public."),)]


def test_a_view_on_the_demo_tables_is_kept(demo: Demo, sources: SourceFiles) -> None:
    with psycopg.connect(demo.url) as connection:
        connection.execute("CREATE VIEW mine AS SELECT count(*) FROM market_data")

    with pytest.raises(DemoDataError, match="depends on the demo's tables"):
        _load(demo.url, sources)

    with psycopg.connect(demo.url) as connection:
        assert connection.execute("SELECT * FROM mine").fetchone() == (251_315,)
        connection.execute("DROP VIEW mine")


def test_names_come_from_settings_and_are_quoted(database_url: str, sources: SourceFiles) -> None:
    settings = load_settings(
        market_schema='odd "schema', market_table="Bars", symbols_table="sym;bols"
    )
    with pytest.raises(DemoDataError, match="ASSETCLASS_MARKET_SCHEMA"):
        _load(database_url, sources, settings)
    with psycopg.connect(database_url) as connection:
        connection.execute('CREATE SCHEMA "odd ""schema"')

    _load(database_url, sources, settings)

    with psycopg.connect(database_url) as connection:
        bars = connection.execute('SELECT count(*) FROM "odd ""schema"."Bars"').fetchone()
        symbols = connection.execute('SELECT count(*) FROM "sym;bols"').fetchone()
    assert (bars, symbols) == ((251_315,), (146_828,))


def test_two_loads_at_once_leave_one_whole_demo(database_url: str, sources: SourceFiles) -> None:
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda url: _load(url, sources), [database_url] * 2))

    with psycopg.connect(database_url) as connection:
        count = connection.execute("SELECT count(*) FROM market_data").fetchone()
    assert count == (251_315,)


def test_an_unreachable_server_is_a_clear_error_without_the_password(
    sources: SourceFiles,
) -> None:
    with pytest.raises(DatabaseUnavailableError) as refusal:
        _load("postgresql://someone:hush-hush@127.0.0.1:1/nowhere", sources)
    assert "hush-hush" not in str(refusal.value)
    assert "ASSETCLASS_DATABASE_URL" in str(refusal.value)
