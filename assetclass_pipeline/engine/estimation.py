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
# Whole scans of the table: analyses before and after, the plan, the count of what is left.
SCANS = 4
# Rows a second that the plan writes, with its index.
PLAN_RATE = 250_000
# A rehearsed batch was never slower than a real one, which also has a ledger and a COMMIT.
LOW_DOUBT = 1.5
# History and rehearsal together leave less doubt than either alone.
AGREED_DOUBT = 1.3


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
            cursor.execute(query("operation", "recent_rate", flow=query("operation", "flow")))
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
    pause_share: float = 0.0,
) -> SecondsRange:
    """Seconds of a whole correction of `records` rows, as a range.

    Batches cost what the rehearsed one did, on one connection at worst and with the speed-up of
    `workers` at best; `history_rate` (rows a second in the batches of earlier corrections) counts
    as a second opinion. To these come the scans before and after: `scan_seconds` is what one scan
    of the table took just now, None where it is not known. After each batch a worker pauses for
    `pause_share` times its duration. Without a rehearsal: estimate_seconds.
    """
    if not records or rehearsal is None or not rehearsal.records:
        return estimate_seconds(records, history_rate)
    alone = records * rehearsal.seconds / rehearsal.records * (1 + pause_share)
    speed_up = min(workers, MOST_SPEED_UP)
    fastest, slowest = alone / speed_up, alone
    low_doubt, high_doubt = LOW_DOUBT, DOUBT
    if history_rate:
        before = records / history_rate
        fastest, slowest = min(fastest, before), max(alone / speed_up, before)
        low_doubt = high_doubt = AGREED_DOUBT
    around = records / PLAN_RATE
    around += SCANS * scan_seconds if scan_seconds is not None else records / FASTEST_RATE
    return SecondsRange(
        low=(fastest + around) / low_doubt,
        high=(slowest + around) * high_doubt + FIXED_SECONDS,
    )
