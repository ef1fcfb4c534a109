"""The rehearsed batch: it measures and warns, and leaves nothing behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.engine import rehearsal as rehearsal_module
from assetclass_pipeline.engine.preview import preview
from assetclass_pipeline.engine.rehearsal import Rehearsed
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.model.preflight import Rehearsal, Severity
from assetclass_pipeline_tests.engine.checks import codes, read_tables, rehearse_now, the
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import correct_now, options_of
from assetclass_pipeline_tests.market import Bar, Market, open_market

RECORDS = 400
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hash": {"partitioning": "hash"},
    "no updated_at": {"has_updated_at": False},
    "enum": {"class_type": "two_classes"},
    "quoted": {"schema": 'a "b" %', "table": "Market % Data"},
}
REWRITE: LiteralString = (
    "UPDATE market_data SET asset_class = 'OTHER' WHERE id = NEW.id AND asset_class <> 'OTHER';"
)


def measured(found: Rehearsed) -> Rehearsal:
    """The rehearsal that took place, without a finding."""
    assert found.findings == ()
    assert found.rehearsal is not None
    return found.rehearsal


def unharmed(market: Market, found: Rehearsed, before: object) -> Rehearsed:
    """Rows, tables and sequences are as they were."""
    assert market.versions() == before
    assert market.rows("SELECT relname FROM pg_class WHERE relpersistence = 't'") == []
    assert market.backup_tables() == []
    assert market.plan_tables() == []
    return found


def rehearse_unharmed(market: Market) -> Rehearsed:
    """A rehearsal, and the proof that nothing stayed."""
    return unharmed(market, rehearse_now(market), market.versions())


def trigger(market: Market, timing: LiteralString, body: LiteralString) -> None:
    """A row trigger for updates."""
    market.connection.execute(
        "CREATE OR REPLACE FUNCTION react() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        + body
        + " RETURN NEW; END $$"
    )
    kind: LiteralString = "CONSTRAINT TRIGGER" if "DEFERR" in timing else "TRIGGER"
    moment: LiteralString = "AFTER UPDATE" if "DEFERR" in timing else timing + " UPDATE"
    mode: LiteralString = timing if "DEFERR" in timing else ""
    market.connection.execute(
        "CREATE " + kind + " meddle " + moment + " ON market_data " + mode
        + " FOR EACH ROW EXECUTE FUNCTION react()"
    )  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are rehearsed, however busy the machine is."""
    monkeypatch.setattr(rehearsal_module, "PATIENT_SECONDS", 3600.0)


@pytest.mark.every_postgres
@pytest.mark.parametrize("shape", SHAPES)
def test_it_measures_a_batch_and_leaves_nothing_behind(
    make_market: MakeMarket, database_url: str, shape: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TYPE two_classes AS ENUM ('CLASS_0', 'CLASS_1')")
    market = make_market(**SHAPES[shape])
    market.list_symbols(("A", "CLASS_0"), ("B", "CLASS_1"))
    market.add(Bar(n, "AB"[n % 2]) for n in range(RECORDS))
    rehearsal = measured(rehearse_unharmed(market))
    assert rehearsal.records == RECORDS or (shape == "hash" and 0 < rehearsal.records < RECORDS)
    assert rehearsal.seconds > 0
    assert rehearsal.wal_bytes is not None
    assert rehearsal.wal_bytes > 20 * rehearsal.records
    operation = correct_now(market, batch_size=100)
    assert (operation.status, operation.records_corrected) == (Status.SUCCEEDED, RECORDS)


def test_it_takes_no_more_rows_than_asked_for(market: Market) -> None:
    market.fill(RECORDS)
    assert measured(rehearse_now(market, records=7)).records == 7


def test_the_first_rows_are_enough_where_they_cost_much(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the application waits for the rows for as long as the rehearsal takes."""
    monkeypatch.setattr(rehearsal_module, "PATIENT_SECONDS", 1.0)
    trigger(market.fill(RECORDS), "AFTER", "PERFORM pg_sleep(0.003);")
    found = rehearse_now(market)
    assert found.rehearsal is not None
    assert found.rehearsal.records == rehearsal_module.FIRST_RECORDS
    assert found.rehearsal.seconds >= 0.003 * rehearsal_module.FIRST_RECORDS


def test_it_takes_only_rows_that_the_options_mean(market: Market) -> None:
    market.fill(RECORDS)
    found = rehearse_now(market, target_symbols=["S3"])
    assert measured(found).records == RECORDS // 20


def test_it_takes_the_best_chunk_that_it_sees_in_time(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the end on; here a chunk is one page: 16 damaged rows on the first, 1 on the last."""
    market.fill(5_000, missing_every=5_000)
    market.execute("UPDATE market_data SET asset_class = NULL WHERE id BETWEEN 5 AND 20")
    market.execute("CLUSTER market_data USING market_data_pkey")
    monkeypatch.setattr(rehearsal_module, "PAGES_PER_CHUNK", 1)
    assert measured(rehearse_now(market)).records == 16
    monkeypatch.setattr(rehearsal_module, "LOOKING_SECONDS", 0.0)
    assert measured(rehearse_now(market)).records == 1
    market.execute("UPDATE market_data SET asset_class = 'X' WHERE id > 20")
    market.execute("CLUSTER market_data")
    assert "REHEARSAL_SKIPPED" in codes(rehearse_now(market), Severity.INFO)


class TestTriggers:
    """What only writing shows."""

    @pytest.mark.every_postgres
    @pytest.mark.parametrize(
        ("timing", "body"),
        [
            ("BEFORE", "NEW.asset_class := 'OTHER';"),
            (
                "AFTER",
                REWRITE,
            ),
            (
                "DEFERRABLE INITIALLY DEFERRED",
                REWRITE,
            ),
        ],
    )
    def test_one_that_rewrites_is_refused(
        self, market: Market, timing: LiteralString, body: LiteralString
    ) -> None:
        market.fill(RECORDS)
        trigger(market, timing, body)
        found = rehearse_unharmed(market)
        assert found.rehearsal is None
        assert the(found, "TRIGGER_REWRITES").severity is Severity.REFUSE
        market.execute("ALTER TABLE market_data DISABLE TRIGGER meddle")
        measured(rehearse_unharmed(market))

    @pytest.mark.parametrize("timing", ["BEFORE", "AFTER"])
    def test_one_that_only_watches_is_not(self, market: Market, timing: LiteralString) -> None:
        market.fill(RECORDS)
        market.execute("CREATE TABLE seen (id bigint)")
        trigger(market, timing, "INSERT INTO seen VALUES (NEW.id);")
        measured(rehearse_unharmed(market))
        assert market.value("SELECT count(*) FROM seen") == 0

    def test_one_that_vetoes_all(self, market: Market) -> None:
        market.fill(RECORDS)
        trigger(market, "BEFORE", "RETURN NULL;")
        found = rehearse_unharmed(market)
        assert the(found, "REHEARSAL_WROTE_NOTHING").severity is Severity.WARN
        assert found.rehearsal is None

    def test_one_that_vetoes_some(self, market: Market) -> None:
        market.fill(RECORDS)
        trigger(market, "BEFORE", "IF NEW.id <= 100 THEN RETURN NULL; END IF;")
        found = rehearse_unharmed(market)
        assert "100 of 400" in the(found, "REHEARSAL_SKIPPED_ROWS").message
        assert found.rehearsal is not None
        assert found.rehearsal.records == 300

    def test_one_that_raises(self, market: Market) -> None:
        market.fill(RECORDS)
        trigger(market, "BEFORE", "RAISE 'the books are closed';")
        finding = the(rehearse_unharmed(market), "REHEARSAL_FAILED")
        assert finding.severity is Severity.WARN
        assert "the books are closed" in finding.message


def test_a_constraint_that_some_row_breaks(market: Market) -> None:
    market.fill(RECORDS)
    market.execute(
        "ALTER TABLE market_data ADD CONSTRAINT odd CHECK (asset_class <> 'CLASS_1' OR id < 9)"
    )
    finding = the(rehearse_unharmed(market), "REHEARSAL_FAILED")
    assert finding.severity is Severity.WARN
    assert '"odd"' in finding.message
    market.execute("ALTER TABLE market_data DROP CONSTRAINT odd")
    measured(rehearse_unharmed(market))


def test_a_deferred_foreign_key(market: Market) -> None:
    """It would speak at COMMIT, which a rehearsal never reaches."""
    market.fill(RECORDS)
    market.execute("CREATE TABLE classes (name text PRIMARY KEY)")
    market.execute("INSERT INTO classes VALUES ('CLASS_0')")
    market.execute(
        "ALTER TABLE market_data ADD CONSTRAINT known FOREIGN KEY (asset_class)"
        " REFERENCES classes DEFERRABLE INITIALLY DEFERRED"
    )
    assert '"known"' in the(rehearse_unharmed(market), "REHEARSAL_FAILED").message


def test_a_class_that_does_not_fit_the_column(make_market: MakeMarket) -> None:
    market = make_market(class_type="varchar(3)").list_symbols(("A", "STOCK"))
    market.add([Bar(1, "A")])
    assert "too long" in the(rehearse_unharmed(market), "REHEARSAL_FAILED").message


class TestOthers:
    """The application goes first."""

    def test_rows_that_others_hold_are_left_out(self, market: Market) -> None:
        market.fill(RECORDS)
        with psycopg.connect(market.dsn) as writer:
            writer.execute("SELECT FROM market_data WHERE id <= 30 FOR UPDATE")
            found = rehearse_now(market)
            writer.rollback()
        assert "30 of 400" in the(found, "REHEARSAL_SKIPPED_ROWS").message
        measured(rehearse_now(market))

    def test_a_locked_table_is_not_waited_for(self, market: Market) -> None:
        market.fill(RECORDS)
        with psycopg.connect(market.dsn) as writer:
            writer.execute("LOCK TABLE market_data IN SHARE MODE")
            found = rehearse_now(market)
            writer.rollback()
        assert "lock timeout" in the(found, "REHEARSAL_FAILED").message
        assert found.rehearsal is None


@contextmanager
def clerk(market: Market, *rights: LiteralString) -> Iterator[str]:
    """The DSN of a role with these rights; nobody may make temporary tables but who says so."""
    name = f"clerk of {market.connection.info.dbname}"
    role, database = sql.Identifier(name), sql.Identifier(market.connection.info.dbname)
    market.execute("CREATE ROLE {} LOGIN PASSWORD 'x'", role)
    market.execute("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC", database)
    for right in rights:
        market.connection.execute(
            sql.SQL("GRANT " + right + " TO {role}").format(role=role, database=database)
        )
    try:
        yield make_conninfo(market.dsn, user=name, password="x")
    finally:
        market.execute("DROP OWNED BY {}", role)
        market.execute("DROP ROLE {}", role)


class TestRights:
    """Whom the server does not let rehearse is told why, and sees the rest."""

    READ: LiteralString = "SELECT ON market_data, symbols"
    WRITE: LiteralString = "UPDATE (asset_class, updated_at) ON market_data"
    TEMPORARY: LiteralString = "TEMPORARY ON DATABASE {database}"

    def test_the_least_rights_suffice(self, market: Market) -> None:
        market.fill(RECORDS)
        with clerk(market, self.READ, self.WRITE, self.TEMPORARY) as dsn:
            found = unharmed(market, rehearse_now(market, dsn=dsn), market.versions())
        assert measured(found).records == RECORDS

    def test_without_temporary_tables(self, market: Market) -> None:
        market.fill(RECORDS)
        with clerk(market, self.READ, self.WRITE) as dsn:
            finding = the(rehearse_now(market, dsn=dsn), "REHEARSAL_SKIPPED")
        assert finding.severity is Severity.INFO
        assert "TEMPORARY" in finding.message

    def test_without_update(self, market: Market) -> None:
        market.fill(RECORDS)
        with clerk(market, self.READ, self.TEMPORARY) as dsn:
            finding = the(rehearse_now(market, dsn=dsn), "REHEARSAL_SKIPPED")
        assert "may update" in finding.message


class TestForeignLeaves:
    """A batch by address is rehearsed where addresses mean something."""

    def test_only_the_local_leaves_are_rehearsed(
        self, make_market: MakeMarket, another_database_url: str
    ) -> None:
        market = make_market(partitioning="mixed", remote_dsn=another_database_url)
        market.list_symbols(("A", "CLASS_0"))
        market.add(Bar(n, "A", "2023-06-01") for n in range(5))
        market.add(Bar(n, "A", "2024-06-01") for n in range(10, 30))
        assert measured(rehearse_now(market)).records == 5
        assert set(market.classes().values()) == {None}

    def test_without_any_there_is_none(
        self, make_market: MakeMarket, another_database_url: str
    ) -> None:
        market = make_market(partitioning="foreign", remote_dsn=another_database_url)
        market.list_symbols(("A", "CLASS_0")).add([Bar(1, "A")])
        found = rehearse_now(market)
        assert "another server" in the(found, "REHEARSAL_SKIPPED").message


def test_a_preview_works_on_a_standby(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "postgres", settings={"shared_buffers": "16MB"})
    with server, open_market(server.url()) as market:
        market.fill(RECORDS)
    (configuration,) = tmp_path.rglob("postgresql.conf")
    (configuration.parent / "standby.signal").touch()
    with server, connect(server.url(), market.settings, purpose="test") as connection:
        there = Market(connection, server.url())
        found = preview(connection, read_tables(there), there.settings, options_of())
    assert found.records == RECORDS
    assert "standby" in the(found.preflight, "REHEARSAL_SKIPPED").message
    assert found.estimated_seconds == found.preflight.estimated_seconds
