"""What ticks of watchers have in common: a connection, and an answer when the database is away.

Belongs here: one look of a watcher as a tick of a sensor. Does not: what it looks at.
"""

from collections.abc import Callable
from typing import Final

import dagster as dg
import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, server_is_away
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.engine.session import given_up_after
from assetclass_pipeline.errors import DatabaseUnavailableError, SchemaNotReadyError
from assetclass_pipeline.monitoring.watching import Look

# Dagster gives a tick up after 60 s, but its thread in the code server would go on to wait for a
# server that never answers, and of those threads there are few.
_LONGEST: Final = 50.0

Answer = dg.RunRequest | dg.SkipReason


def watch(
    database: MarketDatabase, name: str, look: Callable[[Connection[TupleRow]], Look]
) -> Answer:
    """Carry out a look; the answer says what it came to."""
    return ask(database, name, lambda connection: dg.SkipReason(str(look(connection))))


def ask(
    database: MarketDatabase, name: str, answer: Callable[[Connection[TupleRow]], Answer]
) -> Answer:
    """Answer a tick with a connection.

    While the database is away, or its schema is not of this version, the tick is skipped: nothing
    can be stored, every watcher would fail for the same one reason every few seconds, and each goes
    on where it stopped. Any other error fails the tick, which is an alert of its own.
    """
    try:
        with (
            database.address() as dsn,
            connect(dsn, database.settings, purpose=name, to_write=True) as connection,
            given_up_after(connection, _LONGEST),
        ):
            require_schema(connection)
            return answer(connection)
    except (DatabaseUnavailableError, SchemaNotReadyError) as error:
        return dg.SkipReason(f"{error} The next tick goes on where the last one ended.")
    except psycopg.OperationalError as error:
        if not server_is_away(error):
            raise
        return dg.SkipReason(
            "The connection to PostgreSQL was lost. The next tick goes on where the last one ended."
        )
