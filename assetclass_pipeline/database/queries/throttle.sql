-- name: together
-- Each signal is one value, so that one statement fetches them all, and each alone after it failed.
SELECT {signals}

-- name: ours
-- Sessions of this pipeline in this database: application_name and database are visible to all.
SELECT pid FROM pg_stat_activity
WHERE application_name LIKE 'assetclass: %' AND datname = current_database()

-- name: replication
-- A receiver without a replay position (pg_receivewal, a base backup's stream) counts by what it has
-- received. All but pid and name is NULL for who may not see it.
SELECT coalesce(json_agg(json_build_array(
           pid, coalesce(application_name, 'process ' || pid),
           pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
           pg_wal_lsn_diff(coalesce(replay_lsn, flush_lsn, write_lsn, sent_lsn), '0/0')::bigint,
           extract(epoch FROM replay_lag)::float8)), '[]')
FROM pg_stat_replication
WHERE state IS DISTINCT FROM 'backup'

-- name: slots
SELECT coalesce(json_agg(json_build_array(
           slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, active)), '[]')
FROM pg_replication_slots
WHERE restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost'

-- name: archive
-- NULL where nothing is archived; else what is needed to count without the right to list files. The
-- position, because right after a switch pg_walfile_name still names the file before.
SELECT CASE WHEN current_setting('archive_mode') <> 'off' THEN json_build_array(
           has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE'),
           pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
           (SELECT last_archived_wal FROM pg_stat_archiver),
           pg_size_bytes(current_setting('wal_segment_size'))) END

-- name: archive_files
SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'

-- name: blocked
-- pg_blocking_pids stops the lock manager for a moment, so it is asked about long waits only.
SELECT coalesce(json_agg(json_build_array(
           waiting.pid, extract(epoch FROM clock_timestamp() - waiting.since)::float8)), '[]')
FROM (SELECT pid, min(waitstart) AS since
      FROM pg_locks
      WHERE NOT granted
        AND waitstart < clock_timestamp() - make_interval(secs => %(blocked_seconds)s)
      GROUP BY pid
      OFFSET 0) AS waiting
CROSS JOIN (SELECT ARRAY({ours}) AS pids OFFSET 0) AS ours
WHERE waiting.pid <> ALL (ours.pids) AND pg_blocking_pids(waiting.pid) && ours.pids

-- name: vacuum_holders
-- Of what tells its start only the oldest; the others (sessions that this role may not look into,
-- standbys' queries, slots) with what they hold, so that the caller can tell for how long they hold
-- it. Rows of our tables are held by sessions of this database and of none (standbys), and by
-- whoever has a transaction id, because every snapshot waits for it. A plain VACUUM holds nothing.
WITH holding AS (
    SELECT pid, usename, application_name, state, xact_start, backend_xid, backend_xmin,
           backend_start IS NULL AS hidden
    FROM pg_stat_activity
    WHERE (backend_xid IS NOT NULL
           OR (age(backend_xmin) > 0 AND (datname IS NULL OR datname = current_database())))
      AND pid <> ALL (ARRAY({ours}))
      AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
), timed AS (
    SELECT format('session %s (%s)', pid,
                  concat_ws(', ', usename, nullif(application_name, ''), state)) AS who,
           xact_start AS since
    FROM holding
    WHERE xact_start IS NOT NULL
    UNION ALL
    SELECT format('prepared transaction %s', gid), prepared FROM pg_prepared_xacts
)
SELECT json_build_object(
    'oldest', (SELECT json_build_array(who, extract(epoch FROM clock_timestamp() - since)::float8)
               FROM timed ORDER BY since LIMIT 1),
    'others', (SELECT coalesce(json_agg(json_build_array(who, hidden, xid, xmin)), '[]')
               FROM (SELECT concat_ws(' ', 'session', pid, nullif(application_name, '')) AS who, hidden,
                            backend_xid::text AS xid, backend_xmin::text AS xmin
                     FROM holding
                     WHERE xact_start IS NULL
                     UNION ALL
                     SELECT concat_ws(' ', 'replication slot', slot_name), false, NULL, xmin::text
                     FROM pg_replication_slots
                     WHERE age(xmin) > 0) AS untimed))

-- name: directories
-- Empty for a role that may not see where the data are.
SELECT coalesce(json_agg(path), '[]')
FROM (SELECT CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE')
                  THEN current_setting('data_directory') END AS path
      UNION ALL
      SELECT nullif(pg_tablespace_location(oid), '') FROM pg_tablespace) AS place
WHERE path IS NOT NULL

-- name: condition
-- As a subquery it can only be a SELECT; two rows are enough to see that there is not one.
SELECT * FROM (
{condition}
) AS condition LIMIT 2
