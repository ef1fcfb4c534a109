"""The pipeline's own records, opened for one command.

Belongs here: settings, database and connection of a command that needs no market tables. Does not:
what a command asks of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, open_database
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.settings import Settings, load_settings


class Records(NamedTuple):
    """A connection, the settings that led to it, and the DSN for those who need another one."""

    connection: Connection[TupleRow]
    settings: Settings
    dsn: str


@contextmanager
def open_records(purpose: str) -> Iterator[Records]:
    """The records, with our schema in place; `purpose` is what the server shows of the session.

    Raises DatabaseUnavailableError, SchemaNotReadyError and InvalidSettingsError.
    """
    settings = load_settings()
    with (
        open_database(settings) as dsn,
        connect(dsn, settings, purpose=purpose) as connection,
    ):
        require_schema(connection)
        yield Records(connection, settings, dsn)
