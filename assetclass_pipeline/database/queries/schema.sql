-- Around the migrations of schema `assetclass`; the migrations themselves carry their own SQL.

-- name: lock_migrations
SELECT pg_advisory_xact_lock(hashtextextended('assetclass migrations', 0))

-- name: lower_lock_timeout
SELECT set_config('lock_timeout', %(lock_timeout)s, true)

-- name: schema_rights
SELECT
    current_user::text AS role,
    current_database()::text AS database,
    has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
    (
        SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')
        FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s
    ) AS may_create_tables

-- name: create_schema
-- IF NOT EXISTS would ask for rights on the database even where the schema exists.
CREATE SCHEMA {schema}

-- name: version_table_exists
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class AS relation
    JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = relation.relnamespace
    WHERE namespace.nspname = %(schema)s AND relation.relname = 'alembic_version'
)

-- name: current_revision
SELECT version_num FROM assetclass.alembic_version

-- name: active_operation
SELECT correction_id::text, kind, status FROM assetclass.operation
WHERE status IN ('requested', 'running', 'paused')

-- name: lock_operations
LOCK TABLE assetclass.operation IN ACCESS EXCLUSIVE MODE
