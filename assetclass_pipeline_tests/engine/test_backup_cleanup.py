"""Cleanup: what goes, what stays, and that no rollback loses its backup to it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine import backup_cleanup, row_history
from assetclass_pipeline.engine.archive import (
    archives,
    find_rows,
    register_archive,
)
from assetclass_pipeline.engine.backup_cleanup import clean_up
from assetclass_pipeline.engine.backup_verification import verify_all
from assetclass_pipeline.engine.backups import hold, list_backups
from assetclass_pipeline.engine.rollback import roll_back
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.backup import ArchiveState, Backup, BackupState, CleanupReport
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.engine.runs import (
    broken_after,
    correct_now,
    plan_now,
    request_of,
    undo_request_of,
)
from assetclass_pipeline_tests.market import Market

RECORDS = 40
LONGEST = 30.0


@pytest.fixture
def settings(market: Market, tmp_path: Path) -> Settings:
    return market.settings.model_copy(update={"archive_directory": tmp_path / "archive"})


@pytest.fixture
def connection(market: Market, settings: Settings) -> Iterator[Connection[TupleRow]]:
    with connect(market.dsn, settings, purpose="test") as connection:
        yield connection


@pytest.fixture
def operation(market: Market) -> Operation:
    """A correction whose backup has expired."""
    market.fill(RECORDS)
    made = correct_now(market)
    expire(market)
    return made


def expire(market: Market) -> None:
    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")


def the_backup(connection: Connection[TupleRow], settings: Settings) -> Backup:
    (found,) = list_backups(connection, settings).backups
    return found


def clean(connection: Connection[TupleRow], settings: Settings) -> CleanupReport:
    return clean_up(connection, settings, by="test")


def why_kept(report: CleanupReport) -> str:
    assert report.dropped == []
    (kept,) = report.kept
    return kept.why


@pytest.mark.every_postgres
def test_an_expired_backup_is_verified_archived_and_dropped(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    before = market.versions()
    report = clean(connection, settings)
    (dropped,) = report.dropped
    assert dropped.correction_id == operation.correction_id
    assert dropped.table == f"public.{operation.backup_table}"
    assert dropped.archive == f"{operation.correction_id}.parquet"
    assert "verified" in dropped.why
    assert report.kept == []
    assert market.backup_tables() == []
    assert market.versions() == before

    backup = the_backup(connection, settings)
    assert (backup.state, backup.dropped_by) == (BackupState.DROPPED, "test")
    assert backup.why.endswith(f"archived in {operation.correction_id}.parquet")
    assert backup.archive is not None
    assert backup.archive.state is ArchiveState.PRESENT
    (row,) = find_rows(settings, connection, operation.correction_id, "7")
    assert (row.asset_class, row.corrected_asset_class) == (None, "CLASS_1")
    with transaction(connection, settings, read_only=True) as cursor:
        (file,) = archives(cursor, settings, UUID(operation.correction_id), thoroughly=True)
    assert file.state is ArchiveState.PRESENT
    event = market.rows("SELECT event, actor FROM assetclass.operation_event ORDER BY id DESC")[0]
    assert event == ("backup_dropped", "test")
    # A second one finds nothing to do.
    again = clean(connection, settings)
    assert (again.dropped, again.kept) == ([], [])


def test_a_dry_run_changes_nothing(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    report = clean_up(connection, settings, by="test", dry_run=True)
    assert report.dry_run
    assert "never verified" in why_kept(report)
    verify_all(connection, settings, by="test")
    report = clean_up(connection, settings, by="test", dry_run=True)
    assert [dropped.table for dropped in report.dropped] == [f"public.{operation.backup_table}"]
    assert report.dropped[0].archive is None
    assert market.backup_tables() == [operation.backup_table]
    assert not settings.archive.exists()


def test_what_is_not_expired_held_or_unregistered_stays(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.execute("CREATE TABLE market_data_backup_20200101_000000 AS SELECT * FROM market_data")
    hold(connection, settings, operation.correction_id, by="ada", reason="audit 2026")
    report = clean(connection, settings)
    assert why_kept(report) == "is held by ada: audit 2026"
    assert [table.table_name for table in report.unregistered] == [
        "market_data_backup_20200101_000000"
    ]
    assert len(market.backup_tables()) == 2
    market.execute("UPDATE assetclass.backup SET held_by = NULL, expires_at = now() + '1 day'")
    assert why_kept(clean(connection, settings)).startswith("expires at")
    expire(market)
    assert len(clean(connection, settings).dropped) == 1
    assert market.backup_tables() == ["market_data_backup_20200101_000000"]


@pytest.mark.parametrize(
    "damage",
    [
        ("UPDATE {} SET corrected_asset_class = 'X' WHERE seq = 3", False),
        ("UPDATE {} SET corrected_asset_class = 'X' WHERE seq = 3", True),
        ("DELETE FROM {} WHERE seq = 3", True),
        ("TRUNCATE {}", False),
    ],
    ids=["altered", "altered since", "row removed since", "emptied"],
)
def test_a_damaged_backup_is_kept_and_said(
    market: Market,
    operation: Operation,
    settings: Settings,
    connection: Connection[TupleRow],
    damage: tuple[LiteralString, bool],
) -> None:
    statement, was_verified = damage
    if was_verified:
        verify_all(connection, settings, by="test")
    market.execute(statement, sql.Identifier("public", str(operation.backup_table)))
    why = why_kept(clean(connection, settings))
    assert "altered it since" in why if was_verified else "does not hold what was written" in why
    assert market.backup_tables() == [operation.backup_table]
    # It is known from now on, and still kept the next time.
    assert (the_backup(connection, settings).verification or {})["intact"] is False
    again = clean(connection, settings)
    assert "does not hold what was written" in why_kept(again)
    assert [kept.failed for kept in again.kept] == [True]
    # Rolled back, nobody will restore from it: then it may go.
    market.execute("UPDATE assetclass.operation SET rolled_back_by = correction_id")
    assert len(clean(connection, settings).dropped) == 1


def test_a_backup_of_an_unfinished_operation_stays(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.execute("UPDATE assetclass.operation SET status = 'failed'")
    assert "can go on" in why_kept(clean(connection, settings))
    assert market.backup_tables() == [operation.backup_table]


def test_a_rollback_that_another_one_overtook_cannot_go_on_and_goes(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    first = undo_request_of(operation.correction_id, workers=1, batch_size=1)
    with broken_after(market, 2), pytest.raises(CorrectionFailedError):
        roll_back(market.dsn, settings, first)
    expire(market)
    assert all("can go on" in kept.why for kept in clean(connection, settings).kept)
    roll_back(market.dsn, settings, undo_request_of(operation.correction_id))
    expire(market)
    report = clean(connection, settings)
    assert (len(report.dropped), report.kept) == (3, [])


def test_a_parked_plan_that_nobody_used_goes_and_can_still_be_resumed(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.fill(RECORDS)
    request = request_of()
    plan_now(market, request)
    expire(market)
    assert len(clean(connection, settings).dropped) == 1
    resumed = correct_now(market, request)
    assert resumed.records_corrected == RECORDS
    assert market.backup_tables() == [resumed.backup_table]
    assert the_backup(connection, settings).state is BackupState.KEPT


@pytest.mark.parametrize("step", ["plan._add_chunk", "plan.complete_plan"])
def test_a_plan_that_was_never_completed_goes_and_can_still_be_resumed(
    market: Market,
    settings: Settings,
    connection: Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """None of its rows was changed, so it is no damage that half of them are missing."""
    market.fill(RECORDS)
    request = request_of()
    with monkeypatch.context() as patched:
        patched.setattr(f"assetclass_pipeline.engine.{step}", _fail)
        with pytest.raises(CorrectionFailedError):
            correct_now(market, request)
    assert "can go on" not in why_kept(clean(connection, settings))
    expire(market)
    verify_all(connection, settings, by="test")
    report = clean(connection, settings)
    assert (len(report.dropped), report.kept) == (1, [])
    assert "never completed" in report.dropped[0].why
    assert market.backup_tables() == []
    resumed = correct_now(market, request)
    assert resumed.records_corrected == RECORDS
    assert the_backup(connection, settings).state is BackupState.KEPT


def test_a_rollback_that_ended_while_it_was_planned_leaves_nothing_for_good(
    market: Market,
    operation: Operation,
    settings: Settings,
    connection: Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("assetclass_pipeline.engine.undo_plan.complete_plan", _fail)
        with pytest.raises(CorrectionFailedError):
            roll_back(market.dsn, settings, undo_request_of(operation.correction_id))
    expire(market)
    report = clean(connection, settings)
    assert ["never completed" in dropped.why for dropped in report.dropped] == [True]
    assert market.rollback_tables() == []
    # The correction's own is needed by who may resume that rollback.
    assert [kept.failed for kept in report.kept] == [False]


def _fail(*_: object) -> None:
    raise CorrectionFailedError("broken off")


def test_a_table_in_use_is_kept_for_the_next_time(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    with psycopg.connect(market.dsn) as reader:
        reader.execute(
            sql.SQL("SELECT FROM {}").format(sql.Identifier("public", str(operation.backup_table)))
        )
        report = clean(connection, settings)
        assert "somebody uses it" in why_kept(report)
        assert [kept.failed for kept in report.kept] == [False]
        assert the_backup(connection, settings).state is BackupState.EXPIRED
    assert len(clean(connection, settings).dropped) == 1


def test_a_table_that_something_depends_on_is_kept(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    table = sql.Identifier("public", str(operation.backup_table))
    market.execute("CREATE VIEW on_it AS SELECT * FROM {}", table)
    assert "because other objects depend on it" in why_kept(clean(connection, settings))


def test_a_table_of_another_owner_costs_the_others_nothing(
    market: Market,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Brought back from a dump, a table belongs to whoever did that."""
    monkeypatch.setattr(row_history, "RECORDS_THAT_PAY", 1)
    market.fill(RECORDS)
    expired = correct_now(market, target_symbols=["S1"])
    foreign = correct_now(market)
    expire(market)
    market.execute(
        "UPDATE assetclass.backup SET expires_at = now() + interval '1 day' "
        "WHERE correction_id = %s",
        values=[foreign.correction_id],
    )
    role = sql.Identifier(f"cleaner_{uuid4().hex[:8]}")
    market.execute("CREATE ROLE {} LOGIN PASSWORD 'cleaner'", role)
    try:
        market.execute("GRANT CREATE, USAGE ON SCHEMA public, assetclass TO {}", role)
        market.execute("GRANT ALL ON ALL TABLES IN SCHEMA public, assetclass TO {}", role)
        market.execute("ALTER TABLE {} OWNER TO {}", _table_of(expired), role)
        dsn = make_conninfo(market.dsn, user=role.as_string().strip('"'), password="cleaner")
        with connect(dsn, settings, purpose="test") as connection:
            report = clean(connection, settings)
        assert [dropped.correction_id for dropped in report.dropped] == [expired.correction_id]
        (kept,) = report.kept
        assert (kept.correction_id, kept.failed) == (foreign.correction_id, False)
    finally:
        market.execute("DROP OWNED BY {}", role)
        market.execute("DROP ROLE {}", role)


def _table_of(operation: Operation) -> sql.Identifier:
    return sql.Identifier("public", str(operation.backup_table))


@pytest.mark.usefixtures("operation")
@pytest.mark.parametrize("step", ["verify_registered", "write_archive"])
def test_what_another_cleanup_drops_meanwhile_is_no_failure(
    market: Market,
    settings: Settings,
    connection: Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Somebody cleans up by hand while the weekly job is at the same table."""
    own = getattr(backup_cleanup, step)

    def behind_another(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(backup_cleanup, step, own)
        with connect(market.dsn, settings, purpose="test") as other:
            assert len(clean(other, settings).dropped) == 1
        return own(*arguments, **named)

    monkeypatch.setattr(backup_cleanup, step, behind_another)
    report = clean(connection, settings)
    assert report.dropped == []
    assert [(kept.failed, kept.why.startswith("was dropped: ")) for kept in report.kept] == [
        (False, True)
    ]
    backup = the_backup(connection, settings)
    assert backup.archive is not None
    assert backup.archive.state is ArchiveState.PRESENT
    assert verify_all(connection, settings, by="test").passed


def test_without_an_archive_nothing_is_dropped(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    settings.archive.write_text("a file, no directory")
    report = clean(connection, settings)
    assert "ASSETCLASS_ARCHIVE_DIRECTORY" in why_kept(report)
    assert [kept.failed for kept in report.kept] == [True]
    assert market.backup_tables() == [operation.backup_table]


def test_one_dropped_by_hand_is_noticed_once_and_said_to_be_lost(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    market.execute("DROP TABLE {}", sql.Identifier("public", str(operation.backup_table)))
    assert clean(connection, settings).noticed == [operation.correction_id]
    assert clean(connection, settings).noticed == []
    backup = the_backup(connection, settings)
    assert backup.state is BackupState.DROPPED_BY_HAND
    assert backup.why.endswith("dropped by hand; its rows are in no archive")


def test_expired_archives_go_too(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    clean(connection, settings)
    market.execute("UPDATE assetclass.archive SET expires_at = now() - interval '1 s'")
    name = f"{operation.correction_id}.parquet"
    assert clean_up(connection, settings, by="test", dry_run=True).archives_removed == [name]
    assert clean(connection, settings).archives_removed == [name]
    assert list(settings.archive.iterdir()) == []
    assert the_backup(connection, settings).why.endswith(f"its archive {name} is removed")


def test_a_lost_archive_fails_the_verification_of_all(
    operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    clean(connection, settings)
    assert verify_all(connection, settings, by="test").passed
    (settings.archive / f"{operation.correction_id}.parquet").unlink()
    report = verify_all(connection, settings, by="test")
    assert not report.passed
    assert [file.state for file in report.bad_archives] == [ArchiveState.MISSING]


# What a rollback does when it begins: it locks the registry's row against cleanup, looks whether
# the table is still there, and is an active operation in the same transaction.
CLAIM: LiteralString = "SELECT dropped_at FROM assetclass.backup WHERE correction_id = %s FOR SHARE"
BEGIN: LiteralString = (
    "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options, "
    "requested_by, rollback_of) VALUES (%s, 'rollback', 'running', 'starting', false, '{}', "
    "'test', %s)"
)


def waits_for_a_lock(market: Market) -> bool:
    return bool(
        market.value(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
    )


def wait_until_one_waits(market: Market) -> None:
    deadline = monotonic() + LONGEST
    while not waits_for_a_lock(market):
        assert monotonic() < deadline, "nobody waits for a lock"
        sleep(0.01)


def patient(settings: Settings) -> Settings:
    """Locks are waited for: the race is about who comes first, not about who gives up."""
    session = settings.session.model_copy(update={"lock_timeout": LONGEST})
    return settings.model_copy(update={"session": session})


def test_a_rollback_that_begins_first_keeps_its_backup(
    market: Market, operation: Operation, settings: Settings, connection: Connection[TupleRow]
) -> None:
    """Cleanup waits behind the claim, looks again, and leaves the table alone."""
    verify_all(connection, settings, by="test")
    reports: list[CleanupReport] = []
    rollback = uuid4()
    with psycopg.connect(market.dsn) as claiming:
        (dropped,) = claiming.execute(CLAIM, [operation.correction_id]).fetchone() or ("?",)
        assert dropped is None
        cleaner = threading.Thread(
            target=lambda: reports.append(clean(connection, patient(settings)))
        )
        cleaner.start()
        wait_until_one_waits(market)
        claiming.execute(BEGIN, [rollback, operation.correction_id])
    cleaner.join(LONGEST)
    assert why_kept(reports[0]) == f"is needed: rollback {rollback} is running"
    assert market.backup_tables() == [operation.backup_table]
    # Cut off, it can go on, and still needs it.
    market.execute("UPDATE assetclass.operation SET status = 'interrupted' WHERE kind = 'rollback'")
    assert f"assetclass resume {rollback}" in why_kept(clean(connection, settings))


def test_a_rollback_that_begins_later_finds_it_dropped(
    market: Market,
    operation: Operation,
    settings: Settings,
    connection: Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The claim waits for cleanup's commit, and never goes on without a table."""
    verify_all(connection, settings, by="test")
    seen: list[object] = []

    def claim() -> None:
        with psycopg.connect(market.dsn) as claiming:
            seen.append(claiming.execute(CLAIM, [operation.correction_id]).fetchone())

    claimer = threading.Thread(target=claim)

    def begin_a_rollback_now(*arguments: object) -> None:
        claimer.start()
        wait_until_one_waits(market)
        register_archive(*arguments)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(backup_cleanup, "register_archive", begin_a_rollback_now)
    assert len(clean(connection, settings).dropped) == 1
    claimer.join(LONGEST)
    (row,) = seen
    assert isinstance(row, tuple)
    assert row[0] is not None
    assert market.backup_tables() == []


def test_a_resume_that_begins_first_keeps_its_plan(
    market: Market, settings: Settings, connection: Connection[TupleRow]
) -> None:
    """A parked plan is picked up while cleanup is about to drop it."""
    market.fill(RECORDS)
    request = request_of()
    plan_now(market, request)
    expire(market)
    verify_all(connection, settings, by="test")
    reports: list[CleanupReport] = []
    with psycopg.connect(market.dsn) as claiming:
        claiming.execute("UPDATE assetclass.operation SET status = 'running'")
        cleaner = threading.Thread(
            target=lambda: reports.append(clean(connection, patient(settings)))
        )
        cleaner.start()
        wait_until_one_waits(market)
    cleaner.join(LONGEST)
    assert "its correction is running" in why_kept(reports[0])
    assert len(market.backup_tables()) == 1
