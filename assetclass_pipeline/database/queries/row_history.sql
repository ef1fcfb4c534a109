-- What became of one row: from the tables that operations leave, their ledger, and the market table.

-- name: operation_columns
o.correction_id::text AS correction_id, o.kind, o.status, o.requested_by, o.reason, o.ticket,
o.run_id, o.started_at, o.finished_at, o.rollback_of::text AS rollback_of

-- name: operations
SELECT {operation_columns} FROM assetclass.operation o
WHERE o.correction_id = ANY (%(ids)s::uuid[])

-- name: planning
-- Every operation that planned rows, and the table of these while it exists. One from before the
-- registry names its table itself; a plan without backup is named after its operation.
assetclass.operation o
LEFT JOIN assetclass.backup b USING (correction_id)
CROSS JOIN LATERAL (
    SELECT o.kind = 'rollback' OR o.backup_table IS NOT NULL AS is_logged) kept
CROSS JOIN LATERAL (
    SELECT coalesce(b.schema_name, CASE WHEN kept.is_logged
                                        THEN coalesce(o.plan ->> 'schema_name', %(schema)s)
                                        ELSE 'assetclass' END) AS schema_name,
           coalesce(b.table_name, o.backup_table,
                    CASE WHEN kept.is_logged THEN o.plan ->> 'table_name'
                         ELSE 'plan_' || replace(o.correction_id::text, '-', '') END)
               AS table_name) named
LEFT JOIN (SELECT c.oid, c.relname::text AS table_name, n.nspname::text AS schema_name
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relkind IN ('r', 'p')) standing
       ON standing.schema_name = named.schema_name AND standing.table_name = named.table_name
      AND b.dropped_at IS NULL

-- name: tables
-- Types are spelled as SQL that means the same under every search path.
SELECT {operation_columns}, named.schema_name, named.table_name,
       format_type(id.atttypid, -1) AS id_type
FROM {planning}
JOIN pg_attribute id ON id.attrelid = standing.oid AND id.attname = 'id' AND NOT id.attisdropped
WHERE NOT o.dry_run AND o.records_planned > 0
ORDER BY o.requested_at DESC

-- name: elsewhere
-- Operations without a table, newest first: how many of them have no archive either, then those
-- whose archive may hold rows of these symbols, and those that changed such rows by their summary.
-- Skipped rows are in no summary. The summary is asked for each operation: joined to it, it was read
-- anew for each, for the planner believes that hardly one lacks its table (1.7 s for 3,000).
WITH missing AS MATERIALIZED (
    SELECT {operation_columns}, o.requested_at,
           (SELECT sum(c.records)::bigint FROM assetclass.operation_change c
            WHERE c.correction_id = o.correction_id
              AND c.symbol = ANY (%(symbols)s::text[])) AS records,
           a.correction_id IS NOT NULL AND a.removed_at IS NULL AS is_archived,
           CASE WHEN a.removed_at IS NOT NULL THEN 'the retention of its archive is over'
                WHEN b.dropped_at IS NOT NULL THEN coalesce(b.drop_reason, 'dropped')
                WHEN NOT coalesce((o.options ->> 'createBackup')::boolean, true)
                    THEN 'it ran without a backup'
                ELSE 'its table was dropped by hand' END AS gone_because
    FROM {planning}
    LEFT JOIN assetclass.archive a ON a.correction_id = o.correction_id
    WHERE NOT o.dry_run AND o.records_planned > 0 AND standing.oid IS NULL
)
SELECT (SELECT count(*) FROM missing WHERE NOT is_archived) AS operations_gone, listed.*
FROM (VALUES (1)) always
LEFT JOIN (
    SELECT m.*, count(*) OVER kind AS alike,
           row_number() OVER (kind ORDER BY m.requested_at DESC) AS place
    FROM missing m
    WHERE m.records IS NOT NULL
       OR m.is_archived AND (cardinality(%(symbols)s::text[]) = 0
                             OR EXISTS (SELECT FROM assetclass.operation_skipped_row s
                                        WHERE s.correction_id = m.correction_id::uuid))
    WINDOW kind AS (PARTITION BY m.is_archived)) listed ON listed.place <= %(most)s
ORDER BY listed.place

-- name: market_key
-- Whether rows are found by their id alone without reading the whole table, whether an id means one
-- row, and the types of the key; without lengths, for a cast to those would cut a longer key off.
SELECT coalesce(bool_or(i.indkey[0] = id.attnum), false) AS is_indexed,
       coalesce(bool_or(i.indisunique AND i.indnkeyatts = 1 AND i.indkey[0] = id.attnum), false)
           AS is_unique,
       format_type(id.atttypid, -1) AS id_type, format_type(symbol.atttypid, -1) AS symbol_type,
       format_type(moment.atttypid, -1) AS timestamp_type,
       EXISTS (SELECT FROM pg_attribute u WHERE u.attrelid = id.attrelid
               AND u.attname = 'updated_at' AND NOT u.attisdropped) AS has_updated_at
FROM pg_class t
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_attribute id ON id.attrelid = t.oid AND id.attname = 'id'
JOIN pg_attribute symbol ON symbol.attrelid = t.oid AND symbol.attname = 'symbol'
JOIN pg_attribute moment ON moment.attrelid = t.oid AND moment.attname = 'timestamp'
LEFT JOIN pg_index i ON i.indrelid = t.oid AND i.indisvalid AND i.indpred IS NULL
WHERE n.nspname = %(schema)s AND t.relname = %(table)s
GROUP BY id.attrelid, id.atttypid, symbol.atttypid, moment.atttypid

-- name: as_written
-- A value as PostgreSQL writes one of this type.
SELECT (%(value)s::text::{type})::text

-- name: times_as_written
-- Times that were written by a column of perhaps another type, as one of this type writes them.
SELECT said, said::{type}::text FROM unnest(%(times)s::text[]) said

-- name: rows_of_table
SELECT {operation}::text AS correction_id, b.seq, b.symbol::text AS symbol,
       b."timestamp"::text AS "timestamp", b.asset_class::text AS before,
       b.corrected_asset_class::text AS after
FROM {table} b
WHERE b.id = %(id)s::text::{id_type}

-- name: row_now
SELECT m.symbol::text AS symbol, m."timestamp"::text AS "timestamp",
       m.asset_class::text AS asset_class, {updated_at} AS updated_at
FROM {market} m
WHERE m.id = %(id)s::text::{id_type}
{narrowed}
LIMIT %(most)s

-- name: no_updated_at
NULL::text

-- name: updated_at
m.updated_at::text

-- name: narrowed
AND m.symbol = ANY (%(symbols)s::text[]::{symbol_type}[])
AND m."timestamp" = ANY (%(timestamps)s::text[]::{timestamp_type}[])

-- name: facts
-- What the ledger says of planned rows: when their batch was committed, up to when a sweep may have
-- written them, why not, and which rollback gave them their old value back.
SELECT f.correction_id::text AS correction_id, f.seq, b.committed_at,
       CASE WHEN b.records_skipped > 0 THEN
           (SELECT max(w.committed_at) FROM assetclass.operation_batch w
            WHERE w.correction_id = f.correction_id AND w.pass > 0
              AND f.seq BETWEEN w.first_seq AND w.last_seq) END AS swept_at,
       s.reason AS skip_reason, u.rollback_id::text AS undone_by, u.finished_at AS undone_at
FROM unnest(%(ids)s::uuid[], %(seqs)s::bigint[]) AS f (correction_id, seq)
LEFT JOIN LATERAL (
    SELECT x.* FROM assetclass.operation_batch x
    WHERE x.correction_id = f.correction_id AND x.pass = 0 AND x.first_seq <= f.seq
    ORDER BY x.first_seq DESC LIMIT 1) b ON b.last_seq >= f.seq
LEFT JOIN assetclass.operation_skipped_row s
       ON s.correction_id = f.correction_id AND s.seq = f.seq
LEFT JOIN LATERAL (
    SELECT n.rollback_id, coalesce(o.finished_at, o.started_at) AS finished_at
    FROM assetclass.operation_undone n
    JOIN assetclass.operation o ON o.correction_id = n.rollback_id
    WHERE n.correction_id = f.correction_id AND n.seqs @> f.seq
    ORDER BY o.requested_at DESC LIMIT 1) u ON true

-- name: quarantined
SELECT q.correction_id::text AS correction_id, q.seq, q.symbol, q."timestamp",
       q.corrected_asset_class AS after, q.error_message, q.quarantined_at
FROM assetclass.operation_quarantined_row q WHERE q.id = %(id)s

-- name: conflicts
SELECT c.correction_id::text AS correction_id, c.seq, c.symbol, c."timestamp",
       c.class_before, c.class_now, c.reason, coalesce(o.finished_at, o.started_at) AS happened_at
FROM assetclass.operation_conflict c
JOIN assetclass.operation o USING (correction_id)
WHERE c.id = %(id)s AND NOT o.dry_run

-- name: has_key_index
SELECT EXISTS (
    SELECT FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = 'id' AND a.attnum = i.indkey[0]
    WHERE i.indrelid = %(table)s::text::regclass)

-- name: index_key
CREATE INDEX ON {table} (id)
