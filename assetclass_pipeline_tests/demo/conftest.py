"""The real wheels, fetched once into pytest's cache and shared by all test processes."""

import pytest

from assetclass_pipeline.demo.sources import SourceFiles, fetch_sources


@pytest.fixture(scope="session")
def sources(request: pytest.FixtureRequest) -> SourceFiles:
    """The fetched and checked wheels; without an index the test fails with our own message."""
    directory = request.config.cache.mkdir("demo_sources")
    return fetch_sources(directory, report=print)
