-- What earlier demos have left: tables of their operations, and Dagster's history of them.

-- name: plan_tables
-- Only tables that an operation of ours has registered, whatever else carries the prefix.
SELECT DISTINCT plan ->> 'schema_name' AS schema_name, plan ->> 'table_name' AS table_name
FROM assetclass.operation
WHERE plan IS NOT NULL
ORDER BY 1, 2

-- name: drop_plan_table
DROP TABLE IF EXISTS {table}

-- name: drop_dagster_database
-- Not WITH (FORCE): whoever is still connected is at work, and is named as the reason to wait.
DROP DATABASE IF EXISTS {database}
