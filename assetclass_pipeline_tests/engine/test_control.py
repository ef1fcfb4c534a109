"""What people ask of a running operation: pause, go on, stop, faster, slower; windows, locks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.claiming import CorrectionRequest
from assetclass_pipeline.engine.control import (
    ask_to_cancel,
    ask_to_pause,
    ask_to_resume,
    named_or_active,
    tune,
)
from assetclass_pipeline.engine.operations import left_by_last_window
from assetclass_pipeline.errors import (
    AssetClassError,
    InvalidOptionsError,
    OperationCancelledError,
    OperationNotFoundError,
    OperationStateError,
    OperationTimedOutError,
)
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline.model.options import Pace
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    operation_of,
    plan_now,
    proof_of,
    request_of,
)
from assetclass_pipeline_tests.market import Market

RECORDS = 3000
WAIT = 30.0


@dataclass
class Running:
    """A correction in a thread of its own."""

    market: Market
    request: CorrectionRequest
    ended: list[Operation | AssetClassError] = field(default_factory=list)

    def run(self) -> None:
        try:
            self.ended.append(correct_now(self.market, self.request))
        except AssetClassError as error:
            self.ended.append(error)

    @property
    def state(self) -> Operation:
        return operation_of(self.market, self.request.correction_id)

    def wait_for(self, happened: Callable[[Operation], bool]) -> Operation:
        deadline = time.monotonic() + WAIT
        while True:
            with connect(self.market.dsn, self.market.settings, purpose="test") as connection:
                known = connection.execute("SELECT FROM assetclass.operation").fetchone()
            if known is not None and happened(state := self.state):
                return state
            assert time.monotonic() < deadline, self.ended or self.state
            time.sleep(0.02)


@contextmanager
def running(market: Market, request: CorrectionRequest) -> Iterator[Running]:
    """A correction that has written its first batches; it is joined at the end."""
    correction = Running(market, request)
    thread = threading.Thread(target=correction.run)
    thread.start()
    try:
        correction.wait_for(lambda operation: operation.records_corrected > 0)
        yield correction
    finally:
        thread.join(WAIT)
        assert not thread.is_alive()


def slow(market: Market, *, seconds: float = 0.02) -> Market:
    """Rows whose batches take at least so long, so that there is time to ask something."""
    market.fill(RECORDS)
    market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION rest()",
        market.market_identifier,
    )
    return market


def asking(market: Market) -> psycopg.Connection[tuple[object, ...]]:
    return connect(market.dsn, market.settings, purpose="test")


def event_names(operation: Operation) -> list[str]:
    return [event.event for event in reversed(operation.events)]


class TestPause:
    def test_it_stays_between_two_batches_and_goes_on_where_it_stayed(self, market: Market) -> None:
        with running(slow(market), request_of(batch_size=10)) as correction:
            named = correction.request.correction_id
            with asking(market) as connection:
                ask_to_pause(connection, market.settings, named, by="anna")
                paused = correction.wait_for(lambda o: o.status is Status.PAUSED)
                assert paused.throttle == ["Paused by anna: `assetclass resume` goes on."]
                written = market.value("SELECT sum(records_corrected) FROM {}", _LEDGER)
                assert 0 < written == paused.records_corrected < RECORDS
                with psycopg.connect(market.dsn) as other:
                    # Nobody else's row is locked, and nothing is written while it stays.
                    other.execute("SET lock_timeout = '1s'")
                    other.execute("UPDATE market_data SET close = 3")
                    other.rollback()
                time.sleep(1.5)
                assert correction.state.records_corrected == written
                with pytest.raises(OperationStateError, match="paused already"):
                    ask_to_pause(connection, market.settings, named, by="anna")
                ask_to_resume(connection, market.settings, named, by="ben")
        ended = correction.ended[0]
        assert isinstance(ended, Operation)
        assert (ended.status, ended.records_corrected) == (Status.SUCCEEDED, RECORDS)
        assert ended.waits["pause"] > 1
        asked = [(event.event, event.actor) for event in reversed(ended.events)]
        assert asked == [("pause_requested", "anna"), ("resume_requested", "ben")]

    def test_a_paused_one_can_be_cancelled_and_run_again(self, market: Market) -> None:
        with running(slow(market), request_of(batch_size=10)) as correction:
            named = correction.request.correction_id
            with asking(market) as connection:
                ask_to_pause(connection, market.settings, named, by="anna")
                correction.wait_for(lambda o: o.status is Status.PAUSED)
                ask_to_cancel(connection, market.settings, named, by="ben")
        assert isinstance(correction.ended[0], OperationCancelledError)
        assert correction.state.status is Status.CANCELLED
        assert correct_now(market, correction.request).records_corrected == RECORDS

    def test_a_paused_one_still_keeps_others_out_and_its_clock_stands(self, market: Market) -> None:
        request = request_of(batch_size=10, timeout="00:01:00")
        with running(slow(market), request) as correction, asking(market) as connection:
            ask_to_pause(connection, market.settings, request.correction_id, by="anna")
            correction.wait_for(lambda o: o.status is Status.PAUSED)
            assert named_or_active(connection, market.settings, None) == request.correction_id
            # A script whose variable is empty means no operation, and not the one that runs.
            with pytest.raises(OperationNotFoundError):
                ask_to_cancel(
                    connection,
                    market.settings,
                    named_or_active(connection, market.settings, ""),
                    by="eve",
                )
            with pytest.raises(AssetClassError) as refused:
                correct_now(market)
            assert refused.value.exit_status == 3
            ask_to_resume(connection, market.settings, request.correction_id, by="anna")
        assert correction.state.status is Status.SUCCEEDED

    def test_pausing_and_resuming_ask_for_the_right_state(self, market: Market) -> None:
        done = correct_now(market.fill(10))
        with asking(market) as connection:
            for ask in (ask_to_pause, ask_to_resume, ask_to_cancel):
                with pytest.raises(OperationStateError, match="succeeded"):
                    ask(connection, market.settings, done.correction_id, by="anna")
            with pytest.raises(OperationNotFoundError, match="No operation is active"):
                named_or_active(connection, market.settings, None)

    def test_one_that_is_not_paused_cannot_be_resumed(self, market: Market) -> None:
        with (
            running(slow(market), request_of(batch_size=10)) as correction,
            asking(market) as connection,
            pytest.raises(OperationStateError, match="not paused"),
        ):
            ask_to_resume(connection, market.settings, correction.request.correction_id, by="anna")


class TestTuning:
    def test_the_next_batches_go_by_it_and_it_is_recorded(self, market: Market) -> None:
        request = request_of(batch_size=10, workers=1)
        with running(slow(market, seconds=0.05), request) as correction:
            named = correction.request.correction_id
            with asking(market) as connection:
                changes = Tuning(batch_size=20, workers=3, throttle={"lag_seconds": 5})
                tune(connection, market.settings, named, changes, by="anna")
                changes = Tuning(pace=Pace.FAST, throttle={"lagSeconds": 7})
                tune(connection, market.settings, named, changes, by="ben")
                correction.wait_for(lambda o: bool(o.pacing and o.pacing.workers > 1))
        ended = correction.state
        assert (ended.status, ended.records_corrected) == (Status.SUCCEEDED, RECORDS)
        tuned = {event.actor: event.details for event in ended.events}
        assert tuned == {
            "anna": {"batchSize": 20, "workers": 3, "throttle": {"lagSeconds": 5}},
            "ben": {"pace": "fast", "throttle": {"lagSeconds": 7}},
        }
        # One limit under two names would hold two values.
        kept = market.value("SELECT tuning -> 'throttle' FROM assetclass.operation_control")
        assert kept == {"lagSeconds": 7}
        largest = market.value("SELECT max(last_seq - first_seq + 1) FROM {}", _LEDGER)
        assert 10 < largest <= 20
        assert market.value("SELECT count(DISTINCT worker) FROM {}", _LEDGER) > 1

    def test_limits_that_cannot_be_used_are_named(self, market: Market) -> None:
        with (
            running(slow(market), request_of(batch_size=10)) as correction,
            asking(market) as connection,
        ):
            named = correction.request.correction_id
            for throttle, says in (
                ({"lag_seconds": -1}, "lagSeconds"),
                ({"no_such_limit": 1}, "noSuchLimit"),
                ({"condition": "SELECT true"}, "ASSETCLASS_THROTTLE__CONDITION"),
            ):
                changes = Tuning(throttle=dict(throttle))
                with pytest.raises(InvalidOptionsError, match=says):
                    tune(connection, market.settings, named, changes, by="anna")
            with pytest.raises(InvalidOptionsError, match="what to change"):
                tune(connection, market.settings, named, Tuning(), by="anna")

    def test_a_signal_can_be_switched_off_while_it_holds_the_correction(
        self, make_market: MakeMarket
    ) -> None:
        """A window that is over holds every batch; it is the operator's to say so, or to go on."""
        market = make_market(
            throttle={"window": _an_hour_ago(), "starved_after_seconds": 0.5}
        ).fill(100)
        request = request_of()
        correction = Running(market, request)
        thread = threading.Thread(target=correction.run)
        thread.start()
        held = correction.wait_for(lambda o: bool(o.throttle and o.waits.get("window")))
        assert "window" in held.throttle[0]
        assert held.records_corrected == 0
        correction.wait_for(lambda o: "starved" in event_names(o))
        with asking(market) as connection:
            changes = Tuning(throttle={"window": None})
            tune(connection, market.settings, request.correction_id, changes, by="anna")
        thread.join(WAIT)
        assert correction.state.records_corrected == 100
        assert event_names(correction.state).count("starved") == 1


def _an_hour_ago() -> str:
    now = datetime.now(UTC)
    return f"{now - timedelta(hours=2):%H:%M}-{now - timedelta(hours=1):%H:%M}"


class TestWindow:
    def test_it_stops_when_its_window_closes_and_the_next_one_goes_on(self, market: Market) -> None:
        """How soon it writes depends on the machine, so its window closes when it has written."""
        closes = datetime.now(UTC) + timedelta(hours=1)
        request = replace(request_of(batch_size=10, workers=1), stop_at=closes)
        with running(slow(market), request) as correction:
            assert market.rows("SELECT stop_at FROM assetclass.operation") == [(closes,)]
            market.execute("UPDATE assetclass.operation SET stop_at = clock_timestamp()")
        assert isinstance(correction.ended[0], OperationTimedOutError)
        stopped = correction.state
        assert stopped.status is Status.TIMED_OUT
        assert 0 < stopped.records_corrected < RECORDS
        with asking(market) as connection:
            left = left_by_last_window(connection, market.settings)
            assert left is not None
            assert left.correction_id == request.correction_id
            market.execute("DROP TRIGGER rest ON {}", market.market_identifier)
            ended = correct_now(market, replace(request, stop_at=None))
            assert ended.records_corrected == RECORDS
            assert left_by_last_window(connection, market.settings) is None
        proof = proof_of(market, request.correction_id)
        assert (proof.unaccounted, proof.open) == (0, 0)


class TestPatience:
    def test_a_table_that_is_locked_for_a_while_is_waited_for(self, market: Market) -> None:
        request = request_of(batch_size=4, retry={"tries": 1})
        plan_now(market.fill(20), request)
        correction = Running(market, request)
        thread = threading.Thread(target=correction.run)
        with psycopg.connect(market.dsn) as other:
            other.execute("LOCK TABLE market_data")
            thread.start()
            waiting = correction.wait_for(lambda o: bool(o.throttle))
            assert "lock" in waiting.throttle[0]
            time.sleep(2)
            other.rollback()
        thread.join(WAIT)
        ended = correction.state
        assert (ended.status, ended.records_corrected) == (Status.SUCCEEDED, 20)
        assert ended.waits["lock"] > 0


class TestPacing:
    def test_without_a_batch_size_it_begins_by_the_guides_table(self, market: Market) -> None:
        done = correct_now(market.fill(3000), batch_size=None)
        operation = operation_of(market, done.correction_id)
        assert operation.phase is Phase.DONE
        assert operation.pacing is not None
        assert operation.pacing.batch_size <= 1000
        assert market.value(_FIRST_BATCH, _LEDGER) == 500

    def test_a_batch_size_is_never_exceeded(self, market: Market) -> None:
        correct_now(market.fill(3000), batch_size=300)
        assert market.value("SELECT max(last_seq - first_seq + 1) FROM {}", _LEDGER) == 300

    def test_a_resume_goes_on_at_the_pace_that_was_found(self, market: Market) -> None:
        request = request_of(batch_size=None, workers=4)
        plan_now(market.fill(3000), request)
        market.execute(
            "UPDATE assetclass.operation_heartbeat SET pacing = "
            '\'{{"batchSize": 123, "workers": 1, "secondsPerRow": null}}\''
        )
        correct_now(market, request)
        assert market.value(_FIRST_BATCH, _LEDGER) == 123


_FIRST_BATCH: LiteralString = "SELECT last_seq - first_seq + 1 FROM {} WHERE first_seq = 1"
_LEDGER = psycopg.sql.Identifier("assetclass", "operation_batch")
