-- What metrics are made of: sums of the totals of what ended, and of the ledger of what runs.
-- Whatever a counter shows is added up in whole milliseconds: a sum of floats depends on the order of
-- its rows, and Prometheus takes the smallest step down for a restart.

-- name: live
-- What runs, and what a process without totals (an older version) has ended.
SELECT o.correction_id FROM assetclass.operation o
WHERE NOT EXISTS (SELECT FROM assetclass.operation_total t
                  WHERE t.correction_id = o.correction_id AND t.ended_at IS NOT NULL)

-- name: ended
SELECT NULL::text AS id, e.* FROM assetclass.operation_total e WHERE e.ended_at IS NOT NULL

-- name: running
SELECT e.correction_id::text AS id, e.* FROM assetclass.operation_sums e
WHERE e.correction_id = ANY (%(live)s)

-- name: totals
SELECT e.id, e.kind, e.dry_run,
       count(*) FILTER (WHERE e.started_at IS NOT NULL) AS started,
       count(*) FILTER (WHERE e.status = 'succeeded') AS completed,
       sum(e.times_failed) AS failed, sum(e.times_cancelled) AS cancelled,
       sum(e.times_timed_out) AS timed_out, sum(e.times_window_closed) AS window_closed,
       sum(e.times_interrupted) AS interrupted,
       sum(e.records_attempted)::bigint AS records_attempted,
       sum(e.records_corrected)::bigint AS records_corrected,
       sum(e.records_skipped)::bigint AS records_skipped,
       sum(e.records_failed)::bigint AS records_failed,
       sum(e.records_conflicting)::bigint AS records_conflicting,
       sum(e.batches)::bigint AS batches,
       sum(e.batch_milliseconds)::bigint AS batch_milliseconds,
       ARRAY[sum(e.batches_50ms), sum(e.batches_100ms), sum(e.batches_250ms),
             sum(e.batches_500ms), sum(e.batches_1000ms), sum(e.batches_2500ms),
             sum(e.batches_5000ms), sum(e.batches_10000ms), sum(e.batches_30000ms),
             sum(e.batches_60000ms), sum(e.batches_300000ms)]::bigint[] AS batch_buckets,
       max(e.ended_at) FILTER (WHERE e.status = 'succeeded') AS last_success_at
FROM ({operations}) e
GROUP BY e.id, e.kind, e.dry_run

-- name: durations
-- Of completed operations, which never go on. `within` is how many of the bounds are not exceeded:
-- all signs are turned, because a bucket of Prometheus includes its upper bound, and width_bucket
-- the lower one.
SELECT width_bucket(-d.duration_seconds, %(descending)s::double precision[]) AS within,
       count(*), sum(round(d.duration_seconds * 1000)::bigint)::bigint AS milliseconds
FROM (SELECT duration_seconds FROM assetclass.operation_total
      WHERE ended_at IS NOT NULL AND status = 'succeeded' AND NOT dry_run
      UNION ALL
      SELECT duration_seconds FROM assetclass.operation_sums
      WHERE correction_id = ANY (%(live)s) AND status = 'succeeded' AND NOT dry_run) d
GROUP BY 1

-- name: windows
-- What ended within each window, of all kinds (kind NULL) and of each. A parked plan has not ended.
-- The longest window is said once more because the planner cannot know how long the others are, and
-- would read everything for each.
SELECT w.name, t.kind, count(*) AS ended,
       count(*) FILTER (WHERE t.status = 'succeeded') AS completed,
       avg(t.duration_seconds) FILTER (WHERE t.status = 'succeeded') AS mean_seconds,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY t.duration_seconds)
           FILTER (WHERE t.status = 'succeeded') AS p95_seconds,
       max(t.duration_seconds) AS longest_seconds,
       avg(t.records_corrected)::double precision AS mean_records,
       sum(t.records_attempted)::bigint AS records_attempted,
       sum(t.records_failed)::bigint AS records_failed
FROM unnest(%(names)s::text[], %(days)s::integer[]) w (name, days)
JOIN assetclass.operation_total t ON t.ended_at >= now() - make_interval(days => w.days)
WHERE t.ended_at >= now() - make_interval(days => %(longest)s::integer)
  AND NOT t.dry_run AND t.started_at IS NOT NULL AND t.status <> 'planned'
GROUP BY GROUPING SETS ((w.name), (w.name, t.kind))

-- name: trend
-- One row a day (UTC), today last; its quality is what was measured last on that day.
SELECT d.day, coalesce(o.ended, 0) AS ended, coalesce(o.completed, 0) AS completed,
       coalesce(o.records_corrected, 0)::bigint AS records_corrected, o.mean_seconds,
       q.quality_score
FROM (SELECT (now() AT TIME ZONE 'UTC')::date - n AS day
      FROM generate_series(0, %(days)s::integer - 1) n) d
LEFT JOIN (
    SELECT (t.ended_at AT TIME ZONE 'UTC')::date AS day, count(*) AS ended,
           count(*) FILTER (WHERE t.status = 'succeeded') AS completed,
           sum(t.records_corrected) FILTER (WHERE t.kind = 'correction') AS records_corrected,
           avg(t.duration_seconds) FILTER (WHERE t.status = 'succeeded') AS mean_seconds
    FROM assetclass.operation_total t
    WHERE t.ended_at >= now() - make_interval(days => %(days)s::integer)
      AND NOT t.dry_run AND t.started_at IS NOT NULL AND t.status <> 'planned'
    GROUP BY 1) o USING (day)
LEFT JOIN (
    SELECT DISTINCT ON (1) (m.measured_at AT TIME ZONE 'UTC')::date AS day, m.quality_score
    FROM assetclass.quality_measurement m
    WHERE m.measured_at >= now() - make_interval(days => %(days)s::integer)
    ORDER BY 1, m.measured_at DESC) q USING (day)
ORDER BY d.day

-- name: quality
SELECT measured_at, total_records, completeness, integrity, orphaned_percent, quality_score,
       correctable, report #> '{{effort,estimatedSeconds}}' AS estimated_seconds
FROM assetclass.quality_measurement
ORDER BY measured_at DESC LIMIT 1

-- name: waits
-- Between two processes nobody was held: nobody was there.
SELECT signal, sum(round(seconds * 1000)::bigint)::bigint AS milliseconds
FROM assetclass.operation_wait WHERE signal <> 'next_process'
GROUP BY signal

-- name: alerts
SELECT alert_type, severity, count(*) FROM assetclass.alert WHERE status <> 'resolved'
GROUP BY alert_type, severity

-- name: upkeep
SELECT (SELECT count(*) FROM assetclass.operation WHERE rolled_back_by IS NOT NULL)
           AS rolled_back,
       (SELECT t.estimate_error_percent FROM assetclass.operation_total t
        WHERE t.ended_at IS NOT NULL AND t.kind = 'correction' AND t.status = 'succeeded'
          AND t.estimate_error_percent IS NOT NULL
        ORDER BY t.ended_at DESC LIMIT 1) AS preview_error_percent,
       waiting.*, backups.*,
       (SELECT count(*) FROM assetclass.notification
        WHERE dropped_at IS NOT NULL AND last_error IS NOT NULL AND attempts >= %(tries)s)
           AS notifications_failed
FROM (SELECT count(*) AS notifications_waiting,
             -- One that nobody should get yet (a snooze, a maintenance window) does not wait for us.
             extract(epoch FROM clock_timestamp() - min(
                 CASE WHEN last_error IS NOT NULL THEN created_at
                      WHEN due_at <= clock_timestamp() THEN due_at END))::double precision
                 AS oldest_waiting_seconds
      FROM assetclass.notification
      WHERE delivered_at IS NULL AND dropped_at IS NULL) waiting,
     (SELECT count(*) AS backup_tables, coalesce(sum(b.bytes), 0)::bigint AS backup_bytes,
             extract(epoch FROM clock_timestamp() - min(b.created_at))::double precision
                 AS oldest_backup_seconds
      FROM assetclass.backup b
      WHERE b.dropped_at IS NULL
        AND EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE n.nspname = b.schema_name AND c.relname = b.table_name)) backups

-- name: active
SELECT o.correction_id::text AS correction_id, o.kind, o.status, o.phase, o.dry_run,
       o.records_planned, coalesce(h.throttle, '{{}}') AS throttle,
       CASE WHEN o.status = 'requested'
            THEN extract(epoch FROM clock_timestamp() - coalesce(
                (SELECT max(r.requested_at) FROM assetclass.operation_request r
                 WHERE r.correction_id = o.correction_id), o.requested_at))
            -- As the alert counts it: before its own window opened it was not to work.
            ELSE greatest(0, extract(epoch FROM clock_timestamp() - o.started_at)
                             - coalesce(t.idle_seconds, 0)
                             - coalesce((SELECT w.seconds FROM assetclass.operation_wait w
                                         WHERE w.correction_id = o.correction_id
                                           AND w.signal = 'window'), 0))
       END::double precision AS seconds,
       CASE WHEN h.holder <> ''
            THEN extract(epoch FROM clock_timestamp() - h.beat_at)::double precision
       END AS heartbeat_age_seconds
FROM assetclass.operation o
LEFT JOIN assetclass.operation_heartbeat h USING (correction_id)
LEFT JOIN assetclass.operation_total t USING (correction_id)
WHERE o.status IN ('requested', 'running', 'paused')

-- name: now
SELECT clock_timestamp()
