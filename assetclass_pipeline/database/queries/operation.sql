-- name: create
INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options, range_start,
                                  range_end, requested_by, reason, ticket, run_id, retry_of,
                                  rollback_of)
VALUES (%(correction_id)s, %(kind)s, %(status)s, 'starting', %(dry_run)s, %(options)s,
        %(range_start)s, %(range_end)s, %(requested_by)s, %(reason)s, %(ticket)s, %(run_id)s,
        %(retry_of)s, %(rollback_of)s)

-- name: lock
SELECT status, dry_run, kind, rollback_of FROM assetclass.operation
WHERE correction_id = %(correction_id)s FOR UPDATE

-- name: begun_rollback
-- The rollback that began on a correction: what it restores was fixed by its plan.
SELECT correction_id::text FROM assetclass.operation
WHERE rollback_of = %(correction_id)s AND NOT dry_run AND plan IS NOT NULL
ORDER BY requested_at DESC LIMIT 1

-- name: heartbeat_age
-- Seconds since the holder was last heard of (the database's clock), and who; no row when nobody.
SELECT extract(epoch FROM clock_timestamp() - h.beat_at)::double precision, h.holder
FROM assetclass.operation_heartbeat h
WHERE h.correction_id = %(correction_id)s AND h.holder <> ''

-- name: claim
-- Raising the epoch waits for the batch in flight (it holds the row FOR SHARE) and fences all later ones.
UPDATE assetclass.operation
SET status = 'running', epoch = epoch + 1, run_id = coalesce(%(run_id)s, run_id),
    stop_at = %(stop_at)s, started_at = coalesce(started_at, clock_timestamp()), finished_at = NULL, error = NULL
WHERE correction_id = %(correction_id)s
RETURNING epoch

-- name: beat
INSERT INTO assetclass.operation_heartbeat AS h
    (correction_id, epoch, beat_at, holder, pacing, throttle)
VALUES (%(correction_id)s, %(epoch)s, clock_timestamp(), %(holder)s, %(pacing)s, %(throttle)s)
ON CONFLICT (correction_id) DO UPDATE
SET epoch = excluded.epoch, beat_at = excluded.beat_at, holder = excluded.holder,
    pacing = coalesce(excluded.pacing, h.pacing), throttle = excluded.throttle
WHERE h.epoch <= excluded.epoch

-- name: interrupt_abandoned
-- An active operation whose holder has not been heard of for too long ends as interrupted.
UPDATE assetclass.operation o
SET status = 'interrupted', epoch = o.epoch + 1, finished_at = clock_timestamp(),
    error = jsonb_build_object('code', 'OPERATION_INTERRUPTED', 'message',
        'Its process was not heard of any more. Run it again to go on where it stopped.')
FROM assetclass.operation_heartbeat h
WHERE o.status IN ('running', 'paused') AND h.correction_id = o.correction_id AND {is_abandoned}
RETURNING o.correction_id::text

-- name: silence
-- While the server was down nobody could be heard: silence counts from its start.
clock_timestamp() - greatest(h.beat_at, pg_postmaster_start_time())

-- name: is_abandoned
({silence} > make_interval(secs => %(stale_after)s)
 OR ({silence} > make_interval(secs => %(missed_after)s)
     AND h.holder <> ''
     AND NOT EXISTS (
         SELECT FROM pg_locks l
         WHERE l.locktype = 'advisory' AND l.granted AND l.objid = 1
           AND l.classid::bigint = %(advisory_class)s
           AND l.database = (SELECT d.oid FROM pg_database d
                             WHERE d.datname = current_database()))))

-- name: active
SELECT correction_id::text FROM assetclass.operation
WHERE status IN ('requested', 'running', 'paused')

-- name: require_ours
SELECT FROM assetclass.operation
WHERE correction_id = %(correction_id)s AND status = 'running' AND epoch = %(epoch)s
FOR SHARE

-- name: require_held
-- Waits for a take-over that is about to commit, and makes a later one wait.
SELECT FROM assetclass.operation
WHERE correction_id = %(correction_id)s AND status IN ('running', 'paused') AND epoch = %(epoch)s
FOR SHARE

-- name: set_phase
UPDATE assetclass.operation SET phase = %(phase)s
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'running'

-- name: set_quality_before
UPDATE assetclass.operation
SET quality_before = coalesce(quality_before, %(quality)s), mismatched_left = %(mismatched_left)s
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'running'

-- name: set_backup_table
UPDATE assetclass.operation
SET backup_table = %(backup_table)s, plan = %(plan)s, records_planned = NULL
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'running'

-- name: set_plan
UPDATE assetclass.operation SET plan = %(plan)s, records_planned = %(planned)s
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'running'

-- name: finish
UPDATE assetclass.operation
SET status = %(status)s, phase = %(phase)s, finished_at = clock_timestamp(),
    error = %(error)s, quality_after = coalesce(%(quality_after)s, quality_after),
    late_left = %(late_left)s, estimate_error_percent = %(estimate_error_percent)s,
    backup_table = CASE WHEN %(dropped)s THEN NULL ELSE backup_table END
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s

-- name: end_badly
-- The phase stays: it tells where the operation stopped.
UPDATE assetclass.operation
SET status = %(status)s, finished_at = clock_timestamp(), error = %(error)s
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status IN ('running', 'paused')

-- name: park
-- A second try finds it parked: COMMIT had arrived, its answer had not.
UPDATE assetclass.operation SET status = 'planned', phase = 'planned'
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status IN ('running', 'planned')

-- name: stored_records
SELECT coalesce(records_planned, 0) FROM assetclass.operation
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s

-- name: plan_of
SELECT o.plan, o.options, o.range_start, o.range_end, h.pacing
FROM assetclass.operation o LEFT JOIN assetclass.operation_heartbeat h USING (correction_id)
WHERE o.correction_id = %(correction_id)s

-- name: forget_changes
DELETE FROM assetclass.operation_change WHERE correction_id = %(correction_id)s

-- name: changes_of_plan
-- What was really changed: planned, in the ledger, and not skipped. A dry run counts its whole plan.
-- By itself, because an INSERT ... SELECT uses one core only.
SELECT b.symbol::text, b.asset_class::text, b.corrected_asset_class::text, count(*)
FROM {backup} b
WHERE (%(dry_run)s OR b.seq <@ coalesce(
          (SELECT range_agg(int8range(first_seq, last_seq, '[]'))
           FROM assetclass.operation_batch
           WHERE correction_id = %(correction_id)s AND pass = 0), '{{}}'))
  AND NOT EXISTS (SELECT FROM assetclass.operation_skipped_row s
                  WHERE s.correction_id = %(correction_id)s AND s.seq = b.seq)
GROUP BY 1, 2, 3

-- name: remember_changes
-- In the order in which equal ones are shown.
INSERT INTO assetclass.operation_change (correction_id, symbol, old_class, new_class, records)
SELECT %(correction_id)s, *
FROM unnest(%(symbols)s::text[], %(old)s::text[], %(new)s::text[], %(records)s::bigint[])
     AS change (symbol, old_class, new_class, records)
ORDER BY symbol, old_class, new_class

-- name: show
-- Everything a surface shows of the chosen operations, newest first; sums come from
-- the ledger, and each list holds so many entries at most. One statement, so all is of one moment.
SELECT o.correction_id::text AS correction_id, o.kind, o.status, o.phase, o.dry_run,
       o.requested_by, o.reason, o.ticket, o.run_id, o.requested_at, o.started_at, o.finished_at,
       o.options, o.records_planned, o.backup_table, o.quality_before, o.quality_after, o.error,
       o.rollback_of::text AS rollback_of, o.rolled_back_by::text AS rolled_back_by,
       o.retry_of::text AS retry_of, o.mismatched_left, o.late_left,
       extract(epoch FROM coalesce(o.finished_at, clock_timestamp()) - o.started_at)::float8
           AS duration_seconds,
       ledger.records_corrected, ledger.batches_done, ledger.records_done,
       flow.flow_seconds, flow.flow_records, skipped.by_reason,
       o.already_restored, conflicts.records_conflicting,
       CASE WHEN o.status IN ('running', 'paused')
                 AND {silence} > make_interval(secs => %(missed_after)s)
            THEN extract(epoch FROM {silence})::float8 END AS silent_seconds,
       o.status IN ('running', 'paused') AND coalesce({is_abandoned}, false) AS abandoned,
       h.pacing, h.throttle, o.preflight, o.estimate, o.estimate_error_percent, o.reference_hash,
       o.stop_at AS window_ends_at, o.correlation_id, (o.plan ->> 'batch_size')::bigint AS first_batch_size,
       -- A batch never spans two leaves, so each of them ends with a shorter one.
       (SELECT sum(ceil((segment.last_seq - segment.first_seq + 1)::numeric
                        / (o.plan ->> 'batch_size')::bigint))::bigint
        FROM jsonb_to_recordset(o.plan -> 'segments') segment (first_seq bigint, last_seq bigint)
       ) AS batches_planned,
       (SELECT coalesce(jsonb_agg(to_jsonb(entry)), '[]')
        FROM (SELECT c.symbol, c.old_class AS "from", c.new_class AS "to", c.records
              FROM assetclass.operation_change c WHERE c.correction_id = o.correction_id
              ORDER BY c.records DESC, c.id LIMIT %(most_changes)s) entry) AS changes,
       (SELECT coalesce(jsonb_agg(to_jsonb(entry)), '[]')
        FROM (SELECT e.happened_at, e.event, e.actor, e.details
              FROM assetclass.operation_event e WHERE e.correction_id = o.correction_id
              ORDER BY e.id DESC LIMIT %(most_events)s) entry) AS events,
       (SELECT coalesce(json_object_agg(w.signal, w.seconds ORDER BY w.seconds DESC), '{{}}')
        FROM assetclass.operation_wait w WHERE w.correction_id = o.correction_id) AS waits,
       (SELECT coalesce(jsonb_agg(to_jsonb(entry)), '[]')
        FROM (SELECT q.id, q.symbol, q."timestamp", q.corrected_asset_class, q.error_code,
                     q.error_message
              FROM assetclass.operation_quarantined_row q
              WHERE q.correction_id = o.correction_id
              ORDER BY q.seq LIMIT %(most_quarantined)s) entry) AS quarantined,
       (SELECT coalesce(jsonb_agg(to_jsonb(entry)), '[]')
        FROM (SELECT c.id, c.symbol, c."timestamp", c.class_before AS before,
                     c.class_corrected AS corrected, c.class_now AS now, c.reason
              FROM assetclass.operation_conflict c WHERE c.correction_id = o.correction_id
              ORDER BY c.seq LIMIT %(most_conflicts)s) entry) AS conflicts
FROM ({chosen}) o
LEFT JOIN assetclass.operation_heartbeat h USING (correction_id)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(b.records_corrected), 0)::bigint AS records_corrected,
           count(*) FILTER (WHERE b.pass = 0) AS batches_done,
           coalesce(sum(b.last_seq - b.first_seq + 1) FILTER (WHERE b.pass = 0), 0)::bigint
               AS records_done
    FROM assetclass.operation_batch b WHERE b.correction_id = o.correction_id) ledger
CROSS JOIN LATERAL ({flow}) flow
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(reason, records), '{{}}') AS by_reason
    FROM (SELECT s.reason, count(*) AS records FROM assetclass.operation_skipped_row s
          WHERE s.correction_id = o.correction_id GROUP BY s.reason) reasons) skipped
CROSS JOIN LATERAL (
    SELECT count(*) AS records_conflicting FROM assetclass.operation_conflict c
    WHERE c.correction_id = o.correction_id) conflicts
ORDER BY o.requested_at DESC, o.correction_id DESC

-- name: flow
-- Rows of an operation's newest batches, and the seconds in which they flowed. While no batch runs,
-- workers rest, for as long as a batch took at most; what is much longer was a wait (a pause, the
-- throttle, the night between two tries), and tells nothing about the rate.
SELECT max(batches.committed_at) AS newest_at,
       coalesce(sum(batches.records_corrected), 0)::bigint AS flow_records,
       extract(epoch FROM max(batches.committed_at) - min(batches.began_at)
               - coalesce(sum(batches.idle - batches.duration)
                              FILTER (WHERE batches.idle > 2 * batches.duration + interval '0.2 s'),
                          interval '0'))::float8 AS flow_seconds
FROM (SELECT newest.*, newest.began_at - max(newest.committed_at) OVER (
                 ORDER BY newest.began_at, newest.committed_at
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS idle
      FROM (SELECT b.records_corrected, b.committed_at,
                   b.duration_ms * interval '1 ms' AS duration,
                   b.committed_at - b.duration_ms * interval '1 ms' AS began_at
            FROM assetclass.operation_batch b WHERE b.correction_id = o.correction_id
            ORDER BY b.committed_at DESC LIMIT 1000) newest) batches

-- name: one
SELECT o.* FROM assetclass.operation o WHERE o.correction_id = %(correction_id)s

-- name: page
-- The active one, and the newest ended ones of a kind.
(SELECT o.* FROM assetclass.operation o WHERE o.status IN ('requested', 'running', 'paused'))
UNION ALL
(SELECT o.* FROM assetclass.operation o WHERE {ended}
 ORDER BY o.requested_at DESC, o.correction_id DESC LIMIT %(most)s)

-- name: that_changed_rows
o.status NOT IN ('requested', 'running', 'paused') AND NOT o.dry_run
  AND EXISTS (SELECT FROM assetclass.operation_batch b
              WHERE b.correction_id = o.correction_id AND b.records_corrected > 0)

-- name: older
{ended} AND (o.requested_at, o.correction_id) < (%(than)s, %(than_id)s)

-- name: that_ended
o.status NOT IN ('requested', 'running', 'paused')

-- name: recent_rate
-- Median rows per second of the last corrections, for estimates.
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY rate)
FROM (SELECT flow.flow_records / nullif(flow.flow_seconds, 0) AS rate
      FROM (SELECT correction_id FROM assetclass.operation WHERE kind = 'correction'
            ORDER BY requested_at DESC LIMIT 20) o
      CROSS JOIN LATERAL ({flow}) flow
      WHERE flow.flow_records >= 1000
      ORDER BY flow.newest_at DESC
      LIMIT 10) rates

-- name: remember_quality
INSERT INTO assetclass.quality_measurement (source, correction_id, run_id, total_records,
    completeness, integrity, orphaned_percent, quality_score, correctable, report)
VALUES (%(source)s, %(correction_id)s, %(run_id)s, %(total_records)s, %(completeness)s,
        %(integrity)s, %(orphaned_percent)s, %(quality_score)s, %(correctable)s, %(report)s)

-- name: quality_history
SELECT measured_at, source, total_records, completeness, integrity, orphaned_percent,
       quality_score, correctable
FROM assetclass.quality_measurement
ORDER BY id DESC LIMIT %(most)s

-- name: covered_seqs
-- Planned rows that the ledger speaks of: done, whether written or skipped.
SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint
FROM assetclass.operation_batch WHERE correction_id = %(correction_id)s AND pass = 0

-- name: operation_of_run
SELECT correction_id::text FROM assetclass.operation WHERE run_id = %(run_id)s
ORDER BY requested_at DESC LIMIT 1

-- name: scanned_pages
SELECT coalesce((plan #>> ARRAY['scanned', %(leaf)s])::bigint, 0)
FROM assetclass.operation WHERE correction_id = %(correction_id)s

-- name: left_by_window
-- Only the newest correction: what an older one left, a newer one has looked at.
SELECT correction_id::text, range_start, range_end
FROM (SELECT * FROM assetclass.operation WHERE kind = 'correction' AND NOT dry_run
      ORDER BY requested_at DESC LIMIT 1) newest
WHERE status = 'timed_out' AND stop_at IS NOT NULL AND plan IS NOT NULL
  -- What was rolled back since does not go on.
  AND NOT EXISTS (SELECT FROM assetclass.operation r
                  WHERE r.rollback_of = newest.correction_id AND NOT r.dry_run
                    AND r.plan IS NOT NULL)

-- name: new_classes
SELECT corrected_asset_class::text, count(*) FROM {backup} GROUP BY 1

-- name: set_preflight
UPDATE assetclass.operation SET preflight = %(preflight)s, estimate = %(estimate)s
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'running'

-- name: rehearsed_row
-- Seconds that a row cost in the rehearsal; NULL where there was none.
SELECT (preflight #>> '{{rehearsal,seconds}}')::double precision
       / nullif((preflight #>> '{{rehearsal,records}}')::double precision, 0)
FROM assetclass.operation WHERE correction_id = %(correction_id)s

-- name: estimate_and_work
-- What was expected when the plan was made, and the seconds that all tries together did not wait.
SELECT o.estimate, extract(epoch FROM clock_timestamp() - o.started_at)::double precision
       - coalesce((SELECT sum(w.seconds) FROM assetclass.operation_wait w
                   WHERE w.correction_id = o.correction_id), 0)
FROM assetclass.operation o WHERE o.correction_id = %(correction_id)s

-- name: set_reference
UPDATE assetclass.operation SET reference_hash = %(reference_hash)s
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'running'

-- name: reference_hash
SELECT reference_hash FROM assetclass.operation WHERE correction_id = %(correction_id)s
