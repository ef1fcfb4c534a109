"""What was about to be written on another server, whose commit comes just before ours."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE assetclass.operation_attempt (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        seqs int8multirange NOT NULL,
        attempted_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_attempt IS
    'rows of foreign tables that a batch saw unchanged and means to write; gone when it commits'
    """,
    "CREATE INDEX operation_attempt_of_operation ON assetclass.operation_attempt (correction_id)",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE assetclass.operation_attempt")
