-- The demo's two tables, built anew by every `assetclass demo`.

-- name: one_load_at_a_time
SELECT pg_advisory_xact_lock(hashtextextended('assetclass demo', 0))

-- name: wait_for_locks_at_most
SELECT set_config('lock_timeout', %(lock_timeout)s, true)

-- name: relations_in_the_way
-- Anything that has one of the two names, whatever its kind, unless it carries the demo's mark.
SELECT namespace.nspname, relation.relname
FROM pg_catalog.pg_class AS relation
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = relation.relnamespace
WHERE (namespace.nspname, relation.relname) IN (
    (%(market_schema)s, %(market_table)s), (%(symbols_schema)s, %(symbols_table)s)
)
AND NOT (
    relation.relkind = 'r'
    AND coalesce(pg_catalog.obj_description(relation.oid, 'pg_class') = %(mark)s, false)
)
ORDER BY 1, 2

-- name: drop_tables
DROP TABLE IF EXISTS {market}, {symbols}

-- name: create_symbols
CREATE TABLE {symbols} (
    id bigint GENERATED ALWAYS AS IDENTITY,
    ticker text NOT NULL,
    name text,
    venue text,
    asset_class text,
    is_active boolean,
    source text NOT NULL
)

-- name: create_market
CREATE TABLE {market} (
    id bigint GENERATED ALWAYS AS IDENTITY,
    symbol text NOT NULL,
    "timestamp" timestamptz NOT NULL,
    open numeric,
    high numeric,
    low numeric,
    close numeric NOT NULL,
    volume bigint,
    asset_class text,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
)

-- name: mark_table
COMMENT ON TABLE {table} IS {mark}

-- name: copy_rows
COPY {table} ({columns}) FROM STDIN (FORMAT csv)

-- name: index_symbols
ALTER TABLE {symbols} ADD PRIMARY KEY (id)

-- name: index_market
-- After the rows, which is faster than keeping indexes up to date meanwhile.
ALTER TABLE {market} ADD PRIMARY KEY (id), ADD UNIQUE (symbol, "timestamp")

-- name: analyze_tables
ANALYZE {market}, {symbols}
