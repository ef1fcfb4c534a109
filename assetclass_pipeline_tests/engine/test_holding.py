"""Threads of one operation against each other: what is asked too late, twice, or of the dead."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine import holding as holding_module
from assetclass_pipeline.engine.claiming import CorrectionRequest, claim, refuse_while_active
from assetclass_pipeline.engine.control import ask_to_cancel, ask_to_pause, ask_to_resume
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.courtesy import Courtesy
from assetclass_pipeline.engine.holding import Holder, hold
from assetclass_pipeline.engine.journal import Journal
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.plan import load_plan
from assetclass_pipeline.errors import (
    AssetClassError,
    CorrectionFailedError,
    ErrorRateError,
    OperationCancelledError,
    OperationFencedError,
    OperationInProgressError,
)
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline.settings import SessionLimits
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    holders_from_now_on,
    keep_alive,
    operation_of,
    plan_now,
    request_of,
)
from assetclass_pipeline_tests.engine.test_control import (
    RECORDS,
    WAIT,
    Running,
    asking,
    running,
    slow,
)
from assetclass_pipeline_tests.engine.test_fences import until
from assetclass_pipeline_tests.market import Market


def wish(market: Market, wanted: str) -> None:
    """What a person asks who looked just before the operation ended."""
    market.execute(
        "INSERT INTO assetclass.operation_control (correction_id, wanted, wanted_by) "
        "SELECT correction_id, %s, 'anna' FROM assetclass.operation "
        "ON CONFLICT (correction_id) DO UPDATE SET wanted = excluded.wanted",
        values=(wanted,),
    )


@pytest.mark.parametrize("wanted", ["pause", "cancel"])
def test_what_is_asked_while_it_ends_comes_too_late(market: Market, wanted: str) -> None:
    """Nobody could resume it any more: a pause would hold its process for ever."""
    market.fill(20)
    request = request_of()
    ended: list[Operation | AssetClassError] = []

    def ask_late(operation: Operation) -> None:
        if operation.phase is Phase.DONE:
            wish(market, wanted)
            # Two looks of the heartbeat.
            time.sleep(1.2)

    def run() -> None:
        try:
            ended.append(correct(market.dsn, market.settings, request, observe=ask_late))
        except AssetClassError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive(), "it waits for ever"
    assert isinstance(ended[0], Operation), ended
    assert ended[0].status is Status.SUCCEEDED


def test_a_cancel_that_comes_between_two_processes_of_a_paused_run_holds(market: Market) -> None:
    # Far more batches than its heart needs to hear of it.
    request = request_of(batch_size=1, workers=1)
    plan_now(market.fill(20), request, park=False)
    keep_alive(market)
    with asking(market) as connection:
        ask_to_pause(connection, market.settings, request.correction_id, by="anna")
        # As the first process wrote it with its last look at what is asked.
        market.execute("UPDATE assetclass.operation SET status = 'paused'")
        ask_to_cancel(connection, market.settings, request.correction_id, by="anna")
    slow_down_the_batches(market)
    with pytest.raises(OperationCancelledError):
        correct_now(market, request)


def test_a_pause_whose_answer_is_lost_can_be_resumed(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: what the row says counts; batches of a paused operation could not commit."""
    request = request_of(batch_size=10)
    lost = list[Status]()

    @contextmanager
    def lossy(*arguments: Any, **options: Any) -> Iterator[psycopg.Cursor[Any]]:
        with transaction(*arguments, **options) as cursor:
            yield cursor
        if threading.current_thread().name == "heartbeat" and not lost:
            operation = operation_of(market, request.correction_id)
            if operation.status is Status.PAUSED:
                lost.append(operation.status)
                # Before the heart can hear anything again.
                with asking(market) as other:
                    ask_to_resume(other, market.settings, request.correction_id, by="ben")
                raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(holding_module, "transaction", lossy)
    with running(slow(market), request) as correction, asking(market) as other:
        ask_to_pause(other, market.settings, request.correction_id, by="anna")
    assert lost == [Status.PAUSED]
    ended = correction.ended[0]
    assert isinstance(ended, Operation), ended
    assert (ended.status, ended.records_corrected) == (Status.SUCCEEDED, RECORDS)


def slow_down_the_batches(market: Market) -> None:
    market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.7); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION rest()",
        market.market_identifier,
    )


def test_tuning_that_this_version_does_not_know_leaves_the_heart_beating(market: Market) -> None:
    beats = "SELECT beat_at FROM assetclass.operation_heartbeat"
    with (
        running(slow(market, seconds=0.1), request_of(batch_size=10)) as correction,
        asking(market) as other,
    ):
        market.execute(
            "INSERT INTO assetclass.operation_control (correction_id, wanted, wanted_by, tuning) "
            "SELECT correction_id, 'run', 'anna', '{{\"frobnicate\": 1}}' "
            "FROM assetclass.operation ON CONFLICT (correction_id) "
            "DO UPDATE SET tuning = excluded.tuning"
        )
        for _ in range(2):
            beat = market.value(beats)
            until(lambda: market.value(beats) > beat)  # noqa: B023 - used at once
        ask_to_cancel(other, market.settings, correction.request.correction_id, by="anna")
    assert isinstance(correction.ended[0], OperationCancelledError)


def breaks(*_: object, **__: object) -> None:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize(
    ("owner", "step", "what"),
    [(Holder, "_obey", "The heartbeat"), (Courtesy, "_limits", "The throttle")],
)
def test_it_does_not_go_on_without_heartbeat_or_throttle(
    market: Market, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, what: str
) -> None:
    """No error is known that breaks them; one would leave an operation that obeys nobody."""
    with running(slow(market), request_of(batch_size=10)) as correction:
        monkeypatch.setattr(owner, step, breaks)
    assert isinstance(correction.ended[0], CorrectionFailedError)
    assert str(correction.ended[0]).startswith(what)
    assert correction.state.records_corrected < RECORDS


def test_what_a_failed_one_changed_is_summed_up_however_long_that_takes(
    make_market: MakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat ends the statement that runs when it hears of a stop; not this one.

    Guard: neither the server's limit for a statement nor ours for a step is for it.
    """
    monkeypatch.setattr(Holder, "longest_statement", 1.0)
    market = make_market(session=SessionLimits(statement_timeout=1)).fill(2000)
    market.execute(
        "ALTER TABLE {} ADD CHECK (id <= 1000 OR asset_class IS NULL)", market.market_identifier
    )
    market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER INSERT ON assetclass.operation_change "
        "FOR EACH STATEMENT EXECUTE FUNCTION rest()"
    )
    request = request_of(batch_size=100, workers=1)
    with pytest.raises(ErrorRateError):
        correct_now(market, request)
    failed = operation_of(market, request.correction_id)
    assert 0 < failed.records_corrected == sum(change.records for change in failed.changes)


def test_patience_is_for_locks_and_does_not_run_out_in_a_pause(make_market: MakeMarket) -> None:
    market = make_market(patience=4)
    request = request_of(batch_size=4, retry={"tries": 1})
    plan_now(market.fill(20), request)
    correction = Running(market, request)
    thread = threading.Thread(target=correction.run)
    with psycopg.connect(market.dsn) as other, asking(market) as connection:
        other.execute("LOCK TABLE market_data")
        thread.start()
        correction.wait_for(lambda o: "lock" in " ".join(o.throttle))
        ask_to_pause(connection, market.settings, request.correction_id, by="anna")
        correction.wait_for(lambda o: o.status is Status.PAUSED)
        time.sleep(4.5)
        ask_to_resume(connection, market.settings, request.correction_id, by="anna")
        correction.wait_for(lambda o: "of another session" in " ".join(o.throttle))
        other.rollback()
    thread.join(WAIT)
    assert isinstance(correction.ended[0], Operation), correction.ended
    assert correction.ended[0].records_corrected == 20


def test_what_several_threads_wait_for_at_once_counts_once() -> None:
    journal = Journal(as_uuid("00000000-0000-0000-0000-000000000001"), "test")

    def wait() -> None:
        with journal.waiting("server"):
            time.sleep(0.5)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.5 <= journal.seconds_unwritten <= time.monotonic() - began


def test_batches_that_the_throttle_holds_are_not_let_in_by_an_end(
    make_market: MakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the throttle has a reason: what waits at the gate goes home."""
    market = make_market(throttle={"condition": "SELECT false"}).fill(100)
    market.execute("CREATE TABLE go (go boolean)")
    market.execute("INSERT INTO go VALUES (true)")
    limits = market.settings.throttle.model_copy(update={"condition": "SELECT go FROM go"})
    settings = market.settings.model_copy(update={"throttle": limits})
    holders = holders_from_now_on(monkeypatch)
    written: list[int] = []

    def interrupt(operation: Operation) -> None:
        if operation.records_corrected:
            market.execute("UPDATE go SET go = false")
            gate = holders[0].gate
            until(lambda: bool(gate.reasons) and gate.is_empty)
            written.append(market.value("SELECT count(*) FROM assetclass.operation_batch"))
            raise KeyboardInterrupt

    request = request_of(batch_size=1, workers=2)
    slow_down_the_batches(market)
    with pytest.raises(KeyboardInterrupt):
        correct(market.dsn, settings, request, observe=interrupt)
    stopped = operation_of(market, request.correction_id)
    assert stopped.status is Status.INTERRUPTED
    assert written == [market.value("SELECT count(*) FROM assetclass.operation_batch")]


def test_one_that_ended_well_is_not_out_of_time_afterwards(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline falls between its end and the last look of its heart."""
    holders = holders_from_now_on(monkeypatch)

    def let_time_pass(operation: Operation) -> None:
        if operation.phase is Phase.DONE:
            holders[0]._deadline = 0.0
            # Two looks of the heartbeat.
            time.sleep(1.2)

    operation = correct(market.fill(20).dsn, market.settings, request_of(), observe=let_time_pass)
    assert operation.status is Status.SUCCEEDED


def test_an_index_on_the_plan_may_take_longer_than_a_batch(
    make_market: MakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: what takes addresses afresh has the time of a scan until its connection is cut."""
    monkeypatch.setattr(holding_module, "_ANSWER_SECONDS", 0.5)
    market = make_market(session=SessionLimits(statement_timeout=1))
    request = request_of(batch_size=4, retry={"tries": 1})
    plan_now(market.fill(20), request)
    market.execute(
        "CREATE FUNCTION rest() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(3); END $$"
    )
    market.execute(
        "CREATE EVENT TRIGGER rest ON ddl_command_end WHEN TAG IN ('CREATE INDEX') "
        "EXECUTE FUNCTION rest()"
    )
    market.execute("VACUUM FULL {}", market.market_identifier)
    assert correct_now(market, request).records_corrected == 20
    events = operation_of(market, request.correction_id).events
    assert [event.event for event in events] == ["addresses_taken_afresh"]


def test_a_short_step_that_stalls_is_cut_soon(
    make_market: MakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the operation's row is written within the time of a statement, not of a scan."""
    # The server waits for the lock much longer than we do for its answer.
    monkeypatch.setattr(Holder, "longest_statement", 1.0)
    market = make_market(session=SessionLimits(lock_timeout=WAIT))
    with hold(market.dsn, market.settings, request_of(retry={"tries": 20})) as holder:
        with psycopg.connect(market.dsn) as other:
            other.execute("SELECT FROM assetclass.operation FOR SHARE")
            step = threading.Thread(
                target=holder.attempt, args=(holder.enter_phase, Phase.ANALYSING)
            )
            step.start()
            deadline = time.monotonic() + WAIT / 2
            while not market.value("SELECT count(*) FROM assetclass.operation_event"):
                assert time.monotonic() < deadline, "nothing was cut"
                time.sleep(0.1)
        step.join()
    assert market.value("SELECT event FROM assetclass.operation_event") == "connection_stalled"
    assert market.value("SELECT phase FROM assetclass.operation") == Phase.ANALYSING


def fail_after_a_while(market: Market, meanwhile: Callable[[], None]) -> CorrectionRequest:
    """A correction that breaks on its own account when some rows are written."""
    request = request_of(batch_size=4)

    def break_down(operation: Operation) -> None:
        if operation.phase is Phase.VERIFYING:
            meanwhile()
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        correct(market.fill(20).dsn, market.settings, request, observe=break_down)
    return request


def test_who_was_taken_over_does_not_sum_up(market: Market) -> None:
    """Guard: the epoch; the new owner's summary would be replaced by what the old one knows."""

    def take_over() -> None:
        market.execute("UPDATE assetclass.operation SET epoch = epoch + 1")

    request = fail_after_a_while(market, take_over)
    assert operation_of(market, request.correction_id).changes == []


def test_who_was_taken_over_does_not_drop_the_plan_of_the_new_owner(market: Market) -> None:
    """Guard: as above; it looks empty to somebody who knows of more rows."""
    request = request_of()
    planned = plan_now(market.fill(20), request)
    backup = sql.Identifier(market.schema, str(planned.backup_table))
    market.execute("DELETE FROM {}", backup)
    with hold(market.dsn, market.settings, request) as holder:
        market.execute("UPDATE assetclass.operation SET epoch = epoch + 1")
        with pytest.raises(OperationFencedError):
            load_plan(holder)
        market.execute("UPDATE assetclass.operation SET epoch = epoch - 1")
    assert market.backup_tables() == [planned.backup_table]


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED])
def test_what_one_changed_is_summed_up_even_if_it_is_paused(market: Market, status: Status) -> None:
    def set_status() -> None:
        market.execute("UPDATE assetclass.operation SET status = %s", values=(status.value,))

    request = fail_after_a_while(market, set_status)
    changes = operation_of(market, request.correction_id).changes
    assert sum(change.records for change in changes) == 20


def test_a_heart_that_cannot_beat_as_fast_as_is_asked_is_not_given_up(market: Market) -> None:
    """Guard: no heart beats faster than its holder looks, whatever the settings say."""
    hasty = market.settings.model_copy(
        update={"heartbeat_interval": 0.02, "heartbeat_stale_after": 0.06}
    )
    request = request_of()
    with connect(market.dsn, hasty, purpose="test") as connection:
        claim(connection, hasty, request)
        for _ in range(10):
            # On a machine that is very busy it may be a second before anybody looks.
            market.execute("UPDATE assetclass.operation SET status = 'running'")
            market.execute(
                "UPDATE assetclass.operation_heartbeat "
                "SET beat_at = clock_timestamp() - interval '0.3 s'"
            )
            try:
                refuse_while_active(connection, hasty)
            except OperationInProgressError:
                return
    pytest.fail("its holder was given up after 0.3 s")
