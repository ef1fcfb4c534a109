"""A market of its own for each test."""

from collections.abc import Iterator

import pytest

from assetclass_pipeline_tests.market import Market, open_market


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    """Both market tables, empty, with the pipeline's schema in place."""
    with open_market(database_url) as made:
        yield made
