-- What an operation came to, kept in one row when it ends. What is summed up, and how, is the view
-- assetclass.operation_sums.

-- name: record_total
INSERT INTO assetclass.operation_total AS t
    (correction_id, kind, dry_run, status, epoch, started_at, ended_at, idle_seconds,
     duration_seconds, times_failed, times_cancelled, times_timed_out, times_window_closed,
     times_interrupted, records_attempted, records_corrected, records_skipped, records_failed,
     records_conflicting, batches, batch_milliseconds,
     batches_50ms, batches_100ms, batches_250ms, batches_500ms, batches_1000ms, batches_2500ms,
     batches_5000ms, batches_10000ms, batches_30000ms, batches_60000ms, batches_300000ms,
     estimate_error_percent)
SELECT s.correction_id, s.kind, s.dry_run, s.status, s.epoch, s.started_at, s.ended_at,
       s.idle_seconds, s.duration_seconds, s.times_failed, s.times_cancelled, s.times_timed_out,
       s.times_window_closed, s.times_interrupted, s.records_attempted, s.records_corrected,
       s.records_skipped, s.records_failed, s.records_conflicting, s.batches, s.batch_milliseconds,
       s.batches_50ms, s.batches_100ms, s.batches_250ms, s.batches_500ms, s.batches_1000ms,
       s.batches_2500ms, s.batches_5000ms, s.batches_10000ms, s.batches_30000ms,
       s.batches_60000ms, s.batches_300000ms, s.estimate_error_percent
FROM assetclass.operation_sums s WHERE s.correction_id = %(correction_id)s
ON CONFLICT (correction_id) DO UPDATE
SET status = excluded.status, epoch = excluded.epoch, started_at = excluded.started_at,
    ended_at = excluded.ended_at, idle_seconds = excluded.idle_seconds,
    duration_seconds = excluded.duration_seconds,
    times_failed = excluded.times_failed, times_cancelled = excluded.times_cancelled,
    times_timed_out = excluded.times_timed_out,
    times_window_closed = excluded.times_window_closed,
    times_interrupted = excluded.times_interrupted,
    records_attempted = excluded.records_attempted,
    records_corrected = excluded.records_corrected, records_skipped = excluded.records_skipped,
    records_failed = excluded.records_failed, records_conflicting = excluded.records_conflicting,
    batches = excluded.batches, batch_milliseconds = excluded.batch_milliseconds,
    batches_50ms = excluded.batches_50ms,
    batches_100ms = excluded.batches_100ms,
    batches_250ms = excluded.batches_250ms,
    batches_500ms = excluded.batches_500ms,
    batches_1000ms = excluded.batches_1000ms,
    batches_2500ms = excluded.batches_2500ms,
    batches_5000ms = excluded.batches_5000ms,
    batches_10000ms = excluded.batches_10000ms,
    batches_30000ms = excluded.batches_30000ms,
    batches_60000ms = excluded.batches_60000ms,
    batches_300000ms = excluded.batches_300000ms,
    estimate_error_percent = excluded.estimate_error_percent

-- name: go_on
-- NULL tells a second try of the same claim that the time is counted already. What was cancelled
-- before it began has not idled.
UPDATE assetclass.operation_total
SET idle_seconds = idle_seconds + CASE WHEN started_at IS NOT NULL THEN greatest(
        0, extract(epoch FROM clock_timestamp() - ended_at)::double precision) ELSE 0 END,
    ended_at = NULL
WHERE correction_id = %(correction_id)s AND ended_at IS NOT NULL
