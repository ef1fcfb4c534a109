"""The limits in effect, and a record of each change of them.

Belongs here: comparing the settings' thresholds with those recorded last. Does not: judging by
them.
"""

from psycopg import Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import set_also
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.audit import record
from assetclass_pipeline.model.audit import Action, Actor, AuditEntry
from assetclass_pipeline.model.quality import Thresholds

# As long as the audit log's own lock is waited for.
_PATIENCE = {"lock_timeout": "30s"}


def record_limits(cursor: Cursor[TupleRow], limits: Thresholds, *, by: str) -> bool:
    """Record `limits` in the caller's transaction where they are not those recorded last.

    Whether they were recorded. Of several processes that measure by the same new limits, one
    records them; last in a transaction, as every entry of the log.
    """
    after = limits.model_dump(mode="json")
    if _last(cursor) == after:
        return False
    set_also(cursor, _PATIENCE)
    cursor.execute(query("audit", "lock_limits"))
    # Another process may have recorded them while this one waited.
    before = _last(cursor)
    if before == after:
        return False
    record(
        cursor,
        AuditEntry(
            Actor.of_requester(by),
            Action.CHANGE_THRESHOLDS,
            "recorded" if before is None else "changed",
            {"before": before, "after": after},
        ),
    )
    return True


def _last(cursor: Cursor[TupleRow]) -> dict[str, float | None] | None:
    """The limits recorded last; None where none were."""
    row = cursor.execute(query("audit", "last_limits")).fetchone()
    return row[0] if row else None
