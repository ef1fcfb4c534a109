-- Messages to people: the outbox, reminders, and what a delivery leaves behind.

-- name: due_channels
-- Whose oldest waiting message is due, the one that waits longest first. One of a channel that is not
-- among ours may be another process's, with newer settings: it is nobody's after `grace` seconds.
SELECT n.channel FROM assetclass.notification n
WHERE n.delivered_at IS NULL AND n.dropped_at IS NULL
  AND n.due_at <= clock_timestamp() - make_interval(
          secs => CASE WHEN n.channel = ANY (%(ours)s::text[]) THEN 0 ELSE %(grace)s END)
GROUP BY n.channel ORDER BY min(n.due_at)

-- name: claim
-- One message of a channel: due_at is moved on, so that nobody else takes it while it is being sent,
-- or again if this process dies. What another process claims at this moment is passed over. Of one
-- alert, messages go out in their order: a later one waits for the one before.
WITH chosen AS MATERIALIZED (
    SELECT n.id FROM assetclass.notification n
    WHERE n.delivered_at IS NULL AND n.dropped_at IS NULL AND n.due_at <= clock_timestamp()
      AND n.channel = %(channel)s
      AND NOT EXISTS (SELECT FROM assetclass.notification before
                      WHERE before.alert_id = n.alert_id AND before.channel = n.channel
                        AND before.id < n.id
                        AND before.delivered_at IS NULL AND before.dropped_at IS NULL)
    ORDER BY n.id LIMIT 1
    FOR UPDATE SKIP LOCKED)
UPDATE assetclass.notification n
SET due_at = clock_timestamp() + make_interval(secs => %(lease)s), attempts = n.attempts + 1
FROM chosen WHERE n.id = chosen.id
RETURNING n.id, n.alert_id, n.occasion, n.channel, n.attempts,
          EXISTS (SELECT FROM assetclass.notification told
                  WHERE told.alert_id = n.alert_id AND told.channel = n.channel
                    AND told.delivered_at IS NOT NULL) AS told_before,
          clock_timestamp() AS now

-- name: delivered
-- Whoever has sent it says so, even when its lease was over and another process tries again.
UPDATE assetclass.notification
SET delivered_at = clock_timestamp(), dropped_at = NULL, title = %(title)s, body = %(body)s,
    last_error = NULL
WHERE id = %(id)s AND delivered_at IS NULL

-- name: put_missed_end
-- An alert that ended while a message was on its way: whoever got that one is told of the end too.
INSERT INTO assetclass.notification (alert_id, occasion, channel)
SELECT a.id, 'resolved ' || (a.times_reopened + 1), %(channel)s
FROM assetclass.alert a WHERE a.id = %(alert_id)s AND a.status = 'resolved'
ON CONFLICT (alert_id, occasion, channel) DO NOTHING

-- name: hold_alert
SELECT FROM assetclass.alert WHERE id = %(alert_id)s FOR KEY SHARE

-- name: told
UPDATE assetclass.alert SET notified_at = greatest(notified_at, clock_timestamp())
WHERE id = %(alert_id)s

-- name: failed
-- Only while the try is this process's own.
UPDATE assetclass.notification
SET due_at = clock_timestamp() + make_interval(secs => %(wait)s), last_error = %(error)s
WHERE id = %(id)s AND attempts = %(attempts)s AND delivered_at IS NULL AND dropped_at IS NULL

-- name: postpone
-- A channel that just failed is left alone for a moment, with all its messages: each of them would
-- wait for the same silence. It costs them no try.
UPDATE assetclass.notification
SET due_at = clock_timestamp() + make_interval(secs => %(wait)s)
WHERE channel = %(channel)s AND delivered_at IS NULL AND dropped_at IS NULL
  AND due_at < clock_timestamp() + make_interval(secs => %(wait)s)

-- name: drop
UPDATE assetclass.notification SET dropped_at = clock_timestamp(), last_error = %(error)s
WHERE id = %(id)s AND attempts = %(attempts)s AND delivered_at IS NULL AND dropped_at IS NULL
RETURNING id

-- name: event
INSERT INTO assetclass.alert_event (alert_id, event, actor, details)
VALUES (%(alert_id)s, %(event)s, %(actor)s, %(details)s::jsonb)

-- name: waiting
SELECT count(*) FROM assetclass.notification WHERE delivered_at IS NULL AND dropped_at IS NULL

-- name: maybe_due_reminders
-- Alerts that nobody has; whether one is due is decided outside, exactly. Those that another process
-- looks at are passed over.
SELECT a.id, a.alert_type, a.severity, a.status, a.level, a.opened_at, a.notified_at,
       a.snoozed_until, clock_timestamp() AS now,
       EXISTS (SELECT FROM assetclass.notification n
               WHERE n.alert_id = a.id AND n.dropped_at IS NULL) AS has_message,
       EXISTS (SELECT FROM assetclass.maintenance_window w
               WHERE w.starts_at <= clock_timestamp() AND w.ends_at > clock_timestamp()
                 AND (w.alert_types IS NULL OR a.alert_type = ANY (w.alert_types)))
           AS in_maintenance,
       (SELECT count(*) FROM assetclass.alert_event e
        WHERE e.alert_id = a.id AND e.event IN ('escalated', 'reminded')) AS reminders
FROM assetclass.alert a
WHERE a.status = 'open' AND a.severity = ANY (%(severities)s)
  AND (a.notified_at IS NULL
       OR a.notified_at <= clock_timestamp() - make_interval(secs => CASE a.severity
              WHEN 'high' THEN %(high)s WHEN 'medium' THEN %(medium)s ELSE %(low)s END)
       OR a.snoozed_until > a.notified_at)
  AND (a.snoozed_until IS NULL OR a.snoozed_until <= clock_timestamp())
ORDER BY a.id LIMIT %(most)s
FOR NO KEY UPDATE OF a SKIP LOCKED

-- name: raise_level
UPDATE assetclass.alert SET level = %(level)s, notified_at = clock_timestamp()
WHERE id = %(alert_id)s
