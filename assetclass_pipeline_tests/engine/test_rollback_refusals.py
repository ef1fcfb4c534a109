"""What cannot be rolled back is refused before anything is written, with the way on."""

from collections.abc import Callable
from typing import Any, LiteralString, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine.backup_verification import verify_backup
from assetclass_pipeline.engine.backups import list_backups
from assetclass_pipeline.engine.undo_check import Undoing
from assetclass_pipeline.errors import (
    AlreadyRolledBackError,
    AssetClassError,
    BackupDamagedError,
    BackupExpiredError,
    CorrectionFailedError,
    InvalidOptionsError,
    LaterCorrectionError,
    NotUndoableError,
    OperationInProgressError,
    OperationNotFoundError,
    OperationStateError,
    PreflightRefusedError,
)
from assetclass_pipeline.model.backup import BackupState
from assetclass_pipeline.model.operation import Kind
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    broken_after,
    correct_now,
    keep_alive,
    operation_of,
    plan_now,
    request_of,
    undo_now,
    undo_request_of,
)
from assetclass_pipeline_tests.market import Market


class Refused(NamedTuple):
    """What to set up (returns whom to roll back), the error, and what its message must hold."""

    set_up: Callable[[Market], str]
    error: type[AssetClassError]
    words: tuple[str, ...]


def _corrected(market: Market, **options: Any) -> str:
    return correct_now(market, **options).correction_id


def _unknown(_: Market) -> str:
    return str(uuid4())


def _no_id(_: Market) -> str:
    return "yesterday's"


def _dry_run(market: Market) -> str:
    return _corrected(market, dry_run=True)


def _no_backup(market: Market) -> str:
    return _corrected(market, create_backup=False)


def _nothing_changed(market: Market) -> str:
    _corrected(market)
    return _corrected(market)


def _only_planned(market: Market) -> str:
    return plan_now(market, request_of()).correction_id


def _active(market: Market) -> str:
    active = plan_now(market, request_of(), park=False).correction_id
    keep_alive(market)
    return active


def _own_rollback(market: Market) -> str:
    return undo_now(market, _corrected(market)).correction_id


def _done_before(market: Market) -> str:
    correction = _corrected(market)
    undo_now(market, correction)
    return correction


def _dropped_by_us(market: Market) -> str:
    correction = correct_now(market)
    market.execute(
        "INSERT INTO assetclass.backup (correction_id, schema_name, table_name, expires_at,"
        " dropped_at, dropped_by, drop_reason)"
        " VALUES (%s, 'public', %s, now(), '2026-05-06 07:08:09+00', 'schedule', 'expired')"
        " ON CONFLICT (correction_id) DO UPDATE SET dropped_at = excluded.dropped_at,"
        " dropped_by = excluded.dropped_by, drop_reason = excluded.drop_reason",
        values=(correction.correction_id, correction.backup_table),
    )
    market.execute("DROP TABLE {}", sql.Identifier("public", str(correction.backup_table)))
    return correction.correction_id


def _altered_by_hand(market: Market) -> str:
    correction = correct_now(market)
    backup = sql.Identifier("public", str(correction.backup_table))
    market.execute("UPDATE {} SET asset_class = 'FORGED' WHERE seq = 1", backup)
    return correction.correction_id


def _grown_by_hand(market: Market) -> str:
    """Its sum differs whatever the rows that belong there hold."""
    correction = correct_now(market)
    backup = sql.Identifier("public", str(correction.backup_table))
    market.execute("UPDATE {} SET asset_class = 'FORGED' WHERE seq = 1", backup)
    market.execute(
        'INSERT INTO {0} SELECT 1000, -1, symbol, "timestamp", asset_class, corrected_asset_class, '
        "source_table, source_address FROM {0} WHERE seq = 2",
        backup,
    )
    return correction.correction_id


def _dropped_by_hand(market: Market) -> str:
    correction = correct_now(market)
    market.execute("DROP TABLE {}", sql.Identifier("public", str(correction.backup_table)))
    return correction.correction_id


def _damage_again(market: Market, where: LiteralString) -> None:
    market.execute(
        "UPDATE {} SET asset_class = NULL WHERE {}",
        market.market_identifier,
        sql.SQL(where),
    )


def _changed_again(market: Market) -> str:
    first = _corrected(market)
    _damage_again(market, "id <= 7")
    _corrected(market)
    return first


REFUSALS = {
    "unknown": Refused(_unknown, OperationNotFoundError, ("assetclass status",)),
    "no id": Refused(_no_id, OperationNotFoundError, ("yesterday",)),
    "dry run": Refused(_dry_run, NotUndoableError, ("dry run",)),
    "no backup": Refused(_no_backup, NotUndoableError, ("createBackup", "backups restore-archive")),
    "nothing changed": Refused(_nothing_changed, NotUndoableError, ("changed no rows",)),
    "only planned": Refused(_only_planned, NotUndoableError, ("changed no rows",)),
    "active": Refused(_active, OperationInProgressError, ("cancel it",)),
    "a rollback": Refused(_own_rollback, NotUndoableError, ("run a new correction",)),
    "done before": Refused(_done_before, AlreadyRolledBackError, ("run a new correction",)),
    "dropped by us": Refused(
        _dropped_by_us,
        BackupExpiredError,
        ("2026-05-06 07:08", "schedule", "expired", "backups restore-archive"),
    ),
    "dropped by hand": Refused(_dropped_by_hand, BackupExpiredError, ("somebody dropped",)),
    "altered by hand": Refused(_altered_by_hand, BackupDamagedError, ("backups verify",)),
    "grown by hand": Refused(_grown_by_hand, BackupDamagedError, ("backups verify",)),
    "changed again": Refused(_changed_again, LaterCorrectionError, ("7 of the same rows",)),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_before_anything_is_written(market: Market, name: str) -> None:
    refused = REFUSALS[name]
    undone = refused.set_up(market.fill(30))
    everything = _everything(market)

    for dry_run in (False, True):
        with pytest.raises(refused.error) as raised:
            undo_now(market, undone, dry_run=dry_run)
        for words in refused.words:
            assert words in str(raised.value)
    assert _everything(market) == everything


def _everything(market: Market) -> list[object]:
    operations = market.rows("SELECT o::text FROM assetclass.operation o ORDER BY 1")
    return [operations, market.versions(), market.backup_tables(), market.rollback_tables()]


def test_a_backup_that_was_brought_back_is_used_again(market: Market) -> None:
    """The refusal says to do so, whether or not anybody had noticed that it was gone."""
    correction = correct_now(market.fill(30))
    backup = sql.Identifier("public", str(correction.backup_table))
    away = sql.Identifier("elsewhere")
    market.execute("ALTER TABLE {} RENAME TO {}", backup, away)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        (listed,) = list_backups(connection, market.settings).backups
        assert listed.state is BackupState.DROPPED_BY_HAND
        with pytest.raises(BackupExpiredError, match="Bring that table back"):
            undo_now(market, correction)
        market.execute(
            "ALTER TABLE {} RENAME TO {}", away, sql.Identifier(str(correction.backup_table))
        )
        assert undo_now(market, correction, row_ids=["1"]).records_restored == 1

        found = list_backups(connection, market.settings)
        states = {listed.kind: listed.state for listed in found.backups}
        assert states == {Kind.CORRECTION: BackupState.KEPT, Kind.ROLLBACK: BackupState.KEPT}
        assert found.unregistered == []
        proved = verify_backup(connection, market.settings, correction.correction_id, by="test")
    assert proved.passed
    assert undo_now(market, correction).records_restored == 29


def test_what_was_brought_back_must_be_what_it_was(market: Market) -> None:
    correction = correct_now(market.fill(30))
    backup = sql.Identifier("public", str(correction.backup_table))
    market.execute("CREATE TABLE elsewhere AS SELECT * FROM {}", backup)
    market.execute("DROP TABLE {}", backup)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        list_backups(connection, market.settings)
    market.execute("UPDATE elsewhere SET asset_class = 'FORGED' WHERE seq = 1")
    market.execute(
        "ALTER TABLE elsewhere RENAME TO {}", sql.Identifier(str(correction.backup_table))
    )
    with pytest.raises(BackupDamagedError):
        undo_now(market, correction)


def test_a_rollbacks_own_id_names_the_corrections(market: Market) -> None:
    correction = _corrected(market.fill(10))
    rollback = undo_now(market, correction)
    with pytest.raises(NotUndoableError, match=correction):
        undo_now(market, rollback)


def test_the_later_correction_is_named_and_once_undone_stands_in_no_way(market: Market) -> None:
    first = _corrected(market.fill(30))
    _damage_again(market, "id <= 7")
    second = correct_now(market)
    _damage_again(market, "id = 30")
    third = _corrected(market)
    with pytest.raises(LaterCorrectionError) as raised:
        undo_now(market, first)
    assert raised.value.correction_id == third
    # Of rows that it did not change, the rest may be put back.
    assert undo_now(market, first, row_ids=["20"]).records_restored == 1
    undo_now(market, third)
    undo_now(market, second)
    assert undo_now(market, first).records_restored == 29
    assert set(market.classes().values()) == {None}


def test_later_ones_that_changed_nothing_of_it_stand_in_no_way(market: Market) -> None:
    first = _corrected(market.fill(30, missing_every=3))
    _corrected(market, dry_run=True, overwrite_existing_values=True)
    _corrected(market)
    _damage_again(market, "id % 3 <> 0")
    _corrected(market)
    assert undo_now(market, first).records_restored == 10


def test_a_later_correction_without_backup_leaves_conflicts(market: Market) -> None:
    market.fill(10, symbols=2)
    first = _corrected(market)
    market.execute("UPDATE symbols SET asset_class = 'NEW' WHERE ticker = 'S1'")
    _corrected(market, overwrite_existing_values=True, create_backup=False)
    rollback = undo_now(market, first)
    assert (rollback.records_restored, rollback.records_conflicting) == (5, 5)


def test_a_month_out_of_the_calendar_is_named(market: Market) -> None:
    correction = _corrected(market.fill(10))
    with pytest.raises(InvalidOptionsError, match="1987-05-01"):
        undo_now(market, correction, partitions=["1987-05-01"])


def test_a_correction_that_was_rolled_back_does_not_go_on(market: Market) -> None:
    request = request_of(workers=1)
    with broken_after(market.fill(100), 5), pytest.raises(CorrectionFailedError):
        correct_now(market, request)
    done = operation_of(market, request.correction_id).records_corrected
    assert 0 < done < 100
    rollback = undo_now(market, request.correction_id)
    assert rollback.records_restored == done
    with pytest.raises(OperationStateError, match=rollback.correction_id):
        correct_now(market, request)


def test_a_correction_that_went_on_since_the_look_is_looked_at_again(market: Market) -> None:
    request = request_of(workers=1)
    with broken_after(market.fill(100), 5), pytest.raises(CorrectionFailedError):
        correct_now(market, request)
    undo = undo_request_of(request.correction_id)
    undoing = Undoing(market.settings, undo.correction_id, undo.rollback_of, undo.options)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        undoing.look(connection)
        correct_now(market, request)
        with (
            transaction(connection, market.settings) as cursor,
            pytest.raises(OperationStateError, match="went on meanwhile"),
        ):
            undoing.check(cursor)


def test_who_claims_a_rollback_keeps_the_backup_from_cleanups(market: Market) -> None:
    correction = correct_now(market.fill(10))
    market.execute(
        "INSERT INTO assetclass.backup (correction_id, schema_name, table_name, expires_at)"
        " VALUES (%s, 'public', %s, now()) ON CONFLICT DO NOTHING",
        values=(correction.correction_id, correction.backup_table),
    )
    request = undo_request_of(correction.correction_id)
    undoing = Undoing(market.settings, request.correction_id, request.rollback_of, request.options)
    with (
        connect(market.dsn, market.settings, purpose="test") as claiming,
        transaction(claiming, market.settings) as cursor,
    ):
        undoing.check(cursor)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            market.execute("SELECT FROM assetclass.backup FOR UPDATE NOWAIT")


class TestHarm:
    def test_null_where_the_column_takes_none_any_more(self, market: Market) -> None:
        correction = _corrected(market.fill(10))
        market.execute("ALTER TABLE {} ALTER asset_class SET NOT NULL", market.market_identifier)
        everything = _everything(market)
        with pytest.raises(PreflightRefusedError, match="takes no NULL any more"):
            undo_now(market, correction)
        assert _everything(market) == everything

    def test_a_class_that_a_check_forbids_by_now(self, market: Market) -> None:
        market.list_symbols(("AAPL", "STOCK"))
        market.fill(10).execute("UPDATE {} SET asset_class = 'OLD'", market.market_identifier)
        correction = _corrected(market, overwrite_existing_values=True)
        market.execute("ALTER TABLE {} ADD CHECK (asset_class <> 'OLD')", market.market_identifier)
        with pytest.raises(PreflightRefusedError, match="OLD"):
            undo_now(market, correction)
        # A dry run tells it.
        told = undo_now(market, correction, dry_run=True).preflight
        assert told is not None
        assert "CHECK" in str(told["findings"])

    def test_a_publication_that_would_carry_the_plan(self, make_market: MakeMarket) -> None:
        market = make_market()
        correction = _corrected(market.fill(10))
        market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        with pytest.raises(PreflightRefusedError, match="ASSETCLASS_BACKUP_IN_PUBLICATION"):
            undo_now(market, correction)


def test_only_the_same_rollback_is_resumed(market: Market) -> None:
    market.fill(10)
    first = _corrected(market)
    _damage_again(market, "id <= 5")
    request = undo_request_of(first)
    with pytest.raises(OperationStateError, match="is a correction"):
        undo_now(market, type(request)(first, first, request.options))
