"""Rollbacks, the registry of backup tables, and the archive that outlives them."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UP = (
    """
    ALTER TABLE assetclass.operation
        ADD COLUMN already_restored bigint NOT NULL DEFAULT 0
    """,
    """
    COMMENT ON COLUMN assetclass.operation.already_restored IS
    'of a rollback: rows that had their old value back before it touched them'
    """,
    # What a rollback restores may be NULL.
    """
    ALTER TABLE assetclass.operation_quarantined_row
        ALTER COLUMN corrected_asset_class DROP NOT NULL
    """,
    """
    CREATE TABLE assetclass.operation_undone (
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        rollback_id uuid NOT NULL REFERENCES assetclass.operation,
        seqs int8multirange NOT NULL,
        PRIMARY KEY (correction_id, rollback_id)
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_undone IS
    'which planned rows of a correction have their old value back, and which rollback saw to it'
    """,
    """
    CREATE TABLE assetclass.operation_conflict (
        correction_id uuid NOT NULL REFERENCES assetclass.operation,
        seq bigint NOT NULL,
        id text,
        symbol text,
        "timestamp" text,
        class_before text,
        class_corrected text,
        class_now text,
        reason text NOT NULL,
        PRIMARY KEY (correction_id, seq)
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_conflict IS
    'rows that a rollback left alone because somebody changed or deleted them since the correction'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_conflict.correction_id IS 'of the rollback'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_conflict.seq IS 'in the backup table of the correction'
    """,
    """
    CREATE TABLE assetclass.backup (
        correction_id uuid PRIMARY KEY REFERENCES assetclass.operation,
        schema_name text NOT NULL,
        table_name text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        records bigint,
        bytes bigint,
        checksum text,
        verified_at timestamptz,
        verification jsonb,
        held_by text,
        held_at timestamptz,
        hold_reason text,
        dropped_at timestamptz,
        dropped_by text,
        drop_reason text,
        UNIQUE (schema_name, table_name)
    )
    """,
    """
    COMMENT ON TABLE assetclass.backup IS
    'tables that hold what operations changed, row by row: of corrections what undoes them, of '
    'rollbacks their trail'
    """,
    """
    COMMENT ON COLUMN assetclass.backup.records IS
    'with bytes and checksum: as the table stood when its plan was complete; NULL before'
    """,
    """
    CREATE TABLE assetclass.archive (
        correction_id uuid PRIMARY KEY REFERENCES assetclass.operation,
        file_name text NOT NULL UNIQUE,
        records bigint NOT NULL,
        bytes bigint NOT NULL,
        sha256 text NOT NULL,
        archived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        removed_at timestamptz
    )
    """,
    """
    COMMENT ON TABLE assetclass.archive IS
    'files that keep the rows of dropped backup tables for audits'
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for table in ("archive", "backup", "operation_conflict", "operation_undone"):
        op.execute(f"DROP TABLE assetclass.{table}")
    op.execute("ALTER TABLE assetclass.operation DROP COLUMN already_restored")
    op.execute(
        "UPDATE assetclass.operation_quarantined_row SET corrected_asset_class = '' "
        "WHERE corrected_asset_class IS NULL"
    )
    op.execute(
        "ALTER TABLE assetclass.operation_quarantined_row "
        "ALTER COLUMN corrected_asset_class SET NOT NULL"
    )
