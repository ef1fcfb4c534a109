"""Asking for an operation: one at a time, refused early, never twice for the same key."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine import requests
from assetclass_pipeline.engine.claiming import CorrectionRequest
from assetclass_pipeline.engine.control import ask_to_cancel, ask_to_pause
from assetclass_pipeline.engine.operations import active_id
from assetclass_pipeline.engine.requests import (
    IdempotencyKey,
    Requested,
    WaitingRequest,
    end_request,
    note_run,
    request_correction,
    request_rollback,
    resume,
    waiting_request,
)
from assetclass_pipeline.engine.rollback import RollbackRequest
from assetclass_pipeline.errors import (
    AlreadyRolledBackError,
    AssetClassError,
    BackupExpiredError,
    IdempotencyKeyReusedError,
    LaterCorrectionError,
    MarketTablesError,
    NotUndoableError,
    OperationInProgressError,
    OperationNotFoundError,
    OperationStateError,
    PreflightRefusedError,
    SchemaNotReadyError,
)
from assetclass_pipeline.model.operation import Kind, Operation, Status
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

CLIENTS = 20
ALICE = "token alice"


@pytest.fixture
def market(make_market: MakeMarket) -> Market:
    """A hundred missing rows."""
    return make_market().fill(100)


def ask(
    market: Market,
    request: CorrectionRequest | RollbackRequest | None = None,
    *,
    key: str | None = None,
    by: str = "alice",
    correlation_id: str | None = None,
) -> Requested:
    """Ask for an operation on a connection of its own, as each client of the API does."""
    request = request or request_of()
    idempotency = None if key is None else IdempotencyKey(by, key)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        if isinstance(request, CorrectionRequest):
            return request_correction(
                connection,
                market.settings,
                request,
                correlation_id=correlation_id,
                idempotency=idempotency,
            )
        return request_rollback(
            connection,
            market.settings,
            request,
            correlation_id=correlation_id,
            idempotency=idempotency,
        )


def waiting(market: Market) -> WaitingRequest | None:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return waiting_request(connection, market.settings)


def go_on(market: Market, correction_id: str) -> Operation:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return resume(connection, market.settings, correction_id, by=ALICE)


def cancel(market: Market, correction_id: str) -> Operation:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return ask_to_cancel(connection, market.settings, correction_id, by=ALICE)


def end(market: Market, status: Status = Status.FAILED) -> bool:
    request = waiting(market)
    assert request is not None
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return end_request(
            connection, market.settings, request, status, code="RUN_FAILED", message="it failed"
        )


def audited(market: Market) -> list[tuple[Any, ...]]:
    """What the log holds about requests, oldest first."""
    return market.rows(
        "SELECT action, outcome, actor, actor_kind, correlation_id FROM assetclass.audit_log"
        " WHERE action NOT LIKE '%schema' ORDER BY number"
    )


def count(market: Market) -> int:
    found = market.value("SELECT count(*) FROM assetclass.operation")
    assert isinstance(found, int)
    return found


def test_a_request_is_the_operation_before_it_runs(market: Market) -> None:
    request = replace(
        request_of(dry_run=True), requested_by=ALICE, reason="nightly feed", ticket="OPS-1"
    )
    assert ask(market, request, correlation_id="abc") == Requested(request.correction_id, True)

    operation = operation_of(market, request.correction_id)
    assert operation.status is Status.REQUESTED
    assert operation.is_active
    assert operation.dry_run
    assert operation.requested_by == ALICE
    assert (operation.reason, operation.ticket) == ("nightly feed", "OPS-1")
    assert operation.started_at is None
    assert audited(market) == [("request_operation", "asked", "alice", "token", "abc")]

    asked = waiting(market)
    assert asked is not None
    assert asked.correction_id == request.correction_id
    assert asked.kind is Kind.CORRECTION
    assert asked.options == operation.options
    assert asked.scope == request.scope
    assert (asked.attempt, asked.requested_by, asked.correlation_id) == (1, ALICE, "abc")
    assert asked.run_id is None
    assert 0 <= asked.waited < 60


def test_the_run_takes_up_what_was_asked_for(market: Market) -> None:
    asked = ask(market)
    operation = correct_now(market, request_of(asked.correction_id))
    assert operation.correction_id == asked.correction_id
    assert operation.status is Status.SUCCEEDED
    assert operation.records_corrected == 100
    assert waiting(market) is None
    assert count(market) == 1


def test_a_rollback_is_asked_for_and_taken_up_alike(market: Market) -> None:
    correction = correct_now(market)
    request = undo_request_of(correction.correction_id)
    ask(market, request)
    asked = waiting(market)
    assert asked is not None
    assert (asked.kind, asked.rollback_of) == (Kind.ROLLBACK, correction.correction_id)
    assert undo_now(market, request).records_restored == 100


class Refused(NamedTuple):
    """What to set up (returns the request), and the error."""

    set_up: Callable[[Market], CorrectionRequest | RollbackRequest]
    error: type[AssetClassError]


def _undo_unknown(_: Market) -> RollbackRequest:
    return undo_request_of(str(uuid4()))


def _undo_dry_run(market: Market) -> RollbackRequest:
    return undo_request_of(correct_now(market, dry_run=True).correction_id)


def _undo_without_backup(market: Market) -> RollbackRequest:
    return undo_request_of(correct_now(market, create_backup=False).correction_id)


def _undo_twice(market: Market) -> RollbackRequest:
    correction = correct_now(market)
    undo_now(market, correction)
    return undo_request_of(correction.correction_id)


def _undo_a_rollback(market: Market) -> RollbackRequest:
    return undo_request_of(undo_now(market, correct_now(market)).correction_id)


def _undo_without_table(market: Market) -> RollbackRequest:
    correction = correct_now(market)
    market.execute("DROP TABLE {}", sql.Identifier("public", str(correction.backup_table)))
    return undo_request_of(correction.correction_id)


def _undo_before_later(market: Market) -> RollbackRequest:
    correction = correct_now(market)
    market.execute("UPDATE {} SET asset_class = NULL", market.market_identifier)
    correct_now(market)
    return undo_request_of(correction.correction_id)


def _undo_what_is_active(market: Market) -> RollbackRequest:
    active = plan_now(market, request_of(), park=False).correction_id
    keep_alive(market)
    return undo_request_of(active)


def _undo_while_active(market: Market) -> RollbackRequest:
    correction = correct_now(market)
    ask(market)
    return undo_request_of(correction.correction_id)


def _while_requested(market: Market) -> CorrectionRequest:
    ask(market)
    return request_of()


def _while_running(market: Market) -> CorrectionRequest:
    plan_now(market, request_of(), park=False)
    keep_alive(market)
    return request_of()


def _without_table(market: Market) -> CorrectionRequest:
    market.execute("DROP TABLE {}", market.symbols_identifier)
    return request_of()


def _what_would_do_harm(market: Market) -> CorrectionRequest:
    market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    return request_of()


REFUSED = [
    Refused(_undo_unknown, OperationNotFoundError),
    Refused(_undo_dry_run, NotUndoableError),
    Refused(_undo_without_backup, NotUndoableError),
    Refused(_undo_twice, AlreadyRolledBackError),
    Refused(_undo_a_rollback, NotUndoableError),
    Refused(_undo_without_table, BackupExpiredError),
    Refused(_undo_before_later, LaterCorrectionError),
    Refused(_undo_what_is_active, OperationInProgressError),
    Refused(_undo_while_active, OperationInProgressError),
    Refused(_while_requested, OperationInProgressError),
    Refused(_while_running, OperationInProgressError),
    Refused(_without_table, MarketTablesError),
    Refused(_what_would_do_harm, PreflightRefusedError),
]


@pytest.mark.parametrize(
    ("set_up", "error"), REFUSED, ids=lambda case: getattr(case, "__name__", "")
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    market: Market, set_up: Callable[[Market], Any], error: type[AssetClassError]
) -> None:
    request = replace(set_up(market), requested_by=ALICE)
    before = count(market)
    with pytest.raises(error):
        ask(market, request, key="once", correlation_id="abc")
    assert count(market) == before
    assert market.value("SELECT count(*) FROM assetclass.idempotency_key") == 0
    assert audited(market)[-1] == ("request_operation", error.code, "alice", "token", "abc")


@pytest.mark.parametrize("key", [None, "once"])
@pytest.mark.parametrize("make", [request_of, lambda: undo_request_of(str(uuid4()))])
def test_a_schema_that_is_not_there_is_what_is_said(
    market: Market, make: Callable[[], CorrectionRequest | RollbackRequest], key: str | None
) -> None:
    """And not that the refusal could not be recorded, which it cannot."""
    market.execute("DROP SCHEMA assetclass CASCADE")
    with pytest.raises(SchemaNotReadyError, match="assetclass db upgrade"):
        ask(market, make(), key=key)


def test_a_refusal_that_cannot_be_recorded_is_said_all_the_same(market: Market) -> None:
    market.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'disk full'; END $$"
    )
    market.execute(
        "CREATE TRIGGER full_disk BEFORE INSERT ON assetclass.audit_log FOR EACH ROW "
        "EXECUTE FUNCTION full_disk()"
    )
    with pytest.raises(OperationNotFoundError):
        ask(market, undo_request_of(str(uuid4())))


def test_the_refusal_names_the_active_operation(market: Market) -> None:
    active = ask(market).correction_id
    with pytest.raises(OperationInProgressError) as caught:
        ask(market)
    assert caught.value.correction_id == active
    assert active in str(caught.value)


def test_an_operation_whose_process_died_stops_nobody(market: Market) -> None:
    died = plan_now(market, request_of(), park=False).correction_id
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour'")
    patient = replace_settings(market, heartbeat_interval=0.01, heartbeat_stale_after=0.03)
    with connect(market.dsn, patient, purpose="test") as connection:
        wait_for_silence(market)
        request_correction(connection, patient, request_of())
    assert operation_of(market, died).status is Status.INTERRUPTED


def replace_settings(market: Market, **changes: object) -> Any:
    return market.settings.model_copy(update=changes)


def wait_for_silence(market: Market) -> None:
    """Silence counts from the start of the server, which may have been a moment ago."""
    market.execute(
        "SELECT pg_sleep(greatest(0, 2 - extract(epoch FROM now() - pg_postmaster_start_time())))"
    )


def in_parallel(work: Callable[[int], Any]) -> list[Any]:
    """What CLIENTS threads get that start at the same instant: results or typed errors."""
    together = threading.Barrier(CLIENTS)

    def one(number: int) -> Any:
        together.wait(60)
        try:
            return work(number)
        except AssetClassError as error:
            return error

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, range(CLIENTS)))


def test_of_many_at_the_same_instant_exactly_one_is_taken(market: Market) -> None:
    answers = in_parallel(lambda _: ask(market))
    [taken] = [answer for answer in answers if isinstance(answer, Requested)]
    refused = [answer for answer in answers if not isinstance(answer, Requested)]
    assert {type(error) for error in refused} == {OperationInProgressError}
    assert {error.correction_id for error in refused} == {taken.correction_id}
    assert count(market) == 1


def test_the_same_key_at_the_same_instant_is_one_operation(market: Market) -> None:
    answers = in_parallel(lambda _: ask(market, key="once"))
    assert all(isinstance(answer, Requested) for answer in answers), answers
    assert len({answer.correction_id for answer in answers}) == 1
    assert [answer.is_new for answer in answers].count(True) == 1
    assert count(market) == 1


@pytest.mark.parametrize("step", ["refuse_while_active", "look_before"])
def test_a_twin_that_is_quicker_at_any_step_is_found(
    market: Market, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    asked: list[Requested] = []
    real = getattr(requests, step)

    def beaten(*arguments: Any) -> Any:
        monkeypatch.undo()
        asked.append(ask(market, key="once"))
        return real(*arguments)

    monkeypatch.setattr(requests, step, beaten)
    assert ask(market, key="once") == Requested(asked[0].correction_id, False)
    assert count(market) == 1


def test_what_ends_at_that_very_instant_stands_in_nobodys_way(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    active = ask(market).correction_id

    def ended_since(*arguments: Any) -> None:
        monkeypatch.undo()
        cancel(market, active)
        assert active_id(*arguments) is None

    monkeypatch.setattr(requests, "refuse_while_active", lambda *_: None)
    monkeypatch.setattr(requests, "active_id", ended_since)
    assert ask(market).is_new


def test_the_same_key_gets_the_same_operation_even_after_it_ended(market: Market) -> None:
    first = ask(market, key="once")
    correct_now(market, request_of(first.correction_id))
    assert ask(market, key="once") == Requested(first.correction_id, False)
    assert count(market) == 1


def test_the_same_key_repeats_a_rollback_that_is_done(market: Market) -> None:
    correction = correct_now(market)
    request = undo_request_of(correction.correction_id)
    first = ask(market, request, key="once")
    undo_now(market, request)
    again = replace(request, correction_id=str(uuid4()))
    assert ask(market, again, key="once") == Requested(first.correction_id, False)


@pytest.mark.parametrize(
    "other",
    [
        request_of(batch_size=11),
        request_of(dry_run=True),
        replace(request_of(), reason="another one"),
        replace(request_of(), ticket="OPS-2"),
        undo_request_of(str(uuid4())),
    ],
    ids=["options", "dry run", "reason", "ticket", "kind"],
)
def test_the_same_key_with_another_request_is_refused(
    market: Market, other: CorrectionRequest | RollbackRequest
) -> None:
    ask(market, key="once")
    with pytest.raises(IdempotencyKeyReusedError):
        ask(market, other, key="once")
    assert count(market) == 1


def test_keys_of_different_tokens_do_not_meet(market: Market) -> None:
    first = ask(market, key="once")
    correct_now(market, request_of(first.correction_id))
    assert ask(market, key="once", by="bob").is_new


def test_a_key_that_was_refused_is_free_again(market: Market) -> None:
    active = ask(market)
    with pytest.raises(OperationInProgressError):
        ask(market, key="once")
    cancel(market, active.correction_id)
    assert ask(market, key="once").is_new


def test_what_was_cancelled_before_it_began_is_not_taken_up(market: Market) -> None:
    asked = ask(market)
    assert cancel(market, asked.correction_id).status is Status.CANCELLED
    assert waiting(market) is None
    late = replace(request_of(asked.correction_id), only_while_active=True)
    with pytest.raises(OperationStateError, match="cancelled"):
        correct_now(market, late)
    assert set(market.classes().values()) == {None}
    assert operation_of(market, asked.correction_id).status is Status.CANCELLED


def test_a_run_for_a_request_that_is_done_begins_no_new_operation(market: Market) -> None:
    late = replace(request_of(), only_while_active=True)
    with pytest.raises(OperationStateError):
        correct_now(market, late)
    assert count(market) == 0


def test_what_waits_cannot_be_paused(market: Market) -> None:
    asked = ask(market)
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        pytest.raises(OperationStateError),
    ):
        ask_to_pause(connection, market.settings, asked.correction_id, by=ALICE)


def test_what_ended_early_is_asked_for_again_and_goes_on(market: Market) -> None:
    request = request_of()
    with broken_after(market, 4), pytest.raises(AssetClassError):
        correct_now(market, request)
    done = operation_of(market, request.correction_id).records_corrected
    assert 0 < done < 100

    again = go_on(market, request.correction_id)
    assert again.status is Status.REQUESTED
    assert again.error is None
    assert again.finished_at is None
    assert again.events[0].event == "resume_requested"
    asked = waiting(market)
    assert asked is not None
    assert (asked.attempt, asked.requested_by) == (1, ALICE)
    assert audited(market)[-1][:3] == ("resume_operation", "asked", "alice")

    operation = correct_now(market, replace(request, only_while_active=True))
    assert operation.status is Status.SUCCEEDED
    assert operation.records_corrected == 100


def test_a_rollback_that_ended_early_goes_on_too(market: Market) -> None:
    request = undo_request_of(correct_now(market).correction_id)
    with broken_after(market, 4), pytest.raises(AssetClassError):
        undo_now(market, request)
    assert go_on(market, request.correction_id).status is Status.REQUESTED
    assert undo_now(market, request).records_restored == 100


def test_each_time_it_is_asked_for_counts(market: Market) -> None:
    asked = ask(market)
    cancel(market, asked.correction_id)
    go_on(market, asked.correction_id)
    again = waiting(market)
    assert again is not None
    assert again.attempt == 2
    cancel(market, asked.correction_id)
    ended = [entry for entry in audited(market) if entry[0] == "end_operation"]
    assert len(ended) == 2


def test_what_ended_well_does_not_go_on(market: Market) -> None:
    correction = correct_now(market)
    with pytest.raises(OperationStateError):
        go_on(market, correction.correction_id)


def test_what_is_rolled_back_does_not_go_on(market: Market) -> None:
    request = request_of()
    with broken_after(market, 4), pytest.raises(AssetClassError):
        correct_now(market, request)
    undo_now(market, request.correction_id)
    with pytest.raises(OperationStateError, match="rollback"):
        go_on(market, request.correction_id)


def test_it_does_not_go_on_while_another_one_is_active(market: Market) -> None:
    first = ask(market).correction_id
    cancel(market, first)
    second = ask(market).correction_id
    with pytest.raises(OperationInProgressError) as caught:
        go_on(market, first)
    assert caught.value.correction_id == second
    assert operation_of(market, first).status is Status.CANCELLED


def test_of_many_who_resume_at_the_same_instant_one_is_heard(market: Market) -> None:
    asked = ask(market)
    cancel(market, asked.correction_id)
    answers = in_parallel(lambda _: go_on(market, asked.correction_id))
    assert sum(isinstance(answer, Operation) for answer in answers) == 1, answers
    again = waiting(market)
    assert again is not None
    assert again.attempt == 2


def test_a_request_that_no_run_takes_up_ends_with_the_reason(market: Market) -> None:
    asked = ask(market)
    request = waiting(market)
    assert request is not None
    with connect(market.dsn, market.settings, purpose="test") as connection:
        note_run(connection, market.settings, request, "run-1")
    noted = waiting(market)
    assert noted is not None
    assert noted.run_id == "run-1"
    assert operation_of(market, asked.correction_id).run_id == "run-1"

    assert end(market)
    operation = operation_of(market, asked.correction_id)
    assert operation.status is Status.FAILED
    assert operation.error is not None
    assert (operation.error.code, operation.error.message) == ("RUN_FAILED", "it failed")
    assert audited(market)[-1][:3] == ("end_operation", "failed", "assetclass")
    assert ask(market).is_new


def test_what_a_run_took_up_is_not_ended_as_waiting(market: Market) -> None:
    asked = ask(market)
    request = waiting(market)
    assert request is not None
    plan_now(market, request_of(asked.correction_id), park=False)
    keep_alive(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        ended = end_request(
            connection, market.settings, request, Status.FAILED, code="RUN_FAILED", message=""
        )
    assert not ended
    assert operation_of(market, asked.correction_id).status is Status.RUNNING


def test_what_was_asked_for_again_is_not_ended_for_its_first_run(market: Market) -> None:
    asked = ask(market)
    first = waiting(market)
    assert first is not None
    cancel(market, asked.correction_id)
    go_on(market, asked.correction_id)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        assert not end_request(
            connection, market.settings, first, Status.FAILED, code="RUN_FAILED", message=""
        )
    assert operation_of(market, asked.correction_id).status is Status.REQUESTED
