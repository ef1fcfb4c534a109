-- The audit log: one INSERT per action, everything else only reads.

-- name: append
-- Number, time and hashes are the trigger's. It takes a lock that is held until COMMIT: last in a
-- transaction, so that nobody waits for more than that.
INSERT INTO assetclass.audit_log (actor, actor_kind, action, origin, parameters, outcome,
                                  correction_id, correlation_id)
VALUES (%(actor)s, %(actor_kind)s, %(action)s, %(origin)s, %(parameters)s::jsonb, %(outcome)s,
        %(correction_id)s::uuid, %(correlation_id)s)
RETURNING number

-- name: links
-- The text that a hash covers is written out here and not left to a function of the database's,
-- which its owner could replace; the hash itself is computed by the reader.
SELECT number, previous_hash, hash,
       jsonb_build_array(
           number, to_char(happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           actor, actor_kind, action, origin, parameters, outcome, correction_id,
           correlation_id)::text AS text
FROM assetclass.audit_log
ORDER BY number

-- name: entries
SELECT number, happened_at, actor, actor_kind, action, origin, parameters, outcome,
       correction_id::text AS correction_id, correlation_id, previous_hash, hash
FROM assetclass.audit_log
WHERE (%(since)s::timestamptz IS NULL OR happened_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR happened_at < %(until)s::timestamptz)
  AND (%(actor)s::text IS NULL OR actor = %(actor)s::text)
  AND (%(action)s::text IS NULL OR action = %(action)s::text)
  AND (%(correction_id)s::uuid IS NULL OR correction_id = %(correction_id)s::uuid)
ORDER BY number {direction}
LIMIT %(most)s

-- name: claimed
-- What an operation is about, as it was asked for first.
SELECT jsonb_strip_nulls(jsonb_build_object(
           'kind', o.kind, 'options', o.options, 'rangeStart', o.range_start,
           'rangeEnd', o.range_end, 'reason', o.reason, 'ticket', o.ticket,
           'requestedBy', nullif(o.requested_by, ''), 'retryOf', o.retry_of,
           'rollbackOf', o.rollback_of))
FROM assetclass.operation o WHERE o.correction_id = %(correction_id)s

-- name: ended
-- How an operation ended, with its sums; no row when this end is recorded already: its COMMIT had
-- arrived, the answer had not.
SELECT o.status, jsonb_strip_nulls(jsonb_build_object(
           'kind', o.kind, 'dryRun', o.dry_run, 'epoch', o.epoch,
           'recordsPlanned', o.records_planned,
           'recordsCorrected', (SELECT coalesce(sum(b.records_corrected), 0)
                                FROM assetclass.operation_batch b
                                WHERE b.correction_id = o.correction_id),
           'recordsSkipped', left_alone.skipped, 'recordsFailed', left_alone.failed,
           'backupTable', o.backup_table, 'error', o.error))
FROM assetclass.operation o
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.reason <> 'quarantined') AS skipped,
           count(*) FILTER (WHERE s.reason = 'quarantined') AS failed
    FROM assetclass.operation_skipped_row s WHERE s.correction_id = o.correction_id) left_alone
WHERE o.correction_id = %(correction_id)s
  AND NOT EXISTS (SELECT FROM assetclass.audit_log a
                  WHERE a.correction_id = o.correction_id AND a.action = 'end_operation'
                    AND a.outcome = o.status AND a.parameters -> 'epoch' = to_jsonb(o.epoch))

-- name: last_limits
-- The thresholds that were in effect when somebody measured last.
SELECT parameters -> 'after' FROM assetclass.audit_log
WHERE action = 'change_thresholds' ORDER BY number DESC LIMIT 1

-- name: lock_limits
SELECT pg_advisory_xact_lock(hashtextextended('assetclass thresholds', 0))
