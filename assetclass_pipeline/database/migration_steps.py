"""The steps of the schema as alembic runs them, on a connection that somebody else has opened.

Belongs here: alembic and SQLAlchemy, and nothing else of ours may import them: they cost every
command a third of a second. Does not: the lock, the rights, the record of it (schema.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files

import psycopg
from alembic import command
from alembic.config import Config
from psycopg.rows import TupleRow
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError


@dataclass(frozen=True)
class Steps:
    """The steps, to be taken within one transaction."""

    connection: Connection

    def upgrade(self) -> None:
        """Take all that are left. Raises what SQLAlchemy makes of PostgreSQL's errors."""
        command.upgrade(self._config(), "head")

    def downgrade(self, revision: str) -> None:
        """Take back those after `revision`. Raises as `upgrade`."""
        command.downgrade(self._config(), revision)

    def _config(self) -> Config:
        config = Config()
        folder = str(files("assetclass_pipeline.database") / "migrations")
        config.set_main_option("script_location", folder.replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = self.connection
        return config


@contextmanager
def steps_on(connection: psycopg.Connection[TupleRow]) -> Iterator[Steps]:
    """One transaction, committed at the end unless something is raised. Raises psycopg.Error."""
    engine = create_engine("postgresql+psycopg://", creator=lambda: connection, poolclass=NullPool)
    try:
        with engine.begin() as bound:
            yield Steps(bound)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from None
        raise
