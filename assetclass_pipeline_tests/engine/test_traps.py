"""Traps of design.md section 4: each test falls into one as soon as its guard is taken away.

The guard is named where it is not obvious from the test's name.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect, set_local, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine import batches as batches_module
from assetclass_pipeline.engine.batches import BATCH_SETTINGS, Worker
from assetclass_pipeline.engine.by_key import look_for
from assetclass_pipeline.engine.claiming import claim
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.engine.holding import Holder, hold
from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.engine.plan import PlanState
from assetclass_pipeline.engine.ranges import Batch
from assetclass_pipeline.engine.silence import ADVISORY_CLASS
from assetclass_pipeline.engine.sweeping import sweep_statement
from assetclass_pipeline.engine.tempo import Tempo
from assetclass_pipeline.engine.work import Ahead, Work, look_ahead, set_updated_at
from assetclass_pipeline.errors import (
    CorrectionFailedError,
    ErrorRateError,
    OperationFencedError,
    OperationInProgressError,
    PreflightRefusedError,
)
from assetclass_pipeline.model.operation import Operation, Phase, SkipReason, Status
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    operation_of,
    plan_now,
    proof_of,
    report_of,
    request_of,
    tables_of,
)
from assetclass_pipeline_tests.market import Bar, Market

# A trigger's moment, and its body.
REWRITING: dict[str, tuple[LiteralString, LiteralString]] = {
    "before": ("BEFORE", "new.asset_class := 'other'; RETURN new;"),
    "after": (
        "AFTER",
        (
            "IF pg_trigger_depth() = 1 THEN UPDATE public.market_data "
            "SET asset_class = 'other' WHERE id = new.id; END IF; RETURN NULL;"
        ),
    ),
}
# Rows of the table and of a batch, half of them to be corrected.
SIZES = ((20_000, 10_000), (20_000, 100), (2_000, 1_000))
REFERENCE = (("AAPL", "STOCK"), ("MSFT", "STOCK"), ("BTC", "CRYPTO"), ("EUR", "FOREX"))


def small(market: Market) -> Market:
    """Twelve missing rows, three of each symbol; ids 1..12."""
    market.list_symbols(*REFERENCE)
    return market.add(Bar(n, REFERENCE[n % 4][0]) for n in range(1, 13))


def right() -> dict[Any, str | None]:
    """What every row of `small` should become."""
    return {n: REFERENCE[n % 4][1] for n in range(1, 13)}


def detach(market: Market) -> None:
    """Take the first partition out of the table; it stays with its rows."""
    statement: LiteralString = "ALTER TABLE {} DETACH PARTITION {}"
    market.execute(statement, market.market_identifier, market.part(1))


def parts_of(market: Market) -> int:
    """Partitions that the table has now."""
    return int(
        market.value("SELECT count(*) FROM pg_inherits WHERE inhparent = 'market_data'::regclass")
    )


def fall_silent(market: Market) -> None:
    """As if the holder had died ten seconds ago; silence counts from the server's start."""
    market.execute(
        "UPDATE assetclass.operation_heartbeat "
        "SET holder = 'gone:1', beat_at = clock_timestamp() - interval '10 s'"
    )
    market.execute(
        "SELECT pg_sleep(greatest(0, 2.5 - extract(epoch FROM "
        "clock_timestamp() - pg_postmaster_start_time())))"
    )


def assert_accounted(market: Market, operation: Operation) -> None:
    """Every planned row is corrected or skipped with a reason."""
    proof = proof_of(market, operation.correction_id)
    assert (proof.unaccounted, proof.open) == (0, 0)


class TestOneOperation:
    """The partial unique index, the epoch and the heartbeat."""

    def test_a_late_worker_of_an_older_epoch_cannot_commit(self, market: Market) -> None:
        """Guard: the ledger row is inserted from the operation row of the worker's epoch."""
        request = request_of(workers=1)
        plan_now(small(market), request)
        with (
            hold(market.dsn, market.settings, request) as holder,
            late_worker(market, holder, request) as (worker, work),
        ):
            batch = first_batch(work)
            market.execute("UPDATE assetclass.operation SET epoch = epoch + 1")
            with pytest.raises(OperationFencedError):
                worker.correct(batch)
            market.execute("UPDATE assetclass.operation SET epoch = epoch - 1")
        assert set(market.classes().values()) == {None}

    def test_a_worker_of_an_ended_operation_cannot_commit(self, market: Market) -> None:
        request = request_of(workers=1)
        plan_now(small(market), request)
        with (
            hold(market.dsn, market.settings, request) as holder,
            late_worker(market, holder, request) as (worker, work),
        ):
            batch = first_batch(work)
            market.execute("UPDATE assetclass.operation SET status = 'interrupted'")
            with pytest.raises(OperationFencedError):
                worker.correct(batch)
        assert set(market.classes().values()) == {None}

    def test_the_second_one_gets_the_conflict_and_its_name(self, market: Market) -> None:
        first = request_of()
        with hold(small(market).dsn, market.settings, first):
            with pytest.raises(OperationInProgressError) as refused:
                correct_now(market)
            with pytest.raises(OperationInProgressError):
                correct_now(market, first)
        assert refused.value.correction_id == first.correction_id
        assert refused.value.exit_status == 3
        assert set(market.classes().values()) == {None}

    def test_of_two_at_the_same_moment_exactly_one_wins(self, market: Market) -> None:
        ready, done = threading.Barrier(4), threading.Barrier(4)
        won, refused = [], []

        def claim() -> None:
            request = request_of()
            ready.wait(60)
            try:
                with hold(market.dsn, market.settings, request):
                    won.append(request.correction_id)
                    done.wait(60)
            except OperationInProgressError as error:
                refused.append(error.correction_id)
                done.wait(60)

        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert set(refused) == set(won)
        assert len(refused) == 3

    def test_a_silent_owner_is_given_up_and_its_work_taken_over(self, market: Market) -> None:
        request = request_of()
        plan_now(small(market), request, park=False)
        fall_silent(market)
        other = correct_now(market, max_records_to_process=1)
        assert operation_of(market, request.correction_id).status is Status.INTERRUPTED
        assert other.records_corrected == 1
        resumed = correct_now(market, request)
        assert resumed.status is Status.SUCCEEDED
        assert resumed.records_corrected == 11
        assert [event.event for event in resumed.events] == ["resumed"]
        assert market.classes() == right()

    def test_who_only_looks_learns_that_the_owner_is_dead_and_changes_nothing(
        self, market: Market
    ) -> None:
        """Guard: silence is told when it is read; nobody has to claim or control it first."""
        request = request_of()
        plan_now(small(market), request, park=False)
        alive = operation_of(market, request.correction_id)
        assert (alive.silent_seconds, alive.abandoned) == (None, False)
        fall_silent(market)
        market.execute("UPDATE assetclass.operation_heartbeat SET throttle = '{{waits}}'")
        dead = operation_of(market, request.correction_id)
        assert (dead.status, dead.abandoned, dead.throttle) == (Status.RUNNING, True, [])
        assert dead.silent_seconds is not None
        assert dead.silent_seconds > market.settings.heartbeat_stale_after
        resumed = correct_now(market, request)
        assert (resumed.silent_seconds, resumed.abandoned) == (None, False)

    def test_one_that_holds_its_lock_is_silent_before_it_is_dead(self, market: Market) -> None:
        request = request_of()
        plan_now(small(market), request, park=False)
        patient = market.settings.model_copy(update={"heartbeat_stale_after": 3600})
        fall_silent(market)
        with (
            psycopg.connect(market.dsn, autocommit=True) as owner,
            connect(market.dsn, patient, purpose="test") as reader,
        ):
            owner.execute("SELECT pg_advisory_lock(%s, 1)", (ADVISORY_CLASS,))
            silent = get_operation(reader, patient, request.correction_id)
            assert silent.silent_seconds is not None
            assert not silent.abandoned
            owner.execute("SELECT pg_advisory_unlock_all()")
            assert get_operation(reader, patient, request.correction_id).abandoned

    def test_an_advisory_lock_that_somebody_leaked_keeps_no_dead_owner_alive(
        self, market: Market
    ) -> None:
        """Guard: the heartbeat is the proof, the lock only a hint (a pooler may keep it)."""
        request = request_of()
        plan_now(small(market), request, park=False)
        fall_silent(market)
        with psycopg.connect(market.dsn, autocommit=True) as pooled:
            pooled.execute("SELECT pg_advisory_lock(%s, 1)", (ADVISORY_CLASS,))
            assert correct_now(market).status is Status.SUCCEEDED
        assert operation_of(market, request.correction_id).status is Status.INTERRUPTED

    def test_an_owner_that_died_before_its_first_heartbeat_blocks_nobody(
        self, market: Market
    ) -> None:
        """Guard: the claim itself is the first heartbeat."""
        small(market)
        with connect(market.dsn, market.settings, purpose="test") as connection:
            claim(connection, market.settings, request_of())
        fall_silent(market)
        assert correct_now(market).status is Status.SUCCEEDED

    def test_a_resumed_one_does_not_look_silent_before_its_first_heartbeat(
        self, market: Market
    ) -> None:
        """Guard: as above; the heartbeat of its first life is old."""
        request = request_of()
        plan_now(small(market), request)
        market.execute(
            "UPDATE assetclass.operation_heartbeat SET beat_at = beat_at - interval '1 hour'"
        )
        # Silence that counts, and still far less than an hour.
        patient = market.settings.model_copy(
            update={"heartbeat_interval": 60, "heartbeat_stale_after": 180}
        )
        with connect(market.dsn, patient, purpose="test") as connection:
            claim(connection, patient, request)
            with pytest.raises(OperationInProgressError):
                correct(market.dsn, patient, request_of())

    def test_a_beating_owner_is_not_given_up(self, market: Market) -> None:
        with hold(small(market).dsn, market.settings, request_of()) as holder:
            threading.Event().wait(market.settings.heartbeat_stale_after + 0.7)
            with pytest.raises(OperationInProgressError):
                correct_now(market)
            assert not holder.stop.is_set()


class TestOthersChangeRows:
    """Compare-and-set: what anybody else did between plan and batch stays."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ("UPDATE {} SET asset_class = 'THEIRS' WHERE id = 5", SkipReason.CHANGED_BY_OTHERS),
            ("UPDATE {} SET asset_class = '' WHERE id = 5", SkipReason.CHANGED_BY_OTHERS),
            ("UPDATE {} SET symbol = 'UNKNOWN' WHERE id = 5", SkipReason.CHANGED_BY_OTHERS),
            ("DELETE FROM {} WHERE id = 5", SkipReason.DELETED),
        ],
    )
    def test_between_plan_and_batch(
        self, market: Market, change: LiteralString, reason: SkipReason
    ) -> None:
        request = request_of(batch_size=4)
        plan_now(small(market), request)
        market.execute(change, market.market_identifier)
        stored: LiteralString = "SELECT m::text FROM {} m WHERE id = 5"
        theirs = market.rows(stored, market.market_identifier)

        operation = correct_now(market, request)

        assert operation.skipped_by_reason == {reason: 1}
        assert market.rows(stored, market.market_identifier) == theirs
        assert {**market.classes(), 5: None} == {**right(), 5: None}
        assert sum(change.records for change in operation.changes) == 11
        assert_accounted(market, operation)

    def test_a_changed_row_that_came_back_to_its_address_is_left_alone(
        self, market: Market
    ) -> None:
        """Guard: the old value is compared, even where the address and the key are right."""
        small(market).execute("CREATE INDEX ON {} (asset_class)", market.market_identifier)
        where: LiteralString = "SELECT ctid::text FROM {} WHERE id = 5"
        request = request_of(batch_size=4)
        plan_now(market, request)
        planned_at = market.value(where, market.market_identifier)
        market.execute("UPDATE {} SET asset_class = 'X' WHERE id = 5", market.market_identifier)
        market.execute("VACUUM {}", market.market_identifier)
        market.execute("UPDATE {} SET close = 2 WHERE id = 5", market.market_identifier)
        assert market.value(where, market.market_identifier) == planned_at
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {SkipReason.CHANGED_BY_OTHERS: 1}
        assert market.classes() == {**right(), 5: "X"}

    def test_locked_rows_are_left_and_named(self, market: Market) -> None:
        """Guard: SKIP LOCKED; a batch that waited would end in the lock timeout."""
        request = request_of(batch_size=4, retry={"tries": 1})
        plan_now(small(market), request)
        with psycopg.connect(market.dsn) as other:
            other.execute("SELECT FROM market_data WHERE id IN (3, 7) FOR UPDATE")
            operation = correct_now(market, request)
        assert operation.skipped_by_reason == {SkipReason.LOCKED: 2}
        assert {**market.classes(), 3: None, 7: None} == {**right(), 3: None, 7: None}
        assert_accounted(market, operation)
        assert correct_now(market).records_corrected == 2

    def test_rows_that_are_locked_for_a_moment_are_written_by_the_sweep(
        self, market: Market
    ) -> None:
        request = request_of(batch_size=4)
        plan_now(small(market), request)
        with psycopg.connect(market.dsn) as other:
            other.execute("SELECT FROM market_data WHERE id = 3 FOR UPDATE")

            def release(operation: Operation) -> None:
                if operation.phase is Phase.SWEEPING:
                    other.rollback()

            operation = correct(market.dsn, market.settings, request, observe=release)
        assert operation.skipped_by_reason == {}
        assert market.classes() == right()

    @pytest.mark.parametrize("partitioning", ["plain", "nested"])
    @pytest.mark.parametrize(
        "move",
        ["UPDATE {} SET close = close + 1", "VACUUM FULL {}", "CLUSTER {} USING by_id"],
    )
    def test_rows_that_merely_moved_are_found_again(
        self, make_market: MakeMarket, partitioning: str, move: LiteralString
    ) -> None:
        market = small(make_market(partitioning=partitioning))
        clusters_a_tree = move.startswith("CLUSTER") and partitioning != "plain"
        if clusters_a_tree and market.connection.info.server_version < 150_000:
            pytest.skip("a partitioned table can be clustered since PostgreSQL 15")
        market.execute("CREATE INDEX by_id ON {} (id DESC)", market.market_identifier)
        market.execute("DELETE FROM {} WHERE id < 3", market.market_identifier)
        request = request_of(batch_size=4)
        plan_now(market, request)
        market.execute(move, market.market_identifier)
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {}
        assert operation.records_corrected == 10
        assert market.classes() == {n: c for n, c in right().items() if n > 2}
        assert_accounted(market, operation)

    @pytest.mark.parametrize(("poisoned", "ends_well"), [(1, True), (10, False)])
    def test_of_moved_rows_those_that_the_database_refuses_are_quarantined(
        self, market: Market, poisoned: int, ends_well: bool
    ) -> None:
        """Guards: the sweep halves what fails; the error rate; a later pass leaves them out."""
        request = request_of(batch_size=50)
        plan_now(market.fill(100), request)
        market.execute("UPDATE {} SET close = close + 1", market.market_identifier)
        market.execute(
            f"ALTER TABLE {{}} ADD CHECK (id > {poisoned} OR asset_class IS NULL)",
            market.market_identifier,
        )
        if ends_well:
            operation = correct_now(market, request)
            assert (operation.records_corrected, operation.records_failed) == (99, 1)
            assert_accounted(market, operation)
            return
        with pytest.raises(ErrorRateError):
            correct_now(market, request)
        market.execute("ALTER TABLE {} DROP CONSTRAINT market_data_check", market.market_identifier)
        # Whoever goes on gives them another try.
        operation = correct_now(market, request)
        assert (operation.records_corrected, operation.records_failed) == (100, 0)

    def test_a_quarantined_row_stays_in_quarantine_until_somebody_goes_on(
        self, market: Market
    ) -> None:
        """Guard: the sweep leaves it alone; or it would be corrected, and still be listed."""
        request = request_of(batch_size=50)
        plan_now(market.fill(100), request)
        market.execute(
            "ALTER TABLE {} ADD CHECK (id > 1 OR asset_class IS NULL)", market.market_identifier
        )

        def mend(operation: Operation) -> None:
            if operation.phase is Phase.SWEEPING:
                market.execute(
                    "ALTER TABLE {} DROP CONSTRAINT IF EXISTS market_data_check",
                    market.market_identifier,
                )

        operation = correct(market.dsn, market.settings, request, observe=mend)
        assert (operation.records_corrected, operation.records_failed) == (99, 1)
        assert len(operation.quarantined) == 1
        assert_accounted(market, operation)

    def test_rows_that_moved_to_another_partition_are_found_again(
        self, make_market: MakeMarket
    ) -> None:
        market = small(make_market(partitioning="hash"))
        request = request_of(batch_size=4)
        plan_now(market, request)
        market.execute(
            "ALTER TABLE {} DETACH PARTITION {}", market.market_identifier, market.part(1)
        )
        market.execute("ALTER TABLE {} RENAME TO old_part", market.part(1))
        market.execute(
            "CREATE TABLE {} PARTITION OF {} FOR VALUES WITH (MODULUS 3, REMAINDER 0)",
            market.part(1),
            market.market_identifier,
        )
        market.execute("ALTER TABLE {} ADD PRIMARY KEY (id)", market.part(1))
        market.execute("INSERT INTO {} SELECT * FROM old_part", market.market_identifier)
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {}
        assert market.classes() == right()

    def test_a_detached_partition_is_left_alone(self, make_market: MakeMarket) -> None:
        market = small(make_market(partitioning="hash"))
        request = request_of(batch_size=4)
        plan_now(market, request)
        gone = market.value("SELECT count(*) FROM {}", market.part(1))
        market.execute(
            "ALTER TABLE {} DETACH PARTITION {}", market.market_identifier, market.part(1)
        )
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {SkipReason.DELETED: gone}
        assert operation.records_corrected == 12 - gone
        assert market.value("SELECT count(asset_class) FROM {}", market.part(1)) == 0
        assert_accounted(market, operation)

    @pytest.mark.parametrize("rows_stay", [True, False], ids=["detached", "dropped"])
    def test_a_partition_that_goes_in_mid_run_is_left_alone(
        self, make_market: MakeMarket, *, rows_stay: bool
    ) -> None:
        """Guard: each batch looks whether its leaf is still a part of the table."""
        market = small(make_market(partitioning="hash"))
        gone = market.value("SELECT count(*) FROM {}", market.part(1))

        def take_away(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING and parts_of(market) == 3:
                detach(market) if rows_stay else market.execute("DROP TABLE {}", market.part(1))

        request = request_of(batch_size=4)
        operation = correct(market.dsn, market.settings, request, observe=take_away)
        assert operation.status is Status.SUCCEEDED
        assert operation.skipped_by_reason == {SkipReason.DELETED: gone}
        assert operation.records_corrected == 12 - gone
        if rows_stay:
            assert market.value("SELECT count(asset_class) FROM {}", market.part(1)) == 0
        assert_accounted(market, operation)

    def test_a_partition_that_is_dropped_in_the_middle_of_a_batch_is_left(
        self, make_market: MakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Guard: a table that is unknown by now is looked for, not taken for an error."""
        market = small(make_market(partitioning="hash"))
        gone = market.value("SELECT count(*) FROM {}", market.part(1))

        def then_drop(cursor: psycopg.Cursor[Any], work: Work, *rest: Any) -> Ahead:
            ahead = look_ahead(cursor, work, *rest)
            market.execute("DROP TABLE IF EXISTS {}", market.part(1))
            return ahead

        monkeypatch.setattr(batches_module, "look_ahead", then_drop)
        operation = correct_now(market, batch_size=100, workers=1)
        assert operation.skipped_by_reason == {SkipReason.DELETED: gone}
        assert operation.records_corrected == 12 - gone
        assert_accounted(market, operation)

    def test_rows_of_a_partition_that_is_made_in_mid_run_are_corrected_too(
        self, make_market: MakeMarket
    ) -> None:
        """Guard: the tables are looked at again before rows that came late are planned."""
        market = small(make_market(partitioning="range"))

        def feed(operation: Operation) -> None:
            if operation.phase is Phase.SWEEPING and parts_of(market) == 3:
                market.execute(
                    "CREATE TABLE {} PARTITION OF {} (PRIMARY KEY (id)) "
                    "FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')",
                    market.part(4),
                    market.market_identifier,
                )
                market.add(Bar(n, "BTC", "2030-02-01") for n in range(100, 140))

        operation = correct(market.dsn, market.settings, request_of(), observe=feed)
        assert operation.skipped_by_reason == {}
        assert operation.records_corrected == 52
        assert report_of(market).correctable == 0
        assert_accounted(market, operation)

    def test_reused_addresses_do_not_get_the_class_of_the_row_before(
        self, make_market: MakeMarket
    ) -> None:
        """Guard: symbol and time are compared, for NULL ids are all alike."""
        market = make_market(key="UNIQUE (id)").list_symbols(*REFERENCE)
        market.add(Bar(None, "AAPL") for _ in range(10))
        request = request_of(batch_size=4)
        plan_now(market, request)
        market.execute("DELETE FROM {}", market.market_identifier)
        market.execute("VACUUM {}", market.market_identifier)
        market.add(Bar(None, "BTC") for _ in range(10))
        operation = correct_now(market, request)
        classes = market.rows("SELECT asset_class FROM {}", market.market_identifier)
        assert set(classes) <= {(None,), ("CRYPTO",)}
        assert operation.skipped_by_reason == {SkipReason.MOVED_OR_CHANGED: 10}

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            (Bar(6, "AAPL"), SkipReason.DELETED),
            (Bar(5, "MSFT"), SkipReason.CHANGED_BY_OTHERS),
            (Bar(5, "AAPL", "2024-03-02 12:00:00+00"), SkipReason.CHANGED_BY_OTHERS),
            (Bar(5, "AAPL", None), SkipReason.CHANGED_BY_OTHERS),
        ],
    )
    def test_an_address_that_holds_another_row_by_now(
        self, make_market: MakeMarket, other: Bar, reason: SkipReason
    ) -> None:
        """Guard: id, symbol and time are compared each; what the audit says was this very row."""
        key = 'UNIQUE (id, symbol, "timestamp")'
        market = make_market(key=key).list_symbols(*REFERENCE).add([Bar(5, "AAPL")])
        where: LiteralString = "SELECT ctid::text FROM {}"
        request = request_of()
        plan_now(market, request)
        planned_at = market.rows(where, market.market_identifier)
        market.execute("DELETE FROM {}", market.market_identifier)
        market.execute("VACUUM {}", market.market_identifier)
        market.add([other])
        assert market.rows(where, market.market_identifier) == planned_at
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {reason: 1}
        assert (operation.records_planned, operation.records_corrected) == (2, 1)
        assert_accounted(market, operation)

    def test_rows_alike_in_everything_are_all_written(self, make_market: MakeMarket) -> None:
        """Rows whose key holds a NULL moved: each planned row takes one of them."""
        key = 'UNIQUE (id, symbol, "timestamp")'
        market = make_market(key=key).list_symbols(*REFERENCE)
        market.add(Bar(7, "AAPL", None) for _ in range(10))
        request = request_of(batch_size=5)
        plan_now(market, request)
        market.execute("VACUUM FULL {}", market.market_identifier)
        market.execute("UPDATE {} SET close = 2", market.market_identifier)
        operation = correct_now(market, request)
        assert operation.records_corrected == 10
        assert market.rows("SELECT DISTINCT asset_class FROM {}", market.market_identifier) == [
            ("STOCK",)
        ]

    def test_rows_that_come_during_the_run_are_corrected_too(self, market: Market) -> None:
        small(market)

        def feed(operation: Operation) -> None:
            if operation.phase is Phase.SWEEPING and 100 not in market.classes():
                market.add(Bar(n, "BTC") for n in range(100, 140))
                market.execute("DELETE FROM {} WHERE id < 3", market.market_identifier)

        operation = correct(market.dsn, market.settings, request_of(batch_size=4), observe=feed)
        assert operation.records_corrected == 52
        assert operation.skipped_by_reason == {}
        assert report_of(market).correctable == 0
        assert_accounted(market, operation)

    def test_rows_that_others_damage_again_stay_so_and_are_told(self, market: Market) -> None:
        """Guard: what is left at the end is named, also where the ledger calls it corrected."""
        small(market)

        def overwrite(operation: Operation) -> None:
            if operation.phase is Phase.SWEEPING:
                market.execute(
                    "UPDATE {} SET asset_class = '' WHERE id < 4", market.market_identifier
                )

        request = request_of(batch_size=4)
        correct(market.dsn, market.settings, request, observe=overwrite)
        operation = operation_of(market, request.correction_id)
        assert (operation.records_corrected, operation.skipped_by_reason) == (12, {})
        assert report_of(market).correctable == 3
        told = {event.event: event.details for event in operation.events}
        assert told == {"damaged_again": {"records": 3}}

    def test_late_rows_are_not_hidden_by_rows_that_were_deleted(self, market: Market) -> None:
        """What is late is counted by row, not as correctable rows minus skipped ones."""
        request = request_of(batch_size=4)
        plan_now(small(market), request)
        market.execute("DELETE FROM {} WHERE id < 7", market.market_identifier)
        market.add(Bar(n, "BTC") for n in range(100, 105))
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {SkipReason.DELETED: 6}
        assert report_of(market).correctable == 0


class TestOthersChangeTheReference:
    """The class is derived again at write time."""

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE {} SET asset_class = 'ETF' WHERE ticker = 'BTC'",
            "UPDATE {} SET ticker = 'XBT' WHERE ticker = 'BTC'",
            "DELETE FROM {} WHERE ticker = 'BTC'",
            "INSERT INTO {} (ticker, asset_class) VALUES ('BTC', 'ETF')",
            "INSERT INTO {} (ticker, asset_class) VALUES ('BTC', 'BOND')",
            "UPDATE {} SET asset_class = ' ' WHERE ticker = 'BTC'",
        ],
    )
    @pytest.mark.parametrize("moved", [False, True])
    def test_a_class_that_symbols_no_longer_holds_is_not_written(
        self, market: Market, change: LiteralString, moved: bool
    ) -> None:
        request = request_of(batch_size=4)
        plan_now(small(market), request)
        market.execute(change, market.symbols_identifier)
        if moved:
            market.execute("VACUUM FULL {}", market.market_identifier)
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {SkipReason.CLASS_CHANGED: 3}
        kept = {n: None if c == "CRYPTO" else c for n, c in right().items()}
        assert market.classes() == kept
        assert_accounted(market, operation)

    @pytest.mark.parametrize("nothing", ["NULL", "''", "' '"])
    def test_another_row_without_a_class_takes_none_away(
        self, market: Market, nothing: LiteralString
    ) -> None:
        request = request_of(batch_size=4)
        plan_now(small(market), request)
        statement: LiteralString = "INSERT INTO {} (ticker, asset_class) VALUES ('BTC', "
        market.execute(statement + nothing + ")", market.symbols_identifier)
        assert correct_now(market, request).records_corrected == 12
        assert market.classes() == right()

    def test_a_renamed_ticker_does_not_get_the_class_of_its_old_name(self, market: Market) -> None:
        """Guard: the sweep compares the symbol too, not only key and old value."""
        request = request_of(batch_size=4)
        plan_now(small(market), request)
        market.execute(
            "UPDATE {} SET symbol = 'EUR' WHERE symbol = 'BTC'", market.market_identifier
        )
        operation = correct_now(market, request)
        assert "CRYPTO" not in market.classes().values()
        assert_accounted(market, operation)


class TestTriggers:
    """RETURNING and the read-back are believed, never the row count."""

    def trigger(self, market: Market, moment: LiteralString, body: LiteralString) -> None:
        market.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            + body
            + " END $$"
        )
        market.execute(
            "CREATE TRIGGER meddle " + moment + " UPDATE ON {} FOR EACH ROW "
            "EXECUTE FUNCTION meddle()",
            market.market_identifier,
        )

    @pytest.mark.parametrize("kind", REWRITING)
    def test_one_that_rewrites_the_value_is_refused_before_anything_is_touched(
        self, market: Market, kind: str
    ) -> None:
        """Guard: a batch is rehearsed where triggers would fire."""
        self.trigger(small(market), *REWRITING[kind])
        versions = market.versions()
        with pytest.raises(PreflightRefusedError, match="trigger"):
            correct_now(market, request := request_of())
        assert market.versions() == versions
        assert operation_of(market, request.correction_id).status is Status.FAILED

    @pytest.mark.parametrize("kind", REWRITING)
    def test_one_that_is_made_in_mid_run_stops_the_correction(
        self, market: Market, kind: str
    ) -> None:
        """Guard: what RETURNING says of the value, and the read-back of what was written."""
        made: list[Phase] = []

        def make(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING and not made:
                made.append(operation.phase)
                self.trigger(market, *REWRITING[kind])

        request = request_of(batch_size=4)
        with pytest.raises(CorrectionFailedError, match="trigger"):
            correct(small(market).dsn, market.settings, request, observe=make)
        assert set(market.classes().values()) == {None}
        assert operation_of(market, request.correction_id).status is Status.FAILED

    @pytest.mark.parametrize("moved", [False, True])
    def test_one_that_vetoes_leaves_rows_with_their_reason(
        self, market: Market, moved: bool
    ) -> None:
        body: LiteralString = "IF new.id = 5 THEN RETURN NULL; END IF; RETURN new;"
        self.trigger(small(market), "BEFORE", body)
        request = request_of(batch_size=4)
        plan_now(market, request)
        if moved:
            market.execute("VACUUM FULL {}", market.market_identifier)
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {SkipReason.VETOED: 1}
        assert market.classes() == {**right(), 5: None}
        assert_accounted(market, operation)

    def test_every_batch_reads_committed_rows_whatever_the_role_defaults_to(
        self, market: Market
    ) -> None:
        market.execute("CREATE TABLE seen (isolation text, read_only text)")
        self.trigger(
            small(market),
            "BEFORE",
            "INSERT INTO public.seen VALUES (current_setting('transaction_isolation'), "
            "current_setting('transaction_read_only')); RETURN new;",
        )
        database = sql.Identifier(market.connection.info.dbname)
        market.execute(
            "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'", database
        )
        market.execute("ALTER DATABASE {} SET default_transaction_read_only = on", database)
        correct_now(market)
        assert set(market.rows("SELECT * FROM seen")) == {("read committed", "off")}


class TestPlan:
    """Only the physical address drives the batch's join."""

    @pytest.mark.every_postgres
    @pytest.mark.parametrize(("records", "batch_size"), SIZES)
    @pytest.mark.parametrize("analysed", [True, False])
    def test_rows_are_found_by_their_address(
        self, market: Market, records: int, batch_size: int, analysed: bool
    ) -> None:
        market.fill(records, missing_every=2)
        market.execute("CREATE INDEX ON {} (symbol)", market.market_identifier)
        if not analysed:
            market.execute("DELETE FROM pg_statistic WHERE starelid = 'market_data'::regclass")
        request = request_of(batch_size=batch_size, workers=1)
        plan_now(market, request)
        with (
            hold(market.dsn, market.settings, request) as holder,
            late_worker(market, holder, request) as (worker, work),
        ):
            batch = first_batch(work)
            statement = query(
                "batch",
                "correct_by_address",
                backup=work.plan.identifier,
                leaf=work.leaves[batch.leaf].identifier,
                set_updated_at=set_updated_at(work.tables),
            )
            values = {"first_seq": batch.first_seq, "last_seq": batch.last_seq}
            with transaction(worker.connection, market.settings) as cursor:
                set_local(cursor, market.settings, **BATCH_SETTINGS)
                cursor.execute(
                    sql.SQL("EXPLAIN (FORMAT JSON) ") + statement,
                    {**values, "stale_symbols": [], "read_back": False},
                )
                row = cursor.fetchone()
        assert row is not None
        nodes = list(plan_nodes(row[0][0]["Plan"]))
        of_market = [node for node in nodes if node.get("Relation Name") == "market_data"]
        on_market = {node["Node Type"] for node in of_market}
        assert on_market == {"Tid Scan", "ModifyTable"}, json.dumps(nodes)[:2000]
        assert not {n["Node Type"] for n in nodes} & {"Hash Join", "Merge Join"}

    @pytest.mark.every_postgres
    @pytest.mark.parametrize("partitioning", ["plain", "hash"])
    @pytest.mark.parametrize("key", ["PRIMARY KEY (id)", 'UNIQUE (symbol, "timestamp")'])
    def test_moved_rows_are_found_by_the_index_that_their_key_has(
        self, make_market: MakeMarket, key: LiteralString, partitioning: str
    ) -> None:
        """Guard for the explanation: rows are looked up by id only where an index knows ids."""
        market = make_market(key=key, partitioning=partitioning).fill(20_000, missing_every=2)
        request = request_of(workers=1)
        plan_now(market, request)
        with (
            hold(market.dsn, market.settings, request) as holder,
            late_worker(market, holder, request) as (worker, work),
            transaction(worker.connection, market.settings) as cursor,
        ):
            seqs = list(range(1, 101))
            for name, statement in (
                ("sweep", sweep_statement(cursor, work, work.tables.market, seqs)),
                ("explanation", look_for(cursor, work, work.tables.market, seqs)),
            ):
                cursor.execute(
                    sql.SQL("EXPLAIN (FORMAT JSON) ") + statement,
                    {"seqs": seqs, "stale_symbols": []},
                )
                row = cursor.fetchone()
                assert row is not None
                nodes = list(plan_nodes(row[0][0]["Plan"]))
                on_market = {
                    node["Node Type"]
                    for node in nodes
                    if str(node.get("Relation Name")).startswith("market_data")
                    and "backup" not in node["Relation Name"]
                }
                assert on_market
                assert "Seq Scan" not in on_market, (name, json.dumps(nodes)[:3000])


def plan_nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes, each without those below it."""
    yield {name: value for name, value in node.items() if name != "Plans"}
    for below in node.get("Plans", []):
        yield from plan_nodes(below)


def first_batch(work: Work) -> Batch:
    """The batch that any run would begin with."""
    segment = work.plan.segments[0]
    return Batch(segment.leaf, 1, min(segment.last_seq, work.tempo.pacing.batch_size))


@contextmanager
def late_worker(
    market: Market, holder: Holder, request: CorrectionRequest
) -> Iterator[tuple[Worker, Work]]:
    """A worker of a held operation, to be driven by hand."""
    state = PlanState.model_validate(market.value("SELECT plan FROM assetclass.operation"))
    tempo = Tempo(request.options, state.planned, lambda: holder.tuning)
    work = Work(holder, tables_of(market), state, request.options, tempo)
    worker = Worker(work, 1)
    try:
        yield worker, work
    finally:
        worker.close()
