"""The total that an end leaves: exact, once per end, and never less after a resume."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg.rows import dict_row

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine import ending
from assetclass_pipeline.engine.claiming import claim, refuse_while_active
from assetclass_pipeline.engine.control import ask_to_cancel
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.ending import note_end
from assetclass_pipeline.engine.requests import (
    end_request,
    request_correction,
    resume,
    waiting_request,
)
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline_tests.engine.runs import (
    broken_after,
    correct_now,
    operation_of,
    plan_now,
    request_of,
    undo_now,
)
from assetclass_pipeline_tests.market import Market

ENDS = ("failed", "cancelled", "timed_out", "window_closed", "interrupted")


def total_of(market: Market, correction_id: str) -> dict[str, Any]:
    with market.connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            "SELECT * FROM assetclass.operation_total WHERE correction_id = %s", (correction_id,)
        ).fetchone()
    assert row is not None
    return row


def ends_of(market: Market, correction_id: str) -> dict[str, int]:
    total = total_of(market, correction_id)
    return {end: total[f"times_{end}"] for end in ENDS if total[f"times_{end}"]}


def an_hour_ago(market: Market) -> None:
    """All that happened so far."""
    market.execute(
        "UPDATE assetclass.operation SET requested_at = requested_at - interval '1 hour',"
        " started_at = started_at - interval '1 hour',"
        " finished_at = finished_at - interval '1 hour'"
    )
    market.execute(
        "UPDATE assetclass.operation_total SET started_at = started_at - interval '1 hour',"
        " ended_at = ended_at - interval '1 hour'"
    )


def test_a_correction_and_its_rollback_leave_what_their_ledgers_say(market: Market) -> None:
    market.fill(100)
    corrected = correct_now(market)
    market.execute("UPDATE market_data SET asset_class = 'MINE' WHERE id <= 3")
    undone = undo_now(market, corrected)
    for operation in (corrected, undone):
        total = total_of(market, operation.correction_id)
        assert (total["kind"], total["status"], total["dry_run"]) == (
            operation.kind,
            "succeeded",
            False,
        )
        assert total["started_at"] == operation.started_at
        assert total["ended_at"] == operation.finished_at
        assert total["duration_seconds"] == pytest.approx(operation.duration_seconds)
        assert total["records_corrected"] == operation.records_corrected
        assert total["records_skipped"] == operation.records_skipped
        assert total["records_attempted"] == operation.records_planned
        assert total["batches"] == operation.batches_done
        within = [count for name, count in total.items() if re.fullmatch(r"batches_\d+ms", name)]
        assert 0 < within[-1] <= total["batches"]
        assert within == sorted(within), "cumulative"
    assert total_of(market, undone.correction_id)["records_conflicting"] == 3
    assert ends_of(market, corrected.correction_id) == {}


def test_a_resume_counts_its_end_once_more_and_its_rows_only_once(market: Market) -> None:
    market.fill(100)
    request = request_of(workers=1)
    for tries, batches in enumerate((3, 6), start=1):
        with broken_after(market, batches), pytest.raises(CorrectionFailedError):
            correct_now(market, request)
        assert ends_of(market, request.correction_id) == {"failed": tries}
        assert total_of(market, request.correction_id)["batches"] == batches
    done = correct_now(market, request)
    total = total_of(market, request.correction_id)
    assert ends_of(market, request.correction_id) == {"failed": 2}
    assert (total["status"], total["records_corrected"]) == ("succeeded", 100)
    assert 0 < total["idle_seconds"] < 60
    assert done.duration_seconds is not None
    assert total["duration_seconds"] == pytest.approx(done.duration_seconds - total["idle_seconds"])


def test_the_same_end_written_twice_is_one(market: Market) -> None:
    market.fill(20)
    request = request_of()
    with broken_after(market, 0), pytest.raises(CorrectionFailedError):
        correct_now(market, request)
    before = total_of(market, request.correction_id)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        note_end(connection.cursor(), UUID(request.correction_id), Actor.system())
    assert total_of(market, request.correction_id) == before


def test_a_claim_whose_answer_was_lost_idles_once(market: Market) -> None:
    market.fill(20)
    request = request_of()
    with broken_after(market, 0), pytest.raises(CorrectionFailedError):
        correct_now(market, request)
    an_hour_ago(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        for again in (False, True):
            claim(connection, market.settings, request, again=again)
    total = total_of(market, request.correction_id)
    assert 3600 <= total["idle_seconds"] < 3660
    assert total["ended_at"] is None, "its ledger goes on"


def test_what_was_refused_and_then_mended_stays_counted(market: Market) -> None:
    """Counters never go down: each row that an end left in quarantine was a failure then."""
    market.fill(60)
    market.execute("ALTER TABLE market_data ADD CONSTRAINT sour CHECK (id <> 7) NOT VALID")
    request = request_of()
    assert correct_now(market, request).records_failed == 1
    assert total_of(market, request.correction_id)["records_failed"] == 1
    market.execute("UPDATE assetclass.operation SET status = 'failed'")
    market.execute("ALTER TABLE market_data DROP CONSTRAINT sour")
    assert correct_now(market, request).records_failed == 0
    total = total_of(market, request.correction_id)
    assert (total["records_failed"], total["records_corrected"]) == (1, 60)


def test_every_way_to_end_is_told_apart(market: Market) -> None:
    market.fill(40)

    def interrupt(operation: Operation) -> None:
        if operation.phase is Phase.CORRECTING:
            raise KeyboardInterrupt

    interrupted = request_of()
    with pytest.raises(KeyboardInterrupt):
        correct(market.dsn, market.settings, interrupted, observe=interrupt)
    assert ends_of(market, interrupted.correction_id) == {"interrupted": 1}

    for stop_at, end in ((None, "timed_out"), ("now", "window_closed")):
        request = request_of(timeout=timedelta(minutes=1))
        plan_now(market, request, park=False)
        market.execute(
            "UPDATE assetclass.operation SET status = 'timed_out', finished_at = now(),"
            " stop_at = %s::timestamptz WHERE status = 'running'",
            values=(stop_at,),
        )
        with connect(market.dsn, market.settings, purpose="test") as connection:
            note_end(connection.cursor(), UUID(request.correction_id), Actor.system())
        assert ends_of(market, request.correction_id) == {end: 1}


def test_a_parked_plan_did_not_fail(market: Market) -> None:
    request = request_of()
    plan_now(market.fill(20), request)
    total = total_of(market, request.correction_id)
    assert (total["status"], ends_of(market, request.correction_id)) == ("planned", {})
    assert total["ended_at"] is not None


def test_who_was_found_dead_worked_until_last_heard_of(market: Market) -> None:
    request = request_of()
    plan_now(market.fill(20), request, park=False)
    market.execute("UPDATE assetclass.operation SET started_at = now() - interval '3 hours'")
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '2 hours'")
    # While the server was down nobody could be heard, and a test's server may have just started.
    market.execute(
        "SELECT pg_sleep(greatest(0, 2.2 - extract(epoch FROM"
        " clock_timestamp() - pg_postmaster_start_time())))"
    )
    with connect(market.dsn, market.settings, purpose="test") as connection:
        refuse_while_active(connection, market.settings)
    total = total_of(market, request.correction_id)
    assert ends_of(market, request.correction_id) == {"interrupted": 1}
    assert total["duration_seconds"] == pytest.approx(3600, abs=60)


def test_a_request_that_is_cancelled_never_began(market: Market) -> None:
    request = request_of()
    with connect(market.dsn, market.settings, purpose="test") as connection:
        asked = request_correction(connection, market.settings, request)
        ask_to_cancel(connection, market.settings, asked.correction_id, by="anna")
    assert ends_of(market, request.correction_id) == {"cancelled": 1}
    assert total_of(market, request.correction_id)["started_at"] is None
    an_hour_ago(market)
    done = correct_now(market.fill(20), request)
    total = total_of(market, request.correction_id)
    assert (total["idle_seconds"], total["times_cancelled"]) == (0, 1)
    assert total["duration_seconds"] == pytest.approx(done.duration_seconds)


def test_what_was_asked_for_again_and_cancelled_idled_all_the_time(market: Market) -> None:
    market.fill(20)
    request = request_of()
    with broken_after(market, 0), pytest.raises(CorrectionFailedError):
        correct_now(market, request)
    an_hour_ago(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        resume(connection, market.settings, request.correction_id, by="anna")
        ask_to_cancel(connection, market.settings, request.correction_id, by="anna")
    assert ends_of(market, request.correction_id) == {"failed": 1, "cancelled": 1}
    total = total_of(market, request.correction_id)
    assert 3600 <= total["idle_seconds"] < 3660
    assert total["duration_seconds"] < 60


def test_a_request_that_is_given_up_leaves_its_total(market: Market) -> None:
    request = request_of()
    with connect(market.dsn, market.settings, purpose="test") as connection:
        request_correction(connection, market.settings, request)
        waiting = waiting_request(connection, market.settings)
        assert waiting is not None
        end_request(
            connection, market.settings, waiting, Status.FAILED, code="X", message="its run died"
        )
    assert ends_of(market, request.correction_id) == {"failed": 1}


def test_whoever_ends_an_operation_leaves_its_total() -> None:
    """An end that only the audit log hears of is missing from the metrics."""
    engine = Path(ending.__file__).parent
    alone = [
        file.name
        for file in engine.glob("*.py")
        if "record_end(" in file.read_text(encoding="utf-8")
    ]
    assert sorted(alone) == ["audit.py", "ending.py"]


@pytest.mark.every_postgres
def test_the_migration_fills_in_what_ended_before_it(market: Market) -> None:
    market.fill(60)
    corrected = correct_now(market)
    request = request_of(overwrite_existing_values=True)
    undo_now(market, corrected)
    with broken_after(market, 2), pytest.raises(CorrectionFailedError):
        correct_now(market, request)
    ids = [corrected.correction_id, request.correction_id]
    before = [total_of(market, correction_id) for correction_id in ids]
    schema.downgrade(market.dsn, market.settings, "0006")
    schema.upgrade(market.dsn, market.settings)
    assert [total_of(market, correction_id) for correction_id in ids] == before
    assert operation_of(market, ids[1]).status == before[1]["status"]
