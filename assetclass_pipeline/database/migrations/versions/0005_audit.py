"""The audit log: who did what, when, from where, and what came of it; nobody may rewrite it."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UP = (
    # No reference to assetclass.operation: the log outlives whatever it speaks of.
    """
    CREATE TABLE assetclass.audit_log (
        number bigint PRIMARY KEY,
        happened_at timestamptz NOT NULL,
        actor text NOT NULL,
        actor_kind text NOT NULL CHECK (actor_kind IN (
            'token', 'os_user', 'schedule', 'sensor', 'dagster_ui', 'system'
        )),
        action text NOT NULL,
        origin text NOT NULL,
        parameters jsonb NOT NULL,
        outcome text NOT NULL,
        correction_id uuid,
        correlation_id text,
        previous_hash text NOT NULL,
        hash text NOT NULL
    )
    """,
    """
    COMMENT ON TABLE assetclass.audit_log IS
    'one row per action, append-only; hash chains each row to the one before'
    """,
    """
    COMMENT ON COLUMN assetclass.audit_log.number IS
    'without gaps: what was rolled back was never numbered'
    """,
    """
    COMMENT ON COLUMN assetclass.audit_log.origin IS
    'host or network address that the action came from'
    """,
    """
    COMMENT ON COLUMN assetclass.audit_log.outcome IS
    'what came of it; of a refusal its error code'
    """,
    """
    COMMENT ON COLUMN assetclass.audit_log.hash IS
    'SHA-256, in hex, of previous_hash, a line feed, and the text of the JSON array number, '
    'happened_at, actor, actor_kind, action, origin, parameters, outcome, correction_id, '
    'correlation_id, as jsonb prints it, in UTF-8'
    """,
    "CREATE INDEX audit_log_happened_at ON assetclass.audit_log (happened_at)",
    "CREATE INDEX audit_log_of_operation ON assetclass.audit_log (correction_id, number)",
    # Appends queue for the lock until COMMIT, so that the next one sees the last row: two never
    # follow the same row. Whoever appends does so last, and the queue is short.
    """
    CREATE FUNCTION assetclass.audit_append() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '30s' AS $body$
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('assetclass audit log', 0));
        SELECT last.number + 1, last.hash INTO NEW.number, NEW.previous_hash
        FROM assetclass.audit_log last ORDER BY last.number DESC LIMIT 1;
        NEW.number := coalesce(NEW.number, 1);
        NEW.previous_hash := coalesce(NEW.previous_hash, repeat('0', 64));
        NEW.happened_at := clock_timestamp();
        NEW.hash := encode(sha256(convert_to(NEW.previous_hash || E'\\n' || jsonb_build_array(
            NEW.number,
            to_char(NEW.happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            NEW.actor, NEW.actor_kind, NEW.action, NEW.origin, NEW.parameters, NEW.outcome,
            NEW.correction_id, NEW.correlation_id)::text, 'UTF8')), 'hex');
        RETURN NEW;
    END
    $body$
    """,
    """
    CREATE TRIGGER append BEFORE INSERT ON assetclass.audit_log
    FOR EACH ROW EXECUTE FUNCTION assetclass.audit_append()
    """,
    """
    CREATE FUNCTION assetclass.audit_refuse() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
        RAISE insufficient_privilege USING
            MESSAGE = format('assetclass.audit_log is append-only: %s is refused', TG_OP),
            HINT = 'A wrong entry stays; what corrects it is an entry of its own.';
    END
    $body$
    """,
    """
    CREATE TRIGGER refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON assetclass.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION assetclass.audit_refuse()
    """,
    # Without ALWAYS a session could switch it off for itself by session_replication_role.
    "ALTER TABLE assetclass.audit_log ENABLE ALWAYS TRIGGER refuse",
    """
    CREATE INDEX operation_quarantined_row_of_row ON assetclass.operation_quarantined_row (id)
    """,
    "CREATE INDEX operation_conflict_of_row ON assetclass.operation_conflict (id)",
    """
    CREATE INDEX operation_change_of_symbol
        ON assetclass.operation_change (symbol, correction_id)
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX assetclass.operation_change_of_symbol")
    op.execute("DROP INDEX assetclass.operation_conflict_of_row")
    op.execute("DROP INDEX assetclass.operation_quarantined_row_of_row")
    op.execute("DROP TABLE assetclass.audit_log")
    op.execute("DROP FUNCTION assetclass.audit_append()")
    op.execute("DROP FUNCTION assetclass.audit_refuse()")
