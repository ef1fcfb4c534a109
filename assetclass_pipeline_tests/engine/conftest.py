"""A market of its own for each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from assetclass_pipeline_tests.market import Market, open_market

MakeMarket = Callable[..., Market]


@pytest.fixture
def make_market(database_url: str) -> Iterator[MakeMarket]:
    """Builds the test's market tables in the shape that it asks for."""
    with ExitStack() as stack:

        def make(**shape: Any) -> Market:
            return stack.enter_context(open_market(database_url, **shape))

        yield make


@pytest.fixture
def market(make_market: MakeMarket) -> Market:
    """Plain tables with every default."""
    return make_market()
