"""When the process that holds an operation counts as dead: how long it was not heard of.

Belongs here: the limits, for who looks and for who takes over alike. Does not: beating
(holding.py), and taking over (claiming.py).
"""

from psycopg import sql

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.settings import Settings

# First key of the advisory lock, so that it meets no other application's: "acls" in ASCII.
ADVISORY_CLASS = 0x61636C73
# Seconds between two looks of a holder at what is asked of it: no heart beats faster.
CONTROL_INTERVAL = 0.5
# So many heartbeats missed, and no session holds the advisory lock: nobody needs to wait longer.
MISSED_BEATS = 3


def silence() -> sql.Composable:
    """How long the holder of an operation (its heartbeat is `h`) was not heard of."""
    return query("operation", "silence")


def is_abandoned() -> sql.Composable:
    """Whether an active operation has no process any more; bound to `silence_limits`."""
    return query("operation", "is_abandoned", silence=silence())


def silence_limits(settings: Settings) -> dict[str, object]:
    """What the conditions on silence are bound to, in seconds."""
    missed_after = MISSED_BEATS * max(settings.heartbeat_interval, CONTROL_INTERVAL)
    return {
        "stale_after": max(settings.heartbeat_stale_after, missed_after),
        "missed_after": missed_after,
        "advisory_class": ADVISORY_CLASS,
    }
