"""How long a correction will take, from what earlier ones and a rehearsed batch took.

Belongs here: rates and ranges. Does not: the rehearsal of a batch on the real table.
"""

from psycopg import Cursor, errors
from psycopg.rows import TupleRow

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.preflight import Rehearsal
from assetclass_pipeline.model.quality import SecondsRange

# Rows a second where nothing was measured yet: from a busy disk to the figure of design.md
# section 3 (903,000 rows in 13.7 s).
SLOWEST_RATE = 5_000
FASTEST_RATE = 60_000
# Earlier runs say more than defaults, but load differs from night to night.
DOUBT = 2.0
FIXED_SECONDS = 1.0
# Measured: 2 workers wrote 1.7 times as much as one, 4 workers on two cores hardly more.
MOST_SPEED_UP = 2.0
# Whole scans of the table: the analyses before and after, and the plan, which also writes.
SCANS = 4
# History and rehearsal together leave less doubt than either alone.
AGREED_DOUBT = 1.5


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


def estimate_from_rehearsal(
    records: int,
    rehearsal: Rehearsal | None,
    workers: int,
    history_rate: float | None,
    *,
    scan_seconds: float | None = None,
) -> SecondsRange:
    """Seconds of a whole correction of `records` rows, as a range.

    Batches cost what the rehearsed one did, on one connection at worst and with the speed-up of
    `workers` at best; `history_rate` (rows a second in the batches of earlier corrections) counts
    as a second opinion. To these come the scans before and after: `scan_seconds` is what one scan
    of the table took just now, None where it is not known. Without a rehearsal: estimate_seconds.
    """
    if not records or rehearsal is None or not rehearsal.records:
        return estimate_seconds(records, history_rate)
    alone = records * rehearsal.seconds / rehearsal.records
    speed_up = min(workers, MOST_SPEED_UP)
    fastest, slowest, doubt = alone / speed_up, alone, DOUBT
    if history_rate:
        before = records / history_rate
        fastest, slowest = min(fastest, before), max(alone / speed_up, before)
        doubt = AGREED_DOUBT
    scans = SCANS * scan_seconds if scan_seconds is not None else records / FASTEST_RATE
    return SecondsRange(
        low=(fastest + scans) / doubt, high=(slowest + scans) * doubt + FIXED_SECONDS
    )
