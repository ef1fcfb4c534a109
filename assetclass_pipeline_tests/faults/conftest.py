"""A server whose log can be read, and scenes on it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import SERVER_SETTINGS, Scene, open_scene
from assetclass_pipeline_tests.faults.victim import Victim

MakeScene = Callable[..., Scene]


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Tries:
    """How often this run tries a fault."""
    return Tries(in_full=request.config.getoption("--fault-tries") == "full")


@pytest.fixture(scope="session")
def journaling_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A running server that is never itself the victim; nothing in it waits for the disk."""
    # But commits are written at once: the journal ends where the written log does.
    quick = {"fsync": "off", "full_page_writes": "off"}
    server = EmbeddedServer(
        tmp_path_factory.mktemp("journaling"), settings={**SERVER_SETTINGS, **quick}
    )
    with server:
        yield server


@pytest.fixture
def make_scene(journaling_server: EmbeddedServer, request_node: pytest.Item) -> Iterator[MakeScene]:
    """Builds the test's scene in a database of its own."""
    with ExitStack() as stack:

        def make(**shape: Any) -> Scene:
            url = stack.enter_context(fresh_database(journaling_server, with_schema=True))
            return stack.enter_context(open_scene(lambda: url, request_node, **shape))

        yield make


@pytest.fixture
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A running server for the test to break."""
    with Victim(tmp_path_factory.mktemp("victim")) as victim:
        yield victim


@pytest.fixture
def request_node(request: pytest.FixtureRequest) -> pytest.Item:
    """The test itself, which its outcome is handed in with."""
    assert isinstance(request.node, pytest.Item)
    return request.node
