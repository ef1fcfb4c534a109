-- What reports are made of: all of it is history, nothing is measured here.

-- name: operations
-- Ended operations that were asked for in a period, newest first; their sums come from the ledger.
WITH chosen AS MATERIALIZED (
    SELECT * FROM assetclass.operation
    WHERE requested_at >= %(since)s AND requested_at < %(until)s
      AND status NOT IN ('requested', 'running', 'paused')
),
ledger AS (
    SELECT b.correction_id, sum(b.records_corrected)::bigint AS records_corrected,
           sum(b.last_seq - b.first_seq + 1) FILTER (WHERE b.pass = 0)::bigint AS records_attempted,
           count(*) FILTER (WHERE b.pass = 0) AS batches,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY b.last_seq - b.first_seq + 1)
               FILTER (WHERE b.pass = 0) AS median_batch
    FROM assetclass.operation_batch b JOIN chosen USING (correction_id) GROUP BY b.correction_id
),
failed AS (
    SELECT s.correction_id, count(*) AS records_failed
    FROM assetclass.operation_skipped_row s JOIN chosen USING (correction_id)
    WHERE s.reason = 'quarantined' GROUP BY s.correction_id
),
waits AS (
    -- Between two processes nobody was held: nobody was there.
    SELECT w.correction_id, jsonb_object_agg(w.signal, w.seconds) AS waits
    FROM assetclass.operation_wait w JOIN chosen USING (correction_id)
    WHERE w.signal <> 'next_process' GROUP BY w.correction_id
)
SELECT o.correction_id::text AS correction_id, o.kind, o.status, o.dry_run, o.requested_by,
       o.reason, o.ticket, o.requested_at,
       -- Without the time between an end and its resume; an older version left no total.
       coalesce(t.duration_seconds, extract(epoch FROM o.finished_at - o.started_at)::float8)
           AS duration_seconds,
       o.records_planned, coalesce(ledger.records_attempted, 0) AS records_attempted,
       coalesce(ledger.records_corrected, 0) AS records_corrected,
       coalesce(failed.records_failed, 0) AS records_failed,
       coalesce(ledger.batches, 0) AS batches, ledger.median_batch,
       flow.flow_records / nullif(flow.flow_seconds, 0) AS records_per_second,
       coalesce(waits.waits, '{{}}') AS waits, o.error ->> 'message' AS error,
       o.rollback_of::text AS rollback_of, o.rolled_back_by::text AS rolled_back_by
FROM chosen o
LEFT JOIN assetclass.operation_total t USING (correction_id)
LEFT JOIN ledger USING (correction_id)
LEFT JOIN failed USING (correction_id)
LEFT JOIN waits USING (correction_id)
CROSS JOIN LATERAL ({flow}) flow
ORDER BY o.requested_at DESC, o.correction_id

-- name: daily_scores
-- The last measurement of each day (UTC), oldest first, with how many there were.
SELECT DISTINCT ON (day) measured_at, source, total_records, completeness, integrity,
       orphaned_percent, quality_score, correctable,
       count(*) OVER (PARTITION BY day) AS measurements
FROM (SELECT *, (measured_at AT TIME ZONE 'UTC')::date AS day
      FROM assetclass.quality_measurement
      WHERE measured_at >= %(since)s AND measured_at < %(until)s) measured
ORDER BY day, id DESC

-- name: violations
-- Of all measurements of a period: how many each limit would have failed, the worst and best value.
SELECT count(*) AS measurements,
       jsonb_build_object(
           'completeness', jsonb_build_array(count(*) FILTER (
               WHERE completeness < %(completeness)s), min(completeness), max(completeness)),
           'integrity', jsonb_build_array(count(*) FILTER (
               WHERE integrity < %(integrity)s), min(integrity), max(integrity)),
           'orphaned', jsonb_build_array(count(*) FILTER (
               WHERE orphaned_percent >= %(orphaned)s),
               max(orphaned_percent), min(orphaned_percent)),
           'quality_score', jsonb_build_array(count(*) FILTER (
               WHERE quality_score < %(quality_score)s), min(quality_score), max(quality_score)),
           'correctable', jsonb_build_array(count(*) FILTER (
               WHERE share > %(correctable)s), max(share), min(share))) AS by_threshold
FROM (SELECT *, coalesce(100 * correctable::float8 / nullif(total_records, 0), 0) AS share
      FROM assetclass.quality_measurement
      WHERE measured_at >= %(since)s AND measured_at < %(until)s) measured

-- name: changes_by_class
-- Rows that operations of a period changed, from one class to another.
SELECT o.kind, c.old_class AS "from", c.new_class AS "to", sum(c.records)::bigint AS records,
       count(DISTINCT c.symbol) AS symbols, count(DISTINCT c.correction_id) AS operations
FROM assetclass.operation o JOIN assetclass.operation_change c USING (correction_id)
WHERE o.requested_at >= %(since)s AND o.requested_at < %(until)s AND NOT o.dry_run
GROUP BY 1, 2, 3
ORDER BY records DESC, 1, 2, 3
LIMIT %(most)s

-- name: changes_by_symbol
SELECT o.kind, c.symbol, c.old_class AS "from", c.new_class AS "to",
       sum(c.records)::bigint AS records, count(DISTINCT c.correction_id) AS operations
FROM assetclass.operation o JOIN assetclass.operation_change c USING (correction_id)
WHERE o.requested_at >= %(since)s AND o.requested_at < %(until)s AND NOT o.dry_run
GROUP BY 1, 2, 3, 4
ORDER BY records DESC, 1, 2, 3, 4
LIMIT %(most)s

-- name: alerts
-- Alerts opened in a period, by type, with how long people and causes took (medians, in seconds).
SELECT a.alert_type, count(*) AS opened,
       coalesce(sum(a.occurrences - 1), 0)::bigint AS repeats,
       coalesce(sum(a.times_reopened), 0)::bigint AS reopened,
       count(a.acknowledged_at) AS acknowledged, count(a.resolved_at) AS resolved,
       count(*) FILTER (WHERE a.status <> 'resolved') AS unresolved,
       percentile_cont(0.5) WITHIN GROUP (
           ORDER BY extract(epoch FROM a.acknowledged_at - a.opened_at))
           AS seconds_to_acknowledge,
       percentile_cont(0.5) WITHIN GROUP (
           ORDER BY extract(epoch FROM a.resolved_at - a.opened_at)) AS seconds_to_resolve
FROM assetclass.alert a
WHERE a.opened_at >= %(since)s AND a.opened_at < %(until)s
GROUP BY a.alert_type
ORDER BY opened DESC, a.alert_type

-- name: threshold_changes
SELECT happened_at, actor, parameters FROM assetclass.audit_log
WHERE action = 'change_thresholds' AND happened_at >= %(since)s AND happened_at < %(until)s
ORDER BY number

-- name: entries_in_period
SELECT count(*) FROM assetclass.audit_log
WHERE happened_at >= %(since)s AND happened_at < %(until)s

-- name: sizes
-- Bytes of the market table (its local leaves), of its indexes, and of the backups and archives that
-- are still there. A backup that was dropped by hand has no size.
SELECT (SELECT coalesce(sum(pg_table_size(leaf)), 0)::bigint
        FROM unnest(%(leaves)s::oid[]) AS leaf) AS table_bytes,
       (SELECT coalesce(sum(pg_indexes_size(leaf)), 0)::bigint
        FROM unnest(%(leaves)s::oid[]) AS leaf) AS index_bytes,
       backups.backups, backups.backup_bytes, archives.archives, archives.archive_bytes,
       pg_size_bytes(current_setting('max_wal_size')) AS max_wal_bytes
FROM (SELECT count(relation) AS backups,
             coalesce(sum(pg_total_relation_size(relation)), 0)::bigint AS backup_bytes
      FROM (SELECT to_regclass(format('%%I.%%I', schema_name, table_name)) AS relation
            FROM assetclass.backup WHERE dropped_at IS NULL) present) backups
CROSS JOIN (SELECT count(*) AS archives, coalesce(sum(bytes), 0)::bigint AS archive_bytes
            FROM assetclass.archive WHERE removed_at IS NULL) archives

-- name: latest_report
SELECT measured_at, source, report FROM assetclass.quality_measurement ORDER BY id DESC LIMIT 1
