"""A status reads an operation's largest changes and newest batches without sorting all of them."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE INDEX operation_batch_newest ON assetclass.operation_batch
        (correction_id, committed_at DESC)
    """,
    """
    CREATE INDEX operation_change_largest ON assetclass.operation_change
        (correction_id, records DESC, id)
    """,
    # Last: until the end nobody else can read the table.
    "DROP INDEX assetclass.operation_change_of_operation",
)
_DOWN = (
    "CREATE INDEX operation_change_of_operation ON assetclass.operation_change (correction_id)",
    "DROP INDEX assetclass.operation_change_largest",
    "DROP INDEX assetclass.operation_batch_newest",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
