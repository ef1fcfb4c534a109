"""The registry of backups: what is noted and noticed, and what a verification proves."""

from collections.abc import Iterator
from typing import LiteralString
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, Rollback, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine.backup_verification import verify_all, verify_backup
from assetclass_pipeline.engine.backups import (
    content_of,
    hold,
    list_backups,
    register,
    release,
    seal,
)
from assetclass_pipeline.errors import (
    BackupExpiredError,
    NotUndoableError,
    OperationNotFoundError,
    OperationStateError,
)
from assetclass_pipeline.model.backup import Backup, BackupState, Verification
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import correct_now, keep_alive, plan_now, request_of
from assetclass_pipeline_tests.market import Bar, Market

RECORDS = 60


@pytest.fixture
def connection(market: Market) -> Iterator[Connection[TupleRow]]:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        yield connection


def backups_of(market: Market) -> dict[str, Backup]:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        found = list_backups(connection, market.settings).backups
    return {backup.correction_id: backup for backup in found}


def verify(market: Market, correction_id: str) -> Verification:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return verify_backup(connection, market.settings, correction_id, by="test")


def table_of(backup: Backup) -> sql.Identifier:
    return sql.Identifier(backup.schema_name, backup.table_name)


def make_backup(market: Market) -> Backup:
    """A correction of every row, and its backup."""
    market.fill(RECORDS)
    operation = correct_now(market)
    assert operation.records_corrected == RECORDS
    return backups_of(market)[operation.correction_id]


@pytest.mark.every_postgres
def test_a_backup_is_registered_with_rows_bytes_checksum_and_expiry(market: Market) -> None:
    backup = make_backup(market)
    assert backup.table_name == market.backup_tables()[0]
    assert (backup.schema_name, backup.records) == ("public", RECORDS)
    assert (backup.bytes or 0) >= 8192
    major = market.connection.info.server_version // 10_000
    assert (backup.checksum or "").startswith(f"1-{major}:")
    assert (backup.expires_at - backup.created_at).days == 30
    assert backup.state is BackupState.KEPT
    assert backup.why.startswith("expires at ")


def test_it_is_registered_before_its_plan_is_complete(market: Market) -> None:
    """The row comes with the table; figures come with the plan."""
    market.fill(RECORDS)
    market.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'not now'; END $$"
    )
    market.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON assetclass.backup FOR EACH ROW "
        "WHEN (NEW.checksum IS NOT NULL) EXECUTE FUNCTION refuse()"
    )
    request = request_of()
    with pytest.raises(Exception, match="not now"):
        plan_now(market, request)
    found = backups_of(market)[request.correction_id]
    assert (found.records, found.checksum) == (None, None)
    partial = verify(market, request.correction_id)
    assert not partial.passed
    assert "never completed" in partial.problems[0]

    market.execute("DROP TRIGGER refuse ON assetclass.backup")
    correct_now(market, request)
    assert backups_of(market)[request.correction_id].records == RECORDS
    assert verify(market, request.correction_id).passed


def test_what_keeps_no_backup_registers_none(market: Market) -> None:
    market.fill(RECORDS)
    correct_now(market, dry_run=True)
    correct_now(market, create_backup=False)
    nothing_left = correct_now(market)
    assert nothing_left.records_planned == 0
    assert backups_of(market) == {}
    assert market.backup_tables() == []


def test_late_rows_are_sealed_too(market: Market) -> None:
    """A row that comes while the batches run is planned in a second pass."""
    market.fill(RECORDS)
    market.execute(
        "CREATE FUNCTION arrive() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        """INSERT INTO market_data (id, symbol, "timestamp") VALUES (1000, 'S1', '2024-01-01') """
        "ON CONFLICT DO NOTHING; RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER arrive AFTER UPDATE ON market_data "
        "FOR EACH STATEMENT EXECUTE FUNCTION arrive()"
    )
    operation = correct_now(market)
    assert operation.records_corrected == RECORDS + 1
    assert backups_of(market)[operation.correction_id].records == RECORDS + 1
    assert verify(market, operation.correction_id).passed


def test_a_plan_that_is_made_anew_is_registered_anew(market: Market) -> None:
    market.fill(RECORDS)
    request = request_of()
    plan_now(market, request)
    first = backups_of(market)[request.correction_id]
    market.execute("DROP TABLE {}", table_of(first))
    assert backups_of(market)[request.correction_id].state is BackupState.DROPPED_BY_HAND
    operation = correct_now(market, request)
    backup = backups_of(market)[request.correction_id]
    assert (backup.table_name, backup.state) == (operation.backup_table, BackupState.KEPT)
    assert verify(market, request.correction_id).passed


def test_the_checksum_minds_every_value_but_neither_order_nor_address(
    market: Market, connection: Connection[TupleRow]
) -> None:
    backup = make_backup(market)
    table = table_of(backup)

    def checksum() -> str:
        with transaction(connection, market.settings) as cursor:
            return content_of(cursor, table).checksum

    assert checksum() == backup.checksum
    market.execute("UPDATE {} SET source_address = '(7,7)' WHERE seq <= 20", table)
    market.execute("CREATE TABLE other AS SELECT * FROM {} ORDER BY random()", table)
    market.execute("DELETE FROM {}", table)
    market.execute("INSERT INTO {} SELECT * FROM other", table)
    assert checksum() == backup.checksum
    for column, value in (
        ("seq", 1000),
        ("id", -1),
        ("symbol", "s1"),
        ("timestamp", "2020-01-01"),
        ("asset_class", ""),
        ("corrected_asset_class", "X"),
    ):
        with transaction(connection, market.settings) as cursor:
            changed = sql.SQL("UPDATE {} SET {} = {} WHERE seq = 3")
            cursor.execute(changed.format(table, sql.Identifier(column), value))
            assert content_of(cursor, table).checksum != backup.checksum, column
            raise Rollback


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    "shape",
    [
        {"id_type": "text", "symbol_type": "varchar(20)", "timestamp_type": "date"},
        {"id_type": "money", "key": "UNIQUE (id)", "timestamp_type": "timestamp"},
        {"id_type": "numeric", "partitioning": "hash"},
        {"partitioning": "range", "key": "UNIQUE (id)"},
    ],
    ids=["text", "no hash", "hash", "range"],
)
def test_every_shape_of_table_is_verified(make_market: MakeMarket, shape: dict[str, str]) -> None:
    market = make_market(**shape)
    market.list_symbols(("AAPL", "STOCK"))
    market.add(Bar(f"{n}", "AAPL", f"2023-0{n}-01") for n in range(1, 6))
    operation = correct_now(market)
    proved = verify(market, operation.correction_id)
    assert proved.passed, proved
    assert (proved.records, proved.restorable, proved.missing) == (5, 5, 0)


def test_enum_labels_are_told_apart_by_name(market: Market, make_market: MakeMarket) -> None:
    market.execute("CREATE TYPE klass AS ENUM ('CLASS_0', 'CLASS_1')")
    enum = make_market(class_type="klass")
    enum.list_symbols(("AAPL", "CLASS_1"), ("BTC", "CLASS_0"))
    enum.add([Bar(1, "AAPL"), Bar(2, "BTC")])
    operation = correct_now(enum)
    backup = backups_of(enum)[operation.correction_id]
    assert verify(enum, backup.correction_id).passed
    text = enum.value(
        'SELECT sum(hash_record_extended(ROW(seq, id, symbol, "timestamp", NULL::text, '
        "corrected_asset_class::text), 0))::text FROM {}",
        table_of(backup),
    )
    assert str(backup.checksum).partition(":")[2] == text


def test_a_checksum_of_an_older_postgresql_is_taken_anew(market: Market) -> None:
    backup = make_backup(market)
    market.execute("UPDATE assetclass.backup SET checksum = '1-13:7'")
    proved = verify(market, backup.correction_id)
    assert proved.passed
    assert "older PostgreSQL" in proved.remarks[0]
    assert backups_of(market)[backup.correction_id].checksum == backup.checksum


def test_a_verification_says_what_a_rollback_would_find(market: Market) -> None:
    backup = make_backup(market)
    market.execute("DELETE FROM market_data WHERE id <= 3")
    market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id BETWEEN 4 AND 8")
    market.execute("UPDATE market_data SET asset_class = NULL WHERE id BETWEEN 9 AND 15")
    before = market.versions()
    proved = verify(market, backup.correction_id)
    assert (proved.missing, proved.changed, proved.already_restored) == (3, 5, 7)
    assert proved.restorable == RECORDS - 15
    assert proved.passed
    assert proved.remarks == [
        "3 of its rows were deleted since.",
        "5 of its rows were changed since: a rollback leaves them alone.",
    ]
    assert market.versions() == before
    stored = backups_of(market)[backup.correction_id]
    assert stored.verified_at is not None
    assert (stored.verification or {})["restorable"] == RECORDS - 15


def test_rows_that_we_skipped_or_put_back_are_not_counted(market: Market) -> None:
    backup = make_backup(market)
    market.execute(
        "INSERT INTO assetclass.operation_skipped_row SELECT correction_id, 1, 'deleted' "
        "FROM assetclass.backup"
    )
    market.execute(
        "INSERT INTO assetclass.operation_undone SELECT correction_id, correction_id, "
        "'{{[2,5),[9,10)}}' FROM assetclass.backup"
    )
    assert verify(market, backup.correction_id).restorable == RECORDS - 5


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE {} SET asset_class = 'STOCK' WHERE seq = 7", "Its checksum differs"),
        ("DELETE FROM {} WHERE seq = 7", "It holds 59 rows where 60 were written"),
        ("INSERT INTO {0} SELECT * FROM {0} WHERE seq = 7", "duplicate"),
    ],
)
def test_a_damaged_backup_does_not_pass(market: Market, damage: LiteralString, says: str) -> None:
    backup = make_backup(market)
    statement = sql.SQL(damage).format(table_of(backup))
    if says == "duplicate":
        market.execute("DROP INDEX {}", sql.Identifier(f"{backup.table_name}_seq_idx"))
        says = "It holds 61 rows where 60 were written"
    market.connection.execute(statement)
    found = verify(market, backup.correction_id)
    assert not found.passed
    assert not found.intact
    assert says in found.problems[0]
    assert backups_of(market)[backup.correction_id].checksum == backup.checksum


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER COLUMN asset_class SET NOT NULL", "which is NOT NULL: NULL (60 rows)"),
        (
            "ADD CONSTRAINT set CHECK (asset_class IS NOT NULL)",
            "cannot pass CHECK constraint set of public.market_data: NULL (60 rows)",
        ),
    ],
)
def test_old_values_must_be_legal_today(market: Market, change: LiteralString, says: str) -> None:
    backup = make_backup(market)
    market.connection.execute("ALTER TABLE market_data " + change)
    found = verify(market, backup.correction_id)
    assert found.intact
    assert not found.passed
    assert says in found.problems[0]


def test_an_old_value_that_became_too_long_or_unknown(market: Market) -> None:
    market.list_symbols(("AAPL", "STOCK"))
    market.add([Bar(1, "AAPL", asset_class="A VERY LONG ONE"), Bar(2, "AAPL", asset_class="S")])
    operation = correct_now(
        market, only_process_null_asset_class=False, overwrite_existing_values=True
    )
    assert operation.records_corrected == 2
    market.execute("ALTER TABLE market_data ALTER asset_class TYPE varchar(8)")
    found = verify(market, operation.correction_id)
    assert "'A VERY LONG ONE' (1 rows)" in found.problems[0]
    market.execute("CREATE TYPE few AS ENUM ('STOCK')")
    market.execute("ALTER TABLE market_data ALTER asset_class TYPE few USING asset_class::few")
    found = verify(market, operation.correction_id)
    assert "'A VERY LONG ONE' (1 rows)" in found.problems[0]
    assert any("'S' (1 rows)" in problem for problem in found.problems)


def test_a_key_or_a_backup_of_another_shape(market: Market) -> None:
    backup = make_backup(market)
    market.execute("ALTER TABLE market_data ALTER id TYPE text")
    found = verify(market, backup.correction_id)
    assert (found.passed, found.intact) == (False, True)
    assert "does not fit the market table of today" in found.problems[0]
    market.execute("ALTER TABLE {} DROP asset_class", table_of(backup))
    found = verify(market, backup.correction_id)
    assert (found.passed, found.intact) == (False, False)


def test_a_table_dropped_by_hand_is_noticed(
    market: Market, connection: Connection[TupleRow]
) -> None:
    backup = make_backup(market)
    market.execute("DROP TABLE {}", table_of(backup))
    found = backups_of(market)[backup.correction_id]
    assert found.state is BackupState.DROPPED_BY_HAND
    assert found.drop_reason == "dropped by hand"
    assert found.dropped_at is not None
    for asked in (
        lambda: verify(market, backup.correction_id),
        lambda: hold(connection, market.settings, backup.correction_id, by="me", reason="audit"),
    ):
        with pytest.raises(BackupExpiredError, match="dropped by hand"):
            asked()


def test_tables_that_look_alike_are_reported_and_left(market: Market) -> None:
    backup = make_backup(market)
    market.execute("CREATE TABLE market_data_backup_20200101_000000 (id int)")
    market.execute("CREATE TABLE market_data_backupless (id int)")
    with connect(market.dsn, market.settings, purpose="test") as connection:
        found = list_backups(connection, market.settings)
    assert [entry.table_name for entry in found.unregistered] == [
        "market_data_backup_20200101_000000"
    ]
    assert [entry.table_name for entry in found.backups] == [backup.table_name]


def test_backups_from_before_the_registry_are_brought_in(market: Market) -> None:
    backup = make_backup(market)
    market.execute("DELETE FROM assetclass.backup")
    market.execute("UPDATE assetclass.operation SET started_at = now() - interval '40 days'")
    found = backups_of(market)[backup.correction_id]
    assert (found.table_name, found.records, found.state) == (
        backup.table_name,
        None,
        BackupState.EXPIRED,
    )
    proved = verify(market, backup.correction_id)
    assert proved.passed
    assert "no checksum" in proved.remarks[0]
    sealed = backups_of(market)[backup.correction_id]
    assert (sealed.records, sealed.checksum) == (RECORDS, backup.checksum)

    market.execute("DELETE FROM assetclass.backup")
    market.execute("DELETE FROM {} WHERE seq = 1", table_of(backup))
    damaged = verify(market, backup.correction_id)
    assert not damaged.passed
    assert backups_of(market)[backup.correction_id].checksum is None


def test_hold_and_release(market: Market, connection: Connection[TupleRow]) -> None:
    backup = make_backup(market)
    held = hold(connection, market.settings, backup.correction_id, by="grace", reason="audit 2026")
    assert (held.state, held.held_by, held.hold_reason) == (
        BackupState.HELD,
        "grace",
        "audit 2026",
    )
    assert held.why == "is held by grace: audit 2026"
    released = release(connection, market.settings, backup.correction_id, by="ada")
    assert (released.state, released.held_by) == (BackupState.KEPT, None)
    events = market.rows("SELECT event, actor FROM assetclass.operation_event ORDER BY id")
    assert events[-2:] == [("backup_held", "grace"), ("backup_released", "ada")]


def test_ids_without_a_backup(market: Market, connection: Connection[TupleRow]) -> None:
    market.fill(RECORDS)
    unknown = str(uuid4())
    with pytest.raises(OperationNotFoundError, match=unknown):
        verify(market, unknown)
    with pytest.raises(OperationNotFoundError, match="yesterday"):
        hold(connection, market.settings, "yesterday", by="me", reason="audit")
    dry = correct_now(market, dry_run=True)
    with pytest.raises(NotUndoableError, match="it was a dry run"):
        verify(market, dry.correction_id)
    without = correct_now(market, create_backup=False)
    with pytest.raises(NotUndoableError, match="made no backup"):
        verify(market, without.correction_id)


def test_one_that_is_being_written_is_not_verified(market: Market) -> None:
    market.fill(RECORDS)
    request = request_of()
    plan_now(market, request, park=False)
    keep_alive(market)
    with pytest.raises(OperationStateError, match="still writes its backup"):
        verify(market, request.correction_id)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        assert verify_all(connection, market.settings, by="test").verifications == []
    assert backups_of(market)[request.correction_id].state is BackupState.NEEDED


def test_a_rollbacks_table_is_registered_and_verified_alike(
    market: Market, connection: Connection[TupleRow]
) -> None:
    """Its rows are restored from nowhere: only that they are what was written is proved."""
    backup = make_backup(market)
    rollback = uuid4()
    market.execute(
        "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options, "
        "requested_by, rollback_of, plan, records_planned) "
        "SELECT %s, 'rollback', 'succeeded', 'done', false, '{{}}', 'test', correction_id, "
        "'{{\"complete\": true}}', 60 FROM assetclass.operation",
        values=(rollback,),
    )
    with transaction(connection, market.settings) as cursor:
        register(
            cursor,
            market.settings,
            rollback,
            schema_name="assetclass",
            table_name="rollback_20260101_000000",
        )
        cursor.execute(
            sql.SQL("CREATE TABLE assetclass.rollback_20260101_000000 AS SELECT * FROM {}").format(
                table_of(backup)
            )
        )
        seal(cursor, rollback, sql.Identifier("assetclass", "rollback_20260101_000000"))
    found = backups_of(market)[str(rollback)]
    assert (found.kind, found.records, found.checksum) == ("rollback", RECORDS, backup.checksum)
    proved = verify(market, str(rollback))
    assert (proved.passed, proved.restorable) == (True, 0)
    assert UUID(found.correction_id) == rollback
