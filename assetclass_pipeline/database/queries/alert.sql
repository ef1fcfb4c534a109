-- Alerts, their history and maintenance windows, and how far each watcher has looked.

-- name: take_turn
-- One at a time, from here to COMMIT: of two who judge the same cause at once the second one sees
-- what the first one did, and nobody waits for rows in another order.
SELECT pg_advisory_xact_lock(hashtextextended('assetclass alerts', 0))

-- name: now
SELECT clock_timestamp()

-- name: columns
id, cause, alert_type, severity, status, summary, details, correction_id::text AS correction_id, run_id,
opened_at, last_seen_at, occurrences, times_reopened, level, notified_at, acknowledged_at,
acknowledged_by, snoozed_until, resolved_at

-- name: newest
-- Only the newest alert of a cause can be unresolved. Locked in the order of ids, as everywhere.
SELECT {columns} FROM assetclass.alert
WHERE id IN (SELECT newest.id
             FROM unnest(%(causes)s::text[]) AS found (cause) CROSS JOIN LATERAL (
                 SELECT a.id FROM assetclass.alert a WHERE a.cause = found.cause
                 ORDER BY a.id DESC LIMIT 1) AS newest)
ORDER BY id FOR UPDATE

-- name: one
SELECT {columns} FROM assetclass.alert WHERE id = %(id)s

-- name: one_to_change
SELECT {columns} FROM assetclass.alert WHERE id = %(id)s FOR UPDATE

-- name: some_to_change
SELECT {columns} FROM assetclass.alert WHERE id = ANY (%(ids)s::bigint[]) ORDER BY id FOR UPDATE

-- name: told
-- What each channel was told last, and of which severities.
SELECT alert_id, channel, max(delivered_at) AS last_at,
       (array_agg(occasion ORDER BY delivered_at DESC, id DESC)
           FILTER (WHERE delivered_at IS NOT NULL))[1] AS last_occasion,
       coalesce(array_agg(occasion) FILTER (WHERE occasion LIKE 'escalated %'), '{{}}') AS said
FROM assetclass.notification WHERE alert_id = ANY (%(ids)s::bigint[])
GROUP BY alert_id, channel

-- name: add
-- Numbered by the column itself: who may only write the tables may not ask its sequence. Of one cause
-- there is one new alert.
INSERT INTO assetclass.alert
    (cause, alert_type, severity, status, summary, details, correction_id, run_id, opened_at,
     last_seen_at, occurrences, times_reopened, level, notified_at, acknowledged_at,
     acknowledged_by, snoozed_until, resolved_at)
SELECT cause, alert_type, severity, status, summary, details, correction_id, run_id, opened_at,
       last_seen_at, occurrences, times_reopened, level, notified_at, acknowledged_at,
       acknowledged_by, snoozed_until, resolved_at
FROM jsonb_populate_recordset(NULL::assetclass.alert, %(alerts)s) WITH ORDINALITY
ORDER BY ordinality
RETURNING cause, id

-- name: change
UPDATE assetclass.alert a
SET alert_type = new.alert_type, severity = new.severity, status = new.status,
    summary = new.summary, details = new.details, correction_id = new.correction_id,
    run_id = new.run_id, opened_at = new.opened_at, last_seen_at = new.last_seen_at,
    occurrences = new.occurrences, times_reopened = new.times_reopened, level = new.level,
    notified_at = new.notified_at, acknowledged_at = new.acknowledged_at,
    acknowledged_by = new.acknowledged_by, snoozed_until = new.snoozed_until,
    resolved_at = new.resolved_at
FROM jsonb_populate_recordset(NULL::assetclass.alert, %(alerts)s) AS new
WHERE a.id = new.id

-- name: add_events
INSERT INTO assetclass.alert_event (alert_id, happened_at, event, actor, details)
SELECT alert_id, happened_at, event, actor, details
FROM jsonb_populate_recordset(NULL::assetclass.alert_event, %(events)s) WITH ORDINALITY
ORDER BY ordinality

-- name: drop_waiting
-- What nobody got yet; `kept` is an occasion of that alert whose messages stay. Whoever records a
-- delivery at this moment is not waited for: what was not taken is dropped before its next try.
UPDATE assetclass.notification SET dropped_at = %(now)s
WHERE id IN (SELECT n.id
             FROM assetclass.notification n
             JOIN unnest(%(ids)s::bigint[], %(kept)s::text[]) AS dropped (alert_id, kept)
               ON dropped.alert_id = n.alert_id AND n.occasion IS DISTINCT FROM dropped.kept
             WHERE n.delivered_at IS NULL AND n.dropped_at IS NULL
             FOR UPDATE OF n SKIP LOCKED)

-- name: drop_reminders
UPDATE assetclass.notification SET dropped_at = %(now)s
WHERE id IN (SELECT id FROM assetclass.notification
             WHERE alert_id = %(id)s AND delivered_at IS NULL AND dropped_at IS NULL
               AND occasion LIKE 'reminder %'
             FOR UPDATE SKIP LOCKED)

-- name: put
-- Each occasion is told once on a channel, whoever puts it there.
INSERT INTO assetclass.notification (alert_id, occasion, channel, created_at, due_at)
SELECT alert_id, occasion, channel, created_at, due_at
FROM jsonb_populate_recordset(NULL::assetclass.notification, %(messages)s) WITH ORDINALITY
ORDER BY ordinality
ON CONFLICT (alert_id, occasion, channel) DO NOTHING

-- name: waiting
-- Messages that may have to wait longer or less long; of all alerts where no id is given.
SELECT id, alert_id, occasion, attempts, due_at
FROM assetclass.notification
WHERE delivered_at IS NULL AND dropped_at IS NULL AND alert_id IS NOT NULL
  AND (%(id)s::bigint IS NULL OR alert_id = %(id)s)
ORDER BY id

-- name: move_due
-- Not of one that somebody delivers now, or has taken to deliver since it was read.
WITH free AS MATERIALIZED (
    SELECT n.id, moved.due_at
    FROM assetclass.notification n
    JOIN unnest(%(ids)s::bigint[], %(before)s::timestamptz[], %(dues)s::timestamptz[])
         AS moved (id, before, due_at) ON moved.id = n.id AND moved.before = n.due_at
    WHERE n.delivered_at IS NULL
    FOR UPDATE OF n SKIP LOCKED)
UPDATE assetclass.notification n SET due_at = free.due_at FROM free WHERE n.id = free.id

-- name: listed
-- Unresolved ones first, the most severe before others; then those that are over, the newest first.
SELECT {columns} FROM (
    (SELECT * FROM assetclass.alert WHERE status <> 'resolved'
     ORDER BY array_position(ARRAY['high', 'medium', 'low'], severity), opened_at DESC, id DESC
     LIMIT %(most)s)
    UNION ALL
    (SELECT * FROM assetclass.alert WHERE status = 'resolved' AND %(include_resolved)s
     ORDER BY opened_at DESC, id DESC
     LIMIT %(most)s)) AS found
ORDER BY status = 'resolved',
         CASE WHEN status <> 'resolved'
              THEN array_position(ARRAY['high', 'medium', 'low'], severity) END,
         opened_at DESC, id DESC
LIMIT %(most)s

-- name: events
SELECT happened_at, event, actor, details FROM (
    SELECT id, happened_at, event, actor, details FROM assetclass.alert_event
    WHERE alert_id = %(id)s ORDER BY id DESC LIMIT %(most)s) AS newest
ORDER BY id

-- name: notifications
SELECT occasion, channel, created_at, due_at, attempts, delivered_at, dropped_at, last_error FROM (
    SELECT * FROM assetclass.notification
    WHERE alert_id = %(id)s ORDER BY id DESC LIMIT %(most)s) AS newest
ORDER BY id

-- name: windows
SELECT id, starts_at, ends_at, alert_types, reason, created_by FROM assetclass.maintenance_window
WHERE ends_at > %(after)s
ORDER BY starts_at, id

-- name: newest_windows
SELECT id, starts_at, ends_at, alert_types, reason, created_by FROM assetclass.maintenance_window
ORDER BY id DESC LIMIT %(most)s

-- name: window_to_change
SELECT id, starts_at, ends_at, alert_types, reason, created_by FROM assetclass.maintenance_window
WHERE id = %(id)s FOR UPDATE

-- name: open_window
INSERT INTO assetclass.maintenance_window (starts_at, ends_at, alert_types, reason, created_by)
VALUES (%(starts_at)s, %(ends_at)s, %(alert_types)s, %(reason)s, %(by)s)
RETURNING id, starts_at, ends_at, alert_types, reason, created_by

-- name: end_window
UPDATE assetclass.maintenance_window SET starts_at = least(starts_at, %(now)s), ends_at = %(now)s
WHERE id = %(id)s
RETURNING id, starts_at, ends_at, alert_types, reason, created_by

-- name: position
-- The row is locked to the end of the transaction, also where it is new; -1 means never moved.
INSERT INTO assetclass.watch_position AS w (watcher, source, position)
VALUES (%(watcher)s, %(source)s, -1)
ON CONFLICT (watcher, source) DO UPDATE SET position = w.position
RETURNING nullif(position, -1)

-- name: move
-- Never back: a look that took long must not undo a later one.
INSERT INTO assetclass.watch_position AS w (watcher, source, position)
VALUES (%(watcher)s, %(source)s, %(position)s)
ON CONFLICT (watcher, source) DO UPDATE
SET position = excluded.position, moved_at = clock_timestamp()
WHERE w.position < excluded.position
