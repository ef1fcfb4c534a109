-- What the watchers ask. Every statement is bounded: it goes by an index from where the last look
-- ended, and reads so many rows at most.

-- name: unresolved
-- Causes of alerts that are open, with the incident that each tells of.
SELECT cause, details ->> 'incident' FROM assetclass.alert WHERE status <> 'resolved'

-- name: audit_start
-- The audit log numbers its entries in the order of their commits and without gaps, so a number says
-- exactly what was looked at. The first look begins a while ago.
SELECT coalesce((SELECT number FROM assetclass.audit_log
                 WHERE happened_at < clock_timestamp() - make_interval(secs => %(look_back)s)
                 ORDER BY happened_at DESC LIMIT 1), 0)

-- name: audit_horizon
-- How far this look goes, and over how many entries.
SELECT max(number), count(*)
FROM (SELECT number FROM assetclass.audit_log WHERE number > %(after)s
      ORDER BY number LIMIT %(most)s) entries

-- name: ended
-- Operations that ended, as they ended: one may go on since then, and end again further down.
SELECT o.correction_id::text AS correction_id, o.kind, a.outcome AS status, o.dry_run,
       (a.parameters ->> 'epoch')::integer AS epoch, o.run_id, o.requested_by, o.phase,
       a.parameters #>> '{{error,code}}' AS error_code,
       a.parameters #>> '{{error,message}}' AS error_message,
       o.options ->> 'timeout' AS timeout,
       coalesce(o.stop_at <= a.happened_at, false) AS window_closed,
       {running_seconds} AS running_seconds, {work_seconds} AS work_seconds,
       (a.parameters ->> 'recordsCorrected')::bigint + (a.parameters ->> 'recordsSkipped')::bigint
           + (a.parameters ->> 'recordsFailed')::bigint AS attempted,
       (a.parameters ->> 'recordsFailed')::bigint AS failed,
       (SELECT coalesce(jsonb_agg(to_jsonb(worst)), '[]')
        FROM (SELECT q.symbol, q.error_code AS "errorCode", count(*) AS records
              FROM assetclass.operation_quarantined_row q
              WHERE q.correction_id = o.correction_id
              GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 5) worst) AS worst_symbols,
       o.kind = 'rollback' AND NOT EXISTS (
           SELECT FROM assetclass.operation f
           JOIN assetclass.operation undone ON undone.correction_id = o.rollback_of
           WHERE f.kind = 'correction' AND NOT f.dry_run AND f.status IN ('failed', 'interrupted')
             AND f.rolled_back_by IS NULL AND f.requested_at > undone.requested_at) AS settles,
       o.records_planned, o.finished_at
FROM assetclass.audit_log a
JOIN assetclass.operation o USING (correction_id)
WHERE a.number > %(after)s AND a.number <= %(horizon)s AND a.action = 'end_operation'
ORDER BY a.number

-- name: end_of_try
-- One that went on since then ended for good later than the audit log says.
least(a.happened_at, coalesce(o.finished_at, a.happened_at))

-- name: running_seconds
-- Without the time between two processes, and that in which its own window was not open yet.
greatest(0, coalesce(extract(epoch FROM {until} - o.started_at)::float8, 0)
            - coalesce((SELECT sum(w.seconds) FROM assetclass.operation_wait w
                        WHERE w.correction_id = o.correction_id
                          AND w.signal IN ('next_process', 'window')), 0))

-- name: work_seconds
greatest(0, coalesce(extract(epoch FROM {until} - o.started_at)::float8, 0)
            - coalesce((SELECT sum(w.seconds) FROM assetclass.operation_wait w
                        WHERE w.correction_id = o.correction_id), 0))

-- name: past_speeds
-- Seconds of work for each row of the operations before it of the same kind and size, newest first.
SELECT seconds / attempted
FROM (SELECT {work_seconds} AS seconds,
             (SELECT sum(b.last_seq - b.first_seq + 1) FROM assetclass.operation_batch b
              WHERE b.correction_id = o.correction_id AND b.pass = 0)::float8 AS attempted
      FROM (SELECT * FROM assetclass.operation
            WHERE kind = %(kind)s AND status = 'succeeded' AND NOT dry_run
              AND records_planned >= %(from_rows)s AND records_planned < %(below_rows)s
              AND finished_at < %(ended_at)s
            ORDER BY requested_at DESC LIMIT %(most)s) o) past
WHERE attempted > 0

-- name: active
SELECT o.correction_id::text AS correction_id, o.kind, o.status, o.dry_run, o.epoch, o.run_id,
       o.requested_by, o.phase, o.options ->> 'timeout' AS timeout,
       o.status IN ('running', 'paused') AND coalesce({is_abandoned}, false) AS abandoned,
       extract(epoch FROM {silence})::float8 AS silent_seconds,
       -- Since it was asked for the last time; one whose run is launched waits for nobody.
       coalesce((SELECT CASE WHEN r.run_id IS NULL
                             THEN extract(epoch FROM clock_timestamp() - r.requested_at) ELSE 0 END
                 FROM assetclass.operation_request r WHERE r.correction_id = o.correction_id
                 ORDER BY r.attempt DESC LIMIT 1),
                extract(epoch FROM clock_timestamp() - o.requested_at))::float8 AS requested_seconds,
       {running_seconds} AS running_seconds
FROM assetclass.operation o
LEFT JOIN assetclass.operation_heartbeat h USING (correction_id)
WHERE o.status IN ('requested', 'running', 'paused')

-- name: explained_runs
-- Runs whose failure is no news of its own: their operation failed, or was stopped on purpose, or
-- is still watched by its heartbeat.
SELECT run_id, status || ' ' || kind || ' ' || correction_id::text
FROM assetclass.operation
WHERE run_id = ANY (%(run_ids)s)
  AND (status IN ('timed_out', 'cancelled')
       OR (NOT dry_run AND status IN ('failed', 'interrupted', 'requested', 'running', 'paused')))

-- name: newest_measurement
SELECT id AS measurement_id, measured_at, total_records, quality_score, orphaned_percent,
       correctable, run_id, correction_id::text AS correction_id,
       report -> 'bySymbol' AS symbols, report -> 'byPartition' AS months
FROM assetclass.quality_measurement
WHERE id > %(after)s AND source = 'quality_report'
ORDER BY id DESC LIMIT 1

-- name: past_scores
-- Of measurements before it, newest first: whether it is of the same size, and its score.
SELECT total_records >= %(from_rows)s AND total_records < %(below_rows)s, quality_score
FROM assetclass.quality_measurement
WHERE id < %(before)s AND source = 'quality_report'
ORDER BY id DESC LIMIT %(most)s
