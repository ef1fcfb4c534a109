"""The nightly schedule decides: which months, what the last night left, or not tonight."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from time import monotonic, sleep

import dagster as dg
import psycopg
import pytest
from dagster._core.errors import ScheduleExecutionError

from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.defs.schedules import window_end
from assetclass_pipeline.engine.correction import CorrectionRequest, correct, plan
from assetclass_pipeline.engine.operations import operation_status
from assetclass_pipeline.errors import MarketTablesError, OperationTimedOutError
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.options import CorrectionOptions, parse_options
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure, range_tags, settings_of
from assetclass_pipeline_tests.engine.runs import keep_alive
from assetclass_pipeline_tests.market import Market

ACTIVE = "11111111-2222-4333-8444-555555555555"
# Two days ahead, so that its window does not close under any test.
TONIGHT = (datetime.now(UTC) + timedelta(days=2)).replace(hour=2, minute=0, second=0, microsecond=0)


@pytest.fixture(scope="module")
def storage() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(
    market: Market, storage: dg.DagsterInstance, night: datetime = TONIGHT
) -> dg.RunRequest | str:
    """The run that the nightly schedule asks for, or why it asks for none."""
    defs = build_defs(settings=settings_of(market))
    with dg.build_schedule_context(
        instance=storage,
        scheduled_execution_time=night,
        resources={"database": (defs.resources or {})["database"]},
    ) as context:
        decided = defs.resolve_schedule_def("nightly_correction").evaluate_tick(context)
    if decided.run_requests:
        return decided.run_requests[0]
    return decided.skip_message or ""


def months(request: dg.RunRequest | str) -> tuple[str, str]:
    assert isinstance(request, dg.RunRequest)
    tags = request.tags
    return (
        tags["dagster/asset_partition_range_start"],
        tags["dagster/asset_partition_range_end"],
    )


def leave_active(market: Market) -> None:
    """An operation between its two halves, as a run of another process holds it."""
    request = CorrectionRequest(ACTIVE, CorrectionOptions(), requested_by="grace")
    plan(market.dsn, settings_of(market), request, park=False)
    keep_alive(market)


def test_the_range_is_narrowed_to_the_damaged_months(
    market: Market, storage: dg.DagsterInstance
) -> None:
    market.execute(
        "UPDATE {} SET asset_class = 'STOCK' "
        """WHERE "timestamp" NOT BETWEEN '2023-02-01' AND '2023-04-01'""",
        market.market_identifier,
    )
    request = tick(market, storage)
    assert months(request) == ("2023-02-01", "2023-03-01")
    assert isinstance(request, dg.RunRequest)
    assert request.run_key == f"{TONIGHT:%Y-%m-%d}T02:00+0000"


def test_rows_before_the_first_month_widen_it_to_that_month(
    market: Market, storage: dg.DagsterInstance
) -> None:
    assert months(tick(market, storage)) == ("2023-01-01", "2023-04-01")


def test_with_nothing_to_correct_the_current_month_keeps_reports_fresh(
    market: Market, storage: dg.DagsterInstance
) -> None:
    settings = settings_of(market)
    correct(market.dsn, settings, CorrectionRequest(ACTIVE, CorrectionOptions()))
    # Another month may begin at this moment.
    before = Calendar.until_now(settings.first_month).keys[-1]
    first, last = months(tick(market, storage))
    assert first == last
    assert before <= first <= Calendar.until_now(settings.first_month).keys[-1]


def test_it_skips_while_an_operation_is_active_and_names_it(
    market: Market, storage: dg.DagsterInstance
) -> None:
    leave_active(market)
    said = tick(market, storage)
    assert isinstance(said, str)
    assert ACTIVE in said
    assert "grace" in said
    entry = market.rows(
        "SELECT actor, actor_kind, action, outcome FROM assetclass.audit_log "
        "ORDER BY number DESC LIMIT 1"
    )
    assert entry == [("nightly_correction", "schedule", "claim_operation", "OPERATION_IN_PROGRESS")]


def test_an_operation_whose_process_died_stops_nobody(
    market: Market, storage: dg.DagsterInstance
) -> None:
    leave_active(market)
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour'")
    # Silence counts from the server's start, which in tests may have been a moment ago.
    deadline = monotonic() + 30
    while isinstance(decided := tick(market, storage), str) and monotonic() < deadline:
        sleep(0.2)
    assert months(decided) == ("2023-01-01", "2023-04-01")


def test_a_missing_table_is_named_in_the_tick(market: Market, storage: dg.DagsterInstance) -> None:
    market.execute("DROP TABLE {}", market.market_identifier)
    with pytest.raises(ScheduleExecutionError) as caught:
        tick(market, storage)
    assert isinstance(caught.value.__cause__, MarketTablesError)
    assert "public.market_data does not exist" in str(caught.value.__cause__)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "start", "end", "opens", "closes"),
    [
        ("UTC", "02:00", "06:00", "2026-03-01T02:00+00:00", "2026-03-01T06:00+00:00"),
        # Dagster hands the moment over in the schedule's zone or in UTC.
        ("Europe/Istanbul", "02:00", "06:00", "2026-02-28T23:00+00:00", "2026-03-01T06:00+03:00"),
        # Clocks go forward at 02:00: the night has one hour less, the window ends at 06:00.
        ("Europe/Berlin", "01:00", "06:00", "2026-03-29T01:00+01:00", "2026-03-29T06:00+02:00"),
        # Clocks go back at 03:00: one hour more.
        ("Europe/Berlin", "02:00", "06:00", "2026-10-25T02:00+02:00", "2026-10-25T06:00+01:00"),
        # Over midnight, and over a change of the clocks too.
        ("UTC", "22:00", "04:00", "2026-03-01T22:00+00:00", "2026-03-02T04:00+00:00"),
        ("Europe/Berlin", "22:00", "04:00", "2026-03-28T22:00+01:00", "2026-03-29T04:00+02:00"),
        # A tick that the daemon makes up for after midnight belongs to the night that began.
        ("UTC", "22:00", "04:00", "2026-03-02T01:30+00:00", "2026-03-02T04:00+00:00"),
        # A whole day.
        ("UTC", "02:00", "02:00", "2026-03-01T02:00+00:00", "2026-03-02T02:00+00:00"),
    ],
)
def test_the_window_closes_at_the_next_end_in_the_schedules_zone(
    zone: str, start: str, end: str, opens: str, closes: str
) -> None:
    settings = load_settings(
        time_zone=zone,
        nightly_start=time.fromisoformat(start),
        nightly_end=time.fromisoformat(end),
    )
    found = window_end(at(opens), settings)
    assert (found, found.utcoffset()) == (at(closes), at(closes).utcoffset())


def test_a_nights_run_knows_when_its_window_closes(
    market: Market, storage: dg.DagsterInstance
) -> None:
    request = tick(market, storage)
    assert isinstance(request, dg.RunRequest)
    assert request.tags["assetclass/stop_at"] == f"{TONIGHT:%Y-%m-%d}T06:00:00+00:00"
    assert "assetclass/resume" not in request.tags


def test_a_night_that_is_over_is_not_made_up_for_by_day(
    market: Market, storage: dg.DagsterInstance
) -> None:
    """The daemon was away all night: it evaluates the schedule when it is back."""
    over = TONIGHT - timedelta(days=3)
    said = tick(market, storage, over)
    assert isinstance(said, str)
    assert f"closed at {over:%Y-%m-%d} 06:00 UTC" in said


@pytest.fixture
def slow(market: Market) -> Market:
    """Each batch takes so long that no window in these tests is long enough."""
    market.execute(
        "CREATE OR REPLACE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION rest()",
        market.market_identifier,
    )
    return market


SMALL = {"batch_size": 1, "workers": 1}


def tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


def close_the_window(dsn: str) -> tuple[datetime, datetime]:
    """Move a window's end to now, once rows were written in it; returns its ends before and after.

    As if it had been there from the beginning: how soon a run writes depends on the machine.
    """
    deadline = monotonic() + 120
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute("SELECT FROM assetclass.operation_batch").fetchone() is None:
            assert monotonic() < deadline, "no row was written"
            sleep(0.05)
        [(planned, closed)] = connection.execute(
            "UPDATE assetclass.operation o SET stop_at = clock_timestamp() "
            "FROM assetclass.operation before WHERE before.correction_id = o.correction_id "
            "RETURNING before.stop_at, o.stop_at"
        ).fetchall()
    return planned, closed


def cut_off(pipeline: Pipeline) -> tuple[dg.JobExecutionResult, Operation]:
    """A run over February and March that its window's end stopped."""
    tags = range_tags("2023-02-01", "2023-03-01") | {"assetclass/stop_at": tomorrow()}
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(close_the_window, pipeline.market.dsn)
        stopped = pipeline.launch(tags=tags, options=SMALL)
        planned, closed = closing.result()
    assert not stopped.success
    assert "window" in failure(stopped)
    left = pipeline.operation(stopped.run_id)
    assert left.status is Status.TIMED_OUT
    assert 0 < left.records_corrected < 20
    assert planned == at(tags["assetclass/stop_at"])
    assert left.window_ends_at == closed
    pipeline.instance.add_run_tags(stopped.run_id, {"assetclass/stop_at": closed.isoformat()})
    return stopped, left


def let_it_run(market: Market) -> None:
    market.execute("DROP TRIGGER rest ON {}", market.market_identifier)


def test_the_next_night_goes_on_with_what_a_closed_window_left(
    slow: Market, pipeline: Pipeline
) -> None:
    _, left = cut_off(pipeline)
    request = tick(slow, pipeline.instance)
    # Its months, although others are damaged too: they are the next operation's.
    assert months(request) == ("2023-02-01", "2023-03-01")
    assert isinstance(request, dg.RunRequest)
    assert request.tags["assetclass/resume"] == left.correction_id

    let_it_run(slow)
    night = pipeline.launch(tags={**request.tags, "assetclass/stop_at": tomorrow()})
    assert night.success, failure(night)
    ended = pipeline.operation(left.correction_id)
    assert (ended.status, ended.run_id) == (Status.SUCCEEDED, night.run_id)
    assert ended.records_corrected == ended.records_planned == 20
    assert ended.backup_table == left.backup_table
    assert [operation.correction_id for operation in pipeline.operations()] == [left.correction_id]
    assert pipeline.months() == {"2023-02-01", "2023-03-01"}
    # Nothing is left of that: the night after looks for damaged months again.
    assert months(tick(slow, pipeline.instance)) == ("2023-01-01", "2023-04-01")


def test_re_executed_by_hand_it_does_not_stop_at_the_old_windows_end(
    slow: Market, pipeline: Pipeline
) -> None:
    stopped, left = cut_off(pipeline)
    let_it_run(slow)
    run = pipeline.run(stopped)
    assert run.tags["assetclass/stop_at"] <= datetime.now(UTC).isoformat()
    again = pipeline.launch(parent=run, options=SMALL)
    assert again.success, failure(again)
    ended = pipeline.operation(left.correction_id)
    assert (ended.status, ended.run_id) == (Status.SUCCEEDED, again.run_id)
    assert ended.window_ends_at is None


def test_what_was_corrected_since_is_not_taken_up_again(
    slow: Market, storage: dg.DagsterInstance
) -> None:
    settings = settings_of(slow)
    closes = datetime.now(UTC) + timedelta(seconds=2)
    request = CorrectionRequest(ACTIVE, parse_options(SMALL), stop_at=closes)
    with pytest.raises(OperationTimedOutError):
        correct(slow.dsn, settings, request)
    let_it_run(slow)
    newer = "22222222-2222-4333-8444-555555555555"
    correct(slow.dsn, settings, CorrectionRequest(newer, CorrectionOptions()))
    request_of_tonight = tick(slow, storage)
    assert isinstance(request_of_tonight, dg.RunRequest)
    assert "assetclass/resume" not in request_of_tonight.tags
    assert operation_status(slow.connection, settings).current_operation is None
