"""Fixtures for every test: a PostgreSQL server per test process, a fresh database per test.

A test that asks for `database_url` runs on PostgreSQL 18 from the wheel. Marked with
`every_postgres` it also runs on the system's version, where one is installed. With
`--postgres-bin DIRECTORY` all of them run on the PostgreSQL there instead.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow
from xdist.remote import Producer

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.embedded import (
    Binaries,
    EmbeddedServer,
    binaries_in,
    find_binaries,
    system_binaries,
)
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests import properties
from assetclass_pipeline_tests.acceptance import alert_table
from assetclass_pipeline_tests.api import case_count
from assetclass_pipeline_tests.distribution import SharedServices
from assetclass_pipeline_tests.faults import fault_table
from assetclass_pipeline_tests.receiver import (  # noqa: F401 - fixtures
    another_receiver,
    receiver,
)

# The data of a test server die with it, so nothing waits for the disk.
_SETTINGS_OF_TESTS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "64MB",
    "autovacuum": "off",
}
_database_numbers = itertools.count(1)
# Fixtures that bring the schema to the newest revision before anything else.
_MARKETS = frozenset({"market", "make_market"})
_STRATEGIES_SINCE = 150_000

StartServer = Callable[[Binaries], EmbeddedServer]


def pytest_configure() -> None:
    """How properties are tried, before any of them is read."""
    properties.try_alike_everywhere()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that say how much is tried, and on what."""
    parser.addoption(
        "--postgres-bin",
        action="append",
        type=Path,
        help="run on the PostgreSQL whose programs are in this directory; may stand several times",
    )
    fault_table.add_option(parser)
    case_count.add_option(parser)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SharedServices:
    """How tests are dealt out to the processes."""
    return SharedServices(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was tried, and what came of it."""
    fault_table.print_summary(terminalreporter)
    alert_table.print_summary(terminalreporter)
    case_count.print_summary(terminalreporter)


def _every_binaries(directories: list[Path] | None) -> list[Binaries]:
    if directories:
        return [_binaries_in(directory) for directory in directories]
    preferred = find_binaries()
    system = system_binaries()
    other_version = system is not None and system.major != preferred.major
    return [preferred, system] if other_version and system is not None else [preferred]


def _binaries_in(directory: Path) -> Binaries:
    binaries = binaries_in(directory, "system")
    if binaries is None:
        raise pytest.UsageError(f"--postgres-bin: no PostgreSQL that runs here is in {directory}")
    return binaries


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `every_postgres` on each version, all others on the preferred one."""
    if "postgres_binaries" not in metafunc.fixturenames:
        return
    versions = _every_binaries(metafunc.config.getoption("postgres_bin"))
    if not any(metafunc.definition.iter_markers("every_postgres")):
        versions = versions[:1]
    metafunc.parametrize(
        "postgres_binaries",
        versions,
        ids=[f"postgres{binaries.major}" for binaries in versions],
        scope="session",
        indirect=True,
    )


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What would be kept beside the user's data, archives for example, goes when the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSETCLASS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def postgres_binaries(request: pytest.FixtureRequest) -> Binaries:
    """The PostgreSQL programs that the test runs on."""
    binaries = request.param
    assert isinstance(binaries, Binaries)
    return binaries


@pytest.fixture(scope="session", autouse=True)
def _archive_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Archives of tests are not written into the home of whoever runs them."""
    with pytest.MonkeyPatch.context() as patched:
        directory = tmp_path_factory.mktemp("archive")
        patched.setenv("ASSETCLASS_ARCHIVE_DIRECTORY", str(directory))
        yield


@pytest.fixture(scope="session")
def _test_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    # Both versions stay up side by side: pytest sets the parameter up anew whenever it changes.
    servers: dict[Binaries, EmbeddedServer] = {}
    with ExitStack() as stack:

        def start(binaries: Binaries) -> EmbeddedServer:
            if binaries not in servers:
                directory = tmp_path_factory.mktemp(f"postgres{binaries.major}")
                server = EmbeddedServer(directory, binaries=binaries, settings=_SETTINGS_OF_TESTS)
                servers[binaries] = stack.enter_context(server)
            return servers[binaries]

        yield start


@pytest.fixture(scope="session")
def postgres_server(postgres_binaries: Binaries, _test_servers: StartServer) -> EmbeddedServer:
    """A running server for this test process; it is stopped when the tests end."""
    return _test_servers(postgres_binaries)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, postgres_server: EmbeddedServer) -> Iterator[str]:
    """The DSN of a database that only this test sees: empty, or what a market is made in."""
    with_schema = not _MARKETS.isdisjoint(request.fixturenames)
    with fresh_database(postgres_server, with_schema=with_schema) as url:
        yield url


@pytest.fixture
def another_database_url(postgres_server: EmbeddedServer) -> Iterator[str]:
    """A second empty database beside `database_url`, for Dagster's storage for example."""
    with fresh_database(postgres_server) as url:
        yield url


@contextmanager
def fresh_database(server: EmbeddedServer, *, with_schema: bool = False) -> Iterator[str]:
    """Create a database, drop it at the end, even when sessions were left open in it.

    It is empty, or has the pipeline's schema: a copy takes a tenth of the time of the migrations.
    """
    name = f"test_{next(_database_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        _copy_database(connection, _template(server) if with_schema else "template0", name)
    try:
        yield server.url(name)
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )


@cache
def _template(server: EmbeddedServer) -> str:
    """The name of the server's database with the schema and nothing else, made when first asked."""
    name = "template_with_schema"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        # An earlier try may have failed half way.
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
        _copy_database(connection, "template0", name)
    schema.upgrade(server.url(name), load_settings())
    return name


def _copy_database(connection: psycopg.Connection[TupleRow], template: str, name: str) -> None:
    # By its files where that can be chosen: what is not fsynced is copied sooner than it is logged.
    may_choose = connection.info.server_version >= _STRATEGIES_SINCE
    connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {}{}").format(
            sql.Identifier(name),
            sql.Identifier(template),
            sql.SQL(" STRATEGY FILE_COPY" if may_choose else ""),
        )
    )
