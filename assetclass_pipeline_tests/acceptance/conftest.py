"""One `up` for a module of tests that watch alerts, on two fresh databases."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from psycopg.conninfo import conninfo_to_dict

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.defs.instance import open_instance
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.acceptance.watched import Watched
from assetclass_pipeline_tests.cli.test_supervisor import up
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.defs.conftest import Pipeline
from assetclass_pipeline_tests.market import open_market
from assetclass_pipeline_tests.ports import free_port
from assetclass_pipeline_tests.receiver import open_receiver

_DEFINITIONS = "assetclass_pipeline_tests.acceptance.watched_definitions"


@pytest.fixture(scope="module")
def watched(
    request: pytest.FixtureRequest,
    postgres_server: EmbeddedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """`up` with the module's `SETTINGS`, told to watch over its `STORIES`."""
    module = request.module
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        receiver = stack.enter_context(open_receiver())
        dsn = stack.enter_context(fresh_database(postgres_server, with_schema=True))
        storage = stack.enter_context(fresh_database(postgres_server))
        home = tmp_path_factory.mktemp("watched")
        environment = {
            "NO_PROXY": "127.0.0.1",
            "ASSETCLASS_ALERTS__CHANNELS": json.dumps([{"name": "pager", "url": receiver.url}]),
            "ASSETCLASS_ALERTS__BASELINE_LEAST": "3",
            # A busy machine is slow, and not ill.
            "ASSETCLASS_HEALTH__TIMEOUT": "30",
            # Each month of a run is a row of events.
            "ASSETCLASS_FIRST_MONTH": f"{datetime.now(UTC):%Y-%m}-01",
            "ASSETCLASS_ARCHIVE_DIRECTORY": str(home / "archive"),
            "ASSETCLASS_REPORTS_DIRECTORY": str(home / "reports"),
            **module.SETTINGS,
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = load_settings(
            home=home,
            webserver_port=free_port(),
            api_port=free_port(),
            database_url=dsn,
            dagster_database=str(conninfo_to_dict(storage)["dbname"]),
        )
        market = stack.enter_context(open_market(dsn))
        instance = stack.enter_context(open_instance(settings, dsn))
        running = stack.enter_context(up(settings, _DEFINITIONS))
        running.wait_for("Ready")
        pipeline = Pipeline(market, instance, settings)
        connection = stack.enter_context(connect(dsn, settings, purpose="test"))
        yield Watched(running, market, receiver, pipeline, module.STORIES, connection)
