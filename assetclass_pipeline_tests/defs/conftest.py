"""One Dagster instance on PostgreSQL for a module of tests, a fresh market for each test."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from pydantic import SecretStr

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.defs.instance import open_instance
from assetclass_pipeline.engine.operations import get_operation, operation_status
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.settings import Settings, load_settings
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.market import Bar, Market, open_market

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def settings_of(market: Market) -> Settings:
    """The market's settings, with its database."""
    return market.settings.model_copy(update={"database_url": SecretStr(market.dsn)})


@dataclass(frozen=True)
class Pipeline:
    """The definitions over one market, and runs of them as the UI launches them."""

    market: Market
    instance: dg.DagsterInstance
    settings: Settings
    defs: dg.Definitions = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "defs", build_defs(settings=self.settings))

    def launch(
        self,
        *,
        job: str = "correction_job",
        tags: dict[str, str] | None = None,
        parent: dg.DagsterRun | None = None,
        options: dict[str, Any] | None = None,
        ops: dict[str, Any] | None = None,
        assets: list[str] | None = None,
        checks: list[dg.AssetCheckKey] | None = None,
    ) -> dg.JobExecutionResult:
        """Create and execute a run; `parent` is the run that it re-executes."""
        definition = self.defs.resolve_job_def(job)
        if assets is not None or checks is not None:
            definition = definition.get_subset(
                asset_selection=frozenset(dg.AssetKey(name) for name in assets or []),
                asset_check_selection=None if checks is None else frozenset(checks),
            )
        config: dict[str, Any] = dict(_QUIET)
        if options:
            config["resources"] = {"correction_options": {"config": options}}
        if ops:
            config["ops"] = ops
        run = self.instance.create_run_for_job(
            definition,
            run_config=config,
            tags=tags or (dict(parent.tags) if parent else {}),
            parent_run_id=parent.run_id if parent else None,
            root_run_id=(parent.root_run_id or parent.run_id) if parent else None,
            asset_selection=definition.asset_selection,
        )
        return execute_run(InMemoryJob(definition), run, self.instance, raise_on_error=False)

    def run(self, result: dg.JobExecutionResult) -> dg.DagsterRun:
        """The run as Dagster stored it."""
        run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def operation(self, correction_id: str) -> Operation:
        """An operation as it stands."""
        with connect(self.market.dsn, self.settings, purpose="test") as connection:
            return get_operation(connection, self.settings, correction_id)

    def operations(self) -> list[Operation]:
        """Every ended operation, newest first."""
        with connect(self.market.dsn, self.settings, purpose="test") as connection:
            status = operation_status(connection, self.settings, include_all=True)
        return status.recent_operations

    def months(self, asset: str = "corrected_market_data") -> set[str]:
        """Partitions of an asset that are materialised."""
        return set(self.instance.get_materialized_partitions(dg.AssetKey(asset)))


def range_tags(first: str, last: str) -> dict[str, str]:
    """Tags with which the UI launches a range of partitions as one run."""
    return {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last,
    }


def failure(result: dg.JobExecutionResult) -> str:
    """What the first failed step says to people."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None:
                return data.user_failure_data.description or ""
            error = data.error
            while error is not None and error.cause is not None:
                error = error.cause
            return error.message if error else ""
    raise AssertionError("no step failed")


def checks_of(result: dg.JobExecutionResult) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    """Evaluations by asset and check."""
    return {
        (evaluation.asset_key.to_user_string(), evaluation.check_name): evaluation
        for evaluation in result.get_asset_check_evaluations()
    }


@pytest.fixture(scope="module")
def data_url(postgres_server: EmbeddedServer) -> Iterator[str]:
    """A database for a module of tests."""
    with fresh_database(postgres_server, with_schema=True) as url:
        yield url


@pytest.fixture(scope="module")
def instance(
    data_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dg.DagsterInstance]:
    """Dagster on PostgreSQL, with the environment that `up` gives its services."""
    name = psycopg.conninfo.conninfo_to_dict(data_url)["dbname"]
    home = tmp_path_factory.mktemp("home")
    settings = load_settings(home=home, database_url=None, dagster_database=f"{name}_dagster")
    with open_instance(settings, data_url) as instance:
        yield instance


@pytest.fixture
def market(data_url: str) -> Iterator[Market]:
    """January to April 2023, ten bars a month: AAPL and BTC, all missing; one bar is of 2019."""
    with open_market(data_url) as market:
        market.execute("TRUNCATE assetclass.quality_measurement")
        market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
        market.add(
            Bar(month * 10 + n, ("AAPL", "BTC")[n % 2], f"2023-{month:02}-{n + 1:02} 12:00+00")
            for month in range(1, 5)
            for n in range(10)
        )
        market.add([Bar(1, "AAPL", "2019-05-05 00:00+00")])
        yield market


@pytest.fixture
def pipeline(market: Market, instance: dg.DagsterInstance) -> Pipeline:
    """The definitions over `market`; what earlier tests materialised is forgotten."""
    for key in instance.all_asset_keys():
        instance.wipe_assets([key])
    return Pipeline(market, instance, settings_of(market))
