"""What a busy table asks for: preflight, tuning, events, waits, quarantine."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UP = (
    """
    ALTER TABLE assetclass.operation
        ADD COLUMN preflight jsonb,
        ADD COLUMN estimate jsonb,
        ADD COLUMN estimate_error_percent double precision,
        ADD COLUMN reference_hash text,
        ADD COLUMN stop_at timestamptz
    """,
    """
    COMMENT ON COLUMN assetclass.operation.preflight IS
    'what was found about the tables before anything was changed'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.estimate IS
    'seconds that the operation was expected to take, as a range'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.estimate_error_percent IS
    'how far the duration lay outside the estimate, in percent of its nearer bound; 0 inside'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.reference_hash IS
    'SHA-256 of the mapping from tickers to classes as the plan used it'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.stop_at IS
    'when its window closes; the rest is for the next window'
    """,
    """
    ALTER TABLE assetclass.operation_heartbeat
        ADD COLUMN pacing jsonb,
        ADD COLUMN throttle text[] NOT NULL DEFAULT '{}'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_heartbeat.pacing IS
    'batch size, workers and smoothed cost of a row, for a resume and for people'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_heartbeat.throttle IS
    'why no batch is started at the moment'
    """,
    "ALTER TABLE assetclass.operation_control ADD COLUMN tuning jsonb NOT NULL DEFAULT '{}'",
    """
    COMMENT ON COLUMN assetclass.operation_control.tuning IS
    'what was changed while it runs: batchSize, workers, pace, throttle limits'
    """,
    """
    CREATE TABLE assetclass.operation_event (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        happened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        event text NOT NULL,
        actor text NOT NULL,
        details jsonb NOT NULL DEFAULT '{}'
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_event IS
    'what people asked of an operation, and what it met: one row each, never changed'
    """,
    "CREATE INDEX operation_event_of_operation ON assetclass.operation_event (correction_id, id)",
    """
    CREATE TABLE assetclass.operation_wait (
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        signal text NOT NULL,
        seconds double precision NOT NULL DEFAULT 0,
        PRIMARY KEY (correction_id, signal)
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_wait IS
    'seconds that an operation waited, by the signal that held it'
    """,
    """
    CREATE TABLE assetclass.operation_quarantined_row (
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        seq bigint NOT NULL,
        id text,
        symbol text,
        "timestamp" text,
        corrected_asset_class text NOT NULL,
        error_code text NOT NULL,
        error_message text NOT NULL,
        quarantined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (correction_id, seq)
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_quarantined_row IS
    'rows that the database refused to change, each with its error'
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for table in ("operation_quarantined_row", "operation_wait", "operation_event"):
        op.execute(f"DROP TABLE assetclass.{table}")
    op.execute("ALTER TABLE assetclass.operation_control DROP COLUMN tuning")
    op.execute(
        "ALTER TABLE assetclass.operation_heartbeat DROP COLUMN pacing, DROP COLUMN throttle"
    )
    op.execute(
        "ALTER TABLE assetclass.operation DROP COLUMN preflight, DROP COLUMN estimate, "
        "DROP COLUMN estimate_error_percent, DROP COLUMN reference_hash, DROP COLUMN stop_at"
    )
