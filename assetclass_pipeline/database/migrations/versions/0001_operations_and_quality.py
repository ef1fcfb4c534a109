"""Operations with their ledger, and the history of quality measurements."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE assetclass.operation (
        correction_id uuid PRIMARY KEY,
        kind text NOT NULL CHECK (kind IN ('correction', 'rollback')),
        status text NOT NULL CHECK (status IN (
            'requested', 'running', 'paused', 'planned', 'succeeded', 'failed', 'cancelled',
            'timed_out', 'interrupted'
        )),
        phase text NOT NULL,
        epoch integer NOT NULL DEFAULT 0,
        dry_run boolean NOT NULL,
        options jsonb NOT NULL,
        range_start timestamp,
        range_end timestamp,
        requested_by text NOT NULL,
        reason text,
        ticket text,
        run_id text,
        requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        started_at timestamptz,
        finished_at timestamptz,
        backup_table text,
        plan jsonb,
        records_planned bigint,
        mismatched_left bigint NOT NULL DEFAULT 0,
        late_left bigint NOT NULL DEFAULT 0,
        quality_before jsonb,
        quality_after jsonb,
        error jsonb,
        rollback_of uuid REFERENCES assetclass.operation,
        rolled_back_by uuid REFERENCES assetclass.operation,
        retry_of uuid REFERENCES assetclass.operation
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation IS
    'corrections and rollbacks, one row each, for ever'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.epoch IS
    'raised by whoever takes the operation over: batches of an older epoch cannot commit'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.range_start IS
    'UTC; rows with range_start <= "timestamp" < range_end are in scope, NULL is open'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.backup_table IS
    'in the schema of the market table; NULL before planning and after an unlogged plan was dropped'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.plan IS
    'table of the plan, how far its scan came, and the seqs of each leaf'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.mismatched_left IS
    'mismatched rows in scope that the options leave alone'
    """,
    """
    COMMENT ON COLUMN assetclass.operation.late_left IS
    'correctable rows that came after the plan and are left'
    """,
    """
    CREATE UNIQUE INDEX operation_one_active ON assetclass.operation ((true))
    WHERE status IN ('requested', 'running', 'paused')
    """,
    "CREATE INDEX operation_newest ON assetclass.operation (requested_at DESC)",
    """
    CREATE TABLE assetclass.operation_heartbeat (
        correction_id uuid PRIMARY KEY REFERENCES assetclass.operation,
        epoch integer NOT NULL,
        beat_at timestamptz NOT NULL,
        holder text NOT NULL
    )
    """,
    """
    CREATE TABLE assetclass.operation_control (
        correction_id uuid PRIMARY KEY REFERENCES assetclass.operation,
        wanted text NOT NULL CHECK (wanted IN ('run', 'pause', 'cancel')),
        wanted_by text NOT NULL,
        wanted_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """
    CREATE TABLE assetclass.operation_batch (
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        pass smallint NOT NULL DEFAULT 0,
        first_seq bigint NOT NULL,
        last_seq bigint NOT NULL CHECK (last_seq >= first_seq),
        epoch integer NOT NULL,
        worker smallint NOT NULL,
        records_corrected integer NOT NULL,
        records_skipped integer NOT NULL,
        duration_ms integer NOT NULL,
        committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (correction_id, pass, first_seq)
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_batch IS
    'the ledger: a range of seq that stands here is committed'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_batch.pass IS
    '0: rows by their address; 1, 2, ...: sweeps'
    """,
    """
    CREATE TABLE assetclass.operation_skipped_row (
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        seq bigint NOT NULL,
        reason text NOT NULL,
        PRIMARY KEY (correction_id, seq)
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_skipped_row IS
    'planned rows that were not written; a sweep that writes one removes it here'
    """,
    """
    CREATE TABLE assetclass.operation_change (
        -- A key, because a table in a publication FOR ALL TABLES needs one to be deleted from.
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        symbol text,
        old_class text,
        new_class text,
        records bigint NOT NULL
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_change IS
    'what each operation changed, summed up by symbol, for ever'
    """,
    "CREATE INDEX operation_change_of_operation ON assetclass.operation_change (correction_id)",
    """
    CREATE TABLE assetclass.quality_measurement (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        measured_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        source text NOT NULL,
        correction_id uuid,
        run_id text,
        total_records bigint NOT NULL,
        completeness double precision NOT NULL,
        integrity double precision NOT NULL,
        orphaned_percent double precision NOT NULL,
        quality_score double precision NOT NULL,
        correctable bigint NOT NULL,
        report jsonb NOT NULL
    )
    """,
    """
    COMMENT ON TABLE assetclass.quality_measurement IS
    'the history of integrity reports'
    """,
    """
    CREATE INDEX quality_measurement_newest ON assetclass.quality_measurement (measured_at DESC)
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for table in (
        "quality_measurement",
        "operation_change",
        "operation_skipped_row",
        "operation_batch",
        "operation_control",
        "operation_heartbeat",
        "operation",
    ):
        op.execute(f"DROP TABLE assetclass.{table}")
