"""The sensor that lets messages go out: its tick as Dagster evaluates it."""

from collections.abc import Iterator

import dagster as dg
import pytest
from pydantic import SecretStr

from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.settings import Settings, load_settings
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.monitoring.outbox import Outbox, alert_settings
from assetclass_pipeline_tests.receiver import SECRET, Receiver, closed_port


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


def tick(settings: Settings) -> str:
    """What one tick says."""
    defs = build_defs(settings=settings)
    sensor = defs.resolve_sensor_def("alert_notifications")
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(
            instance=instance,
            definitions=defs,
            resources=defs.get_repository_def().get_top_level_resources(),
        ) as context,
    ):
        data = sensor.evaluate_tick(context)
    assert not data.run_requests
    return str(data.skip_message)


def test_it_runs_from_the_start_and_often() -> None:
    sensor = build_defs().resolve_sensor_def("alert_notifications")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 5
    assert sensor.description


def test_a_tick_reminds_and_delivers(market: Market, receiver: Receiver) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    settings = outbox.settings.model_copy(update={"database_url": SecretStr(market.dsn)})
    assert tick(settings) == "Nothing to tell."
    outbox.tell("it broke")
    outbox.open_alert("another", notified="-1 hour")
    assert tick(settings) == (
        "Messages: 2 delivered, 0 failed, 0 given up. Alerts that nobody took: 1."
    )
    assert len(receiver.titles) == 2
    assert tick(settings) == "Nothing to tell."


def test_a_tick_without_the_database_is_skipped() -> None:
    url = f"postgresql://ann:{SECRET}@127.0.0.1:{closed_port()}/market"
    said = tick(load_settings(database_url=url))
    assert "PostgreSQL cannot be reached" in said
    assert "The next tick goes on" in said
    assert SECRET not in said
