"""The scripts of deploy/sql do by hand what the engine does: same numbers, rows and way back.

They are run by the real psql, which the wheel of the test server brings.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import Binaries, EmbeddedServer
from assetclass_pipeline.demo.load import load_demo
from assetclass_pipeline.demo.sources import SourceFiles
from assetclass_pipeline.engine.archive_restore import restore_archive
from assetclass_pipeline.engine.backup_cleanup import clean_up
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.deploy.psql import Psql, PsqlError, section, tables
from assetclass_pipeline_tests.engine.runs import correct_now, report_of, request_of
from assetclass_pipeline_tests.engine.test_correction_properties import KEY, NAMES, Draw
from assetclass_pipeline_tests.market import PARTITIONINGS, Bar, Market, open_market

EXAMPLES = 16
SHAPES = sorted(PARTITIONINGS)

CORRECTED: LiteralString = "SELECT count(updated_at) FROM market_data"
MISSING: LiteralString = "SELECT count(*) FROM market_data WHERE asset_class IS NULL"

MakeMarket = Callable[..., Market]
Rows = Counter[tuple[Any, ...]]


@pytest.fixture
def psql(postgres_binaries: Binaries, database_url: str) -> Psql:
    return Psql(postgres_binaries, database_url)


@pytest.fixture
def make_market(database_url: str) -> Iterator[MakeMarket]:
    """Builds the test's market tables in the shape that it asks for."""
    with ExitStack() as stack:
        yield lambda **shape: stack.enter_context(open_market(database_url, **shape))


@pytest.fixture
def market(make_market: MakeMarket) -> Market:
    """50 rows without a class, of five symbols; the classes of two of them can be derived."""
    symbols = ("AAPL", "BTC", "TWICE", "NONE", "GONE")
    return (
        make_market()
        .list_symbols(
            ("AAPL", "STOCK"), ("BTC", "CRYPTO"), ("TWICE", "A"), ("TWICE", "B"), ("NONE", " ")
        )
        .add(Bar(n, symbols[n % 5], asset_class=(None, "")[n % 2]) for n in range(50))
    )


def backup_of(market: Market) -> str | None:
    """The newest backup table beside a market table."""
    rows = market.connection.execute(
        "SELECT tablename::text FROM pg_tables WHERE schemaname = %s "
        "AND tablename LIKE 'market\\_data\\_backup\\_%%' ORDER BY 1 DESC",
        (market.schema,),
    ).fetchall()
    return rows[0][0] if rows else None


def rows_of(market: Market) -> Rows:
    """What the market table holds, without the times of changes."""
    return Counter(
        market.rows(
            'SELECT id::text, symbol, "timestamp"::text, close, asset_class::text FROM {}',
            market.market_identifier,
        )
    )


def touched_by(market: Market) -> int:
    """Rows whose updated_at was set; nothing else in a test sets it."""
    return int(market.value("SELECT count(updated_at) FROM {}", market.market_identifier))


def kept_by(market: Market, backup_table: str) -> Rows:
    """What a backup table holds, without addresses and numbers."""
    return Counter(
        market.rows(
            'SELECT id::text, symbol, "timestamp"::text, asset_class::text, '
            "corrected_asset_class::text FROM {}",
            sql.Identifier(market.schema, backup_table),
        )
    )


def states(output: str, title: str = "Rows as they are") -> dict[str, int]:
    """How many rows of each state a rollback tells of."""
    return {entry["state"]: int(entry["records"]) for entry in section(output, title)}


def agrees(market: Market, output: str, report: IntegrityReport) -> None:
    """Every number that analysis.sql prints is the report's."""
    total = report.total_records
    expected = {
        "total": total,
        "missing": report.missing,
        "null": report.null_asset_class,
        "empty": report.empty_asset_class,
        "valid": report.valid_asset_class,
        "orphaned": report.orphaned,
        "unclassified": report.unclassified,
        "ambiguous": report.ambiguous,
        "mappable": report.mappable,
        "mismatched": report.mismatched,
        "correctable": report.correctable,
    }
    words = section(output, "Rows\n")
    assert {entry["word"]: int(entry["records"]) for entry in words} == expected
    for entry in words if total else ():
        assert float(entry["percent"]) == pytest.approx(
            100 * expected[entry["word"]] / total, abs=0.0051
        )
    scores = section(output, "Scores")
    names = {
        "completeness": "completeness",
        "integrity": "integrity",
        "orphaned": "orphanedPercent",
        "quality score": "qualityScore",
        "correctable": "correctablePercent",
    }
    assert [entry["score"] for entry in scores] == list(names)
    for entry in scores:
        threshold = report.thresholds[names[entry["score"]]]
        assert float(entry["percent"]) == pytest.approx(threshold.value, abs=0.0051)
        assert entry["wanted"] == f"{threshold.comparison} {threshold.limit:g}"
        assert entry["met"] == ("t" if threshold.passed else "f")
    assert section(output, "Symbols") == [
        {
            "symbols_referenced": str(report.symbols_referenced),
            "symbols_without_market_data": str(report.symbols_without_market_data),
        }
    ]
    assert [tuple(entry.values()) for entry in section(output, "Rows by class")] == [
        (quoted(market, c.asset_class), str(c.records)) for c in report.by_asset_class
    ]
    assert [tuple(entry.values()) for entry in section(output, "Worst symbols")] == [
        (
            quoted(market, s.symbol),
            s.category.value,
            *map(str, (s.records, s.missing, s.mismatched)),
        )
        for s in report.by_symbol
    ]


def quoted(market: Market, value: str | None) -> str:
    """As SQL writes it."""
    row = market.connection.execute("SELECT quote_nullable(%s::text)", (value,)).fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture(scope="module")
def shared(postgres_server: EmbeddedServer) -> Iterator[Market]:
    """One database for all examples: each makes its tables anew."""
    with fresh_database(postgres_server, with_schema=True) as url, open_market(url) as market:
        yield market


@pytest.mark.parametrize("number", range(EXAMPLES))
def test_any_market_is_measured_corrected_and_rolled_back_as_by_the_engine(
    shared: Market, postgres_binaries: Binaries, number: int
) -> None:
    psql = Psql(postgres_binaries, shared.dsn)
    draw = Draw(number)
    listed, bars = draw.market()
    schema, table, symbols = NAMES[number % len(NAMES)]
    shape: dict[str, Any] = {"key": KEY, "partitioning": SHAPES[number % len(SHAPES)]}
    ours = replace(shared, schema=schema, table=table, symbols=symbols, **shape)
    theirs = replace(shared, schema="of the engine", **shape)
    overwrites = number % 3 == 0
    try:
        for market in (theirs, ours):
            market.create().list_symbols(*listed).add(bars)
        before = rows_of(ours)
        agrees(ours, psql.run("analysis", worst=1000, **tables(ours)), report_of(ours, worst=1000))

        operation = correct_now(
            theirs,
            request_of(
                only_process_null_asset_class=not overwrites, overwrite_existing_values=overwrites
            ),
        )
        psql.run(
            "correct_in_batches",
            overwrite_mismatched=overwrites,
            batch_size=draw.randint(1, 7),
            **tables(ours),
        )

        assert rows_of(ours) == rows_of(theirs)
        assert touched_by(ours) == touched_by(theirs) == operation.records_corrected
        agrees(ours, psql.run("analysis", worst=1000, **tables(ours)), report_of(ours, worst=1000))
        backup, engines_backup = backup_of(ours), operation.backup_table
        assert (backup is None) == (engines_backup is None)
        if backup is not None and engines_backup is not None:
            assert kept_by(ours, backup) == kept_by(theirs, engines_backup)
            psql.run("roll_back", backup_table=backup, **tables(ours))
            # What the engine wrote can be put back without the engine.
            psql.run("roll_back", backup_table=engines_backup, **tables(theirs))
        assert rows_of(ours) == rows_of(theirs) == before
    finally:
        ours.drop()
        theirs.drop()


@pytest.mark.every_postgres
def test_psql_is_enough(market: Market, psql: Psql) -> None:
    """A whole story where nothing of the pipeline is there; row by row."""
    market.execute("DROP SCHEMA assetclass CASCADE")
    before = market.classes()
    assert "Rows to correct: 20\n" in psql.run("correct_in_batches", dry_run="on")
    assert backup_of(market) is None

    told = psql.run("correct_in_batches", batch_size=8)

    assert told.count("INSERT 0 8\n") == 2
    assert told.count("INSERT 0 4\n") == 1
    assert section(told, "INSERT 0 4") == [{"corrected": "20", "correctable_rows_left": "0"}]
    corrected = {n: ("STOCK", "CRYPTO")[n % 5] for n in range(50) if n % 5 < 2}
    assert market.classes() == before | corrected
    backup = backup_of(market)
    assert backup is not None
    assert psql.run("roll_back").splitlines()[1].startswith(f"{backup},")

    market.execute("UPDATE market_data SET asset_class = 'LATER' WHERE id = 0")
    market.execute("UPDATE market_data SET asset_class = NULL WHERE id = 5")
    market.execute("UPDATE market_data SET symbol = 'BTC-USD' WHERE id = 1")
    market.execute("DELETE FROM market_data WHERE id = 10")
    later = market.classes()
    versions = market.versions()
    foreseen = {
        "to restore": 16,
        "conflict: changed since": 2,
        "conflict: gone": 2,
    }
    dry = psql.run("roll_back", backup_table=backup, dry_run="on")
    assert states(dry) == foreseen
    assert market.versions() == versions

    told = psql.run("roll_back", backup_table=backup)

    assert states(told) == foreseen
    assert states(told, "Rows by a fresh look") == {
        "restored": 16,
        "conflict: changed since": 2,
        "conflict: gone": 2,
    }
    assert [
        (entry["id"], entry["state"], entry["before"], entry["corrected"], entry["now"])
        for entry in section(told, "Conflicts")
    ] == [
        ("0", "conflict: changed since", "NULL", "'STOCK'", "'LATER'"),
        ("1", "conflict: gone", "''", "'CRYPTO'", ""),
        # Its old value was '' and not NULL: nobody restored it, somebody emptied it.
        ("5", "conflict: changed since", "''", "'STOCK'", "NULL"),
        ("10", "conflict: gone", "NULL", "'STOCK'", ""),
    ]
    untouched = {0, 1, 5, 10}
    assert market.classes() == later | {n: before[n] for n in corrected.keys() - untouched}


@pytest.mark.parametrize("partitioning", ["plain", "nested"])
def test_a_killed_correction_and_a_killed_rollback_go_on(
    make_market: MakeMarket, psql: Psql, partitioning: str
) -> None:
    market = make_market(partitioning=partitioning).fill(50, missing_every=2)
    before = rows_of(market)
    wanted = market.value(MISSING)
    kill_in_pause(market, psql, "correct_in_batches", CORRECTED, batch_size=7)
    backup = backup_of(market)
    assert backup is not None
    first = sum(kept_by(market, backup).values())
    assert 0 < first == touched_by(market) < wanted

    psql.run("correct_in_batches", batch_size=7, backup_table=backup)

    assert report_of(market).correctable == 0
    assert backup_of(market) == backup
    assert sum(kept_by(market, backup).values()) == touched_by(market) == wanted

    kill_in_pause(market, psql, "roll_back", MISSING, batch_size=7, backup_table=backup)
    assert 0 < report_of(market).correctable < wanted

    told = psql.run("roll_back", batch_size=7, backup_table=backup)

    assert states(told)["restored"] > 0
    assert states(told, "Rows by a fresh look") == {"restored": wanted}
    assert rows_of(market) == before


def kill_in_pause(
    market: Market, psql: Psql, script: str, sign: LiteralString, **variables: Any
) -> None:
    """Kill psql -9 when it has committed its first batch and waits before the second."""
    with psql.start(script, pause=50, **variables) as process:
        deadline = time.monotonic() + 30
        while not market.value(sign):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.communicate(timeout=30)


def test_what_happened_since_the_scan_is_respected(market: Market, psql: Psql) -> None:
    psql.run("correct_in_batches", max_records=1)
    backup = backup_of(market)
    before = market.classes()
    later, *shares = [n for n in range(0, 50, 5) if before[n] != "STOCK"]
    with psycopg.connect(market.dsn) as gate:
        # The script asks this table for its last number when it has listed the rows.
        gate.execute(sql.SQL("LOCK TABLE {}").format(sql.Identifier(str(backup))))
        with psql.start("correct_in_batches", backup_table=backup, lock_timeout="60s") as process:
            deadline = time.monotonic() + 30
            while not market.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            market.list_symbols(("BTC", "OTHER"))
            market.execute("UPDATE symbols SET asset_class = 'SHARE' WHERE ticker = 'AAPL'")
            market.execute(
                "UPDATE market_data SET asset_class = 'LATER' WHERE id = %s", values=[later]
            )
            gate.rollback()
            process.communicate(timeout=60)

    assert process.returncode == 0
    assert market.classes() == before | {later: "LATER"} | dict.fromkeys(shares, "SHARE")
    assert sum(kept_by(market, str(backup)).values()) == 1 + len(shares)


def test_locked_rows_are_left_for_the_next_run(market: Market, psql: Psql) -> None:
    with psycopg.connect(market.dsn) as application:
        application.execute("UPDATE market_data SET close = 2 WHERE id IN (0, 5)")
        told = psql.run("correct_in_batches")
        assert section(told, "INSERT 0 18") == [{"corrected": "18", "correctable_rows_left": "2"}]
    backup = backup_of(market)
    assert backup is not None
    psql.run("correct_in_batches", backup_table=backup)
    assert report_of(market).correctable == 0

    with psycopg.connect(market.dsn) as application:
        application.execute("UPDATE market_data SET close = 3 WHERE id = 0")
        told = psql.run("roll_back", backup_table=backup)
        assert states(told, "Rows by a fresh look") == {"restored": 19, "to restore": 1}
    psql.run("roll_back", backup_table=backup)
    assert report_of(market).correctable == 20


@pytest.mark.every_postgres
def test_only_what_the_engine_wrote_is_put_back(market: Market, psql: Psql) -> None:
    """The application may have set a row to the very class that was planned for it."""
    operation = correct_now(market)
    backup = sql.Identifier("public", str(operation.backup_table))
    seqs = dict(market.rows("SELECT id, seq FROM {}", backup))
    last_batch = market.rows(
        "DELETE FROM assetclass.operation_batch WHERE first_seq = "
        "(SELECT max(first_seq) FROM assetclass.operation_batch) RETURNING first_seq, last_seq"
    )[0]
    never_done = {n for n, seq in seqs.items() if last_batch[0] <= seq <= last_batch[1]}
    skipped, undone = sorted(seqs.keys() - never_done)[:2]
    market.execute(
        "INSERT INTO assetclass.operation_skipped_row VALUES (%s, %s, 'locked')",
        values=(operation.correction_id, seqs[skipped]),
    )
    market.execute(
        "INSERT INTO assetclass.operation_undone "
        "SELECT id, id, int8multirange(int8range(seq, seq, '[]')) "
        "FROM (VALUES (%s::uuid, %s::bigint)) AS undone (id, seq)",
        values=(operation.correction_id, seqs[undone]),
    )
    corrected = market.classes()

    psql.run("roll_back", backup_table=operation.backup_table)

    left = {n for n, now in market.classes().items() if n in seqs and now == corrected[n]}
    assert left == never_done | {skipped, undone}


@pytest.mark.parametrize("create_backup", [True, False])
def test_an_archive_is_put_back_with_the_same_care(
    market: Market, psql: Psql, tmp_path: Path, create_backup: bool
) -> None:
    """Of a backup that has expired, or was never made: a table of another name elsewhere."""
    settings = market.settings.model_copy(update={"archive_directory": tmp_path})
    before = market.classes()
    operation = correct(market.dsn, settings, request_of(create_backup=create_backup))
    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    with connect(market.dsn, settings, purpose="test") as connection:
        assert len(clean_up(connection, settings, by="test").dropped) == create_backup
        restored = restore_archive(connection, settings, operation.correction_id, by="test")
    table_again = sql.Identifier(*restored.table.split("."))
    seqs = dict(market.rows("SELECT id, seq FROM {}", table_again))
    changed, skipped, *rest = sorted(seqs)
    market.execute(
        "INSERT INTO assetclass.operation_skipped_row VALUES (%s, %s, 'locked')",
        values=(operation.correction_id, seqs[skipped]),
    )
    market.execute("UPDATE market_data SET asset_class = 'LATER' WHERE id = %s", values=[changed])
    corrected = market.classes()
    schema_name, _, table = restored.table.partition(".")
    assert psql.run("roll_back", backup_schema=schema_name).splitlines()[1].startswith(f"{table},")

    told = psql.run("roll_back", backup_schema=schema_name, backup_table=table)

    assert states(told, "Rows by a fresh look") == {
        "restored": len(rest),
        "conflict: changed since": 1,
    }
    assert market.classes() == corrected | {n: before[n] for n in rest}


def test_old_values_are_cast_where_the_column_became_an_enum(market: Market, psql: Psql) -> None:
    market.execute("UPDATE market_data SET asset_class = NULL")
    before = market.classes()
    operation = correct_now(market)
    market.execute("CREATE TYPE class AS ENUM ('STOCK', 'CRYPTO')")
    market.execute("ALTER TABLE market_data ALTER asset_class TYPE class USING asset_class::class")
    psql.run("roll_back", backup_table=operation.backup_table)
    assert market.classes() == before


def test_a_class_is_cast_to_an_enum_and_updated_at_is_not_needed(
    make_market: MakeMarket, psql: Psql
) -> None:
    with psycopg.connect(psql.url, autocommit=True) as connection:
        connection.execute("CREATE TYPE class AS ENUM ('CLASS_0', 'CLASS_1')")
        market = make_market(class_type="class", has_updated_at=False)
        market.list_symbols(("A", "CLASS_0"), ("B", "CLASS_1"))
        market.add(Bar(n, "AB"[n % 2]) for n in range(20))
        before = rows_of(market)
        psql.run("correct_in_batches")
        assert report_of(market).quality_score == 100
        psql.run("roll_back", backup_table=backup_of(market))
        assert rows_of(market) == before


def test_what_a_trigger_makes_of_a_class_is_what_the_backup_keeps(
    market: Market, psql: Psql
) -> None:
    market.execute(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF OLD.id = 0 THEN RETURN NULL; END IF; "
        "IF OLD.id = 5 AND NEW.asset_class = 'STOCK' THEN NEW.asset_class := 'SHARE'; END IF; "
        "RETURN NEW; END $$"
    )
    market.execute(
        "CREATE TRIGGER meddle BEFORE UPDATE ON market_data FOR EACH ROW EXECUTE FUNCTION meddle()"
    )
    before = rows_of(market)
    told = psql.run("correct_in_batches")
    assert section(told, "INSERT 0 19") == [{"corrected": "19", "correctable_rows_left": "1"}]
    assert market.classes()[5] == "SHARE"
    psql.run("roll_back", backup_table=backup_of(market))
    assert rows_of(market) == before


def test_the_analysis_runs_where_nothing_may_be_written(market: Market, psql: Psql) -> None:
    versions = market.versions()
    market.execute("CREATE ROLE reader LOGIN")
    try:
        market.execute("GRANT SELECT ON market_data, symbols TO reader")
        market.execute("REVOKE TEMPORARY ON DATABASE {} FROM public", _database(market))
        told = psql.run("analysis", "--command=SET ROLE reader", worst=1)
        assert [entry["symbol"] for entry in section(told, "Worst symbols")] == ["'GONE'"]
        assert market.versions() == versions
    finally:
        market.execute("DROP OWNED BY reader")
        market.execute("DROP ROLE reader")


def _database(market: Market) -> sql.Identifier:
    return sql.Identifier(market.connection.info.dbname)


@pytest.mark.every_postgres
@pytest.mark.parametrize("script", ["correct_in_batches", "roll_back"])
def test_reasons_not_to_begin(market: Market, psql: Psql, script: str) -> None:
    """Each is an error of its own, and nothing is changed."""
    correct_now(market, request_of(target_symbols=["BTC"]))
    backup = backup_of(market)
    given: dict[str, object] = {"backup_table": backup} if script == "roll_back" else {}
    versions = market.versions()

    with pytest.raises(PsqlError, match="invalid transaction termination"):
        psql.run(script, "--single-transaction", **given)
    market.execute("UPDATE assetclass.operation SET status = 'running'")
    with pytest.raises(PsqlError, match="An operation of the pipeline is active"):
        psql.run(script, **given)
    # The runbook's statement for an operation that only seems to be active.
    market.execute(
        "UPDATE assetclass.operation "
        "SET status = 'interrupted', epoch = epoch + 1, finished_at = clock_timestamp() "
        "WHERE status IN ('requested', 'running', 'paused')"
    )
    with pytest.raises(PsqlError, match=r'relation "public\.nowhere" does not'):
        psql.run(script, market_table="nowhere", backup_table=backup)
    market.execute("CREATE VIEW bars AS SELECT * FROM market_data")
    with pytest.raises(PsqlError, match="not only, an ordinary table of this server"):
        psql.run(script, market_table="bars", **given)
    reason = r'relation "public\.nowhere" does not' if given else "was not made by this script"
    with pytest.raises(PsqlError, match=reason):
        psql.run(script, backup_table="nowhere")

    assert market.versions() == versions
    assert market.backup_tables() == [backup]


def test_a_publication_of_all_tables_is_a_reason_not_to_begin(market: Market, psql: Psql) -> None:
    market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    with pytest.raises(PsqlError, match="their replication stops"):
        psql.run("correct_in_batches")
    market.execute("DROP PUBLICATION everything")
    if market.connection.info.server_version < 150_000:
        return
    market.execute("CREATE PUBLICATION everything FOR TABLES IN SCHEMA public")
    with pytest.raises(PsqlError, match="their replication stops"):
        psql.run("correct_in_batches")
    assert market.backup_tables() == []
    psql.run("correct_in_batches", in_publication="on", dry_run="on")


def test_a_first_try_takes_a_few_rows_only(market: Market, psql: Psql) -> None:
    psql.run("correct_in_batches", max_records=3)
    assert touched_by(market) == 3
    assert report_of(market).correctable == 17


def test_the_demo_data(database_url: str, psql: Psql, sources: SourceFiles) -> None:
    """Real bars with real damage: the same bytes by hand as by the engine, and back."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET TimeZone TO 'UTC'")
        market = Market(connection, database_url)
        load_demo(database_url, market.settings, sources, report=print)
        schema.upgrade(database_url, market.settings)
        before, report = contents(market), report_of(market)
        agrees(market, psql.run("analysis", worst=50), report)

        told = psql.run("correct_in_batches", batch_size=10_000)
        assert told.splitlines()[-2] == f"{report.correctable},0"
        by_hand, backup = contents(market), backup_of(market)
        told = psql.run("roll_back", batch_size=10_000, backup_table=backup)
        assert states(told, "Rows by a fresh look") == {"restored": report.correctable}
        assert contents(market) == before

        correct_now(market, request_of(batch_size=10_000))
        assert contents(market) == by_hand != before


def contents(market: Market) -> str:
    """A checksum of all columns of all rows, but for the times of changes."""
    return str(
        market.value(
            "SELECT md5(string_agg((to_jsonb(m) - 'updated_at')::text, ',' ORDER BY id)) "
            "FROM market_data m"
        )
    )
