"""The nightly schedule decides: which months, the current one, or not tonight."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.errors import ScheduleExecutionError

from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.engine.correction import CorrectionRequest, correct, plan
from assetclass_pipeline.errors import MarketTablesError
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.defs.conftest import settings_of
from assetclass_pipeline_tests.market import Market

ACTIVE = "11111111-2222-4333-8444-555555555555"
TONIGHT = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def storage() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(market: Market, storage: dg.DagsterInstance) -> dg.RunRequest | str:
    """The run that the nightly schedule asks for, or why it asks for none."""
    defs = build_defs(settings=settings_of(market))
    with dg.build_schedule_context(
        instance=storage,
        scheduled_execution_time=TONIGHT,
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
    assert request.run_key == "2026-03-01T02:00+0000"


def test_rows_before_the_first_month_widen_it_to_that_month(
    market: Market, storage: dg.DagsterInstance
) -> None:
    assert months(tick(market, storage)) == ("2023-01-01", "2023-04-01")


def test_with_nothing_to_correct_the_current_month_keeps_reports_fresh(
    market: Market, storage: dg.DagsterInstance
) -> None:
    settings = settings_of(market)
    correct(market.dsn, settings, CorrectionRequest(ACTIVE, CorrectionOptions()))
    current = Calendar.until_now(settings.first_month).keys[-1]
    assert months(tick(market, storage)) == (current, current)


def test_it_skips_while_an_operation_is_active_and_names_it(
    market: Market, storage: dg.DagsterInstance
) -> None:
    leave_active(market)
    said = tick(market, storage)
    assert isinstance(said, str)
    assert ACTIVE in said
    assert "grace" in said


def test_an_operation_whose_process_died_stops_nobody(
    market: Market, storage: dg.DagsterInstance
) -> None:
    leave_active(market)
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour'")
    assert months(tick(market, storage)) == ("2023-01-01", "2023-04-01")


def test_a_missing_table_is_named_in_the_tick(market: Market, storage: dg.DagsterInstance) -> None:
    market.execute("DROP TABLE {}", market.market_identifier)
    with pytest.raises(ScheduleExecutionError) as caught:
        tick(market, storage)
    assert isinstance(caught.value.__cause__, MarketTablesError)
    assert "public.market_data does not exist" in str(caught.value.__cause__)
