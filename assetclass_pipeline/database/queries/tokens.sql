-- API tokens; found by the hash of their secret, never by the secret.

-- name: create
INSERT INTO assetclass.api_token (name, role, hash, hint, created_by, expires_at)
VALUES (%(name)s, %(role)s, %(hash)s, %(hint)s, %(by)s, %(expires_at)s::timestamptz)
RETURNING name, role, hint, created_at, created_by, expires_at, revoked_at, revoked_by,
          last_used_at

-- name: all
SELECT name, role, hint, created_at, created_by, expires_at, revoked_at, revoked_by, last_used_at
FROM assetclass.api_token
ORDER BY revoked_at IS NOT NULL, name, id

-- name: of_hash
SELECT name, role, hint, created_at, created_by, expires_at, revoked_at, revoked_by, last_used_at,
       hash, clock_timestamp() AS now,
       last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute' AS unnoted
FROM assetclass.api_token
WHERE hash = %(hash)s

-- name: note_use
-- Once a minute at most, whatever the number of processes: a busy token writes no row a request.
UPDATE assetclass.api_token SET last_used_at = clock_timestamp()
WHERE hash = %(hash)s
  AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')

-- name: revoke
UPDATE assetclass.api_token SET revoked_at = clock_timestamp(), revoked_by = %(by)s
WHERE name = %(name)s AND revoked_at IS NULL
RETURNING name, role, hint, created_at, created_by, expires_at, revoked_at, revoked_by,
          last_used_at

-- name: any_valid
SELECT EXISTS (
    SELECT FROM assetclass.api_token
    WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp()))
