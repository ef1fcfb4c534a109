"""A PostgreSQL of the benchmark's own, and a fresh copy of the data for every contestant.

Belongs here: the server, cloning, settings. Does not: what the data look like (data.py).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from pydantic import SecretStr

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.settings import Settings, load_settings

_MOST_SHARED_BUFFERS = 2 * 1024**3
# Both sides of every comparison run under these. Durability is PostgreSQL's default (fsync,
# full_page_writes and synchronous_commit are on); autovacuum, which would start in some runs and
# not in others, is off, and so is JIT, which slows the bare UPDATE down.
_SETTINGS = {
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
    "jit": "off",
}


class Databases:
    """Templates and their clones on one server."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._numbers = count(1)

    def create(self, name: str) -> str:
        """DSN of a new empty database."""
        self._as_superuser(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._server.url(name)

    def url(self, name: str) -> str:
        """DSN of a database that `create` made."""
        return self._server.url(name)

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._as_superuser(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def copy(self, template: str, name: str) -> str:
        """DSN of a copy, file by file; what it left to write is on the disk when this returns."""
        self._as_superuser(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        self._as_superuser(sql.SQL("CHECKPOINT"))
        return self.url(name)

    @contextmanager
    def clone(self, template: str) -> Iterator[str]:
        """DSN of a copy that is dropped at the end."""
        name = f"clone_{next(self._numbers)}"
        try:
            yield self.copy(template, name)
        finally:
            self.drop(name)

    def _as_superuser(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(self._server.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def databases() -> Iterator[Databases]:
    """A server in a temporary directory (TMPDIR says where); nothing of it is left at the end."""
    buffers = min(_MOST_SHARED_BUFFERS, psutil.virtual_memory().total // 4)
    settings = {**_SETTINGS, "shared_buffers": f"{buffers // 1024**2}MB"}
    with (
        tempfile.TemporaryDirectory(prefix="assetclass-bench-") as directory,
        EmbeddedServer(Path(directory) / "postgres", settings=settings) as server,
    ):
        yield Databases(server)


def settings_for(dsn: str) -> Settings:
    """Default settings for one database; names of market tables in the environment do not count."""
    return load_settings(
        database_url=SecretStr(dsn),
        market_schema="public",
        market_table="market_data",
        symbols_schema="public",
        symbols_table="symbols",
    )
