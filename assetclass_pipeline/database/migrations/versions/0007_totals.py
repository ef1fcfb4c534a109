"""What each operation came to, in one row, so that metrics need not read a million ledger rows."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE assetclass.operation_total (
        correction_id uuid PRIMARY KEY REFERENCES assetclass.operation,
        kind text NOT NULL,
        dry_run boolean NOT NULL,
        status text NOT NULL,
        epoch integer NOT NULL,
        started_at timestamptz,
        ended_at timestamptz,
        idle_seconds double precision NOT NULL,
        duration_seconds double precision NOT NULL,
        times_failed integer NOT NULL,
        times_cancelled integer NOT NULL,
        times_timed_out integer NOT NULL,
        times_window_closed integer NOT NULL,
        times_interrupted integer NOT NULL,
        records_attempted bigint NOT NULL,
        records_corrected bigint NOT NULL,
        records_skipped bigint NOT NULL,
        records_failed bigint NOT NULL,
        records_conflicting bigint NOT NULL,
        batches bigint NOT NULL,
        batch_milliseconds bigint NOT NULL,
        batches_50ms bigint NOT NULL,
        batches_100ms bigint NOT NULL,
        batches_250ms bigint NOT NULL,
        batches_500ms bigint NOT NULL,
        batches_1000ms bigint NOT NULL,
        batches_2500ms bigint NOT NULL,
        batches_5000ms bigint NOT NULL,
        batches_10000ms bigint NOT NULL,
        batches_30000ms bigint NOT NULL,
        batches_60000ms bigint NOT NULL,
        batches_300000ms bigint NOT NULL,
        estimate_error_percent double precision
    )
    """,
    """
    COMMENT ON TABLE assetclass.operation_total IS
    'what each operation came to, written when it ends and again whenever it ends after a resume; '
    'metrics are sums of these rows, and of the ledger of what runs'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_total.epoch IS
    'of the end that was counted last: an end that is written twice counts once'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_total.ended_at IS
    'when nobody worked on it any more; NULL while it goes on, and its ledger is ahead of this row'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_total.idle_seconds IS
    'between an end and the claim that went on'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_total.duration_seconds IS
    'from the first start to the last end without idle_seconds'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_total.times_window_closed IS
    'ends by the window, which the next night goes on from; times_timed_out are those by timeout'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_total.records_skipped IS
    'with records_failed and records_conflicting: the most that any end left, for what is counted '
    'once is not taken back when a resume mends it'
    """,
    """
    COMMENT ON COLUMN assetclass.operation_total.batches_50ms IS
    'batches that took at most so long, as in the columns behind it; to take numbers out of an '
    'array would cost ten times as much as to add them up'
    """,
    "CREATE INDEX operation_total_ended ON assetclass.operation_total (ended_at)",
    # The one definition: of the row that an end writes, and of what runs and has none yet.
    """
    CREATE VIEW assetclass.operation_sums AS
    SELECT o.correction_id, o.kind, o.dry_run, o.status, o.epoch, o.started_at,
           CASE WHEN NOT now.is_active THEN now.ended END AS ended_at,
           idle.seconds AS idle_seconds,
           greatest(0, extract(epoch FROM now.ended - o.started_at)::double precision
                       - idle.seconds) AS duration_seconds,
           coalesce(t.times_failed, 0)
               + (now.is_new_end AND o.status = 'failed')::integer AS times_failed,
           coalesce(t.times_cancelled, 0)
               + (now.is_new_end AND o.status = 'cancelled')::integer AS times_cancelled,
           coalesce(t.times_timed_out, 0)
               + (now.is_new_end AND o.status = 'timed_out'
                  AND NOT now.by_window)::integer AS times_timed_out,
           coalesce(t.times_window_closed, 0)
               + (now.is_new_end AND o.status = 'timed_out'
                  AND now.by_window)::integer AS times_window_closed,
           coalesce(t.times_interrupted, 0)
               + (now.is_new_end AND o.status = 'interrupted')::integer AS times_interrupted,
           ledger.records_attempted, ledger.records_corrected,
           greatest(t.records_skipped, CASE WHEN now.is_active THEN 0 ELSE
               left_alone.skipped + o.mismatched_left + o.late_left END) AS records_skipped,
           greatest(t.records_failed, CASE WHEN now.is_active THEN 0 ELSE
               left_alone.failed END) AS records_failed,
           greatest(t.records_conflicting, CASE WHEN now.is_active THEN 0 ELSE
               (SELECT count(*) FROM assetclass.operation_conflict c
                WHERE c.correction_id = o.correction_id) END) AS records_conflicting,
           ledger.batches, ledger.batch_milliseconds, ledger.batches_50ms,
           ledger.batches_100ms, ledger.batches_250ms, ledger.batches_500ms,
           ledger.batches_1000ms, ledger.batches_2500ms, ledger.batches_5000ms,
           ledger.batches_10000ms, ledger.batches_30000ms, ledger.batches_60000ms,
           ledger.batches_300000ms, o.estimate_error_percent
    FROM assetclass.operation o
    LEFT JOIN assetclass.operation_heartbeat h USING (correction_id)
    LEFT JOIN assetclass.operation_total t USING (correction_id)
    CROSS JOIN LATERAL (
        SELECT o.status IN ('requested', 'running', 'paused') AS is_active,
               o.status NOT IN ('requested', 'running', 'paused')
                   AND o.epoch > coalesce(t.epoch, -1) AS is_new_end,
               coalesce(o.stop_at <= o.finished_at, false) AS by_window,
               -- Who was found dead worked until it was last heard of; who parks has no end yet.
               coalesce(CASE WHEN o.status IN ('interrupted', 'planned') THEN h.beat_at END,
                        o.finished_at, clock_timestamp()) AS ended) now
    CROSS JOIN LATERAL (
        -- What was asked for once more, and ended before anybody took it up, idled all the time.
        SELECT coalesce(t.idle_seconds, 0)
               + CASE WHEN now.is_new_end AND t.started_at IS NOT NULL THEN greatest(
                     0, coalesce(extract(epoch FROM now.ended - t.ended_at), 0)) ELSE 0
                 END::double precision AS seconds) idle
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(b.last_seq - b.first_seq + 1) FILTER (WHERE b.pass = 0), 0)::bigint
                   AS records_attempted,
               coalesce(sum(b.records_corrected), 0)::bigint AS records_corrected,
               count(*) AS batches,
               coalesce(sum(b.duration_ms), 0)::bigint AS batch_milliseconds,
               count(*) FILTER (WHERE b.duration_ms <= 50) AS batches_50ms,
               count(*) FILTER (WHERE b.duration_ms <= 100) AS batches_100ms,
               count(*) FILTER (WHERE b.duration_ms <= 250) AS batches_250ms,
               count(*) FILTER (WHERE b.duration_ms <= 500) AS batches_500ms,
               count(*) FILTER (WHERE b.duration_ms <= 1000) AS batches_1000ms,
               count(*) FILTER (WHERE b.duration_ms <= 2500) AS batches_2500ms,
               count(*) FILTER (WHERE b.duration_ms <= 5000) AS batches_5000ms,
               count(*) FILTER (WHERE b.duration_ms <= 10000) AS batches_10000ms,
               count(*) FILTER (WHERE b.duration_ms <= 30000) AS batches_30000ms,
               count(*) FILTER (WHERE b.duration_ms <= 60000) AS batches_60000ms,
               count(*) FILTER (WHERE b.duration_ms <= 300000) AS batches_300000ms
        FROM assetclass.operation_batch b WHERE b.correction_id = o.correction_id) ledger
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE s.reason NOT IN ('quarantined', 'already_restored'))
                   AS skipped,
               count(*) FILTER (WHERE s.reason = 'quarantined') AS failed
        FROM assetclass.operation_skipped_row s
        WHERE s.correction_id = o.correction_id) left_alone
    """,
    """
    COMMENT ON VIEW assetclass.operation_sums IS
    'the total of each operation as its ledger stands now; ask for single operations only'
    """,
    """
    INSERT INTO assetclass.operation_total
    SELECT * FROM assetclass.operation_sums
    WHERE status NOT IN ('requested', 'running', 'paused')
    """,
    """
    CREATE INDEX operation_rolled_back ON assetclass.operation (correction_id)
    WHERE rolled_back_by IS NOT NULL
    """,
    """
    CREATE INDEX notification_failed ON assetclass.notification (id)
    WHERE dropped_at IS NOT NULL AND last_error IS NOT NULL
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX assetclass.notification_failed")
    op.execute("DROP INDEX assetclass.operation_rolled_back")
    op.execute("DROP VIEW assetclass.operation_sums")
    op.execute("DROP TABLE assetclass.operation_total")
