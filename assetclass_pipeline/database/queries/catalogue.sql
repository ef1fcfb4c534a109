-- What the catalogue says about the market tables, and the settings of one transaction. Nothing
-- here locks a table: pg_partition_tree() would, so the tree is walked in pg_inherits.

-- name: set_local
SELECT pg_catalog.count(pg_catalog.set_config(setting.name, setting.value, true))
FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)

-- name: session_facts
SELECT
    current_user::text AS role,
    pg_is_in_recovery() AS in_recovery,
    to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS has_citus

-- name: relation
SELECT
    relation.oid,
    namespace.oid AS schema_oid,
    relation.relkind::text AS kind,
    relation.relpersistence::text AS persistence,
    access_method.amname::text AS access_method,
    relation.relkind = 'r' AND EXISTS (
        SELECT FROM pg_inherits WHERE inhparent = relation.oid
    ) AS has_inheriting_tables,
    EXISTS (
        SELECT FROM pg_rewrite
        WHERE ev_class = relation.oid AND ev_type = '2' AND relation.relkind IN ('r', 'p', 'f')
    ) AS has_update_rules,
    row_security_active(relation.oid) AS row_security,
    has_schema_privilege(namespace.oid, 'USAGE') AS may_use_schema,
    has_schema_privilege(namespace.oid, 'CREATE') AS may_create_in_schema,
    has_table_privilege(relation.oid, 'SELECT') AS may_select
FROM pg_class AS relation
JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
LEFT JOIN pg_am AS access_method ON access_method.oid = relation.relam
WHERE namespace.nspname = %(schema)s AND relation.relname = %(table)s
AND relation.relkind IN ('r', 'p', 'v', 'm', 'f')

-- name: similar_relations
-- Same name in another schema, or the same but for letter case.
SELECT namespace.nspname::text, relation.relname::text
FROM pg_class AS relation
JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
WHERE lower(relation.relname) = lower(%(table)s)
AND relation.relkind IN ('r', 'p', 'v', 'm', 'f')
AND namespace.nspname NOT LIKE 'pg\_%%' AND namespace.nspname <> 'information_schema'
ORDER BY namespace.nspname <> %(schema)s, 1, 2
LIMIT 3

-- name: columns
-- Each with the type below its domains.
WITH RECURSIVE below (attnum, type, depth) AS (
    SELECT attnum, atttypid, 0 FROM pg_attribute
    WHERE attrelid = %(relation)s AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT below.attnum, pg_type.typbasetype, below.depth + 1
    FROM below JOIN pg_type ON pg_type.oid = below.type
    WHERE pg_type.typtype = 'd'
)
SELECT
    attribute.attname::text AS name,
    format_type(attribute.atttypid, attribute.atttypmod) AS type,
    base.typname::text AS base_type,
    base.typtype = 'e' AS is_enum,
    attribute.attgenerated <> '' AS is_generated,
    has_column_privilege(attribute.attrelid, attribute.attnum, 'SELECT') AS may_select,
    has_column_privilege(attribute.attrelid, attribute.attnum, 'UPDATE') AS may_update
FROM pg_attribute AS attribute
JOIN below ON below.attnum = attribute.attnum
JOIN pg_type AS base ON base.oid = below.type AND base.typtype <> 'd'
WHERE attribute.attrelid = %(relation)s
ORDER BY attribute.attnum

-- name: leaves
WITH RECURSIVE tree (oid) AS (
    SELECT %(relation)s::oid
    UNION ALL
    SELECT pg_inherits.inhrelid FROM pg_inherits
    JOIN tree ON tree.oid = pg_inherits.inhparent
    WHERE NOT pg_inherits.inhdetachpending
)
SELECT
    leaf.oid,
    namespace.nspname::text AS schema,
    leaf.relname::text AS table,
    leaf.relkind::text AS kind,
    access_method.amname::text AS access_method,
    EXISTS (SELECT FROM pg_rewrite WHERE ev_class = leaf.oid AND ev_type = '2') AS has_update_rules,
    row_security_active(leaf.oid) AS row_security,
    EXISTS (
        SELECT FROM pg_index
        WHERE indrelid = leaf.oid AND indisunique AND indisvalid AND indimmediate
        AND indpred IS NULL AND indexprs IS NULL
        AND NOT EXISTS (
            SELECT FROM pg_attribute AS attribute
            WHERE attribute.attrelid = leaf.oid
            AND attribute.attnum = ANY ((indkey::int2[])[0:indnkeyatts - 1])
            AND attribute.attname <> ALL (%(key)s::text[])
        )
    ) AS has_key,
    EXISTS (
        SELECT FROM pg_index
        JOIN pg_class AS index ON index.oid = indexrelid
        JOIN pg_am ON pg_am.oid = index.relam AND pg_am.amname IN ('btree', 'hash')
        JOIN pg_attribute AS attribute
            ON attribute.attrelid = leaf.oid AND attribute.attnum = indkey[0]
        WHERE indrelid = leaf.oid AND indisvalid AND indpred IS NULL AND attribute.attname = 'id'
    ) AS has_id_index,
    coalesce(handler.proname = 'postgres_fdw_handler', false) AS is_on_postgres,
    coalesce(
        (SELECT option_value::boolean FROM pg_options_to_table(foreign_table.ftoptions)
         WHERE option_name = 'updatable'),
        (SELECT option_value::boolean FROM pg_options_to_table(server.srvoptions)
         WHERE option_name = 'updatable'),
        true
    ) AS is_updatable,
    server.srvname::text AS server,
    coalesce(has_server_privilege(server.oid, 'USAGE'), false) AS may_use_server,
    coalesce((SELECT option_value FROM pg_options_to_table(foreign_table.ftoptions)
              WHERE option_name = 'schema_name'), namespace.nspname::text) AS remote_schema,
    coalesce((SELECT option_value FROM pg_options_to_table(foreign_table.ftoptions)
              WHERE option_name = 'table_name'), leaf.relname::text) AS remote_table,
    has_schema_privilege(namespace.oid, 'USAGE') AS may_use_schema,
    has_table_privilege(leaf.oid, 'SELECT') AS may_select,
    coalesce((
        SELECT bool_and(has_column_privilege(leaf.oid, attribute.attnum, 'UPDATE'))
        FROM pg_attribute AS attribute
        WHERE attribute.attrelid = leaf.oid AND attribute.attname = ANY (%(written)s::text[])
    ), true) AS may_update
FROM tree
JOIN pg_class AS leaf ON leaf.oid = tree.oid
JOIN pg_namespace AS namespace ON namespace.oid = leaf.relnamespace
LEFT JOIN pg_am AS access_method ON access_method.oid = leaf.relam
LEFT JOIN pg_foreign_table AS foreign_table ON foreign_table.ftrelid = leaf.oid
LEFT JOIN pg_foreign_server AS server ON server.oid = foreign_table.ftserver
LEFT JOIN pg_foreign_data_wrapper AS wrapper ON wrapper.oid = server.srvfdw
LEFT JOIN pg_proc AS handler ON handler.oid = wrapper.fdwhandler
WHERE leaf.relkind <> 'p'
ORDER BY 2, 3

-- name: partition_keys_with
-- Tables above, at and below the relation whose partition key, or an expression of it, contains the
-- column: PostgreSQL records such a column as internally dependent on its table.
WITH RECURSIVE above (oid) AS (
    SELECT %(relation)s::oid
    UNION ALL
    SELECT pg_inherits.inhparent FROM pg_inherits JOIN above ON above.oid = pg_inherits.inhrelid
), below (oid) AS (
    SELECT %(relation)s::oid
    UNION ALL
    SELECT pg_inherits.inhrelid FROM pg_inherits JOIN below ON below.oid = pg_inherits.inhparent
)
SELECT namespace.nspname::text, relation.relname::text
FROM (SELECT oid FROM above UNION SELECT oid FROM below) AS tree
JOIN pg_class AS relation ON relation.oid = tree.oid AND relation.relkind = 'p'
JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
JOIN pg_attribute AS attribute
    ON attribute.attrelid = relation.oid AND attribute.attname = %(column)s
WHERE EXISTS (
    SELECT FROM pg_depend
    WHERE classid = 'pg_class'::regclass AND objid = relation.oid AND objsubid = attribute.attnum
    AND refclassid = 'pg_class'::regclass AND refobjid = relation.oid AND refobjsubid = 0
    AND deptype = 'i'
)
ORDER BY 1, 2

-- name: is_distributed
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_dist_partition WHERE logicalrelid::oid = %(relation)s
)

-- name: open_remote_catalogue
-- The other server's list of tables, for a transaction that is rolled back.
CREATE FOREIGN TABLE {classes} (
    oid oid, relname name, relnamespace oid, relkind "char", relhassubclass boolean,
    relrowsecurity boolean
) SERVER {server} OPTIONS (schema_name 'pg_catalog', table_name 'pg_class');
CREATE FOREIGN TABLE {namespaces} (oid oid, nspname name)
SERVER {server} OPTIONS (schema_name 'pg_catalog', table_name 'pg_namespace')

-- name: remote_table
SELECT relation.relkind::text, relation.relhassubclass, relation.relrowsecurity
FROM {classes} AS relation
JOIN {namespaces} AS namespace ON namespace.oid = relation.relnamespace
WHERE namespace.nspname = %(schema)s::name AND relation.relname = %(table)s::name

-- name: try_remote_update
-- No row has this address, so nothing is read, locked or written; yet the other server checks its
-- columns and our rights there, and whether it can compare as the plan will ask it to.
UPDATE {leaf} AS m SET asset_class = m.asset_class{updated_at}
WHERE m.ctid = '(0,0)'::tid AND (m.asset_class IS NULL OR m.asset_class::text = '')
RETURNING m.id, m.symbol, m."timestamp", m.asset_class

-- name: is_part
-- Whether a leaf is still the market table itself or a partition of it: one that was dropped or
-- detached is neither. Upwards, because a tree may have thousands of leaves.
EXISTS (
    WITH RECURSIVE above (oid) AS (
        SELECT {leaf}
        UNION ALL
        SELECT pg_inherits.inhparent FROM pg_inherits JOIN above ON above.oid = pg_inherits.inhrelid
        WHERE NOT pg_inherits.inhdetachpending
    )
    SELECT FROM above WHERE above.oid = %(market)s::oid
)

-- name: parts_left
SELECT leaf::bigint FROM unnest(%(leaves)s::oid[]) AS leaf WHERE {is_part}
