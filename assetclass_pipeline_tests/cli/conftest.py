"""What tests of commands share: the command on an empty database, with and without tables."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market, open_market


@pytest.fixture
def assetclass(database_url: str, another_database_url: str, tmp_path: Path) -> Command:
    """The command on `database_url`, with a home and a Dagster storage of its own."""
    return Command(
        {
            "ASSETCLASS_DATABASE_URL": database_url,
            "ASSETCLASS_DAGSTER_DATABASE_URL": another_database_url,
            "ASSETCLASS_HOME": str(tmp_path / "home"),
            "ASSETCLASS_FIRST_MONTH": "2023-01-01",
        }
    )


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    """Both market tables, empty, with the pipeline's schema in place."""
    with open_market(database_url) as made:
        yield made
