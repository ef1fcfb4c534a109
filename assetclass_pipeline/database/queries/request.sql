-- Operations that somebody asks for: written down here, launched by a sensor.

-- name: remember_key
-- Of two at once with the same key, the second waits for the first to commit, and then finds it.
INSERT INTO assetclass.idempotency_key (caller, key, request_hash, correction_id)
VALUES (%(caller)s, %(key)s, %(request_hash)s, %(correction_id)s)
ON CONFLICT (caller, key) DO NOTHING

-- name: known_key
SELECT request_hash, correction_id::text FROM assetclass.idempotency_key
WHERE caller = %(caller)s AND key = %(key)s

-- name: add
INSERT INTO assetclass.operation_request (correction_id, attempt, requested_by, correlation_id)
SELECT %(correction_id)s, coalesce(max(attempt), 0) + 1, %(requested_by)s, %(correlation_id)s
FROM assetclass.operation_request WHERE correction_id = %(correction_id)s

-- name: set_correlation
UPDATE assetclass.operation SET correlation_id = %(correlation_id)s
WHERE correction_id = %(correction_id)s

-- name: ask_again
-- Raising the epoch tells its next end from the one before it.
UPDATE assetclass.operation
SET status = 'requested', epoch = epoch + 1, finished_at = NULL, error = NULL
WHERE correction_id = %(correction_id)s

-- name: waiting
-- What is asked for and not begun: one operation at most.
SELECT o.correction_id::text, o.kind, o.options, o.range_start, o.range_end,
       o.rollback_of::text, o.reason, o.ticket, r.attempt, r.requested_by, r.correlation_id,
       r.run_id, extract(epoch FROM clock_timestamp() - r.requested_at)::double precision
FROM assetclass.operation o
CROSS JOIN LATERAL (
    SELECT * FROM assetclass.operation_request r
    WHERE r.correction_id = o.correction_id ORDER BY r.attempt DESC LIMIT 1) r
WHERE o.status = 'requested'

-- name: note_run
UPDATE assetclass.operation_request SET run_id = %(run_id)s
WHERE correction_id = %(correction_id)s AND attempt = %(attempt)s

-- name: show_run
UPDATE assetclass.operation SET run_id = %(run_id)s
WHERE correction_id = %(correction_id)s AND status = 'requested'

-- name: end_waiting
-- Only while it waits, and for the run of this attempt: another one may have been asked for since.
UPDATE assetclass.operation o
SET status = %(status)s, finished_at = clock_timestamp(), error = %(error)s
WHERE o.correction_id = %(correction_id)s AND o.status = 'requested'
  AND %(attempt)s = (SELECT max(r.attempt) FROM assetclass.operation_request r
                     WHERE r.correction_id = o.correction_id)
