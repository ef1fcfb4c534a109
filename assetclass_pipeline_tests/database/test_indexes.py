"""The wanted indexes: created while tables are in use, repaired, put together, never replaced."""

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database.indexes import (
    IndexOutcome,
    IndexResult,
    ensure_indexes,
    index_name,
)
from assetclass_pipeline.errors import MarketTablesError
from assetclass_pipeline.model.options import RetryOptions
from assetclass_pipeline.settings import Settings

COLUMNS = 'id bigint, symbol text, "timestamp" timestamptz, asset_class text'
GUIDE = "idx_market_data_symbol_asset_class"
NIGHTLY = "idx_market_data_correctable"
SYMBOLS = "idx_symbols_ticker_asset_class"
RETRY = RetryOptions(tries=2, first_wait=0.1, longest_wait=0.1)


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE symbols (ticker text, asset_class text)")
        yield connection


def ensure(
    database_url: str, *, lock_wait: float = 5, lines: list[str] | None = None, **settings: str
) -> dict[str, IndexResult]:
    heard = [] if lines is None else lines
    results = ensure_indexes(
        database_url,
        Settings(retry=RETRY, **settings),  # type: ignore[arg-type]
        heard.append,
        lock_wait=lock_wait,
    )
    return {result.name: result for result in results}


def outcomes(results: dict[str, IndexResult]) -> dict[str, str]:
    return {name: str(result.outcome) for name, result in results.items()}


def indexes(connection: psycopg.Connection) -> dict[str, tuple[str, bool]]:
    rows = connection.execute(
        "SELECT relname::text, relkind::text, indisvalid FROM pg_index"
        " JOIN pg_class ON pg_class.oid = indexrelid"
        " WHERE relnamespace = 'public'::regnamespace"
    )
    return {name: (kind, valid) for name, kind, valid in rows}


def break_index(database_url: str, statement: str) -> None:
    """Leave an INVALID index behind, as an operator's interrupted build does."""
    with (
        psycopg.connect(database_url) as older,
        psycopg.connect(database_url, autocommit=True) as builder,
    ):
        older.execute("LOCK TABLE market_data IN ROW EXCLUSIVE MODE")
        builder.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            builder.execute(statement)


@pytest.mark.every_postgres
def test_guide_indexes_and_ours_are_created_once(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")

    first = ensure(database_url)
    again = ensure(database_url)

    assert outcomes(first) == dict.fromkeys((GUIDE, NIGHTLY, SYMBOLS), "created")
    assert outcomes(again) == dict.fromkeys((GUIDE, NIGHTLY, SYMBOLS), "present")
    assert indexes(database) == dict.fromkeys((GUIDE, NIGHTLY, SYMBOLS), ("i", True))


def test_statements_of_the_guide_leave_nothing_to_do(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    database.execute(
        f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {GUIDE}"
        " ON market_data(symbol, asset_class) WHERE asset_class IS NULL"
    )
    database.execute(
        f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {SYMBOLS} ON symbols(ticker, asset_class)"
    )

    found = outcomes(ensure(database_url))

    assert found == {GUIDE: "present", SYMBOLS: "present", NIGHTLY: "created"}


@pytest.mark.every_postgres
@pytest.mark.parametrize("kind", ["text", "varchar(20)", "char(12)", "class_domain"])
def test_every_text_type_is_recognised_the_second_time(
    database: psycopg.Connection, database_url: str, kind: str
) -> None:
    database.execute("CREATE DOMAIN class_domain AS text")
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    database.execute(f"ALTER TABLE market_data ALTER asset_class TYPE {kind}")

    ensure(database_url)

    assert outcomes(ensure(database_url)) == dict.fromkeys((GUIDE, NIGHTLY, SYMBOLS), "present")


def test_nightly_question_uses_the_index(database: psycopg.Connection, database_url: str) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    database.execute(
        "INSERT INTO market_data (id, symbol, asset_class)"
        " SELECT n, 'S' || n % 50, 'STOCK' FROM generate_series(1, 20000) n"
    )
    ensure(database_url)
    database.execute("ANALYZE market_data")

    plan = database.execute(
        "EXPLAIN SELECT symbol FROM market_data WHERE asset_class IS NULL OR asset_class::text = ''"
    ).fetchall()

    assert NIGHTLY in str(plan)


def test_enum_gets_no_index_that_it_cannot_have(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute("CREATE TYPE class AS ENUM ('STOCK')")
    database.execute(
        f"CREATE TABLE market_data ({COLUMNS.replace('asset_class text', 'asset_class class')})"
    )

    found = outcomes(ensure(database_url))

    assert found == {GUIDE: "created", SYMBOLS: "created", NIGHTLY: "skipped"}


@pytest.mark.every_postgres
def test_invalid_leftover_is_repaired(database: psycopg.Connection, database_url: str) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    break_index(
        database_url,
        f"CREATE INDEX CONCURRENTLY {GUIDE}"
        " ON market_data(symbol, asset_class) WHERE asset_class IS NULL",
    )
    assert indexes(database) == {GUIDE: ("i", False)}
    # What an interrupted repair leaves, too.
    break_index(database_url, f"REINDEX INDEX CONCURRENTLY {GUIDE}")
    assert len(indexes(database)) == 2

    found = outcomes(ensure(database_url))

    assert found[GUIDE] == "repaired"
    assert indexes(database) == dict.fromkeys((GUIDE, NIGHTLY, SYMBOLS), ("i", True))


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE INDEX {GUIDE} ON market_data (symbol)",
        f"CREATE INDEX {GUIDE} ON market_data (symbol, asset_class)",
        f"CREATE INDEX {GUIDE} ON market_data (asset_class, symbol) WHERE asset_class IS NULL",
        f"CREATE INDEX {GUIDE} ON market_data (symbol, asset_class) WHERE asset_class = 'x'",
        f"CREATE UNIQUE INDEX {GUIDE} ON market_data (symbol, asset_class)",
        f"CREATE INDEX {GUIDE} ON symbols (ticker)",
        f"CREATE TABLE {GUIDE} ()",
    ],
)
def test_something_else_of_that_name_is_reported_and_stays(
    database: psycopg.Connection, database_url: str, statement: str
) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    database.execute(statement)
    before = database.execute(f"SELECT '{GUIDE}'::regclass::oid").fetchone()

    result = ensure(database_url)[GUIDE]

    assert result.outcome == IndexOutcome.DIFFERENT
    assert "rename it" in result.message
    assert database.execute(f"SELECT '{GUIDE}'::regclass::oid").fetchone() == before


@pytest.mark.every_postgres
def test_partitions_of_partitions_are_indexed_and_attached(
    database: psycopg.Connection, database_url: str
) -> None:
    long = "market_data_" + "x" * 51
    database.execute(f'CREATE TABLE market_data ({COLUMNS}) PARTITION BY RANGE ("timestamp")')
    database.execute(
        "CREATE TABLE market_data_2024 PARTITION OF market_data"
        " FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') PARTITION BY LIST (symbol)"
    )
    database.execute(f"CREATE TABLE {long} PARTITION OF market_data_2024 DEFAULT")
    database.execute("CREATE TABLE market_data_rest PARTITION OF market_data DEFAULT")

    first = outcomes(ensure(database_url))
    again = outcomes(ensure(database_url))

    assert first == dict.fromkeys((GUIDE, NIGHTLY, SYMBOLS), "created")
    assert again == dict.fromkeys((GUIDE, NIGHTLY, SYMBOLS), "present")
    found = indexes(database)
    # Two indexes on: the table, its partitioned partition, and two leaves.
    assert len(found) == 2 * 4 + 1
    assert all(valid for _, valid in found.values())
    attached = database.execute(
        "SELECT count(*) FROM pg_inherits WHERE inhparent IN (%s::regclass, %s::regclass)",
        (GUIDE, NIGHTLY),
    ).fetchone()
    assert attached == (4,)


def test_unfinished_partitioned_index_is_completed(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f'CREATE TABLE market_data ({COLUMNS}) PARTITION BY RANGE ("timestamp")')
    database.execute("CREATE TABLE market_data_rest PARTITION OF market_data DEFAULT")
    database.execute(
        f"CREATE INDEX {GUIDE} ON ONLY market_data (symbol, asset_class) WHERE asset_class IS NULL"
    )
    assert indexes(database) == {GUIDE: ("I", False)}

    found = outcomes(ensure(database_url))

    assert found[GUIDE] == "completed"
    assert indexes(database)[GUIDE] == ("I", True)


def test_partition_that_came_later_is_no_work(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f'CREATE TABLE market_data ({COLUMNS}) PARTITION BY RANGE ("timestamp")')
    ensure(database_url)
    database.execute("CREATE TABLE market_data_rest PARTITION OF market_data DEFAULT")

    assert outcomes(ensure(database_url))[GUIDE] == "present"


def test_writers_do_not_queue_behind_a_build(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    found: list[dict[str, str]] = []
    build = threading.Thread(target=lambda: found.append(outcomes(ensure(database_url))))

    with psycopg.connect(database_url) as first:
        first.execute("INSERT INTO market_data (symbol) VALUES ('A')")
        build.start()
        wait_until_the_build_waits(database)
        # A build that is not CONCURRENT asks for a lock that nobody can pass.
        database.execute("SET lock_timeout = '2s'")
        database.execute("INSERT INTO market_data (symbol) VALUES ('B')")
        assert build.is_alive()
    build.join()

    assert found[0][GUIDE] == "created"


def wait_until_the_build_waits(connection: psycopg.Connection) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        waiting = connection.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'assetclass: db indexes'"
            " AND wait_event_type = 'Lock' AND datname = current_database()"
        ).fetchall()
        if waiting:
            return
        time.sleep(0.02)
    raise AssertionError("no build waits")


@pytest.mark.every_postgres
def test_transaction_in_the_way_is_named_and_the_next_call_finishes(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    lines: list[str] = []

    with psycopg.connect(database_url, application_name="a long report") as older:
        older.execute("LOCK TABLE market_data IN ROW EXCLUSIVE MODE")
        named = rf"{older.info.backend_pid} \(a long report\).*db indexes"
        with pytest.raises(MarketTablesError, match=named):
            ensure(database_url, lock_wait=0.1, lines=lines)

    assert any("Trying again" in line for line in lines)
    assert outcomes(ensure(database_url))[GUIDE] == "repaired"


def test_two_at_once_share_the_work(database: psycopg.Connection, database_url: str) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    found: list[dict[str, str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(outcomes(ensure(database_url))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(result[GUIDE] for result in found) == ["created", "present"]
    assert all(valid for _, valid in indexes(database).values())


def test_the_other_one_that_is_at_work_is_waited_for(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    database.execute("SELECT pg_advisory_lock(hashtextextended('assetclass indexes', 0))")

    with pytest.raises(MarketTablesError, match="Another `assetclass db indexes` is at work"):
        ensure(database_url, lock_wait=0.2)

    assert indexes(database) == {}


def test_role_that_does_not_own_the_table_is_told_what_its_owner_should_run(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    role = sql.Identifier(f"reader {database.info.dbname}")
    database.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
    try:
        database.execute(sql.SQL("GRANT SELECT ON market_data, symbols TO {}").format(role))
        reader = psycopg.conninfo.make_conninfo(
            database_url, user=f"reader {database.info.dbname}", password="x"
        )
        with pytest.raises(MarketTablesError, match=rf"CREATE INDEX CONCURRENTLY \"{GUIDE}\" ON"):
            ensure(reader)
    finally:
        database.execute(sql.SQL("DROP OWNED BY {}").format(role))
        database.execute(sql.SQL("DROP ROLE {}").format(role))


def test_symbols_may_be_a_view(database: psycopg.Connection, database_url: str) -> None:
    database.execute(f"CREATE TABLE market_data ({COLUMNS})")
    database.execute("CREATE VIEW reference AS SELECT * FROM symbols")

    found = outcomes(ensure(database_url, symbols_table="reference"))

    assert found["idx_reference_ticker_asset_class"] == "skipped"


def test_other_table_names_give_other_index_names(
    database: psycopg.Connection, database_url: str
) -> None:
    database.execute('CREATE SCHEMA "My Data"')
    database.execute(f'CREATE TABLE "My Data"."Bars %" ({COLUMNS})')

    found = outcomes(ensure(database_url, market_schema="My Data", market_table="Bars %"))

    assert found["idx_Bars %_symbol_asset_class"] == "created"


def test_names_fit_and_stay_apart() -> None:
    assert index_name("market_data", "correctable") == NIGHTLY
    one, other = (index_name("ü" * 30 + end, "symbol_asset_class") for end in "ab")
    assert one != other
    assert len(one.encode()) <= 63
