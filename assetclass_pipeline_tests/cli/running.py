"""What a running command leaves to be seen from outside: its operation, its Dagster run."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from assetclass_pipeline.defs.instance import open_instance
from assetclass_pipeline.engine.operations import operation_status
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.cli.command import LONGEST, Command
from assetclass_pipeline_tests.market import Market


@contextmanager
def instance_of(assetclass: Command) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance that the command used, as `up` would open it."""
    settings = load_settings(
        home=Path(assetclass.settings["ASSETCLASS_HOME"]),
        dagster_database_url=assetclass.settings["ASSETCLASS_DAGSTER_DATABASE_URL"],
    )
    with open_instance(settings, assetclass.settings["ASSETCLASS_DATABASE_URL"]) as instance:
        yield instance


def wait_for_progress(market: Market, process: subprocess.Popen[str]) -> Operation:
    """The operation as soon as it has corrected some rows."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and process.poll() is None:
        active = operation_status(market.connection, market.settings).current_operation
        if active is not None and active.records_corrected > 50:
            return active
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no progress: {process.communicate()}")
