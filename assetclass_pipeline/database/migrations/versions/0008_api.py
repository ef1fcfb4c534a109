"""API tokens, repeated requests, and the correlation id of an operation."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE assetclass.api_token (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL CHECK (name <> ''),
        role text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
        hash text NOT NULL UNIQUE CHECK (length(hash) = 64),
        hint text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        created_by text NOT NULL,
        expires_at timestamptz,
        revoked_at timestamptz,
        revoked_by text,
        last_used_at timestamptz
    )
    """,
    "COMMENT ON TABLE assetclass.api_token IS 'who may call the REST API; no secret is in here'",
    """
    COMMENT ON COLUMN assetclass.api_token.hash IS
    'SHA-256 of the secret, in hex; the secret itself was shown once and is stored nowhere'
    """,
    """
    COMMENT ON COLUMN assetclass.api_token.last_used_at IS 'to the minute'
    """,
    """
    CREATE UNIQUE INDEX api_token_one_of_a_name ON assetclass.api_token (name)
    WHERE revoked_at IS NULL
    """,
    """
    CREATE TABLE assetclass.idempotency_key (
        caller text NOT NULL,
        key text NOT NULL,
        request_hash text NOT NULL,
        correction_id uuid NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (caller, key)
    )
    """,
    """
    COMMENT ON TABLE assetclass.idempotency_key IS
    'requests that callers may repeat: the same key of the same caller gives the same operation'
    """,
    """
    COMMENT ON COLUMN assetclass.idempotency_key.request_hash IS
    'SHA-256 of what was asked, in hex: the same key for something else is a mistake'
    """,
    "CREATE INDEX idempotency_key_created_at ON assetclass.idempotency_key (created_at)",
    "ALTER TABLE assetclass.operation ADD COLUMN correlation_id text",
    """
    COMMENT ON COLUMN assetclass.operation.correlation_id IS
    'of the request that asked for it: the same in logs, audit entries and the tags of its run'
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE assetclass.operation DROP COLUMN correlation_id")
    op.execute("DROP TABLE assetclass.idempotency_key")
    op.execute("DROP TABLE assetclass.api_token")
