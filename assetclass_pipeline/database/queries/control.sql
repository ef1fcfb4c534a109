-- What people ask of a running operation, and what it tells beside its ledger.

-- name: state
-- What the holder of an operation must know every second.
SELECT o.status, o.epoch, coalesce(c.wanted, 'run') AS wanted, coalesce(c.wanted_by, '') AS wanted_by,
       coalesce(c.tuning, '{{}}') AS tuning, coalesce(o.stop_at <= clock_timestamp(), false)
FROM assetclass.operation o
LEFT JOIN assetclass.operation_control c USING (correction_id)
WHERE o.correction_id = %(correction_id)s

-- name: ask
INSERT INTO assetclass.operation_control (correction_id, wanted, wanted_by)
VALUES (%(correction_id)s, %(wanted)s, %(wanted_by)s)
ON CONFLICT (correction_id) DO UPDATE
SET wanted = excluded.wanted, wanted_by = excluded.wanted_by, wanted_at = clock_timestamp()

-- name: cancel_requested
UPDATE assetclass.operation SET status = 'cancelled', finished_at = clock_timestamp()
WHERE correction_id = %(correction_id)s AND status = 'requested'

-- name: wanted
SELECT coalesce((SELECT wanted FROM assetclass.operation_control
                 WHERE correction_id = %(correction_id)s), 'run')

-- name: tune
-- Merged here, so that of two people who change different things at once neither is lost.
INSERT INTO assetclass.operation_control AS c (correction_id, wanted, wanted_by, tuning)
VALUES (%(correction_id)s, 'run', %(actor)s, %(tuning)s)
ON CONFLICT (correction_id) DO UPDATE
SET tuning = c.tuning || excluded.tuning
             || jsonb_build_object('throttle', coalesce(c.tuning -> 'throttle', '{{}}')
                                               || coalesce(excluded.tuning -> 'throttle', '{{}}'))
RETURNING tuning

-- name: set_paused
-- Nobody is in a step: no batch is cut off from its ledger row, which asks for status 'running'.
UPDATE assetclass.operation SET status = 'paused'
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'running'

-- name: set_running
UPDATE assetclass.operation SET status = 'running'
WHERE correction_id = %(correction_id)s AND epoch = %(epoch)s AND status = 'paused'

-- name: remember
INSERT INTO assetclass.operation_event (correction_id, event, actor, details)
VALUES (%(correction_id)s, %(event)s, %(actor)s, %(details)s)

-- name: add_waits
INSERT INTO assetclass.operation_wait AS w (correction_id, signal, seconds)
SELECT %(correction_id)s, signal, seconds
FROM unnest(%(signals)s::text[], %(seconds)s::double precision[]) AS waited (signal, seconds)
ON CONFLICT (correction_id, signal) DO UPDATE SET seconds = w.seconds + excluded.seconds

-- name: add_gap
-- From the last sign of life of the process before to the claim of the next one nobody worked.
INSERT INTO assetclass.operation_wait AS w (correction_id, signal, seconds)
SELECT h.correction_id, 'next_process',
       greatest(0, extract(epoch FROM clock_timestamp() - h.beat_at)::double precision)
FROM assetclass.operation_heartbeat h WHERE h.correction_id = %(correction_id)s
ON CONFLICT (correction_id, signal) DO UPDATE SET seconds = w.seconds + excluded.seconds
