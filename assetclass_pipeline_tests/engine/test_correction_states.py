"""How corrections end: nothing to do, dry runs, no backup, cancelled, out of time, and undone."""

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.analysis import any_correctable
from assetclass_pipeline.engine.control import ask_to_cancel
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.engine.operations import operation_status, resume_or_new_id
from assetclass_pipeline.errors import (
    CorrectionFailedError,
    OperationCancelledError,
    OperationNotFoundError,
    OperationStateError,
    OperationTimedOutError,
)
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    holders_from_now_on,
    operation_of,
    plan_now,
    proof_of,
    report_of,
    request_of,
    tables_of,
)
from assetclass_pipeline_tests.engine.test_control import asking, running
from assetclass_pipeline_tests.market import Bar, Market


class TestNothingToDo:
    def test_empty_tables_score_full_marks(self, market: Market) -> None:
        report = report_of(market)
        percents = [report.completeness, report.integrity, report.orphaned_percent]
        assert [*percents, report.quality_score] == [100, 100, 0, 100]
        assert report.failed_thresholds == []
        operation = correct_now(market)
        assert (operation.status, operation.records_planned) == (Status.SUCCEEDED, 0)
        assert market.backup_tables() == []

    def test_no_symbols(self, market: Market) -> None:
        market.add(Bar(n, "AAPL") for n in range(3))
        report = report_of(market)
        assert (report.orphaned, report.integrity, report.quality_score) == (3, 0, 100)
        assert correct_now(market).records_planned == 0

    def test_null_tickers_belong_to_nobody(self, market: Market) -> None:
        market.list_symbols((None, "STOCK"), ("AAPL", "STOCK"))
        market.add([Bar(1, None), Bar(2, "AAPL")])
        assert correct_now(market).records_corrected == 1
        assert market.classes() == {1: None, 2: "STOCK"}

    def test_a_second_run_changes_nothing_and_leaves_no_backup(self, market: Market) -> None:
        first = correct_now(market.fill(100))
        versions = market.versions()
        second = correct_now(market)
        assert (second.status, second.records_planned) == (Status.SUCCEEDED, 0)
        assert second.backup_table is None
        assert market.backup_tables() == [first.backup_table]
        assert market.versions() == versions

    def test_the_nightly_question(self, market: Market) -> None:
        market.fill(100)
        with connect(market.dsn, market.settings, purpose="test") as connection:
            assert any_correctable(connection, tables_of(market), market.settings)
            correct_now(market)
            assert not any_correctable(connection, tables_of(market), market.settings)


class TestThresholds:
    def test_exactly_95_percent_complete_passes_and_less_does_not(self, market: Market) -> None:
        market.list_symbols(("AAPL", "STOCK"))
        market.add(Bar(n, "AAPL", asset_class="STOCK" if n > 5 else None) for n in range(1, 101))
        assert report_of(market).thresholds["completeness"].passed
        market.add([Bar(101, "AAPL")])
        assert not report_of(market).thresholds["completeness"].passed

    def test_exactly_5_percent_orphaned_fails_and_less_does_not(self, market: Market) -> None:
        market.list_symbols(("AAPL", "STOCK"))
        market.add(Bar(n, "AAPL" if n > 5 else "?", asset_class="STOCK") for n in range(1, 101))
        assert report_of(market).failed_thresholds == ["orphanedPercent"]
        market.add([Bar(101, "AAPL", asset_class="STOCK")])
        assert report_of(market).failed_thresholds == []

    def test_exactly_10_percent_correctable_passes_and_more_does_not(self, market: Market) -> None:
        market.list_symbols(("AAPL", "STOCK"))
        market.add(Bar(n, "AAPL", asset_class="STOCK" if n > 10 else "") for n in range(1, 101))
        assert report_of(market).thresholds["correctablePercent"].passed
        market.add([Bar(101, "AAPL")])
        assert not report_of(market).thresholds["correctablePercent"].passed

    def test_exactly_90_percent_quality_and_integrity_pass(self, market: Market) -> None:
        market.list_symbols(("AAPL", "STOCK"))
        market.add(Bar(n, "AAPL", asset_class="STOCK" if n > 8 else "X") for n in range(90))
        market.add(Bar(n, "?", asset_class="X") for n in range(100, 110))
        report = report_of(market)
        assert (report.quality_score, report.integrity) == (90, 90)
        assert report.failed_thresholds == ["orphanedPercent"]


class TestDryRun:
    def test_it_tells_all_and_changes_nothing(self, market: Market) -> None:
        market.fill(100, missing_every=4)
        versions = market.versions()
        operation = correct_now(market, dry_run=True)
        assert (operation.status, operation.phase) == (Status.SUCCEEDED, Phase.DONE)
        assert (operation.records_planned, operation.records_corrected) == (25, 0)
        assert sum(change.records for change in operation.changes) == 25
        assert operation.quality_after is None
        assert market.versions() == versions
        assert not market.backup_tables()
        assert not market.plan_tables()

    def test_it_is_no_operation_that_could_be_undone(self, market: Market) -> None:
        market.fill(10)
        dry, real = correct_now(market, dry_run=True), correct_now(market)
        with connect(market.dsn, market.settings, purpose="test") as connection:
            recent = operation_status(connection, market.settings)
            everything = operation_status(connection, market.settings, include_all=True)
        assert [o.correction_id for o in recent.recent_operations] == [real.correction_id]
        assert [o.correction_id for o in everything.recent_operations] == [
            real.correction_id, dry.correction_id,
        ]  # fmt: skip
        assert not recent.is_running


def test_among_others_an_operation_shows_its_largest_changes_only(market: Market) -> None:
    alone = operation_of(market, correct_now(market.fill(125, symbols=30)).correction_id)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        (among,) = operation_status(connection, market.settings).recent_operations
    assert len(alone.changes) == 30
    assert among.changes == alone.changes[:20]
    assert [c.records for c in alone.changes] == sorted(
        (c.records for c in alone.changes), reverse=True
    )
    beside = {"changes", "events"}
    assert among.model_dump(exclude=beside) == alone.model_dump(exclude=beside)


_MANY_ENTRIES: Final[tuple[LiteralString, ...]] = (
    """
    INSERT INTO assetclass.operation_change (correction_id, symbol, records)
    SELECT %s, 'T' || n, n FROM generate_series(2, 1100) n
    """,
    """
    INSERT INTO assetclass.operation_event (correction_id, event, actor)
    SELECT %s, 'event ' || n, 'test' FROM generate_series(1, 60) n
    """,
    """
    INSERT INTO assetclass.operation_quarantined_row
        (correction_id, seq, id, corrected_asset_class, error_code, error_message)
    SELECT %s, n, 'refused ' || n, 'C', '', '' FROM generate_series(1, 110) n
    """,
    """
    INSERT INTO assetclass.operation_conflict (correction_id, seq, id, reason)
    SELECT %s, n, 'conflict ' || n, '' FROM generate_series(1, 110) n
    """,
)


def test_so_many_entries_beside_an_operation_are_shown(market: Market) -> None:
    """1,000 changes, 50 events, 100 refused rows, 100 conflicts; in a list 20 of each."""
    correction_id = correct_now(market.fill(1)).correction_id
    for statement in _MANY_ENTRIES:
        market.execute(statement, values=[correction_id])
    alone = operation_of(market, correction_id)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        (among,) = operation_status(connection, market.settings).recent_operations
    for operation, changes, events, rows in ((alone, 1000, 50, 100), (among, 20, 20, 20)):
        assert [change.records for change in operation.changes] == [
            *range(1100, 1100 - changes, -1)
        ]
        assert [event.event for event in operation.events] == [
            f"event {n}" for n in range(60, 60 - events, -1)
        ]
        first = range(1, rows + 1)
        assert [row.id for row in operation.quarantined] == [f"refused {n}" for n in first]
        assert [row.id for row in operation.conflicts] == [f"conflict {n}" for n in first]


def test_an_old_class_may_be_of_any_length(market: Market) -> None:
    """Longer than an entry of an index can be."""
    long = secrets.token_hex(5000)
    market.list_symbols(("AAPL", "STOCK")).add([Bar(1, "AAPL", asset_class=long)])
    operation = correct_now(
        market, overwrite_existing_values=True, only_process_null_asset_class=False
    )
    assert [(change.from_, change.to) for change in operation.changes] == [(long, "STOCK")]


def test_without_a_backup_the_summary_stays_and_the_plan_does_not(market: Market) -> None:
    operation = correct_now(market.fill(100, symbols=4), create_backup=False)
    assert operation.backup_table is None
    assert (market.backup_tables(), market.plan_tables()) == ([], [])
    summary = {(c.symbol, c.from_, c.to): c.records for c in operation.changes}
    assert summary == {(f"S{n}", None, f"CLASS_{n % 2}"): 25 for n in range(4)}


class TestStopping:
    def cancel_in_mid_run(self, market: Market, request: CorrectionRequest) -> None:
        """Ask for it once some batches are done."""
        with running(market, request) as correction, asking(market) as connection:
            ask_to_cancel(connection, market.settings, request.correction_id, by="test")
        assert isinstance(correction.ended[0], OperationCancelledError), correction.ended

    def slow_down(self, market: Market) -> None:
        """Each statement takes 50 ms."""
        market.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$"
        )
        market.execute(
            "CREATE TRIGGER wait AFTER UPDATE ON {} EXECUTE FUNCTION wait()",
            market.market_identifier,
        )

    def test_cancel_stops_between_batches_and_a_resume_goes_on(self, market: Market) -> None:
        self.slow_down(market.fill(1000))
        request = request_of(workers=1)
        self.cancel_in_mid_run(market, request)

        stopped = operation_of(market, request.correction_id)
        assert (stopped.status, stopped.phase) == (Status.CANCELLED, Phase.CORRECTING)
        assert 0 < stopped.records_corrected < 1000
        assert stopped.records_corrected % 10 == 0
        assert stopped.error is not None
        assert stopped.error.code == "OPERATION_CANCELLED"
        proof = proof_of(market, request.correction_id)
        assert (proof.unaccounted, proof.open) == (0, 1000 - stopped.records_corrected)

        market.execute("DROP TRIGGER wait ON {}", market.market_identifier)
        resumed = correct_now(market, request)
        assert (resumed.status, resumed.records_corrected) == (Status.SUCCEEDED, 1000)
        assert resumed.error is None
        assert market.backup_tables() == [resumed.backup_table]

    def test_timeout_stops_between_batches_and_a_resume_goes_on(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.slow_down(market.fill(1000))
        correction_id = str(uuid4())
        holders = holders_from_now_on(monkeypatch)
        began = time.monotonic()
        with running(market, request_of(correction_id, workers=1, timeout="00:10:00")) as it:
            assert 600 <= holders[0]._deadline - began < 600 + (time.monotonic() - began)
            # As if those ten minutes were over.
            holders[0]._deadline -= 600
        assert isinstance(it.ended[0], OperationTimedOutError), it.ended
        stopped = operation_of(market, correction_id)
        assert stopped.status is Status.TIMED_OUT
        assert 0 < stopped.records_corrected < 1000
        assert proof_of(market, correction_id).unaccounted == 0
        market.execute("DROP TRIGGER wait ON {}", market.market_identifier)
        assert correct_now(market, request_of(correction_id)).records_corrected == 1000

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (KeyboardInterrupt, Status.INTERRUPTED),
            (SystemExit, Status.INTERRUPTED),
            (GeneratorExit, Status.CANCELLED),
            (RuntimeError, Status.FAILED),
        ],
    )
    def test_whatever_ends_the_process_leaves_an_operation_to_resume(
        self, market: Market, error: type[BaseException], status: Status
    ) -> None:
        request = request_of()

        def interrupt(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING:
                raise error

        with pytest.raises(error):
            correct(
                market.fill(100).dsn,
                market.settings,
                request,
                observe=interrupt,
                cancelled_by=(GeneratorExit,),
            )
        assert operation_of(market, request.correction_id).status is status
        resumed = correct_now(market, replace(request, requested_by="anna"))
        assert resumed.records_corrected == 100
        (event,) = resumed.events
        assert (event.event, event.actor, event.details["from"]) == ("resumed", "anna", status)

    def test_only_an_active_operation_can_be_cancelled(self, market: Market) -> None:
        done = correct_now(market)
        with connect(market.dsn, market.settings, purpose="test") as connection:
            with pytest.raises(OperationStateError):
                ask_to_cancel(connection, market.settings, done.correction_id, by="test")
            for unknown in (str(uuid4()), "no uuid"):
                with pytest.raises(OperationNotFoundError):
                    ask_to_cancel(connection, market.settings, unknown, by="test")

    def test_a_table_that_stays_locked_is_a_typed_error(self, market: Market) -> None:
        impatient = replace(market, patience=1)
        request = request_of()
        with psycopg.connect(market.fill(10).dsn) as other:
            other.execute("LOCK TABLE market_data")
            with pytest.raises(CorrectionFailedError, match="lock timeout"):
                correct_now(impatient, request)
        assert operation_of(market, request.correction_id).status is Status.FAILED
        assert correct_now(market, request).records_corrected == 10

    def test_a_finished_operation_cannot_be_run_again(self, market: Market) -> None:
        request = request_of()
        correct_now(market.fill(10), request)
        with pytest.raises(OperationStateError):
            correct_now(market, request)


class TestPlanFirst:
    def test_a_parked_plan_blocks_nobody_and_is_picked_up(self, market: Market) -> None:
        request = request_of()
        planned = plan_now(market.fill(100), request)
        assert (planned.status, planned.phase) == (Status.PLANNED, Phase.PLANNED)
        assert planned.records_planned == 100
        assert set(market.classes().values()) == {None}
        assert correct_now(market, max_records_to_process=1).records_corrected == 1
        operation = correct_now(market, request)
        assert operation.backup_table == planned.backup_table
        assert operation.events == [], "it was not cut off"
        assert operation.records_corrected + operation.records_skipped == 100

    def test_a_plan_that_stays_running_is_picked_up_by_the_same_run(self, market: Market) -> None:
        request = request_of()
        assert plan_now(market.fill(100), request, park=False).status is Status.RUNNING
        assert correct_now(market, request).records_corrected == 100

    @pytest.mark.parametrize("begun_dry", [True, False])
    def test_a_dry_run_and_a_real_one_do_not_go_on_as_each_other(
        self, market: Market, begun_dry: bool
    ) -> None:
        request = request_of(dry_run=begun_dry)
        plan_now(market.fill(10), request)
        with pytest.raises(OperationStateError, match="start a new one"):
            correct_now(market, request_of(request.correction_id, dry_run=not begun_dry))
        assert set(market.classes().values()) == {None}

    def test_a_resume_goes_on_with_the_options_of_its_plan(self, market: Market) -> None:
        request = request_of(target_symbols=["S1"])
        plan_now(market.fill(100), request)
        assert correct_now(market, request_of(request.correction_id)).records_corrected == 5

    def test_which_operation_a_dagster_run_works_on(self, market: Market) -> None:
        root, again = str(uuid4()), str(uuid4())
        with connect(market.dsn, market.settings, purpose="test") as connection:

            def chosen(run: str) -> tuple[str, str | None]:
                return resume_or_new_id(connection, market.settings, root, run)

            assert chosen(root) == (root, None)
            plan_now(market.fill(10), request_of(root))
            assert chosen(again) == (root, None)
            correct_now(market, request_of(root))
            assert chosen(again) == (again, root)


def test_the_estimate_is_judged_by_the_work_of_all_processes(market: Market) -> None:
    """Dagster plans in one process and corrects in another; in between, nobody works."""
    request = request_of()
    plan_now(market.fill(100), request)
    market.execute(
        'UPDATE assetclass.operation SET estimate = \'{{"low": 1, "high": 50}}\', '
        "started_at = clock_timestamp() - interval '1030 s'"
    )
    market.execute(
        "UPDATE assetclass.operation_heartbeat SET beat_at = clock_timestamp() - interval '900 s'"
    )
    market.execute(
        "INSERT INTO assetclass.operation_wait SELECT correction_id, 'window', 30 "
        "FROM assetclass.operation"
    )
    ended = correct_now(market, request)
    # 100 s of work before, and a little now.
    assert ended.estimate_error_percent is not None
    assert 100 <= ended.estimate_error_percent < 180
    assert 900 <= ended.waits["next_process"] < 940


def guide_update(market: Market, backup: str) -> None:
    """The guide's manual recovery, its table name replaced as it says."""
    market.connection.execute(
        """
        UPDATE market_data
        SET asset_class = backup.asset_class,
            updated_at = CURRENT_TIMESTAMP
        FROM {} backup
        WHERE market_data.id = backup.id;
        """.replace("{}", sql.Identifier(backup).as_string())
    )


def test_the_guides_manual_recovery_restores_every_value(market: Market) -> None:
    market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
    values = [None, "", "WRONG", "STOCK", " ", "caf\u00e9"]
    market.add(Bar(n, ("AAPL", "BTC", "?")[n % 3], asset_class=values[n % 6]) for n in range(60))
    stored = (
        'SELECT id, symbol, "timestamp", close, asset_class, encode(convert_to(asset_class, '
        "'UTF8'), 'hex') FROM market_data ORDER BY id"
    )
    before = market.rows(stored)
    operation = correct_now(market, overwrite_existing_values=True)
    assert operation.records_corrected > 0
    assert market.rows(stored) != before

    listed = market.rows(
        """
        SELECT tablename FROM pg_tables
        WHERE tablename LIKE 'market_data_backup_%'
        ORDER BY tablename DESC LIMIT 1;
        """
    )
    assert listed == [(operation.backup_table,)]
    guide_update(market, listed[0][0])

    assert market.rows(stored) == before
    assert report_of(market).correctable + report_of(market).mismatched == (
        operation.records_corrected
    )


def test_progress_is_told_while_it_runs(market: Market) -> None:
    seen: list[Operation] = []
    observe: Callable[[Operation], None] = seen.append
    correct(market.fill(200).dsn, market.settings, request_of(), observe=observe)
    assert [operation.phase for operation in seen][:3] == [
        Phase.ANALYSING, Phase.PLANNING, Phase.CORRECTING,
    ]  # fmt: skip
    assert seen[-1].phase is Phase.DONE
    assert [o.progress_percent for o in seen] == sorted(o.progress_percent for o in seen)
    assert seen[-1].progress_percent == 100
