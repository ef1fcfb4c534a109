"""What tests of the API share: a database with the schema, a server over it, a token per role."""

from collections.abc import Iterator

import pytest

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.model.token import Role
from assetclass_pipeline_tests.api.service import LONGEST, Service, make_token, serving
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.market import Market, open_market


@pytest.fixture(scope="module")
def market(postgres_server: EmbeddedServer) -> Iterator[Market]:
    """Both market tables, empty, for the tests of one file."""
    with fresh_database(postgres_server, with_schema=True) as dsn, open_market(dsn) as made:
        yield made


@pytest.fixture(scope="module")
def tokens(market: Market) -> dict[Role, str]:
    """The secret of a token of each role."""
    return {role: make_token(market.dsn, role) for role in Role}


@pytest.fixture(scope="module")
def service(market: Market) -> Iterator[Service]:
    """The API with its default settings, but for parts that a busy machine is slow to look at.

    And tests change operations without asking it.
    """
    with serving(market.dsn, health={"timeout": LONGEST}, api={"status_age": 0}) as running:
        yield running
