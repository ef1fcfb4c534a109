"""The largest changes of an operation are read without sorting all of them."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE INDEX operation_change_largest ON assetclass.operation_change
            (correction_id, records DESC, symbol, old_class, new_class)
        """
    )
    op.execute("DROP INDEX assetclass.operation_change_of_operation")


def downgrade() -> None:
    op.execute(
        "CREATE INDEX operation_change_of_operation ON assetclass.operation_change (correction_id)"
    )
    op.execute("DROP INDEX assetclass.operation_change_largest")
