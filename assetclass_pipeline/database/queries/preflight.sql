-- What a correction would meet on its way, as the catalogue and the statistics views tell it: no
-- row of the market table is read here, and no table is locked but where a comment says so.

-- name: session
SELECT current_setting('session_replication_role') = 'replica' AS acts_as_replica,
       current_setting('autovacuum')::boolean AS autovacuum,
       current_setting('block_size')::integer AS block_size,
       pg_size_bytes(current_setting('max_wal_size')) AS max_wal_bytes

-- name: leaves
-- Replica identity as PostgreSQL judges it: the index must be valid and not deferrable.
SELECT c.oid, n.nspname || '.' || c.relname AS name,
       greatest(c.relpages, 0)::bigint AS pages, greatest(c.reltuples, 0)::bigint AS records,
       (SELECT coalesce(sum(greatest(x.relpages, 0)), 0)::bigint FROM pg_index i
        JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid) AS index_pages,
       c.relpersistence = 'p' AS is_logged,
       CASE c.relreplident WHEN 'd' THEN 'default' WHEN 'i' THEN 'index' WHEN 'f' THEN 'full'
                           ELSE 'nothing' END AS replica_identity,
       c.relreplident = 'f' OR EXISTS (
           SELECT FROM pg_index i
           WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
             AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                                     WHEN 'i' THEN i.indisreplident ELSE false END) AS is_identified,
       coalesce((SELECT option_value::boolean FROM pg_options_to_table(c.reloptions)
                 WHERE option_name = 'autovacuum_enabled'), true) AS autovacuum
FROM unnest(%(leaves)s::oid[]) leaf (oid)
JOIN pg_class c ON c.oid = leaf.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY pages DESC, name

-- name: indexes
-- As plan.can_reuse_space asks: keys, expressions and predicates that mention a written column.
SELECT n.nspname || '.' || x.relname AS name, bool_or(i.indisunique) AS is_unique
FROM pg_index i
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = x.relnamespace
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = ANY (%(written)s::text[])
WHERE i.indrelid = ANY (%(leaves)s::oid[])
  AND (a.attnum = ANY (i.indkey::int2[])
       OR EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
                    AND d.refobjsubid = a.attnum))
GROUP BY 1
ORDER BY 1

-- name: triggers
-- Of users, not of foreign keys; on a partition PostgreSQL 14 calls a user's own one internal. Row
-- triggers of a parent stand on its leaves; its statement triggers fire in the sweep only, which
-- goes through the parent. With UPDATE OF only those on a column that we write.
SELECT t.tgname::text AS name, n.nspname || '.' || p.proname AS function,
       min(cn.nspname || '.' || c.relname) AS table, count(*) AS tables,
       CASE WHEN t.tgtype & 2 <> 0 THEN 'BEFORE' ELSE 'AFTER' END AS timing,
       CASE WHEN t.tgtype & 1 <> 0 THEN 'ROW' ELSE 'STATEMENT' END AS level,
       t.tgenabled IN ('A', CASE WHEN %(acts_as_replica)s THEN 'R' ELSE 'O' END) AS fires
FROM pg_trigger t
JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace cn ON cn.oid = c.relnamespace
JOIN pg_proc p ON p.oid = t.tgfoid
JOIN pg_namespace n ON n.oid = p.pronamespace
LEFT JOIN pg_constraint k ON k.oid = t.tgconstraint
WHERE (t.tgrelid = ANY (%(leaves)s::oid[])
       OR (t.tgrelid = %(market)s::oid AND t.tgtype & 1 = 0))
  AND t.tgtype & 16 <> 0 AND t.tgenabled <> 'D'
  AND (NOT t.tgisinternal OR (t.tgparentid <> 0 AND coalesce(k.contype = 't', true)))
  AND (cardinality(t.tgattr::int2[]) = 0 OR EXISTS (
       SELECT FROM pg_attribute a
       WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr::int2[])
         AND a.attname = ANY (%(written)s::text[])))
GROUP BY 1, 2, 5, 6, 7
ORDER BY 5 DESC, 1, 2, 7

-- name: publications
-- Publications of each leaf: its own, and those of every table above it, whose actions count for
-- it too. Fourth and fifth: whether a new table in the market table's schema, and whether our own
-- tables, would be carried as well.
WITH RECURSIVE above (leaf, oid) AS (
    SELECT leaf, leaf FROM unnest(%(leaves)s::oid[]) leaf
    UNION ALL
    SELECT above.leaf, i.inhparent FROM above JOIN pg_inherits i ON i.inhrelid = above.oid
)
SELECT p.pubname::text AS name, p.puballtables AS of_all_tables, p.pubupdate AS carries_updates,
       p.pubinsert AND (p.puballtables OR {market_schema_published}) AS carries_backup,
       p.pubinsert AND (p.puballtables OR {own_schema_published}) AS carries_own_tables,
       coalesce((SELECT array_agg(DISTINCT above.leaf) FROM above
                 WHERE p.puballtables
                    OR EXISTS (SELECT FROM pg_publication_rel r
                               WHERE r.prpubid = p.oid AND r.prrelid = above.oid)
                    OR {leaf_schema_published}), '{{}}') AS leaves
FROM pg_publication p
ORDER BY 1

-- name: schema_published
-- PostgreSQL 15 or newer: FOR TABLES IN SCHEMA.
EXISTS (SELECT FROM pg_publication_namespace named
        JOIN pg_namespace n ON n.oid = named.pnnspid
        WHERE named.pnpubid = p.oid AND n.nspname = {schema})

-- name: leaf_schema_published
EXISTS (SELECT FROM pg_publication_namespace named
        JOIN pg_class c ON c.relnamespace = named.pnnspid
        WHERE named.pnpubid = p.oid AND c.oid = above.oid)

-- name: locks
-- Who waits for the market table now, and who holds a lock on it that batches would wait for.
SELECT count(*) FILTER (WHERE NOT l.granted) AS waiting,
       coalesce(array_agg(DISTINCT l.pid) FILTER (
           WHERE l.granted AND l.locktype = 'relation'
             AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                            'AccessExclusiveLock')), '{{}}') AS holders
FROM pg_locks l
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = ANY (%(relations)s::oid[])

-- name: oldest_transaction
-- Seconds since the oldest transaction began that holds back vacuum here; vacuum itself does not.
SELECT extract(epoch FROM clock_timestamp() - min(began))::double precision AS seconds
FROM (SELECT a.xact_start AS began FROM pg_stat_activity a
      WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
        AND a.datname = current_database() AND a.pid <> pg_backend_pid()
        AND a.backend_type <> 'autovacuum worker'
      UNION ALL
      SELECT p.prepared FROM pg_prepared_xacts p WHERE p.database = current_database()) open

-- name: rewrites
-- VACUUM FULL and CLUSTER under way: they change every address.
SELECT DISTINCT command FROM pg_stat_progress_cluster
WHERE datname = current_database() AND relid = ANY (%(leaves)s::oid[])

-- name: disk
-- Where the server keeps its files (hidden from roles without pg_read_all_settings), and how to
-- recognise them: a path alone may be another machine's.
SELECT (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
       (SELECT system_identifier FROM pg_control_system()),
       current_setting('port')::integer

-- name: try_column
-- The input function minds length, labels and domain constraints as an assignment does; a cast
-- would cut a long class without a word.
SELECT count(m.asset_class)
FROM unnest(%(classes)s::text[]) AS listed (class),
     LATERAL jsonb_to_record(jsonb_build_object('asset_class', listed.class))
         AS m (asset_class {asset_class_type})

-- name: refuses_null
SELECT bool_or(attnotnull) FROM pg_attribute
WHERE attrelid = ANY (%(leaves)s::oid[]) AND attname = 'asset_class'

-- name: checks
-- CHECK constraints that mention the column. conenforced exists since PostgreSQL 18. Deparsing
-- locks the leaf against ALTER TABLE in newer versions.
SELECT c.conname::text AS name, min(n.nspname || '.' || r.relname) AS table,
       pg_get_expr(c.conbin, c.conrelid) AS expression,
       c.conkey = ARRAY[a.attnum] AS is_about_class_only
FROM pg_constraint c
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attname = 'asset_class'
JOIN pg_class r ON r.oid = c.conrelid
JOIN pg_namespace n ON n.oid = r.relnamespace
WHERE c.contype = 'c' AND c.conrelid = ANY (%(leaves)s::oid[]) AND a.attnum = ANY (c.conkey)
  AND coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true)
GROUP BY 1, 3, 4
ORDER BY 1, 2

-- name: classes_against_check
-- A CHECK holds when it is true or NULL.
SELECT listed.class
FROM unnest({classes}::text[]) AS listed (class),
     LATERAL jsonb_to_record(jsonb_build_object('asset_class', listed.class))
         AS m (asset_class {asset_class_type})
WHERE ({expression}) IS FALSE

-- name: foreign_keys
-- Where the referenced table is partitioned there is one constraint more for each partition of it,
-- below the one that counts.
SELECT c.conname::text AS name, min(n.nspname || '.' || r.relname) AS table,
       fn.nspname::text AS other_schema, f.relname::text AS other_table,
       fa.attname::text AS other_column, format_type(fa.atttypid, -1) AS other_type,
       cardinality(c.conkey) = 1 AS is_about_class_only
FROM pg_constraint c
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attname = 'asset_class'
JOIN pg_class r ON r.oid = c.conrelid
JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class f ON f.oid = c.confrelid
JOIN pg_namespace fn ON fn.oid = f.relnamespace
JOIN pg_attribute fa ON fa.attrelid = c.confrelid
                    AND fa.attnum = c.confkey[array_position(c.conkey, a.attnum)]
WHERE c.contype = 'f' AND c.conrelid = ANY (%(leaves)s::oid[]) AND a.attnum = ANY (c.conkey)
  AND coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true)
  AND NOT EXISTS (SELECT FROM pg_constraint parent
                  WHERE parent.oid = c.conparentid AND parent.conrelid = c.conrelid)
GROUP BY 1, 3, 4, 5, 6, 7
ORDER BY 1, 2

-- name: classes_not_referenced
SELECT listed.class FROM unnest(%(classes)s::text[]) AS listed (class)
WHERE NOT EXISTS (SELECT FROM {other_table} r WHERE r.{other_column} = listed.class::{other_type})

-- name: count_in_pages
-- Rows that a rehearsal could take from these pages.
SELECT count(*) FROM (
    {correctable_rows}
      AND m.ctid >= %(first_address)s::tid AND m.ctid < %(end_address)s::tid
    LIMIT %(most)s) found

-- name: wal_position
SELECT pg_current_wal_insert_lsn()::text

-- name: wal_since
SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %(position)s::pg_lsn)::bigint

-- name: fire_deferred
-- Deferred triggers and constraints speak now: a transaction that is rolled back never gets there.
SET CONSTRAINTS ALL IMMEDIATE

-- name: may_rehearse
SELECT pg_is_in_recovery(), current_user::text,
       has_database_privilege(current_database(), 'TEMPORARY')

-- name: writable_leaves
-- Leaves that this role may update, the largest first, with their pages.
SELECT c.oid, pg_relation_size(c.oid) / current_setting('block_size')::integer AS pages
FROM pg_class c
WHERE c.oid = ANY (%(leaves)s::oid[])
  AND (SELECT bool_and(has_column_privilege(c.oid, a.attnum, 'UPDATE'))
       FROM pg_attribute a
       WHERE a.attrelid = c.oid AND a.attname = ANY (%(written)s::text[]))
ORDER BY 2 DESC, 1
