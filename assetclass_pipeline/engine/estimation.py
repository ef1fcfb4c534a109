"""How long a correction will take, from what earlier ones took.

Belongs here: rates and ranges. Does not: the rehearsal of a batch on the real table.
"""

from psycopg import Cursor, errors
from psycopg.rows import TupleRow

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.quality import SecondsRange

# Rows a second where nothing was measured yet: from a busy disk to the figure of design.md
# section 3 (903,000 rows in 13.7 s).
SLOWEST_RATE = 5_000
FASTEST_RATE = 60_000
# Earlier runs say more than defaults, but load differs from night to night.
DOUBT = 2.0
FIXED_SECONDS = 1.0


def recent_rate(cursor: Cursor[TupleRow]) -> float | None:
    """Median rows a second of the last corrections; None where none is known.

    The tables of the pipeline may not exist yet (analysis needs none of them).
    """
    cursor.execute("SELECT to_regclass('assetclass.operation_batch') IS NOT NULL")
    row = cursor.fetchone()
    if row is None or not row[0]:
        return None
    try:
        with cursor.connection.transaction():
            cursor.execute(query("operation", "recent_rate"))
            row = cursor.fetchone()
    except errors.InsufficientPrivilege:
        return None
    return float(row[0]) if row and row[0] else None


def estimate_seconds(records: int, rate: float | None) -> SecondsRange:
    """Seconds for `records` rows, as a range."""
    if not records:
        return SecondsRange(low=0, high=FIXED_SECONDS)
    fast, slow = (rate * DOUBT, rate / DOUBT) if rate else (FASTEST_RATE, SLOWEST_RATE)
    return SecondsRange(low=records / fast, high=records / slow + FIXED_SECONDS)
