"""Threads of one operation against each other: what is asked too late, twice, or of the dead."""

import threading
import time

import psycopg
import pytest

from assetclass_pipeline.engine.control import ask_to_cancel, ask_to_pause, ask_to_resume
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.courtesy import Courtesy
from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.journal import Journal
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.errors import (
    AssetClassError,
    CorrectionFailedError,
    ErrorRateError,
    OperationCancelledError,
)
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
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
    request = request_of()
    plan_now(market.fill(20), request, park=False)
    with asking(market) as connection:
        ask_to_pause(connection, market.settings, request.correction_id, by="anna")
        # As the first process wrote it with its last look at what is asked.
        market.execute("UPDATE assetclass.operation SET status = 'paused'")
        ask_to_cancel(connection, market.settings, request.correction_id, by="anna")
    slow_down_the_batches(market)
    with pytest.raises(OperationCancelledError):
        correct_now(market, request)


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
    with running(slow(market), request_of(batch_size=10)) as correction, asking(market) as other:
        market.execute(
            "INSERT INTO assetclass.operation_control (correction_id, wanted, wanted_by, tuning) "
            "SELECT correction_id, 'run', 'anna', '{{\"frobnicate\": 1}}' "
            "FROM assetclass.operation ON CONFLICT (correction_id) "
            "DO UPDATE SET tuning = excluded.tuning"
        )
        time.sleep(1.2)
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


def test_what_a_failed_one_changed_is_summed_up_however_long_that_takes(market: Market) -> None:
    """The heartbeat ends the statement that runs when it hears of a stop; not this one."""
    market.fill(2000)
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
    assert 0.5 <= journal.seconds_waited <= time.monotonic() - began


def test_batches_that_the_throttle_holds_are_not_let_in_by_an_end(make_market: MakeMarket) -> None:
    """Ctrl-C while the throttle has a reason: what waits at the gate goes home."""
    market = make_market(throttle={"condition": "SELECT false"}).fill(100)
    market.execute("CREATE TABLE go (go boolean)")
    market.execute("INSERT INTO go VALUES (true)")
    limits = market.settings.throttle.model_copy(update={"condition": "SELECT go FROM go"})
    settings = market.settings.model_copy(update={"throttle": limits})
    reports = 0

    def interrupt(operation: Operation) -> None:
        nonlocal reports
        if operation.phase is Phase.CORRECTING:
            market.execute("UPDATE go SET go = false")
            reports += 1
            if reports > 1:
                raise KeyboardInterrupt

    request = request_of(batch_size=1, workers=2)
    slow_down_the_batches(market)
    with pytest.raises(KeyboardInterrupt):
        correct(market.dsn, settings, request, observe=interrupt)
    stopped = operation_of(market, request.correction_id)
    assert stopped.status is Status.INTERRUPTED
    last, ended = market.rows(
        "SELECT max(b.committed_at), max(o.finished_at) FROM assetclass.operation_batch b "
        "JOIN assetclass.operation o USING (correction_id)"
    )[0]
    # The throttle closed within a poll of the first report; the second one came 2 s later.
    assert last is None or (ended - last).total_seconds() > 0.7
