-- The registry of tables that hold what operations changed, row by row; their proof, their end, and
-- the files that keep their rows afterwards.

-- name: register
-- A plan that was made anew replaces the one that was lost; a hold is about the operation and stays.
INSERT INTO assetclass.backup AS b (correction_id, schema_name, table_name, created_at, expires_at)
SELECT %(correction_id)s, %(schema)s, %(table)s, moment, moment + make_interval(days => %(days)s)
FROM clock_timestamp() moment
ON CONFLICT (correction_id) DO UPDATE
SET schema_name = excluded.schema_name, table_name = excluded.table_name,
    created_at = excluded.created_at, expires_at = excluded.expires_at,
    records = NULL, bytes = NULL, checksum = NULL, verified_at = NULL, verification = NULL,
    dropped_at = NULL, dropped_by = NULL, drop_reason = NULL

-- name: bring_in
-- Backups from before the registry: their operations know them.
INSERT INTO assetclass.backup (correction_id, schema_name, table_name, created_at, expires_at)
SELECT o.correction_id, o.plan ->> 'schema_name', o.backup_table, moment,
       moment + make_interval(days => %(days)s)
FROM assetclass.operation o, LATERAL (SELECT coalesce(o.started_at, o.requested_at)) made (moment)
WHERE o.kind = 'correction' AND NOT o.dry_run AND o.backup_table IS NOT NULL
  AND NOT EXISTS (SELECT FROM assetclass.backup b WHERE b.correction_id = o.correction_id)
ON CONFLICT DO NOTHING

-- name: forget
-- A table that was dropped before its rows were used has no history.
DELETE FROM assetclass.backup WHERE schema_name = %(schema)s AND table_name = %(table)s

-- name: is_sealed
SELECT checksum IS NOT NULL FROM assetclass.backup WHERE correction_id = %(correction_id)s

-- name: unseal
UPDATE assetclass.backup SET records = NULL, bytes = NULL, checksum = NULL
WHERE correction_id = %(correction_id)s

-- name: id_type
SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
WHERE a.attrelid = %(table)s::regclass AND a.attname = 'id'

-- name: checksum
-- Whatever their order. Without the address, which changes when the table is rewritten; classes and
-- symbols as text, for an enum's own hash is that of an oid and means nothing in another database.
-- Third: whether every row has an id.
SELECT count(*),
       coalesce(sum(hash_record_extended(ROW(
           b.seq, b.id{id_cast}, b.symbol::text, b."timestamp", b.asset_class::text,
           b.corrected_asset_class::text), 0)), 0)::text,
       count(*) = count(b.id)
FROM {backup} b

-- name: seal
UPDATE assetclass.backup b
SET records = %(records)s, checksum = %(checksum)s,
    bytes = (SELECT pg_total_relation_size(c.oid)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = b.schema_name AND c.relname = b.table_name)
WHERE b.correction_id = %(correction_id)s

-- name: exists
EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = b.schema_name AND c.relname = b.table_name)

-- name: is_gone
b.dropped_at IS NULL AND NOT {exists}

-- name: note_back
-- Somebody brought back what somebody had dropped by hand; whether it is what it was, the next
-- verification proves.
UPDATE assetclass.backup b
SET dropped_at = NULL, dropped_by = NULL, drop_reason = NULL, verified_at = NULL,
    verification = NULL
WHERE b.dropped_at IS NOT NULL AND b.drop_reason = %(reason)s AND {exists}

-- name: gone
SELECT b.correction_id FROM assetclass.backup b WHERE {is_gone}

-- name: lock
-- Whoever begins a rollback holds this row FOR SHARE while he claims it.
SELECT FROM assetclass.backup b WHERE b.correction_id = ANY (%(ids)s) FOR UPDATE

-- name: note_gone
UPDATE assetclass.backup b
SET dropped_at = clock_timestamp(), dropped_by = 'unknown', drop_reason = %(reason)s
WHERE b.correction_id = ANY (%(ids)s) AND {is_gone}
RETURNING b.correction_id::text

-- name: show
-- Newest first. What needs a table: its own operation while it is active, or can go on and has
-- changed rows; and a rollback that reads it, or can go on. None goes on that a rollback overtook:
-- one of the correction, and of a rollback a later one.
SELECT b.correction_id::text AS correction_id, o.kind, o.status, o.rolled_back_by::text AS rolled_back_by,
       b.schema_name, b.table_name, b.records, b.bytes, b.checksum, b.created_at, b.expires_at,
       b.verified_at, b.verification, b.held_by, b.held_at, b.hold_reason,
       b.dropped_at, b.dropped_by, b.drop_reason,
       EXISTS (SELECT FROM assetclass.operation_batch l
               WHERE l.correction_id = b.correction_id) AS has_batches,
       coalesce((o.plan ->> 'complete')::boolean, false) AS is_complete,
       EXISTS (SELECT FROM assetclass.operation x
               WHERE x.rollback_of = coalesce(o.rollback_of, o.correction_id)
                 AND NOT x.dry_run AND x.plan IS NOT NULL
                 AND (o.rollback_of IS NULL OR x.requested_at > o.requested_at)) AS is_overtaken,
       reader.correction_id::text AS rollback_id, reader.status AS rollback_status,
       clock_timestamp() AS now
FROM assetclass.backup b
JOIN assetclass.operation o USING (correction_id)
LEFT JOIN LATERAL (
    SELECT r.correction_id, r.status
    FROM assetclass.operation r
    WHERE r.rollback_of = b.correction_id AND r.status <> 'succeeded'
      AND (r.status IN ('requested', 'running', 'paused')
           OR NOT r.dry_run
              AND NOT EXISTS (SELECT FROM assetclass.operation x
                              WHERE x.rollback_of = r.rollback_of AND NOT x.dry_run
                                AND x.plan IS NOT NULL AND x.requested_at > r.requested_at))
    ORDER BY r.status IN ('requested', 'running', 'paused') DESC, r.requested_at DESC
    LIMIT 1) reader ON true
WHERE {chosen}
ORDER BY b.created_at DESC, b.correction_id

-- name: every
true

-- name: one
b.correction_id = %(correction_id)s

-- name: unregistered
-- Tables whose name says backup, of which the registry knows nothing: made by hand, or by others.
SELECT n.nspname::text AS schema_name, c.relname::text AS table_name,
       pg_total_relation_size(c.oid) AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p', 'f', 'm')
  AND starts_with(c.relname::text, %(prefix)s)
  AND NOT EXISTS (SELECT FROM assetclass.backup b
                  WHERE b.schema_name = n.nspname AND b.table_name = c.relname
                    AND b.dropped_at IS NULL)
ORDER BY 1, 2

-- name: hold
UPDATE assetclass.backup
SET held_by = %(by)s, held_at = clock_timestamp(), hold_reason = %(reason)s
WHERE correction_id = %(correction_id)s

-- name: release
UPDATE assetclass.backup SET held_by = NULL, held_at = NULL, hold_reason = NULL
WHERE correction_id = %(correction_id)s

-- name: planned
-- Rows that the plan must hold, whether it is complete, and the seqs that still count as changed by
-- the operation: in the ledger, not skipped, not put back.
SELECT o.records_planned, coalesce((o.plan ->> 'complete')::boolean, false),
       (coalesce((SELECT range_agg(int8range(first_seq, last_seq, '[]'))
                  FROM assetclass.operation_batch
                  WHERE correction_id = o.correction_id AND pass = 0), '{{}}')
        - coalesce((SELECT range_agg(int8range(seq, seq, '[]'))
                    FROM assetclass.operation_skipped_row
                    WHERE correction_id = o.correction_id), '{{}}')
        - coalesce((SELECT range_agg(part)
                    FROM assetclass.operation_undone u, unnest(u.seqs) part
                    WHERE u.correction_id = o.correction_id), '{{}}'))::text
FROM assetclass.operation o WHERE o.correction_id = %(correction_id)s

-- name: compare
-- What a rollback would find of the rows that the operation changed. Asked the other way round,
-- for the planner takes every "in these ranges" for one row in 200, and builds a table for those.
SELECT count(*) FILTER (WHERE m.symbol IS NULL),
       count(*) FILTER (WHERE m.symbol IS NOT NULL
                          AND m.asset_class::text IS NOT DISTINCT FROM b.asset_class::text),
       count(*) FILTER (WHERE m.asset_class::text = b.corrected_asset_class::text
                          AND m.asset_class::text IS DISTINCT FROM b.asset_class::text),
       count(*)
FROM (SELECT id, symbol, "timestamp", asset_class, corrected_asset_class FROM {backup}
      WHERE NOT seq <@ (int8multirange(int8range(NULL, NULL)) - %(seqs)s::int8multirange)) b
LEFT JOIN {market} m ON {same_row}

-- name: same_row_by_id
m.id = b.id AND m.symbol::text = b.symbol::text
  AND m."timestamp" IS NOT DISTINCT FROM b."timestamp"

-- name: same_row_by_time
m.symbol::text = b.symbol::text AND m."timestamp" = b."timestamp"
  AND m.id IS NOT DISTINCT FROM b.id

-- name: old_classes
SELECT asset_class::text, count(*) FROM {backup} GROUP BY 1 ORDER BY 2 DESC, 1

-- name: set_verification
-- The last drill stays beside it.
UPDATE assetclass.backup
SET verified_at = clock_timestamp(),
    verification = CASE WHEN verification ? 'drill'
                        THEN jsonb_build_object('drill', verification -> 'drill')
                        ELSE '{{}}' END || %(verification)s
WHERE correction_id = %(correction_id)s

-- name: set_drill
UPDATE assetclass.backup
SET verification = coalesce(verification, '{{}}') || jsonb_build_object('drill', %(drill)s::jsonb)
WHERE correction_id = %(correction_id)s

-- name: seqs_of
SELECT min(seq), max(seq) FROM {backup}

-- name: copy_rows
-- CSV tells NULL from the empty string; in text, so that a reader needs none of our types.
COPY (
    SELECT b.seq, b.id::text, b.symbol::text, b."timestamp"::text, b.asset_class::text,
           b.corrected_asset_class::text, s.reason
    FROM {backup} b
    LEFT JOIN assetclass.operation_skipped_row s
           ON s.correction_id = %(correction_id)s AND s.seq = b.seq
    WHERE b.seq BETWEEN %(first_seq)s AND %(last_seq)s
    ORDER BY b.seq
) TO STDOUT (FORMAT csv)

-- name: batches_of
-- Batches over these planned rows, in their order; microseconds since 1970.
SELECT first_seq, last_seq, (extract(epoch FROM committed_at) * 1000000)::bigint
FROM assetclass.operation_batch
WHERE correction_id = %(correction_id)s AND pass = 0
  AND first_seq <= %(last_seq)s AND last_seq >= %(first_seq)s
ORDER BY first_seq

-- name: register_archive
-- A resumed operation writes its file again.
INSERT INTO assetclass.archive AS a
    (correction_id, file_name, records, bytes, sha256, archived_at, expires_at)
SELECT %(correction_id)s, %(file_name)s, %(records)s, %(bytes)s, %(sha256)s, moment,
       moment + make_interval(days => %(days)s)
FROM clock_timestamp() moment
ON CONFLICT (correction_id) DO UPDATE
SET file_name = excluded.file_name, records = excluded.records, bytes = excluded.bytes,
    sha256 = excluded.sha256, archived_at = excluded.archived_at, expires_at = excluded.expires_at,
    removed_at = NULL

-- name: archives
SELECT a.correction_id::text AS correction_id, a.file_name, a.records, a.bytes, a.sha256,
       a.archived_at, a.expires_at, a.removed_at
FROM assetclass.archive a
WHERE %(correction_id)s::uuid IS NULL OR a.correction_id = %(correction_id)s::uuid
ORDER BY a.archived_at DESC, a.correction_id

-- name: expired_archives
SELECT a.correction_id, a.file_name FROM assetclass.archive a
WHERE a.removed_at IS NULL AND a.expires_at <= clock_timestamp()
ORDER BY a.expires_at

-- name: note_removed
UPDATE assetclass.archive SET removed_at = clock_timestamp()
WHERE correction_id = %(correction_id)s AND removed_at IS NULL

-- name: lock_operation
-- Nobody resumes the operation before we are done.
SELECT FROM assetclass.operation o WHERE o.correction_id = %(correction_id)s FOR SHARE

-- name: note_dropped
UPDATE assetclass.backup
SET dropped_at = clock_timestamp(), dropped_by = %(by)s, drop_reason = %(reason)s
WHERE correction_id = %(correction_id)s

-- name: old_drills
-- Scratch copies whose drill was killed: the moment is in the name, and no drill takes a day.
SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'assetclass' AND c.relkind = 'r'
  AND c.relname ~ '^drill_[0-9]{{8}}_[0-9]{{6}}_[0-9a-f]{{8}}$'
  AND c.relname < %(before)s

-- name: copy_market_rows
-- The rows that a restore would touch, as they are now. Unlogged: it lives for one drill.
CREATE UNLOGGED TABLE {scratch} AS
SELECT m.id, m.symbol, m."timestamp", m.asset_class, CURRENT_TIMESTAMP AS updated_at
FROM {backup} b JOIN {market} m ON {same_row}

-- name: index_scratch
CREATE INDEX ON {scratch} (id)

-- name: analyze_scratch
ANALYZE {scratch}

-- name: restore
-- As the operators' guide has it, word by word but for the names.
UPDATE {scratch}
SET asset_class = backup.asset_class,
    updated_at = CURRENT_TIMESTAMP
FROM {backup} backup
WHERE {scratch}.id = backup.id

-- name: differences
-- Rows of the scratch copy, and those that do not hold what they held before the correction.
SELECT count(*), count(*) FILTER (WHERE m.asset_class::text IS DISTINCT FROM b.asset_class::text)
FROM {scratch} m JOIN {backup} b ON {same_row}

-- name: drop_scratch
DROP TABLE IF EXISTS {scratch}

-- name: market_records
-- As the statistics have it.
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM pg_class c WHERE c.oid = ANY (%(leaves)s::oid[])

-- name: create_restored
-- In the shape of a backup table, but for the addresses, which died with the correction.
CREATE TABLE {table} (
    seq bigint NOT NULL,
    id {id_type},
    symbol {symbol_type},
    "timestamp" {timestamp_type},
    asset_class {asset_class_type},
    corrected_asset_class {asset_class_type}
)

-- name: fill_restored
COPY {table} (seq, id, symbol, "timestamp", asset_class, corrected_asset_class)
FROM STDIN (FORMAT csv)
