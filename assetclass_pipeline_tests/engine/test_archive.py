"""Files that keep the rows of dropped tables: whole or absent, equal to the table, searchable."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine import archive
from assetclass_pipeline.engine.archive import (
    ArchivedRow,
    Source,
    archives,
    find_rows,
    register_archive,
    remove_expired,
    write_archive,
)
from assetclass_pipeline.engine.archive_restore import restore_archive
from assetclass_pipeline.engine.backup_cleanup import clean_up
from assetclass_pipeline.errors import (
    ArchiveError,
    NotUndoableError,
    OperationNotFoundError,
    OperationStateError,
)
from assetclass_pipeline.model.backup import Archive, ArchiveState
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.engine.runs import correct_now, operation_of, request_of
from assetclass_pipeline_tests.market import Bar, Market


@pytest.fixture
def settings(market: Market, tmp_path: Path) -> Settings:
    return market.settings.model_copy(update={"archive_directory": tmp_path / "archive"})


@pytest.fixture
def connection(market: Market, settings: Settings) -> Iterator[Connection[TupleRow]]:
    with connect(market.dsn, settings, purpose="test") as connection:
        yield connection


def source_of(operation: Operation) -> Source:
    assert operation.backup_table is not None
    return Source(UUID(operation.correction_id), operation.kind, "public", operation.backup_table)


def make_archive(
    connection: Connection[TupleRow], settings: Settings, operation: Operation
) -> Path:
    """The archive of an operation's backup, registered."""
    source = source_of(operation)
    file = write_archive(connection, settings, source)
    with transaction(connection, settings) as cursor:
        register_archive(cursor, settings, source.correction_id, file)
    return settings.archive / file.file_name


def the_archive(
    connection: Connection[TupleRow], settings: Settings, *, thoroughly: bool = False
) -> Archive:
    with transaction(connection, settings, read_only=True) as cursor:
        (found,) = archives(cursor, settings, thoroughly=thoroughly)
    return found


def files_of(settings: Settings) -> list[str]:
    return [path.name for path in settings.archive.iterdir()]


def archived_texts(path: Path) -> list[tuple[Any, ...]]:
    columns = ["seq", "id", "symbol", "timestamp", "asset_class", "corrected_asset_class"]
    return [tuple(row.values()) for row in pq.read_table(path, columns=columns).to_pylist()]


def table_texts(market: Market, table: sql.Identifier) -> list[tuple[Any, ...]]:
    return market.rows(
        'SELECT seq, id::text, symbol::text, "timestamp"::text, asset_class::text, '
        "corrected_asset_class::text FROM {} ORDER BY seq",
        table,
    )


@pytest.mark.every_postgres
def test_every_value_comes_back_as_it_was(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    """NULL and '', quotes, commas, line ends, other scripts: text must tell them apart."""
    odd = [
        "",
        "a,b",
        'say "x"',
        "two\nlines",
        "cr\rlf\r\n",
        "\\N",
        "NULL",
        " ",
        "Ö €",
        "日本",
        "\t",
    ]
    market.list_symbols(*((f"S{text}", "STOCK") for text in odd))
    market.add(
        Bar(n, f"S{text}", "2024-03-01 12:00:00.123456+00", asset_class)
        for n, (text, asset_class) in enumerate(zip(odd, [*odd[1:], None], strict=True), start=1)
    )
    operation = correct_now(
        market, only_process_null_asset_class=False, overwrite_existing_values=True
    )
    path = make_archive(connection, settings, operation)
    assert archived_texts(path) == table_texts(market, source_of(operation).identifier)
    assert len(archived_texts(path)) == len(odd)


def test_it_says_of_what_it_is(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(30)
    operation = correct_now(market)
    path = make_archive(connection, settings, operation)
    metadata = pq.read_schema(path).metadata
    assert metadata[b"correctionId"].decode() == operation.correction_id
    assert metadata[b"kind"] == b"correction"
    assert metadata[b"formatVersion"] == b"1"
    assert metadata[b"sourceTable"].decode() == f"public.{operation.backup_table}"
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).compression == "ZSTD"
    found = the_archive(connection, settings, thoroughly=True)
    assert (found.records, found.bytes, found.state) == (
        30,
        path.stat().st_size,
        ArchiveState.PRESENT,
    )
    assert (found.expires_at - found.archived_at).days == 2555
    assert files_of(settings) == [path.name]


def test_many_chunks_with_gaps(
    market: Market,
    settings: Settings,
    connection: Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archive, "CHUNK", 7)
    market.fill(50)
    operation = correct_now(market)
    table = source_of(operation).identifier
    market.execute("DELETE FROM {} WHERE seq BETWEEN 8 AND 30", table)
    path = make_archive(connection, settings, operation)
    assert archived_texts(path) == table_texts(market, table)
    assert pq.ParquetFile(path).num_row_groups == 5
    assert [row.seq for row in found_rows(settings, connection, operation, range(1, 51))] == [
        *range(1, 8),
        *range(31, 51),
    ]


def found_rows(
    settings: Settings, connection: Connection[TupleRow], operation: Operation, ids: range
) -> list[ArchivedRow]:
    return sorted(
        (
            row
            for number in ids
            for row in find_rows(settings, connection, operation.correction_id, str(number))
        ),
        key=lambda row: row.seq,
    )


def test_a_row_is_found_with_its_batch_and_why_it_was_skipped(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(30)
    operation = correct_now(market)
    table = source_of(operation).identifier
    (seq,) = market.rows("SELECT seq FROM {} WHERE id = 12", table)[0]
    market.execute(
        "INSERT INTO assetclass.operation_skipped_row VALUES (%s, %s, 'changed_by_others')",
        values=(operation.correction_id, seq),
    )
    make_archive(connection, settings, operation)
    (row,) = find_rows(settings, connection, operation.correction_id, "12")
    (committed,) = market.rows(
        "SELECT committed_at FROM assetclass.operation_batch WHERE {} BETWEEN first_seq "
        "AND last_seq",
        sql.Literal(seq),
    )[0]
    assert asdict(row) == {
        "seq": seq,
        "id": "12",
        "symbol": "S12",
        "timestamp": "2023-01-01 00:12:00+00",
        "asset_class": None,
        "corrected_asset_class": "CLASS_0",
        "skipped": "changed_by_others",
        "committed_at": committed,
    }
    (other,) = find_rows(settings, connection, operation.correction_id, "13")
    assert other.skipped is None
    assert find_rows(settings, connection, operation.correction_id, "31") == []
    assert find_rows(settings, connection, operation.correction_id, "") == []


def test_rows_that_no_batch_took_have_no_time(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(30)
    operation = correct_now(market)
    market.execute("DELETE FROM assetclass.operation_batch WHERE first_seq IN (1, 21)")
    make_archive(connection, settings, operation)
    rows = found_rows(settings, connection, operation, range(1, 31))
    assert [row.committed_at is not None for row in rows] == [11 <= row.seq <= 20 for row in rows]


def test_a_table_that_changes_meanwhile_gives_no_file(
    market: Market,
    settings: Settings,
    connection: Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archive, "CHUNK", 10)
    market.fill(30)
    operation = correct_now(market)
    source = source_of(operation)
    checks = iter(range(100))

    def change() -> None:
        if next(checks) == 3:
            market.execute(
                "UPDATE {} SET corrected_asset_class = 'X' WHERE seq = 25", source.identifier
            )

    with pytest.raises(ArchiveError, match="somebody changes that table"):
        write_archive(connection, settings, source, check=change)
    assert files_of(settings) == []


def test_one_that_is_stopped_or_refused_leaves_nothing(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(30)
    operation = correct_now(market)
    source = source_of(operation)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(connection, settings, source, check=stop)
    assert files_of(settings) == []

    # What a killed process left goes with the next try.
    leftover = settings.archive / f"{operation.correction_id}.parquet.abc.partial"
    leftover.write_bytes(b"half")
    make_archive(connection, settings, operation)
    assert files_of(settings) == [f"{operation.correction_id}.parquet"]

    blocked = settings.model_copy(update={"archive_directory": settings.archive / "x" / "y"})
    (settings.archive / "x").write_text("a file, no directory")
    with pytest.raises(ArchiveError, match="ASSETCLASS_ARCHIVE_DIRECTORY"):
        write_archive(connection, blocked, source)


def test_a_missing_and_an_altered_file_are_noticed(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(30)
    operation = correct_now(market)
    path = make_archive(connection, settings, operation)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert the_archive(connection, settings).state is ArchiveState.PRESENT
    assert the_archive(connection, settings, thoroughly=True).state is ArchiveState.ALTERED
    path.write_bytes(b"short")
    assert the_archive(connection, settings).state is ArchiveState.ALTERED
    with pytest.raises(ArchiveError, match="cannot be used"):
        find_rows(settings, connection, operation.correction_id, "1")
    path.unlink()
    assert the_archive(connection, settings).state is ArchiveState.MISSING
    with pytest.raises(ArchiveError, match="is missing"):
        find_rows(settings, connection, operation.correction_id, "1")


def test_expired_files_are_removed_and_the_summary_stays(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(30)
    operation = correct_now(market)
    path = make_archive(connection, settings, operation)
    assert remove_expired(connection, settings, dry_run=False) == []
    market.execute("UPDATE assetclass.archive SET expires_at = now() - interval '1 s'")
    assert remove_expired(connection, settings, dry_run=True) == [path.name]
    assert path.exists()
    assert remove_expired(connection, settings, dry_run=False) == [path.name]
    assert not path.exists()
    assert the_archive(connection, settings).state is ArchiveState.REMOVED
    assert find_rows(settings, connection, operation.correction_id, "1") == []
    assert operation_of(market, operation.correction_id).changes == operation.changes
    assert remove_expired(connection, settings, dry_run=False) == []


@pytest.fixture
def without_backup(market: Market, settings: Settings) -> Market:
    """Corrections of this market archive into the test's own directory."""
    market.__dict__["settings"] = settings
    return market.fill(30)


def test_without_a_backup_the_rows_are_archived(
    without_backup: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    operation = correct_now(without_backup, create_backup=False)
    assert operation.backup_table is None
    assert without_backup.plan_tables() == without_backup.backup_tables() == []
    found = the_archive(connection, settings, thoroughly=True)
    assert (found.correction_id, found.records, found.state) == (
        operation.correction_id,
        30,
        ArchiveState.PRESENT,
    )
    rows = found_rows(settings, connection, operation, range(1, 31))
    assert len(rows) == 30
    assert all(row.committed_at is not None for row in rows)
    assert {row.corrected_asset_class for row in rows} == {"CLASS_0", "CLASS_1"}


def test_a_dry_run_and_one_that_changes_nothing_write_no_file(
    without_backup: Market, settings: Settings
) -> None:
    correct_now(without_backup, create_backup=False, dry_run=True)
    correct_now(without_backup)
    correct_now(without_backup, create_backup=False)
    assert not settings.archive.exists() or files_of(settings) == []


def test_a_resume_writes_the_file_again(
    without_backup: Market,
    settings: Settings,
    connection: Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is on the disk, its record is not committed: the process dies in between."""
    request = request_of(create_backup=False)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("assetclass_pipeline.engine.correction.register_archive", die)
        with pytest.raises(KeyboardInterrupt):
            correct_now(without_backup, request)
    left = operation_of(without_backup, request.correction_id)
    assert (left.status, left.records_corrected) == (Status.INTERRUPTED, 30)
    (path,) = settings.archive.iterdir()
    path.write_bytes(b"what a full disk may leave")
    operation = correct_now(without_backup, request)
    assert operation.status is Status.SUCCEEDED
    found = the_archive(connection, settings, thoroughly=True)
    assert (found.records, found.state) == (30, ArchiveState.PRESENT)
    assert without_backup.plan_tables() == []


def test_a_directory_that_cannot_be_used_is_refused_before_any_row_is_changed(
    without_backup: Market, settings: Settings
) -> None:
    settings.archive.write_text("a file, no directory")
    with pytest.raises(ArchiveError, match="ASSETCLASS_ARCHIVE_DIRECTORY"):
        correct_now(without_backup, create_backup=False)
    assert set(without_backup.classes().values()) == {None}
    assert correct_now(without_backup).records_corrected == 30


def test_a_plan_that_a_crash_emptied_gives_no_file(
    without_backup: Market, settings: Settings
) -> None:
    """Unlogged, it is empty after a crash of the server that we outlived."""
    emptied: LiteralString = (
        "CREATE FUNCTION empty_plan() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "EXECUTE format('DELETE FROM assetclass.%I', NEW.plan ->> 'table_name'); "
        "RETURN NULL; END $$"
    )
    without_backup.connection.execute(emptied)
    without_backup.execute(
        "CREATE TRIGGER empty_plan AFTER UPDATE ON assetclass.operation FOR EACH ROW "
        "WHEN (NEW.phase = 'verifying') EXECUTE FUNCTION empty_plan()"
    )
    with pytest.raises(ArchiveError, match="0 of the 30 rows that were planned"):
        correct_now(without_backup, create_backup=False)
    assert files_of(settings) == []
    assert None not in without_backup.classes().values()


def test_an_archive_becomes_a_table_again(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    odd = ["", "a,b", 'say "x"', "two\nlines", "cr\rlf\r\n", "\\N", "NULL", "日本"]
    market.list_symbols(*((f"S{text}", "STOCK") for text in odd))
    market.add(
        Bar(n, f"S{text}", asset_class=asset_class)
        for n, (text, asset_class) in enumerate(zip(odd, [*odd[1:], None], strict=True), start=1)
    )
    operation = correct_now(
        market, only_process_null_asset_class=False, overwrite_existing_values=True
    )
    table = source_of(operation).identifier
    rows = table_texts(market, table)
    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    assert len(clean_up(connection, settings, by="test").dropped) == 1

    restored = restore_archive(connection, settings, operation.correction_id, by="test")
    assert (restored.records, restored.proved) == (len(odd), True)
    again = sql.Identifier(*restored.table.split("."))
    assert table_texts(market, again) == rows
    assert market.backup_tables() == []
    # The guide's own statement restores from it.
    market.execute(
        "UPDATE market_data SET asset_class = backup.asset_class, updated_at = CURRENT_TIMESTAMP "
        "FROM {} backup WHERE market_data.id = backup.id",
        again,
    )
    assert market.classes() == dict(enumerate([*odd[1:], None], start=1))
    with pytest.raises(OperationStateError, match="there already"):
        restore_archive(connection, settings, operation.correction_id, by="test")


def test_what_cannot_become_a_table_again(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(30)
    operation = correct_now(market)
    restore = partial(restore_archive, connection, settings, operation.correction_id, by="test")
    with pytest.raises(NotUndoableError, match="does not exist"):
        restore()
    path = make_archive(connection, settings, operation)
    market.execute("UPDATE assetclass.backup SET checksum = checksum || '7'")
    with pytest.raises(ArchiveError, match="does not hold what its table held"):
        restore()
    market.execute("UPDATE assetclass.backup SET checksum = NULL")
    market.execute("ALTER TABLE market_data ALTER symbol TYPE varchar(1) USING 'S'")
    with pytest.raises(ArchiveError, match="value too long"):
        restore()
    market.execute("ALTER TABLE market_data ALTER symbol TYPE text")
    market.execute("CREATE DOMAIN klass AS text NOT NULL")
    market.execute("ALTER TABLE market_data ALTER asset_class TYPE klass")
    with pytest.raises(ArchiveError, match="does not allow null values"):
        restore()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="is altered"):
        restore()
    path.unlink()
    with pytest.raises(ArchiveError, match="is missing"):
        restore()
    with pytest.raises(OperationNotFoundError):
        restore_archive(connection, settings, "yesterday", by="test")
    tables = market.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'archived\\_%'")
    assert tables == 0
