-- Looks at the pipeline's own records: read-only, by indexes, cheap however long the history is.

-- name: answers
SELECT current_setting('server_version'), pg_is_in_recovery()

-- name: active_operation
-- Batches take ascending ranges, so the newest commits stand at the end of the ledger.
SELECT o.correction_id::text AS correction_id, o.kind, o.status, o.phase,
       -- Since it was asked for the last time; one whose run is launched waits for nobody.
       coalesce((SELECT CASE WHEN r.run_id IS NULL
                             THEN extract(epoch FROM clock_timestamp() - r.requested_at) ELSE 0 END
                 FROM assetclass.operation_request r WHERE r.correction_id = o.correction_id
                 ORDER BY r.attempt DESC LIMIT 1),
                extract(epoch FROM clock_timestamp() - o.requested_at))::double precision AS waited,
       extract(epoch FROM {silence})::double precision AS silent,
       coalesce({is_abandoned}, false) AS abandoned,
       coalesce(h.throttle, '{{}}') AS throttle,
       extract(epoch FROM clock_timestamp() - greatest(o.started_at, newest.committed_at))
           ::double precision AS idle,
       extract(epoch FROM clock_timestamp() - c.wanted_at)::double precision AS paused
FROM assetclass.operation o
LEFT JOIN assetclass.operation_heartbeat h USING (correction_id)
LEFT JOIN assetclass.operation_control c
       ON c.correction_id = o.correction_id AND c.wanted = 'pause'
CROSS JOIN LATERAL (
    SELECT max(last.committed_at) AS committed_at
    FROM (SELECT b.committed_at FROM assetclass.operation_batch b
          WHERE b.correction_id = o.correction_id
          ORDER BY b.pass DESC, b.first_seq DESC LIMIT 50) last) newest
WHERE o.status IN ('requested', 'running', 'paused')

-- name: quality_report_age
-- Seconds since the newest measurement of the asset, and since anything was recorded at all. Only
-- the newest measurements are looked through: each operation adds others.
SELECT (SELECT extract(epoch FROM clock_timestamp() - max(newest.measured_at))
        FROM (SELECT m.measured_at, m.source FROM assetclass.quality_measurement m
              ORDER BY m.measured_at DESC LIMIT 1000) newest
        WHERE newest.source = %(source)s)::double precision,
       (SELECT extract(epoch FROM clock_timestamp() - a.happened_at)
        FROM assetclass.audit_log a ORDER BY a.number LIMIT 1)::double precision

-- name: deliveries
-- Of each channel: seconds that the longest due message waits for somebody to try, most failed
-- tries of a waiting one, and whether the newest message that came to its end was given up after
-- all tries (then `last_error` says why). What was dropped unsaid, or is not due, is no failure.
SELECT channel, max(overdue) AS overdue, max(failed_tries) AS failed_tries,
       (array_agg(dropped ORDER BY ended_at DESC) FILTER (WHERE ended_at IS NOT NULL))[1] AS dropped,
       (array_agg(last_error ORDER BY coalesce(ended_at, created_at) DESC)
            FILTER (WHERE last_error IS NOT NULL))[1] AS last_error
FROM (SELECT n.channel, n.created_at, n.last_error,
             CASE WHEN n.delivered_at IS NULL AND n.dropped_at IS NULL
                  THEN extract(epoch FROM clock_timestamp() - n.due_at)::double precision
             END AS overdue,
             CASE WHEN n.delivered_at IS NULL AND n.dropped_at IS NULL AND n.last_error IS NOT NULL
                  THEN n.attempts END AS failed_tries,
             CASE WHEN n.dropped_at IS NULL THEN n.delivered_at
                  WHEN n.attempts >= %(tries)s THEN n.dropped_at END AS ended_at,
             n.dropped_at IS NOT NULL AND n.attempts >= %(tries)s AS dropped
      FROM (SELECT * FROM (SELECT * FROM assetclass.notification ORDER BY id DESC LIMIT 500) newest
            UNION
            SELECT * FROM (SELECT * FROM assetclass.notification
                           WHERE delivered_at IS NULL AND dropped_at IS NULL
                           ORDER BY due_at LIMIT 500) waiting) n) judged
GROUP BY channel
ORDER BY channel

-- name: clock
SELECT extract(epoch FROM clock_timestamp())::double precision
