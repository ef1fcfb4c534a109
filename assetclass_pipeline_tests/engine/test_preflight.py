"""Preflight: each finding is provoked for real, and gone when its cause is gone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.engine import preflight as preflight_module
from assetclass_pipeline.engine.disk_space import Free, Need, free_disk, judge_disk
from assetclass_pipeline.model.preflight import Preflight, Severity
from assetclass_pipeline_tests.engine.checks import check, check_all, codes, the
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.market import Bar, Market, open_market

TRIGGER: LiteralString = (
    "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
)
GRAVE = (Severity.REFUSE, Severity.WARN)
BOTH = {"STOCK": 5, "CRYPTO_CURRENCY": 1_234}
ONE = {"CRYPTO_CURRENCY": 1_234}


def wait_until(market: Market, condition: LiteralString) -> None:
    """Wait until a query returns true."""
    deadline = time.monotonic() + 30
    while not market.value(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.01)


@contextmanager
def session(market: Market, *statements: LiteralString) -> Iterator[psycopg.Connection]:
    """Another session that ran `statements` in a transaction, still open."""
    with psycopg.connect(market.dsn) as other:
        for statement in statements:
            other.execute(statement)
        yield other
        other.rollback()


def update(market: Market) -> None:
    """What PostgreSQL says to an UPDATE of the whole table."""
    market.execute("UPDATE {} SET asset_class = 'X'", market.market_identifier)


@pytest.mark.every_postgres
@pytest.mark.parametrize("partitioning", ["plain", "nested"])
def test_nothing_is_wrong_with_a_quiet_market(make_market: MakeMarket, partitioning: str) -> None:
    market = make_market(partitioning=partitioning).fill(100)
    found = check_all(market, 100)
    assert codes(found, *GRAVE) == set()
    assert found.refusals == []
    assert (found.indexes_on_asset_class, found.triggers, found.publications) == ([], [], [])
    assert found.replica_identity == {"default": 1 if partitioning == "plain" else 3}
    assert (found.rows_to_change, found.waiting_locks) == (100, 0)
    assert found.wal_bytes == 120_000
    assert found.rehearsal is not None
    assert found.estimated_seconds is not None


class TestIndexes:
    """An index that mentions a written column forbids HOT updates."""

    @pytest.mark.parametrize(
        "definition",
        [
            "(asset_class)",
            "(symbol) WHERE asset_class IS NULL",
            "(lower(asset_class))",
            "(updated_at)",
            "(symbol) INCLUDE (asset_class)",
        ],
    )
    def test_it_is_named(self, market: Market, definition: LiteralString) -> None:
        market.execute("CREATE INDEX other ON market_data (symbol, close)")
        assert check(market).indexes_on_asset_class == []
        market.connection.execute("CREATE INDEX guilty ON market_data " + definition)
        found = check(market)
        assert found.indexes_on_asset_class == ["public.guilty"]
        assert "public.guilty" in the(found, "NO_HOT_UPDATES").message
        assert the(found, "NO_HOT_UPDATES").severity is Severity.INFO
        market.execute("DROP INDEX guilty")
        assert "NO_HOT_UPDATES" not in codes(check(market))

    def test_a_unique_one_may_collide(self, market: Market) -> None:
        market.execute("CREATE INDEX guilty ON market_data (symbol, asset_class)")
        assert "UNIQUE_INDEX_ON_CLASS" not in codes(check(market))
        market.execute("DROP INDEX guilty")
        market.execute("CREATE UNIQUE INDEX guilty ON market_data (symbol, asset_class)")
        assert the(check(market), "UNIQUE_INDEX_ON_CLASS").severity is Severity.WARN


class TestTriggers:
    """Triggers of users that an UPDATE of ours fires."""

    @pytest.mark.every_postgres
    def test_a_row_trigger_of_a_parent_is_one_on_its_leaves(self, make_market: MakeMarket) -> None:
        market = make_market(partitioning="nested")
        market.execute(TRIGGER)
        market.execute("CREATE TABLE classes (name text PRIMARY KEY)")
        # Triggers of a foreign key are no user's.
        market.execute("ALTER TABLE market_data ADD FOREIGN KEY (asset_class) REFERENCES classes")
        assert check(market).triggers == []
        market.execute(
            "CREATE TRIGGER watch BEFORE UPDATE ON market_data"
            " FOR EACH ROW EXECUTE FUNCTION touch()"
        )
        market.execute(
            "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON market_data"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION touch()"
        )
        found = check(market)
        assert [(t.name, t.timing, t.level, t.tables, t.fires) for t in found.triggers] == [
            ("watch", "BEFORE", "ROW", 3, True),
            ("late", "AFTER", "ROW", 3, True),
        ]
        assert the(found, "TRIGGER_BEFORE_UPDATE").severity is Severity.WARN
        assert "late (public.touch)" in the(found, "TRIGGER_ON_UPDATE").message
        market.execute("DROP TRIGGER watch ON market_data")
        market.execute("DROP TRIGGER late ON market_data")
        assert check(market).triggers == []

    @pytest.mark.parametrize(
        "event",
        ["AFTER INSERT", "BEFORE DELETE", "BEFORE UPDATE OF close", "AFTER TRUNCATE"],
    )
    def test_what_an_update_of_ours_does_not_fire_is_no_finding(
        self, market: Market, event: LiteralString
    ) -> None:
        market.execute(TRIGGER)
        level: LiteralString = "STATEMENT" if event == "AFTER TRUNCATE" else "ROW"
        market.connection.execute(
            "CREATE TRIGGER watch "
            + event
            + " ON market_data FOR EACH "
            + level
            + " EXECUTE FUNCTION touch()"
        )
        assert check(market).triggers == []

    @pytest.mark.parametrize("column", ["asset_class", "updated_at"])
    def test_one_on_a_written_column_is_found(self, market: Market, column: str) -> None:
        market.execute(TRIGGER)
        market.execute(
            "CREATE TRIGGER watch AFTER UPDATE OF {} ON market_data"
            " FOR EACH STATEMENT EXECUTE FUNCTION touch()",
            sql.Identifier(column),
        )
        assert "for each UPDATE" in the(check(market), "TRIGGER_ON_UPDATE").message

    def test_whether_it_fires_depends_on_the_session(self, market: Market) -> None:
        market.execute(TRIGGER)
        market.execute(
            "CREATE TRIGGER watch BEFORE UPDATE ON market_data"
            " FOR EACH ROW EXECUTE FUNCTION touch()"
        )
        replica = make_conninfo(market.dsn, options="-c session_replication_role=replica")

        def fires(enabled: LiteralString) -> tuple[bool, bool]:
            market.connection.execute("ALTER TABLE market_data " + enabled + " TRIGGER watch")
            found = ("TRIGGER_BEFORE_UPDATE" in codes(check(market, dsn=dsn)) for dsn in dsns)
            here, there = found
            return here, there

        dsns = (market.dsn, replica)
        assert fires("ENABLE") == (True, False)
        assert fires("ENABLE REPLICA") == (False, True)
        assert fires("ENABLE ALWAYS") == (True, True)
        assert fires("DISABLE") == (False, False)


@pytest.mark.every_postgres
class TestReplicaIdentity:
    """Without one PostgreSQL rejects the UPDATE of a published table, whatever wal_level is."""

    def test_a_published_table_needs_one(self, market: Market) -> None:
        market.fill(20)
        market.execute("ALTER TABLE market_data REPLICA IDENTITY NOTHING")
        assert codes(check(market), *GRAVE) == set()
        market.execute("CREATE PUBLICATION bars FOR TABLE market_data")
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            update(market)
        found = check_all(market, 20)
        assert the(found, "NO_REPLICA_IDENTITY") in found.refusals
        # The rehearsal meets the same, and what the catalogue does not tell.
        assert the(found, "REHEARSAL_FAILED") in found.refusals
        assert (found.publications, found.replica_identity) == (["bars"], {"nothing": 1})
        market.execute("ALTER TABLE market_data REPLICA IDENTITY FULL")
        found = check_all(market, 20)
        assert codes(found, *GRAVE) == set()
        assert {"PUBLISHED", "REPLICA_IDENTITY_FULL"} <= codes(found)
        assert found.replica_identity == {"full": 1}
        market.execute("ALTER TABLE market_data REPLICA IDENTITY DEFAULT")
        assert "REPLICA_IDENTITY_FULL" not in codes(check(market))
        update(market)

    def test_who_publishes_only_inserts_needs_none(self, market: Market) -> None:
        market.fill(20)
        market.execute("ALTER TABLE market_data REPLICA IDENTITY NOTHING")
        market.execute(
            "CREATE PUBLICATION bars FOR TABLE market_data WITH (publish = 'insert, delete')"
        )
        update(market)
        assert {"NO_REPLICA_IDENTITY", "PUBLISHED"} & codes(check(market)) == set()

    @pytest.mark.parametrize("via_root", ["true", "false"])
    def test_a_leaf_is_published_through_what_is_above_it(
        self, make_market: MakeMarket, via_root: LiteralString
    ) -> None:
        market = make_market(partitioning="nested").fill(200)
        market.connection.execute(
            "CREATE PUBLICATION bars FOR TABLE market_data WITH (publish_via_partition_root = "
            + via_root
            + ")"
        )
        update(market)
        assert "NO_REPLICA_IDENTITY" not in codes(check(market))
        market.execute("ALTER TABLE {} DROP CONSTRAINT {}", market.part(4), key_of(market, 4))
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            update(market)
        found = check(market)
        assert "market_data_part_4:" in the(found, "NO_REPLICA_IDENTITY").message
        assert found.replica_identity == {"default": 2, "nothing": 1}

    def test_a_row_filter_on_other_columns(self, market: Market) -> None:
        """The catalogue check does not know it; the rehearsal meets it."""
        if market.connection.info.server_version < 150_000:
            pytest.skip("no row filters before PostgreSQL 15")
        market.fill(20)
        market.execute("CREATE PUBLICATION dear FOR TABLE market_data WHERE (close > 1)")
        with pytest.raises(errors.InvalidColumnReference):
            update(market)
        found = check_all(market, 20)
        assert [finding.code for finding in found.refusals] == ["REHEARSAL_FAILED"]

    def test_a_deferrable_key_is_none(self, make_market: MakeMarket) -> None:
        market = make_market(key="PRIMARY KEY (id) DEFERRABLE, UNIQUE (id)").fill(20)
        market.execute("CREATE PUBLICATION bars FOR TABLE market_data")
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            update(market)
        assert "NO_REPLICA_IDENTITY" in codes(check(market), Severity.REFUSE)


def key_of(market: Market, part: int) -> sql.Identifier:
    """Name of a partition's primary key."""
    rows = market.execute(
        "SELECT conname FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid"
        " WHERE contype = 'p' AND relname = %s",
        values=(f"{market.table}_part_{part}",),
    ).fetchall()
    return sql.Identifier(rows[0][0])


class TestBackupInPublication:
    """A new logged table in a published schema stops subscribers that lack it."""

    @pytest.mark.every_postgres
    def test_all_tables(self, market: Market) -> None:
        market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        found = check(market)
        assert the(found, "BACKUP_PUBLISHED") in found.refusals
        assert "createBackup: false" in the(found, "BACKUP_PUBLISHED").message
        assert the(found, "OWN_TABLES_PUBLISHED").severity is Severity.WARN
        assert "BACKUP_PUBLISHED" not in codes(check(market, create_backup=False))
        assert "BACKUP_PUBLISHED" not in codes(check(market, dry_run=True))
        allowed = check(market, allow_backup=True)
        assert the(allowed, "BACKUP_PUBLISHED").severity is Severity.INFO
        # What the refusal offers is true: an unlogged table is never published.
        market.execute("CREATE UNLOGGED TABLE plan (seq bigint)")
        market.execute("CREATE TABLE backup (seq bigint)")
        tables = market.rows("SELECT tablename FROM pg_publication_tables ORDER BY 1")
        assert ("backup",) in tables
        assert ("plan",) not in tables

    def test_who_publishes_no_inserts_carries_no_backup(self, market: Market) -> None:
        market.execute("CREATE PUBLICATION changes FOR ALL TABLES WITH (publish = 'update')")
        assert codes(check(market), *GRAVE) == set()

    def test_who_publishes_named_tables_carries_no_backup(self, market: Market) -> None:
        market.execute("CREATE PUBLICATION bars FOR TABLE market_data, symbols")
        found = check(market)
        assert codes(found, *GRAVE) == set()
        assert found.publications == ["bars"]

    @pytest.mark.every_postgres
    def test_tables_of_a_schema(self, market: Market) -> None:
        """FOR TABLES IN SCHEMA, which PostgreSQL 14 does not have."""
        if market.connection.info.server_version < 150_000:
            pytest.skip("no publications of schemas before PostgreSQL 15")
        market.execute("CREATE SCHEMA elsewhere")
        market.execute("CREATE PUBLICATION of_elsewhere FOR TABLES IN SCHEMA elsewhere")
        found = check(market)
        assert (codes(found, *GRAVE), found.publications) == (set(), [])
        market.execute("CREATE PUBLICATION of_ours FOR TABLES IN SCHEMA assetclass")
        assert codes(check(market), *GRAVE) == {"OWN_TABLES_PUBLISHED"}
        market.execute("DROP PUBLICATION of_ours")
        market.execute("CREATE PUBLICATION of_public FOR TABLES IN SCHEMA public")
        found = check(market)
        assert codes(found, *GRAVE) == {"BACKUP_PUBLISHED"}
        assert found.publications == ["of_public"]
        assert "of_public" in the(found, "BACKUP_PUBLISHED").message


class TestClasses:
    """New classes against type, CHECK constraints and foreign keys, before any row has them."""

    def assert_misfit(self, market: Market, code: str) -> None:
        """CRYPTO_CURRENCY is refused, STOCK is not."""
        some = the(check(market, new_classes=BOTH), code)
        assert some.severity is Severity.WARN
        assert "1 of 2 new classes" in some.message
        assert "'CRYPTO_CURRENCY' (1,234 rows)" in some.message
        assert "STOCK" not in some.message
        assert the(check(market, new_classes=ONE), code).severity is Severity.REFUSE
        assert codes(check(market, new_classes={"STOCK": 5}), *GRAVE) == set()

    @pytest.mark.every_postgres
    @pytest.mark.parametrize(
        "class_type", ["varchar(10)", "char(10)", "short_class", "few_classes", "named_class"]
    )
    def test_the_type(self, make_market: MakeMarket, class_type: str, database_url: str) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("CREATE DOMAIN short_class AS varchar(10)")
            connection.execute("CREATE DOMAIN named_class AS text CHECK (VALUE IN ('STOCK', ''))")
            connection.execute("CREATE TYPE few_classes AS ENUM ('STOCK', 'FOREX')")
        market = make_market(class_type=class_type)
        self.assert_misfit(market, "CLASS_DOES_NOT_FIT_COLUMN")

    @pytest.mark.every_postgres
    @pytest.mark.parametrize("partitioning", ["plain", "range"])
    def test_a_check_on_the_class(self, make_market: MakeMarket, partitioning: str) -> None:
        market = make_market(partitioning=partitioning)
        assert codes(check(market, new_classes=BOTH), *GRAVE) == set()
        market.execute(
            "ALTER TABLE market_data ADD CONSTRAINT known"
            " CHECK (asset_class IN ('STOCK', '%s', '%(x)s') OR asset_class LIKE '%%_STOCK')"
            " NOT VALID"
            if partitioning == "plain"
            else "ALTER TABLE market_data ADD CONSTRAINT known CHECK (length(asset_class) < 9)"
        )
        self.assert_misfit(market, "CLASS_BREAKS_CHECK")
        market.execute("ALTER TABLE market_data DROP CONSTRAINT known")
        assert codes(check(market, new_classes=BOTH), *GRAVE) == set()

    def test_a_check_that_is_not_enforced(self, market: Market) -> None:
        if market.connection.info.server_version < 180_000:
            pytest.skip("NOT ENFORCED came with PostgreSQL 18")
        market.execute("ALTER TABLE market_data ADD CHECK (asset_class = 'STOCK') NOT ENFORCED")
        assert codes(check(market, new_classes=BOTH), *GRAVE) == set()

    def test_a_check_on_the_class_and_more(self, market: Market) -> None:
        market.execute("ALTER TABLE market_data ADD CHECK (asset_class <> symbol)")
        found = check(market, new_classes=BOTH)
        assert the(found, "CHECK_ON_CLASS_AND_OTHERS").severity is Severity.INFO
        assert codes(found, *GRAVE) == set()

    def test_a_check_that_fails_by_itself(self, market: Market) -> None:
        market.execute(
            "CREATE FUNCTION moody(text) RETURNS boolean LANGUAGE plpgsql"
            " AS 'BEGIN RAISE ''not today''; END'"
        )
        market.execute("ALTER TABLE market_data ADD CHECK (moody(asset_class)) NOT VALID")
        found = check(market, new_classes=BOTH)
        assert "not today" in the(found, "CHECK_NOT_EVALUATED").message

    @pytest.mark.every_postgres
    @pytest.mark.parametrize("partitioning", ["plain", "range"])
    @pytest.mark.parametrize("by", ["", " PARTITION BY LIST (name)"])
    def test_a_foreign_key(
        self, make_market: MakeMarket, partitioning: str, by: LiteralString
    ) -> None:
        market = make_market(partitioning=partitioning)
        market.connection.execute('CREATE TABLE "Classes" (name varchar(40) PRIMARY KEY)' + by)
        if by:
            market.execute('CREATE TABLE "S" PARTITION OF "Classes" FOR VALUES IN (\'STOCK\')')
            market.execute('CREATE TABLE "Rest" PARTITION OF "Classes" DEFAULT')
        market.execute("INSERT INTO \"Classes\" VALUES ('STOCK')")
        market.execute(
            "ALTER TABLE market_data ADD CONSTRAINT known FOREIGN KEY (asset_class)"
            ' REFERENCES "Classes"'
        )
        self.assert_misfit(market, "CLASS_NOT_REFERENCED")
        market.execute("INSERT INTO \"Classes\" VALUES ('CRYPTO_CURRENCY')")
        assert codes(check(market, new_classes=BOTH), *GRAVE) == set()

    def test_a_foreign_key_of_several_columns(self, market: Market) -> None:
        market.execute("CREATE TABLE pairs (s text, c text, PRIMARY KEY (s, c))")
        market.execute(
            "ALTER TABLE market_data ADD FOREIGN KEY (symbol, asset_class) REFERENCES pairs"
        )
        found = check(market, new_classes=BOTH)
        assert the(found, "FOREIGN_KEY_ON_CLASS_AND_OTHERS").severity is Severity.INFO

    def test_a_foreign_key_to_a_table_that_this_role_may_not_read(self, market: Market) -> None:
        market.execute("CREATE TABLE classes (name text PRIMARY KEY)")
        market.execute("ALTER TABLE market_data ADD FOREIGN KEY (asset_class) REFERENCES classes")
        with reader(market) as dsn:
            found = check(market, new_classes=BOTH, dsn=dsn)
        assert "permission denied" in the(found, "FOREIGN_KEY_NOT_EVALUATED").message
        assert codes(found, *GRAVE) == set()

    def test_several_constraints_that_refuse_all_between_them(self, market: Market) -> None:
        market.execute("ALTER TABLE market_data ADD CHECK (asset_class <> 'STOCK')")
        market.execute("ALTER TABLE market_data ADD CHECK (length(asset_class) < 9)")
        found = check(market, new_classes=BOTH)
        assert [finding.code for finding in found.refusals] == ["CLASS_BREAKS_CHECK"] * 2


class TestTraffic:
    """What others do with the table at this moment."""

    def test_a_lock_against_writers_and_who_waits_behind_it(self, market: Market) -> None:
        market.fill(10)
        with session(market, "LOCK TABLE market_data IN SHARE MODE") as holder:
            found = check(market)
            assert f"process {holder.info.backend_pid}" in the(found, "TABLE_LOCKED").message
            assert "LOCK_WAITS" not in codes(found)
            writer = threading.Thread(target=self._write, args=(market,))
            writer.start()
            try:
                wait_until(market, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
                found = check(market)
                assert found.waiting_locks == 1
                assert the(found, "LOCK_WAITS").severity is Severity.WARN
            finally:
                holder.rollback()
                writer.join()
        found = check(market)
        assert (codes(found, *GRAVE), found.waiting_locks) == (set(), 0)

    @staticmethod
    def _write(market: Market) -> None:
        with psycopg.connect(market.dsn) as writer:
            writer.execute("UPDATE market_data SET close = 2")

    def test_readers_and_writers_hold_no_such_lock(self, market: Market) -> None:
        with session(market, "INSERT INTO market_data (id) VALUES (1)"):
            assert codes(check(market), *GRAVE) == set()

    def test_the_oldest_transaction(self, market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
        assert check(market).oldest_transaction_seconds is None
        with session(market, "SELECT txid_current()"):
            found = check(market)
            assert found.oldest_transaction_seconds is not None
            assert "OLD_TRANSACTION" not in codes(found)
            monkeypatch.setattr(preflight_module, "OLD_TRANSACTION_SECONDS", 0.0)
            assert the(check(market), "OLD_TRANSACTION").severity is Severity.WARN
        wait_until(
            market, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
        )
        assert "OLD_TRANSACTION" not in codes(check(market))

    @pytest.mark.every_postgres
    def test_a_table_that_is_being_rewritten(self, market: Market) -> None:
        """VACUUM FULL builds an index last, here one whose expression waits for us."""
        market.fill(10)
        market.execute("ALTER TABLE market_data ADD CHECK (asset_class <> 'X')")
        market.execute(
            "CREATE FUNCTION slow(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(42); RETURN $1; END'"
        )
        market.execute("CREATE INDEX ON market_data (slow(id))")
        with session(market, "SELECT pg_advisory_xact_lock(42)") as holder:
            vacuum = threading.Thread(target=self._vacuum, args=(market,))
            vacuum.start()
            try:
                wait_until(
                    market,
                    "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'",
                )
                found = check(market, new_classes={"STOCK": 1})
                assert "VACUUM FULL" in the(found, "TABLE_IS_REWRITTEN").message
                assert "TABLE_LOCKED" in codes(found)
            finally:
                holder.rollback()
                vacuum.join()
        assert codes(check(market), *GRAVE) == set()

    @staticmethod
    def _vacuum(market: Market) -> None:
        with psycopg.connect(market.dsn, autocommit=True) as connection:
            connection.execute("VACUUM FULL market_data")


class TestDisk:
    """Bytes needed against bytes free, where the server's files are in sight."""

    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[Market]:
        """A market on an embedded server of its own, as the settings describe it."""
        server = EmbeddedServer(
            tmp_path / "postgres", settings={"fsync": "off", "shared_buffers": "16MB"}
        )
        with server, open_market(server.url()) as market:
            market.__dict__["settings"] = market.settings.model_copy(update={"home": tmp_path})
            yield market

    def test_the_embedded_server(self, own: Market) -> None:
        own.fill(100)
        found = check(own, records=100)
        assert "DISK_SUFFICIENT" in codes(found)
        assert found.disk_free_bytes is not None
        assert found.disk_needed_bytes is not None
        assert 100 * 110 < found.disk_needed_bytes < 100_000
        huge = check(own, records=10**15)
        assert the(huge, "DISK_TOO_SMALL") in huge.refusals
        # Autovacuum runs here.
        assert "AUTOVACUUM_OFF" not in codes(found)
        own.execute("ALTER TABLE market_data SET (autovacuum_enabled = off)")
        assert "public.market_data" in the(check(own), "AUTOVACUUM_OFF").message

    def test_files_must_be_those_of_the_server_that_answers(
        self, own: Market, tmp_path: Path
    ) -> None:
        """Identifier and port are compared, for a path says nothing about the machine."""
        copy = tmp_path / "copy"
        (copy / "global").mkdir(parents=True)
        (copy / "pg_wal").mkdir()
        control = (tmp_path / "postgres" / "data" / "global" / "pg_control").read_bytes()
        pid_file = (tmp_path / "postgres" / "data" / "postmaster.pid").read_text()

        def is_seen(control: bytes, pid_file: str) -> bool:
            (copy / "global" / "pg_control").write_bytes(control)
            (copy / "postmaster.pid").write_text(pid_file)
            return free_disk(own.connection.cursor(), copy) is not None

        port = pid_file.splitlines()[3]
        assert is_seen(control, pid_file)
        assert not is_seen(bytes([control[0] ^ 1]) + control[1:], pid_file)
        assert not is_seen(control, pid_file.replace(port, "1"))
        assert not is_seen(b"", pid_file)
        assert not is_seen(control, "")

    def test_unknown_where_it_is_not_in_sight(self, market: Market) -> None:
        found = check(market, records=10)
        assert found.disk_free_bytes is None
        assert "DISK_UNKNOWN" in codes(found)
        assert not codes(check(market)) & {"DISK_UNKNOWN", "DISK_SUFFICIENT"}

    @pytest.mark.parametrize(
        ("data", "wal", "code"),
        [
            (300, None, "DISK_SUFFICIENT"),
            (299, None, "DISK_TIGHT"),
            (150, None, "DISK_TIGHT"),
            (149, None, "DISK_TOO_SMALL"),
            (100, 200, "DISK_SUFFICIENT"),
            (99, 200, "DISK_TOO_SMALL"),
            (100, 199, "DISK_TIGHT"),
            (100, 49, "DISK_TOO_SMALL"),
        ],
    )
    def test_wal_may_have_a_disk_of_its_own(self, data: int, wal: int | None, code: str) -> None:
        """100 bytes of data, 200 of WAL of which the server keeps 50 by itself."""
        assert judge_disk(Need(100, 200, 50), Free(data, wal)).code == code


def test_a_role_that_may_only_read_learns_the_same(market: Market) -> None:
    market.fill(20)
    market.execute("CREATE INDEX guilty ON market_data (asset_class)")
    market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    with reader(market) as dsn:
        found = check_all(market, 20, dsn)
    assert {"BACKUP_PUBLISHED", "NO_HOT_UPDATES", "DISK_UNKNOWN"} <= codes(found)
    assert the(found, "REHEARSAL_SKIPPED").severity is Severity.INFO
    assert found.rehearsal is None
    assert found.estimated_seconds is not None


@contextmanager
def reader(market: Market) -> Iterator[str]:
    """The DSN of a role that may read both tables and nothing else."""
    name = f"reader of {market.connection.info.dbname}"
    role = sql.Identifier(name)
    market.execute("CREATE ROLE {} LOGIN PASSWORD 'x'", role)
    market.execute("GRANT SELECT ON market_data, symbols TO {}", role)
    try:
        yield make_conninfo(market.dsn, user=name, password="x")
    finally:
        market.execute("DROP OWNED BY {}", role)
        market.execute("DROP ROLE {}", role)


def test_findings_come_gravest_first(market: Market) -> None:
    market.add([Bar(1, "AAPL")])
    market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    order = [finding.severity for finding in check(market, records=1).findings]
    assert order == sorted(order, key=[*Severity].index)
    assert set(order) == set(Severity)


def test_it_survives_the_way_through_json(market: Market) -> None:
    found = check_all(market.fill(10), 10)
    document = found.model_dump(mode="json", by_alias=True)
    assert {"checkedAt", "indexesOnAssetClass", "diskNeededBytes", "walBytes"} <= set(document)
    again = Preflight.model_validate(document)
    assert again.model_dump(mode="json", by_alias=True) == document
