-- Indexes on the market tables. Building CONCURRENTLY is not possible inside a transaction nor on a
-- partitioned table, whose index is therefore put together from those of its leaves.

-- name: set_for_session
SELECT pg_catalog.count(pg_catalog.set_config(setting.name, setting.value, false))
FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)

-- name: try_lock_indexes
-- Tried, not waited for: a waiting statement holds a snapshot, for which the other would wait.
SELECT pg_try_advisory_lock(hashtextextended('assetclass indexes', 0))

-- name: unlock_indexes
SELECT pg_advisory_unlock(hashtextextended('assetclass indexes', 0))

-- name: for_missing_by_class
(symbol, asset_class) WHERE asset_class IS NULL

-- name: for_missing_by_symbol
-- Spelled as the nightly question asks, whatever kind of text the column is.
(symbol) WHERE asset_class IS NULL OR asset_class::text = ''

-- name: for_classes
(ticker, asset_class)

-- name: relation_named
SELECT
    relation.oid,
    relation.relkind IN ('i', 'I') AND indexed.indrelid = %(table)s AS is_index_of_table,
    coalesce(indexed.indisvalid, false) AS is_valid,
    CASE WHEN indexed.indexrelid IS NOT NULL
    THEN pg_catalog.pg_get_indexdef(indexed.indexrelid) ELSE '' END AS definition,
    (
        SELECT progress.pid FROM pg_catalog.pg_stat_progress_create_index AS progress
        WHERE progress.index_relid = relation.oid LIMIT 1
    ) AS built_by
FROM pg_catalog.pg_class AS relation
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = relation.relnamespace
LEFT JOIN pg_catalog.pg_index AS indexed ON indexed.indexrelid = relation.oid
WHERE namespace.nspname = %(schema)s AND relation.relname = %(name)s

-- name: attached_index
-- The part of a partitioned index that belongs to one partition; its name may be anybody's.
SELECT namespace.nspname::text AS schema, relation.relname::text AS name
FROM pg_catalog.pg_inherits AS attached
JOIN pg_catalog.pg_index AS indexed ON indexed.indexrelid = attached.inhrelid
JOIN pg_catalog.pg_class AS relation ON relation.oid = indexed.indexrelid
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = relation.relnamespace
WHERE attached.inhparent = %(index)s AND indexed.indrelid = %(table)s

-- name: table_kind
SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = %(table)s

-- name: partitions
SELECT
    relation.oid,
    namespace.nspname::text AS schema,
    relation.relname::text AS name,
    relation.relkind::text AS kind
FROM pg_catalog.pg_inherits AS attached
JOIN pg_catalog.pg_class AS relation ON relation.oid = attached.inhrelid
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = relation.relnamespace
WHERE attached.inhparent = %(table)s AND NOT attached.inhdetachpending
ORDER BY 2, 3

-- name: has_foreign_partitions
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_partition_tree(%(table)s::oid::regclass) AS part
    JOIN pg_catalog.pg_class AS relation ON relation.oid = part.relid
    WHERE relation.relkind = 'f')

-- name: leftovers_of_reindex
SELECT relation.relname::text
FROM pg_catalog.pg_index AS indexed
JOIN pg_catalog.pg_class AS relation ON relation.oid = indexed.indexrelid
WHERE indexed.indrelid = %(table)s AND NOT indexed.indisvalid
AND starts_with(relation.relname, left(%(name)s, 50))
AND relation.relname ~ '_cc(new|old)[0-9]*$'

-- name: holders
-- Sessions that keep a build waiting: a lock on the table, or a transaction that began before.
SELECT DISTINCT activity.pid, activity.application_name
FROM pg_catalog.pg_stat_activity AS activity
LEFT JOIN pg_catalog.pg_locks AS held
    ON held.pid = activity.pid AND held.relation = %(table)s AND held.granted
WHERE activity.pid <> pg_backend_pid()
AND (held.pid IS NOT NULL OR activity.backend_xmin IS NOT NULL OR activity.backend_xid IS NOT NULL)
AND activity.datname = current_database()
ORDER BY 1
LIMIT 5

-- name: create_index
CREATE INDEX CONCURRENTLY {index} ON {table} {definition}

-- name: create_partitioned_index
CREATE INDEX {index} ON ONLY {table} {definition}

-- name: attach_index
ALTER INDEX {parent} ATTACH PARTITION {index}

-- name: reindex
REINDEX INDEX CONCURRENTLY {index}

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index}
