"""What the end of an operation leaves behind, in the transaction that ends it.

Belongs here: its total (what metrics are made of), and that a resume goes on. Does not: the end
itself (holding.py, claiming.py, control.py), what an entry of the audit log holds (audit.py).
"""

from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.audit import record_end
from assetclass_pipeline.model.audit import Actor


def note_end(cursor: Cursor[TupleRow], correction_id: UUID, actor: Actor) -> None:
    """An operation ended, or was parked, in this transaction: its total and its audit entry.

    Last in the transaction. A second try of the same end changes nothing.
    """
    cursor.execute(query("totals", "record_total"), {"correction_id": correction_id})
    record_end(cursor, correction_id, actor)


def note_going_on(cursor: Cursor[TupleRow], correction_id: UUID) -> None:
    """Somebody works on it again: its ledger leaves its total behind; until now it idled."""
    cursor.execute(query("totals", "go_on"), {"correction_id": correction_id})
