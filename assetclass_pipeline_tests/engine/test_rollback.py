"""Rolling a correction back: what is restored, what is left alone, and what is told of it."""

import threading
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.queries import Statement
from assetclass_pipeline.engine import undo_plan, undo_record
from assetclass_pipeline.engine.backup_verification import verify_backup
from assetclass_pipeline.engine.control import ask_to_cancel
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.operations import (
    left_by_last_window,
    operation_status,
    resume_or_new_id,
)
from assetclass_pipeline.engine.plan import VISITS, PlanState
from assetclass_pipeline.engine.requests import request_rollback
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.errors import (
    AlreadyRolledBackError,
    AssetClassError,
    CorrectionFailedError,
    LaterCorrectionError,
    OperationCancelledError,
    OperationInProgressError,
    OperationStateError,
)
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Conflict, Operation, Phase, Status
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    broken_after,
    correct_now,
    operation_of,
    proof_of,
    report_of,
    request_of,
    undo_now,
    undo_request_of,
)
from assetclass_pipeline_tests.engine.test_correction_states import guide_update
from assetclass_pipeline_tests.engine.test_traps import plan_nodes
from assetclass_pipeline_tests.market import PARTITIONINGS, Bar, Market

ODD_CLASSES = (None, "", "WRONG", "STOCK", " ", "caf\u00e9", "cafe\u0301", "STOCK ", "%s", "{}")
# Every column as it is stored, but the time that we set ourselves.
_WHOLE: LiteralString = (
    'SELECT id, symbol, "timestamp", close, asset_class,'
    " encode(convert_to(asset_class::text, 'UTF8'), 'hex') FROM {} ORDER BY id"
)


def odd(market: Market, records: int = 60) -> Market:
    """Rows of two symbols and an unknown one, with every odd class there is."""
    market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
    times = ("2023-05-01 00:00:00", "2024-05-01 00:00:00", "2025-05-01 00:00:00")
    return market.add(
        Bar(n, ("AAPL", "BTC", "?")[n % 3], times[n % 3], ODD_CLASSES[n % len(ODD_CLASSES)])
        for n in range(1, records + 1)
    )


def whole(market: Market) -> list[tuple[Any, ...]]:
    """All rows, as they would be compared by somebody who trusts nobody."""
    return market.rows(_WHOLE, market.market_identifier)


def write(market: Market, statement: LiteralString) -> None:
    """A change by the application; `{}` is the market table."""
    market.execute(statement, market.market_identifier)


def assert_accounted(market: Market, rollback: Operation) -> None:
    """Every planned row is restored or left with a reason."""
    proof = proof_of(market, rollback.correction_id)
    assert (proof.unaccounted, proof.open) == (0, 0)


def undone_seqs(market: Market) -> list[int]:
    """Rows of corrections that are on record as put back; each stands there once."""
    return [
        seq
        for (seq,) in market.rows(
            "SELECT generate_series(lower(part), upper(part) - 1)"
            " FROM assetclass.operation_undone, unnest(seqs) part ORDER BY 1"
        )
    ]


class TestWhole:
    @pytest.mark.every_postgres
    def test_every_row_gets_its_old_value_back(self, market: Market) -> None:
        before = whole(odd(market))
        correction = correct_now(market, overwrite_existing_values=True)
        assert whole(market) != before

        rollback = undo_now(market, correction)

        assert whole(market) == before
        assert (rollback.status, rollback.phase) == (Status.SUCCEEDED, Phase.DONE)
        assert rollback.records_restored == correction.records_corrected
        assert (rollback.records_conflicting, rollback.conflicts) == (0, [])
        assert rollback.rollback_of == correction.correction_id
        undone = operation_of(market, correction.correction_id)
        assert undone.rolled_back_by == rollback.correction_id
        assert_accounted(market, rollback)
        assert market.rollback_tables() == [rollback.backup_table]
        assert undone_seqs(market) == list(range(1, correction.records_corrected + 1))

    def test_untouched_rows_are_not_even_written(self, market: Market) -> None:
        odd(market)
        before = market.versions()
        correction = correct_now(market)
        undo_now(market, correction)
        kept = {*before.items()} & {*market.versions().items()}
        assert len(kept) == len(before) - correction.records_corrected
        times = market.value("SELECT count(updated_at) FROM {}", market.market_identifier)
        assert times == correction.records_corrected

    def test_what_it_did_is_summed_up_the_other_way_round(self, market: Market) -> None:
        odd(market)
        correction = correct_now(market, overwrite_existing_values=True)
        corrected = report_of(market)
        rollback = undo_now(market, correction)
        forth = {(c.symbol, c.from_, c.to, c.records) for c in correction.changes}
        assert {(c.symbol, c.to, c.from_, c.records) for c in rollback.changes} == forth
        assert rollback.quality_after is not None
        report = report_of(market)
        assert rollback.quality_after["qualityScore"] == round(report.quality_score, 2)
        # What was before is computed from that, and not by another scan.
        assert rollback.quality_before is not None
        before = rollback.quality_before
        assert before["isEstimated"]
        told = [before[name] for name in ("qualityScore", "completeness", "mismatched")]
        assert told == [
            round(corrected.quality_score, 2), round(corrected.completeness, 2), 0,
        ]  # fmt: skip

    def test_without_validation_nothing_is_measured(self, market: Market) -> None:
        correction = correct_now(market.fill(10))
        assert undo_now(market, correction, validate_after_rollback=False).quality_after is None

    @pytest.mark.parametrize("partitioning", sorted(PARTITIONINGS))
    def test_partitions(self, make_market: MakeMarket, partitioning: str) -> None:
        market = odd(make_market(partitioning=partitioning), records=90)
        before = whole(market)
        correction = correct_now(market, overwrite_existing_values=True)
        rollback = undo_now(market, correction, workers=3)
        assert whole(market) == before
        assert rollback.records_restored == correction.records_corrected

    @pytest.mark.parametrize("partitioning", ["foreign", "mixed", "mixed nested"])
    def test_foreign_tables(
        self, make_market: MakeMarket, another_database_url: str, partitioning: str
    ) -> None:
        shape = {"partitioning": partitioning, "remote_dsn": another_database_url}
        market = odd(make_market(**shape), records=90)
        before = whole(market)
        correction = correct_now(market, overwrite_existing_values=True)
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id = 1")
        write(market, "DELETE FROM {} WHERE id = 4")
        rollback = undo_now(market, correction)
        assert [row for row in whole(market) if row[0] != 1] == [*before[1:3], *before[4:]]
        assert market.classes()[1] == "THEIRS"
        assert rollback.records_conflicting == 2
        assert_accounted(market, rollback)

    @pytest.mark.parametrize(
        ("class_type", "key"),
        [
            ("varchar(9)", "PRIMARY KEY (id)"),
            ("mood", "PRIMARY KEY (id)"),
            ("text", 'UNIQUE (id, symbol, "timestamp")'),
        ],
    )
    def test_column_types(self, make_market: MakeMarket, class_type: str, key: Any) -> None:
        make_market().execute("CREATE TYPE mood AS ENUM ('STOCK', 'CRYPTO', 'WRONG')")
        market = make_market(class_type=class_type, key=key)
        market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
        classes = [None, "WRONG", "STOCK"] + ([""] if class_type != "mood" else [])
        market.add(
            Bar(n, ("AAPL", "BTC")[n % 2], asset_class=classes[n % len(classes)]) for n in range(40)
        )
        before = whole(market)
        correction = correct_now(market, overwrite_existing_values=True)
        undo_now(market, correction)
        assert whole(market) == before

    def test_rows_without_an_id_or_a_time(self, make_market: MakeMarket) -> None:
        market = make_market(key='UNIQUE (id, symbol, "timestamp")')
        market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
        keys = [(None, None), (None, "2024-05-01 00:00:00"), (7, None), (8, "2024-05-01 00:00:00")]
        market.add(
            Bar(number, symbol, time, asset_class)
            for number, time in keys
            for symbol in ("AAPL", "BTC")
            for asset_class in (None, "", None) * (1 if None in (number, time) else 0) or (None,)
        )
        # Rows alike in everything are told apart by nobody: they are counted.
        counted: LiteralString = (
            'SELECT id, symbol, "timestamp", asset_class, count(*) FROM {} GROUP BY 1, 2, 3, 4'
        )
        before = {*market.rows(counted, market.market_identifier)}
        correction = correct_now(market)
        rollback = undo_now(market, correction)
        assert {*market.rows(counted, market.market_identifier)} == before
        assert rollback.records_restored == correction.records_corrected


class TestSince:
    """What happened to the rows since the correction."""

    def test_a_changed_row_is_left_alone_and_listed(self, market: Market) -> None:
        correction = correct_now(market.fill(100))
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id % 10 = 0")
        write(market, "DELETE FROM {} WHERE id = 5")

        rollback = undo_now(market, correction)

        assert (rollback.records_restored, rollback.records_conflicting) == (89, 11)
        classes = market.classes()
        assert {n for n, found in classes.items() if found == "THEIRS"} == {*range(10, 101, 10)}
        assert {found for found in classes.values() if found != "THEIRS"} == {None}
        by_id = {conflict.id: conflict for conflict in rollback.conflicts}
        assert by_id["10"] == Conflict(
            id="10",
            symbol="S10",
            timestamp="2023-01-01 00:10:00+00",
            before=None,
            corrected="CLASS_0",
            now="THEIRS",
            reason="changed_by_others",
        )
        assert (by_id["5"].now, by_id["5"].reason) == (None, "deleted")
        assert_accounted(market, rollback)
        # All of it that could be undone is.
        undone = operation_of(market, correction.correction_id)
        assert undone.rolled_back_by == rollback.correction_id

    def test_the_guides_manual_restore_counts_as_restored(self, market: Market) -> None:
        before = whole(odd(market))
        correction = correct_now(market, overwrite_existing_values=True)
        assert correction.backup_table is not None
        guide_update(market, correction.backup_table)
        versions = market.versions()

        rollback = undo_now(market, correction)

        assert (whole(market), market.versions()) == (before, versions)
        assert rollback.records_restored == correction.records_corrected
        assert (rollback.records_corrected, rollback.records_conflicting) == (0, 0)
        undone = operation_of(market, correction.correction_id)
        assert undone.rolled_back_by == rollback.correction_id
        assert len(undone_seqs(market)) == correction.records_corrected

    def test_taking_the_backups_value_overwrites_them_too(self, market: Market) -> None:
        correction = correct_now(market.fill(50))
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id <= 5")
        write(market, "DELETE FROM {} WHERE id = 50")
        first = undo_now(market, correction)
        with pytest.raises(AlreadyRolledBackError, match="takeBackupValue"):
            undo_now(market, correction)

        second = undo_now(market, correction, take_backup_value=True)

        assert set(market.classes().values()) == {None}
        assert (second.records_restored, second.records_conflicting) == (5, 1)
        undone = operation_of(market, correction.correction_id)
        assert undone.rolled_back_by == first.correction_id

    def test_rows_that_the_correction_skipped_are_not_its_to_undo(self, market: Market) -> None:
        market.fill(40)
        write(market, "UPDATE {} SET asset_class = NULL")
        market.execute(
            "CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN CASE WHEN OLD.id <= 4 THEN NULL ELSE NEW END; END $$"
        )
        write(
            market,
            "CREATE TRIGGER veto BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION veto()",
        )
        correction = correct_now(market)
        assert correction.records_corrected == 36
        write(market, "DROP TRIGGER veto ON {}")
        # The application gives them what the correction would have: they are the application's.
        write(market, "UPDATE {} SET asset_class = 'CLASS_' || id % 2 WHERE id <= 4")
        rollback = undo_now(market, correction)
        assert rollback.records_restored == 36
        classes = market.classes()
        assert [classes[n] for n in range(1, 5)] == ["CLASS_1", "CLASS_0"] * 2

    def test_rows_that_moved_are_found(self, market: Market) -> None:
        correction = correct_now(market.fill(300))
        write(market, "UPDATE {} SET close = close + 1 WHERE id % 2 = 0")
        write(market, "VACUUM FULL {}")
        write(market, "UPDATE {} SET close = close + 1 WHERE id % 3 = 0")
        rollback = undo_now(market, correction)
        assert rollback.records_restored == 300
        assert rollback.records_skipped == 0
        assert set(market.classes().values()) == {None}

    def test_rows_of_partitions_that_were_made_anew_are_found(
        self, make_market: MakeMarket
    ) -> None:
        market = odd(make_market(partitioning="range"), records=90)
        before = whole(market)
        correction = correct_now(market)
        part = market.part(2)
        market.execute("ALTER TABLE {} DETACH PARTITION {}", market.market_identifier, part)
        write(
            market,
            "CREATE TABLE made_anew PARTITION OF {}"
            " FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
        )
        market.execute("ALTER TABLE made_anew ADD PRIMARY KEY (id)")
        market.execute("INSERT INTO made_anew SELECT * FROM {}", part)
        rollback = undo_now(market, correction)
        assert whole(market) == before
        assert rollback.records_restored == correction.records_corrected

    def test_a_row_in_another_partition_is_found(self, make_market: MakeMarket) -> None:
        """Partitioned by a column that no backup holds."""
        market = make_market()
        market.fill(40).execute("ALTER TABLE {} RENAME TO old", market.market_identifier)
        market.execute("CREATE TABLE market_data (LIKE old INCLUDING DEFAULTS)"
                       " PARTITION BY RANGE (close)")  # fmt: skip
        for low, high in ((0, 10), (10, 20)):
            name = sql.Identifier(f"market_data_part_{low}")
            market.execute(
                "CREATE TABLE {} PARTITION OF market_data FOR VALUES FROM ({}) TO ({})",
                name,
                sql.Literal(low),
                sql.Literal(high),
            )
            market.execute("ALTER TABLE {} ADD PRIMARY KEY (id)", name)
        market.execute("INSERT INTO market_data SELECT * FROM old")
        correction = correct_now(market)
        write(market, "UPDATE {} SET close = 15 WHERE id <= 20")
        write(market, "UPDATE {} SET close = 15, asset_class = 'THEIRS' WHERE id > 38")
        rollback = undo_now(market, correction)
        assert (rollback.records_restored, rollback.records_conflicting) == (38, 2)
        again = undo_now(market, correction, take_backup_value=True)
        assert again.records_restored == 2
        assert set(market.classes().values()) == {None}
        market.execute("DROP TABLE old")

    @pytest.mark.parametrize("statement", ["VACUUM FULL {}", "UPDATE {} SET close = close + 1"])
    def test_rows_that_move_behind_the_plan_are_found(
        self, market: Market, statement: LiteralString
    ) -> None:
        correction = correct_now(market.fill(300))

        def move(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING and operation.batches_done == 0:
                write(market, statement)

        rollback = roll_back(
            market.dsn, market.settings, undo_request_of(correction.correction_id), observe=move
        )
        assert rollback.records_restored == 300
        assert set(market.classes().values()) == {None}

    def test_what_changes_behind_the_plan_is_judged_at_the_end(self, market: Market) -> None:
        correction = correct_now(market.fill(100))

        def change(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING and operation.batches_done == 0:
                write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id <= 3")
                write(market, "UPDATE {} SET asset_class = NULL WHERE id BETWEEN 11 AND 15")
                write(market, "DELETE FROM {} WHERE id = 20")

        rollback = roll_back(
            market.dsn, market.settings, undo_request_of(correction.correction_id), observe=change
        )
        assert rollback.skipped_by_reason == {
            "already_restored": 5, "changed_by_others": 3, "deleted": 1,
        }  # fmt: skip
        assert (rollback.records_restored, rollback.records_conflicting) == (96, 4)
        assert rollback.records_skipped == 4
        assert {c.now for c in rollback.conflicts} == {"THEIRS", None}
        assert_accounted(market, rollback)
        assert len(undone_seqs(market)) == 96

    def test_what_is_locked_still_stands_and_may_be_rolled_back_later(self, market: Market) -> None:
        correction = correct_now(market.fill(30))
        with psycopg.connect(market.dsn) as other:
            other.execute("SELECT FROM market_data WHERE id <= 3 FOR UPDATE")
            rollback = undo_now(market, correction)
        assert (rollback.records_restored, rollback.records_conflicting) == (27, 0)
        assert rollback.skipped_by_reason == {"locked": 3}
        assert operation_of(market, correction.correction_id).rolled_back_by is None
        again = undo_now(market, correction)
        assert again.records_restored == 3
        undone = operation_of(market, correction.correction_id)
        assert undone.rolled_back_by == again.correction_id

    def test_an_old_conflict_does_not_hide_that_a_row_still_stands(self, market: Market) -> None:
        correction = correct_now(market.fill(30))
        write(market, "CREATE TABLE before AS TABLE {}")
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id = 3")
        assert undo_now(market, correction, row_ids=["3"]).records_conflicting == 1
        write(
            market,
            "UPDATE {} m SET asset_class = b.asset_class FROM before b"
            " WHERE m.id = b.id AND m.id = 3",
        )
        with psycopg.connect(market.dsn) as other:
            other.execute("SELECT FROM market_data WHERE id = 3 FOR UPDATE")
            rollback = undo_now(market, correction)
        assert rollback.skipped_by_reason == {"locked": 1}
        assert operation_of(market, correction.correction_id).rolled_back_by is None
        assert undo_now(market, correction).records_restored == 1
        assert set(market.classes().values()) == {None}
        market.execute("DROP TABLE before")

    def test_values_that_the_table_refuses_by_now_are_quarantined(self, market: Market) -> None:
        market.list_symbols(("AAPL", "STOCK"))
        market.add(Bar(n, "AAPL", asset_class=None if n <= 2 else "OLD") for n in range(1, 101))
        correction = correct_now(market, overwrite_existing_values=True)
        write(market, "ALTER TABLE {} ALTER asset_class SET NOT NULL")
        rollback = undo_now(market, correction)
        assert (rollback.records_restored, rollback.records_failed) == (98, 2)
        assert {row.corrected_asset_class for row in rollback.quarantined} == {None}
        assert operation_of(market, correction.correction_id).rolled_back_by is None
        assert_accounted(market, rollback)

    @pytest.mark.parametrize("deleted", [False, True])
    def test_old_values_fit_a_column_that_became_an_enum(
        self, market: Market, deleted: bool
    ) -> None:
        """As the verification says; a text is assigned to no enum."""
        market.fill(60).execute("UPDATE market_data SET asset_class = 'OLD' WHERE id <= 20")
        before = market.classes()
        correction = correct_now(market, overwrite_existing_values=True)
        write(market, "CREATE TYPE klass AS ENUM ('CLASS_0', 'CLASS_1', 'OLD')")
        write(market, "ALTER TABLE {} ALTER asset_class TYPE klass USING asset_class::klass")
        if deleted:
            # Planned without an address.
            write(market, "DELETE FROM {} WHERE id = 60")
            del before[60]
        with connect(market.dsn, market.settings, purpose="test") as connection:
            assert verify_backup(
                connection, market.settings, correction.correction_id, by="test"
            ).passed
        dry = undo_now(market, correction, dry_run=True)
        rollback = undo_now(market, correction)
        assert dry.records_planned == rollback.records_restored == len(before)
        assert market.classes() == before

    def test_rows_that_the_backup_lacks_are_not_recorded_as_restored(self, market: Market) -> None:
        correction = correct_now(market.fill(100))
        backup = sql.Identifier("public", str(correction.backup_table))
        market.execute("DELETE FROM {} WHERE seq <= 10", backup)
        rollback = undo_now(market, correction)
        assert (rollback.status, rollback.records_restored) == (Status.SUCCEEDED, 90)
        assert undone_seqs(market) == list(range(11, 101))
        assert operation_of(market, correction.correction_id).rolled_back_by is None
        events = operation_of(market, rollback.correction_id).events
        told = [event.details for event in events if event.event == "backup_lacks_rows"]
        assert told == [{"records": 10}]


class TestScan:
    @pytest.mark.every_postgres
    @pytest.mark.parametrize("first_page", [0, 10])
    @pytest.mark.parametrize("is_analysed", [True, False])
    def test_it_hashes_the_backup_and_looks_nothing_up(
        self,
        market: Market,
        monkeypatch: pytest.MonkeyPatch,
        is_analysed: bool,
        first_page: int,
    ) -> None:
        """Whatever the planner believes: other plans took minutes at 3 M rows."""
        correction = correct_now(market.fill(5000, missing_every=2), batch_size=1000)
        if is_analysed:
            market.execute("ANALYZE")
        statement_of = undo_plan._chunk_statement
        seen: list[tuple[undo_plan.UndoScan, PlanState, undo_plan._Chunk]] = []

        def look_over(
            scan: undo_plan.UndoScan, state: PlanState, chunk: undo_plan._Chunk
        ) -> Statement:
            seen.append((scan, state, chunk))
            return statement_of(scan, state, chunk)

        monkeypatch.setattr(undo_plan, "_chunk_statement", look_over)
        undo_now(market, correction, batch_size=1000)
        ((scan, state, only),) = seen
        chunk = undo_plan._Chunk(only.part, first_page, 50, 4, 100)
        values = {**scan.undone.values, **chunk.values, "take_backup_value": False, "last_seq": 0}
        with (
            connect(market.dsn, market.settings, purpose="test") as connection,
            transaction(connection, market.settings) as cursor,
        ):
            undo_plan._let_it_hash(scan, cursor)
            explain = sql.SQL("EXPLAIN (FORMAT JSON) ") + statement_of(scan, state, chunk)
            row = cursor.execute(explain, values).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        on_market = {
            node["Node Type"]
            for node in plan_nodes(plan)
            if node.get("Relation Name") == "market_data"
        }
        assert on_market == {"Tid Range Scan"}
        assert "Hash Join" in {node["Node Type"] for node in plan_nodes(plan)}
        # What was undone by earlier rollbacks is unnested; nothing else may be looked up in turns.
        assert looped_over(plan) <= {"operation_undone", "part"}

    def test_pages_with_many_rows_are_visited_several_times(self, market: Market) -> None:
        correction = correct_now(market.fill(5000), batch_size=1000)
        rollback = undo_now(market, correction, batch_size=1000)
        backwards = market.value(
            "SELECT count(*) FILTER (WHERE source_address < before) FROM ("
            "SELECT *, lag(source_address) OVER (ORDER BY seq) AS before FROM {}) numbered",
            sql.Identifier("assetclass", str(rollback.backup_table)),
        )
        assert backwards == VISITS - 1

    def test_a_leaf_that_is_rewritten_between_two_chunks_is_restored_whole(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As many rows are met twice as are met nowhere: their number alone would tell nothing."""
        correction = correct_now(market.fill(1000))
        write(market, "VACUUM FULL {}")
        write(market, "CREATE INDEX backwards ON {} (id DESC)")

        between_chunks(monkeypatch, 5, lambda: write(market, "CLUSTER {} USING backwards"))
        rollback = undo_now(market, correction)

        assert (rollback.records_planned, rollback.records_restored) == (1000, 1000)
        assert rollback.skipped_by_reason == {}
        assert set(market.classes().values()) == {None}

    def test_a_row_that_moves_to_later_pages_is_judged_once(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        correction = correct_now(market.fill(1000))
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id <= 3")
        write(market, "UPDATE {} SET asset_class = NULL WHERE id BETWEEN 4 AND 8")
        write(market, "DELETE FROM {} WHERE id > 900")
        write(market, "VACUUM FULL {}")

        moved = "UPDATE {} SET close = close + 1 WHERE id <= 20"
        between_chunks(monkeypatch, 5, lambda: write(market, moved))
        rollback = undo_now(market, correction)

        assert rollback.status is Status.SUCCEEDED
        assert (rollback.records_restored, rollback.records_conflicting) == (897, 103)
        assert (rollback.records_planned, rollback.records_corrected) == (992, 892)
        assert len(undone_seqs(market)) == 897

    @pytest.mark.parametrize("take_backup_value", [False, True])
    def test_a_dry_run_counts_what_is_restored_already_once(
        self, market: Market, take_backup_value: bool
    ) -> None:
        correction = correct_now(market.fill(100))
        write(market, "UPDATE {} SET asset_class = NULL WHERE id <= 10")
        write(market, "DELETE FROM {} WHERE id = 50")
        told = undo_now(market, correction, dry_run=True, take_backup_value=take_backup_value)
        assert (told.records_planned, told.records_conflicting) == (89, 1)
        assert market.value("SELECT max(already_restored) FROM assetclass.operation") == 10


def between_chunks(
    monkeypatch: pytest.MonkeyPatch, number: int, happen: Callable[[], None]
) -> None:
    """Scan page by page; something happens before the chunk of this number."""
    add_chunk, waiting = undo_plan._add_chunk, [number]

    def add(scan: undo_plan.UndoScan, state: PlanState, chunk: undo_plan._Chunk) -> None:
        if chunk.first_page in waiting:
            waiting.clear()
            happen()
        add_chunk(scan, state, chunk)

    monkeypatch.setattr(undo_plan, "PAGES_PER_CHUNK", 1)
    monkeypatch.setattr(undo_plan, "PAGES_PER_BACKUP_PAGE", 0)
    monkeypatch.setattr(undo_plan, "_add_chunk", add)


def looped_over(node: dict[str, Any], *, in_loop: bool = False) -> set[str]:
    """What a plan reads within nested loops."""
    in_loop |= node["Node Type"] == "Nested Loop"
    names = {str(node.get(kind)) for kind in ("Relation Name", "CTE Name") if kind in node}
    found = names if in_loop else set()
    for below in node.get("Plans", []):
        found |= looped_over(below, in_loop=in_loop)
    return found


class TestPartial:
    def test_the_options_narrow_each_other(self, market: Market) -> None:
        market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
        times = ["2022-05-05", "2023-01-31", "2023-02-01", "2024-02-29", "9999-01-01", None]
        market.add(
            Bar(10 * place + number, symbol, time)
            for place, time in enumerate(times)
            for number, symbol in enumerate(("AAPL", "BTC"))
        )
        correction = correct_now(market)

        def restored(**options: Any) -> set[int]:
            before = market.classes()
            rollback = undo_now(market, correction, **options)
            after = market.classes()
            changed = {n for n in before if before[n] != after[n]}
            assert rollback.records_restored == len(changed)
            return changed

        assert restored(target_symbols=["BTC", "?"], row_ids=["11", "20", "x"]) == {11}
        # Rows before the calendar, and without a time, are of its first month.
        assert restored(partitions=["2023-01-01"], target_symbols=["AAPL"]) == {0, 10, 50}
        assert operation_of(market, correction.correction_id).rolled_back_by is None
        assert restored(partitions=["2023-02-01", "2024-02-01"]) == {20, 21, 30, 31}
        assert restored(row_ids=["1", "51"]) == {1, 51}
        # And those after the calendar of its last.
        last = Calendar.until_now(market.settings.first_month).keys[-1]
        assert restored(partitions=[last]) == {40, 41}
        with pytest.raises(AlreadyRolledBackError):
            restored()

    def test_the_last_part_completes_it(self, market: Market) -> None:
        correction = correct_now(market.fill(20, symbols=2))
        undo_now(market, correction, target_symbols=["S0"])
        last = undo_now(market, correction, target_symbols=["S1"])
        undone = operation_of(market, correction.correction_id)
        assert undone.rolled_back_by == last.correction_id

    def test_the_rest_is_restored_once(self, market: Market) -> None:
        correction = correct_now(market.fill(20, symbols=2))
        undo_now(market, correction, target_symbols=["S0"])
        # What was put back and then changed by others is nobody's conflict.
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE symbol = 'S0'")
        rest = undo_now(market, correction)
        assert (rest.records_restored, rest.records_conflicting) == (10, 0)
        assert undone_seqs(market) == list(range(1, 21))


class TestDryRun:
    def test_it_tells_all_and_changes_nothing(self, market: Market) -> None:
        correction = correct_now(odd(market), overwrite_existing_values=True)
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id IN (1, 4)")
        write(market, "DELETE FROM {} WHERE id = 6")
        versions = market.versions()

        dry = undo_now(market, correction, dry_run=True)

        assert market.versions() == versions
        assert (market.rollback_tables(), market.plan_tables(), undone_seqs(market)) == ([], [], [])
        assert operation_of(market, correction.correction_id).rolled_back_by is None
        real = undo_now(market, correction)
        assert dry.records_planned == real.records_restored
        assert dry.records_restored == 0
        assert dry.conflicts == real.conflicts
        assert sum(change.records for change in dry.changes) == dry.records_planned
        assert dry.quality_after is not None
        assert real.quality_after is not None
        scores = ("completeness", "qualityScore", "integrity", "nullAssetClass", "mismatched",
                  "correctable", "emptyAssetClass", "validAssetClass")  # fmt: skip
        assert {name: dry.quality_after[name] for name in scores} == {
            name: real.quality_after[name] for name in scores
        }
        assert dry.quality_before is not None
        assert dry.quality_before["qualityScore"] != dry.quality_after["qualityScore"]

    def test_what_is_restored_already_is_counted(self, market: Market) -> None:
        correction = correct_now(market.fill(10))
        write(market, "UPDATE {} SET asset_class = NULL WHERE id <= 4")
        dry = undo_now(market, correction, dry_run=True)
        assert (dry.records_planned, dry.records_restored) == (6, 4)

    def test_what_is_left_is_counted_once_however_often_it_is_judged(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A step whose COMMIT is not reached is done again."""
        correction = correct_now(market.fill(10))
        write(market, "CREATE TABLE moving AS SELECT * FROM {} WHERE id <= 2")
        write(market, "DELETE FROM {} WHERE id <= 3")
        require_ours, look_up = Holder.require_ours, undo_record._look_up
        failures = [psycopg.errors.DeadlockDetected("not now")]

        def fail_once(holder: Holder, cursor: psycopg.Cursor[TupleRow]) -> None:
            if looked and failures:
                raise failures.pop()
            require_ours(holder, cursor)

        def look(*arguments: Any) -> Any:
            if not looked:
                # Two have only moved to where the scan had been.
                write(market, "INSERT INTO {} SELECT * FROM moving")
            looked.append(True)
            return look_up(*arguments)

        looked: list[bool] = []
        monkeypatch.setattr(Holder, "require_ours", fail_once)
        monkeypatch.setattr(undo_record, "_look_up", look)
        dry = undo_now(market, correction, dry_run=True)
        assert (failures, len(looked)) == ([], 2)
        assert (dry.records_planned, dry.records_conflicting) == (9, 1)
        assert sum(change.records for change in dry.changes) == 9
        market.execute("DROP TABLE moving")


class TestGoingOn:
    def test_one_that_was_cut_off_goes_on_and_loses_nothing(self, market: Market) -> None:
        before = whole(market.fill(200))
        correction = correct_now(market)
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id = 200")
        write(market, "UPDATE {} SET asset_class = NULL WHERE id = 199")
        request = undo_request_of(correction.correction_id, workers=1)
        cut_off = self._cut_off(market, request)
        assert 1 < len(undone_seqs(market)) == cut_off.records_restored
        assert sum(change.records for change in cut_off.changes) == cut_off.records_corrected

        resumed = undo_now(market, request)

        assert resumed.status is Status.SUCCEEDED
        assert (resumed.records_restored, resumed.records_conflicting) == (199, 1)
        assert whole(market)[:-1] == before[:-1]
        assert len(undone_seqs(market)) == 199
        assert len(market.rollback_tables()) == 1

    def test_a_new_one_restores_what_it_left(self, market: Market) -> None:
        before = whole(market.fill(200))
        correction = correct_now(market)
        request = undo_request_of(correction.correction_id, workers=1)
        cut_off = self._cut_off(market, request)
        done = cut_off.records_restored
        assert done is not None
        # As after kill -9: nothing is on record yet.
        market.execute("DELETE FROM assetclass.operation_undone")
        market.execute("DELETE FROM assetclass.operation_change")

        another = undo_now(market, correction)

        assert another.records_corrected == 200 - done
        assert whole(market) == before
        assert undone_seqs(market) == list(range(1, 201))
        undone = operation_of(market, correction.correction_id)
        assert undone.rolled_back_by == another.correction_id
        first = operation_of(market, request.correction_id)
        assert sum(change.records for change in first.changes) == done
        with pytest.raises(OperationStateError, match=another.correction_id):
            undo_now(market, request)

    def test_the_night_after_a_killed_one_need_not_be_undone_first(self, market: Market) -> None:
        """What the killed one had put back, the nightly correction took up: that is its own."""
        correction = correct_now(market.fill(200))
        cut_off = self._cut_off(market, undo_request_of(correction.correction_id, workers=1))
        # As after kill -9: nothing is on record yet.
        market.execute("DELETE FROM assetclass.operation_undone")
        night = correct_now(market)
        assert night.records_corrected == cut_off.records_corrected == 90

        with connect(market.dsn, market.settings, purpose="test") as connection:
            asked = request_rollback(
                connection, market.settings, undo_request_of(correction.correction_id)
            )
            ask_to_cancel(connection, market.settings, asked.correction_id, by="somebody")
        market.execute("DELETE FROM assetclass.operation_undone")
        another = undo_now(market, correction)

        assert (another.records_restored, another.records_conflicting) == (110, 0)
        assert undone_seqs(market) == list(range(1, 201))
        assert operation_of(market, night.correction_id).rolled_back_by is None
        assert sum(name is not None for name in market.classes().values()) == 90

    def test_what_a_later_correction_wrote_meanwhile_is_not_taken_for_ours(
        self, market: Market
    ) -> None:
        """It writes the same class, so that comparing values cannot tell."""
        correction = correct_now(market.fill(200))
        request = undo_request_of(correction.correction_id, workers=1)
        self._cut_off(market, request)
        # The nightly correction takes up what was restored, which is no reason to stop.
        correct_now(market, max_records_to_process=10)
        again = undo_now(market, request)
        assert again.status is Status.SUCCEEDED

    def test_a_later_correction_of_a_row_that_is_not_restored_yet_goes_first(
        self, market: Market
    ) -> None:
        """It writes the same class, so that comparing values cannot tell."""
        correction = correct_now(market.fill(200))
        request = undo_request_of(correction.correction_id, workers=1)
        self._cut_off(market, request)
        left = next(number for number, name in market.classes().items() if name is not None)
        market.execute("UPDATE market_data SET asset_class = NULL WHERE id = {}", sql.Literal(left))
        symbol = f"S{left % 20}"
        later = correct_now(market, target_symbols=[symbol])
        with pytest.raises(LaterCorrectionError, match=later.correction_id):
            undo_now(market, request)
        assert market.classes()[left] is not None
        undo_now(market, later)
        assert undo_now(market, request).status is Status.SUCCEEDED
        assert set(market.classes().values()) == {None}

    def test_a_cancel_is_heard_between_batches_and_recorded(self, market: Market) -> None:
        correction = correct_now(market.fill(2000), batch_size=500)
        request = undo_request_of(correction.correction_id, workers=1, batch_size=1)

        def cancel(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING:
                with connect(market.dsn, market.settings, purpose="test") as connection:
                    ask_to_cancel(connection, market.settings, request.correction_id, by="somebody")

        with pytest.raises(OperationCancelledError):
            roll_back(market.dsn, market.settings, request, observe=cancel)
        cancelled = operation_of(market, request.correction_id)
        assert cancelled.status is Status.CANCELLED
        assert len(undone_seqs(market)) == cancelled.records_restored
        assert undo_now(market, correction, batch_size=500).records_restored is not None
        assert set(market.classes().values()) == {None}
        assert len(undone_seqs(market)) == 2000

    def test_its_backup_may_be_gone_once_it_is_planned(self, market: Market) -> None:
        correction = correct_now(market.fill(200))
        request = undo_request_of(correction.correction_id, workers=1)
        self._cut_off(market, request)
        write_backup = sql.Identifier("public", str(correction.backup_table))
        market.execute("DROP TABLE {}", write_backup)
        assert undo_now(market, request).records_restored == 200

    def test_one_that_was_cut_off_while_planning(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = self._cut_off_before(market, monkeypatch, "undo_plan.complete_plan")
        resumed = undo_now(market, request)
        assert (resumed.records_restored, resumed.records_conflicting) == (98, 2)
        assert len(undone_seqs(market)) == 98

    def test_a_plan_that_was_dropped_before_its_first_batch_is_made_anew(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = self._cut_off_before(market, monkeypatch, "rollback.write_plan")
        (table,) = market.rollback_tables()
        market.execute("DROP TABLE {}", sql.Identifier("assetclass", table))
        write(market, "UPDATE {} SET asset_class = 'CLASS_' || id % 2 WHERE id <= 5")
        resumed = undo_now(market, request)
        assert (resumed.records_restored, resumed.records_conflicting) == (100, 0)

    def _cut_off_before(
        self, market: Market, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> RollbackRequest:
        """Of 100 rows two are changed and three put back; the rollback fails at `step`."""
        correction = correct_now(market.fill(100))
        write(market, "UPDATE {} SET asset_class = 'THEIRS' WHERE id <= 2")
        write(market, "UPDATE {} SET asset_class = NULL WHERE id BETWEEN 3 AND 5")
        request = undo_request_of(correction.correction_id)

        def fail(*_: object) -> None:
            raise CorrectionFailedError("broken off")

        with monkeypatch.context() as patched:
            patched.setattr(f"assetclass_pipeline.engine.{step}", fail)
            with pytest.raises(CorrectionFailedError):
                undo_now(market, request)
        return request

    def _cut_off(self, market: Market, request: RollbackRequest) -> Operation:
        with broken_after(market, 9), pytest.raises(CorrectionFailedError):
            undo_now(market, request)
        cut_off = operation_of(market, request.correction_id)
        assert cut_off.status is Status.FAILED
        assert cut_off.records_corrected == 90
        return cut_off


class TestOthers:
    def test_of_two_at_once_one_wins(self, market: Market) -> None:
        correction = correct_now(market.fill(500))
        ended: list[Operation | AssetClassError] = []
        together = threading.Barrier(2)

        def run() -> None:
            together.wait()
            try:
                ended.append(undo_now(market, correction))
            except AssetClassError as error:
                ended.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (won,) = [one for one in ended if isinstance(one, Operation)]
        (lost,) = [one for one in ended if isinstance(one, AssetClassError)]
        assert won.records_restored == 500
        assert isinstance(lost, OperationInProgressError | AlreadyRolledBackError)

    def test_history_lists_it_and_what_came_before(self, market: Market) -> None:
        correction = correct_now(market.fill(10))
        undo_now(market, correction, dry_run=True)
        rollback = undo_now(market, correction)
        with connect(market.dsn, market.settings, purpose="test") as connection:
            recent = operation_status(connection, market.settings).recent_operations
        assert [operation.correction_id for operation in recent] == [
            rollback.correction_id, correction.correction_id,
        ]  # fmt: skip

    def test_a_correction_after_it_starts_anew(self, market: Market) -> None:
        correction = correct_now(market.fill(10))
        undo_now(market, correction)
        again = correct_now(market)
        assert again.records_corrected == 10
        assert undo_now(market, again).records_restored == 10

    def test_a_rolled_back_correction_is_neither_resumed_nor_left_for_the_night(
        self, market: Market
    ) -> None:
        request = request_of(workers=1)
        with broken_after(market.fill(100), 5), pytest.raises(CorrectionFailedError):
            correct_now(market, request)
        market.execute("UPDATE assetclass.operation SET status = 'timed_out', stop_at = now()")
        with connect(market.dsn, market.settings, purpose="test") as connection:
            looks: list[Callable[[], object]] = [
                lambda: left_by_last_window(connection, market.settings) is not None,
                lambda: resume_or_new_id(
                    connection, market.settings, request.correction_id, "another"
                ),
            ]
            assert [look() for look in looks] == [True, (request.correction_id, None)]
            undo_now(market, request.correction_id)
            assert [look() for look in looks] == [False, ("another", request.correction_id)]
