"""A long history: operations with their ledger, measurements, alerts, one operation that runs.

Belongs here: its rows, written as the pipeline writes them. Does not: what is read of it.
"""

import psycopg

from assetclass_pipeline.database import schema
from benchmarks.databases import Databases, settings_for

LEDGER_ROWS = 1_000_000
# 10,000 operations of 100 batches each; the one that runs has as many batches as a hundred of them.
BATCHES = 100

_OPERATIONS = """
INSERT INTO assetclass.operation (correction_id, kind, status, phase, epoch, dry_run, options,
    requested_by, requested_at, started_at, finished_at, records_planned, preflight, plan,
    estimate_error_percent)
SELECT md5('operation ' || n)::uuid,
       CASE WHEN n %% 20 = 0 THEN 'rollback' ELSE 'correction' END,
       CASE WHEN n = 1 THEN 'running'
            ELSE (ARRAY['succeeded', 'succeeded', 'succeeded', 'succeeded', 'failed', 'cancelled',
                        'timed_out', 'interrupted', 'succeeded'])[1 + n %% 9] END,
       'correcting', 1, n %% 10 = 7,
       jsonb_build_object('batchSize', 1000, 'text', repeat('option ', 40)), 'benchmark',
       now() - n * interval '1 hour', now() - n * interval '1 hour',
       CASE WHEN n > 1 THEN now() - n * interval '1 hour' + n %% 100 * interval '100 s' END,
       100000, jsonb_build_object('text', repeat('preflight ', 150)),
       jsonb_build_object('segments', repeat('plan ', 60)), n %% 50
FROM generate_series(1, %(operations)s) n
"""
_LEDGER = """
INSERT INTO assetclass.operation_batch (correction_id, pass, first_seq, last_seq, epoch, worker,
    records_corrected, records_skipped, duration_ms, committed_at)
SELECT md5('operation ' || n)::uuid, 0, 1000 * b + 1, 1000 * (b + 1), 1, b %% 2, 990, 10,
       (b * 37 + n) %% 4000, now()
FROM generate_series(1, %(operations)s) n,
     generate_series(1, CASE WHEN n = 1 THEN %(running)s ELSE %(batches)s END) b
WHERE n %% 10 <> 7
"""
_BESIDE = """
INSERT INTO assetclass.operation_heartbeat (correction_id, epoch, beat_at, holder)
SELECT correction_id, 1, coalesce(finished_at, now()),
       CASE WHEN status = 'running' THEN 'benchmark' ELSE '' END
FROM assetclass.operation;
INSERT INTO assetclass.operation_wait (correction_id, signal, seconds)
SELECT correction_id, signal, random() * 100
FROM assetclass.operation, unnest(ARRAY['next_process', 'pause', 'replication_lag']) signal;
INSERT INTO assetclass.operation_skipped_row (correction_id, seq, reason)
SELECT correction_id, seq, (ARRAY['locked', 'deleted', 'quarantined'])[1 + seq % 3]
FROM assetclass.operation, generate_series(1, 10) seq WHERE NOT dry_run;
INSERT INTO assetclass.operation_total
SELECT * FROM assetclass.operation_sums WHERE status <> 'running';
INSERT INTO assetclass.quality_measurement (measured_at, source, total_records, completeness,
    integrity, orphaned_percent, quality_score, correctable, report)
SELECT now() - n * interval '8 hours', 'benchmark', 1000000, 99, 98, 1, 97, 1000, (
    SELECT jsonb_build_object('effort', '{"estimatedSeconds": {"low": 1, "high": 2}}'::jsonb,
        'byPartition', jsonb_agg(jsonb_build_object('partition', m, 'records', m * n)))
    FROM generate_series(1, 143) m)
FROM generate_series(1, 2000) n;
INSERT INTO assetclass.alert (cause, alert_type, severity, status, summary)
SELECT 'cause ' || n, 'OPERATION_FAILED', 'high',
       CASE WHEN n <= 20 THEN 'open' ELSE 'resolved' END, 'benchmark'
FROM generate_series(1, 10000) n;
INSERT INTO assetclass.notification (alert_id, occasion, channel, delivered_at, dropped_at,
                                     last_error)
SELECT id, 'opened', 'pager', CASE WHEN id % 50 > 0 THEN now() END,
       CASE WHEN id % 50 = 0 AND id > 500 THEN now() END, CASE WHEN id % 50 = 0 THEN 'away' END
FROM assetclass.alert;
"""


def build_history(databases: Databases, name: str, ledger_rows: int) -> str:
    """DSN of a new database whose ledger has about so many rows, vacuumed and analysed."""
    dsn = databases.create(name)
    schema.upgrade(dsn, settings_for(dsn))
    size = {
        "operations": max(2, ledger_rows // BATCHES),
        "batches": BATCHES,
        "running": max(1, ledger_rows // 100),
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_OPERATIONS, size)
        connection.execute(_LEDGER, size)
        # As after a while of autovacuum: the totals are summed up with the ledger's statistics.
        connection.execute("ANALYZE")
        connection.execute(_BESIDE)
        connection.execute("VACUUM (ANALYZE)")
    return dsn
