"""Requests: operations that somebody asked for and that a run is yet to be launched for."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE assetclass.operation_request (
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        attempt smallint NOT NULL CHECK (attempt > 0),
        requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        requested_by text NOT NULL,
        correlation_id text,
        run_id text,
        PRIMARY KEY (correction_id, attempt)
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_request IS
    'each time that an operation was asked for: first, and then to go on with it'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_request.correlation_id IS
    'of the HTTP request, the same in the answer, the log, the audit log and the tags of the run'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_request.run_id IS
    'Dagster run that was launched for it; NULL until the sensor has seen it'
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE assetclass.operation_request")
