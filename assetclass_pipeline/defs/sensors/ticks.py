"""What ticks of watchers have in common: a connection, and an answer when the database is away.

Belongs here: one look of a watcher as a tick of a sensor. Does not: what it looks at.
"""

from collections.abc import Callable

import dagster as dg
import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.errors import DatabaseUnavailableError
from assetclass_pipeline.monitoring.watching import Look

# The server ends sessions, starts, stops, or has no room; connection exceptions are class 08.
_AWAY = frozenset({"57P01", "57P02", "57P03", "53300"})

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

    While the database is away the tick is skipped: nothing can be stored, every watcher would fail
    for the same one reason, and each goes on where it stopped. Any other error fails the tick,
    which is an alert of its own.
    """
    try:
        with (
            database.address() as dsn,
            connect(dsn, database.settings, purpose=name, to_write=True) as connection,
        ):
            require_schema(connection)
            return answer(connection)
    except DatabaseUnavailableError as error:
        return dg.SkipReason(f"{error} The next tick goes on where the last one ended.")
    except psycopg.OperationalError as error:
        if not _is_away(error):
            raise
        return dg.SkipReason(
            "The connection to PostgreSQL was lost. The next tick goes on where the last one ended."
        )


def _is_away(error: psycopg.OperationalError) -> bool:
    state = error.sqlstate
    return state is None or state.startswith("08") or state in _AWAY
