-- name: correctable_rows
-- Which rows of one leaf (or of the whole table) a correction with given options would change:
-- tickers and classes are compared as text (an enum rejects ''), byte by byte.
SELECT {columns}
FROM {table} m
JOIN ({mapping}) mapping ON mapping.ticker = m.symbol::text COLLATE "C"
WHERE {in_scope} AND {is_damaged} AND {is_targeted}

-- name: planned_columns
m.ctid AS address, m.id, m.symbol, m."timestamp", m.asset_class,
mapping.asset_class{asset_class_cast} AS corrected_asset_class

-- name: sample_columns
m.id, m.symbol::text AS symbol, m."timestamp",
m.asset_class::text AS asset_class, mapping.asset_class AS corrected_asset_class

-- name: is_missing
(m.asset_class IS NULL OR m.asset_class::text = '')

-- name: is_missing_or_mismatched
(m.asset_class IS NULL OR m.asset_class::text COLLATE "C" <> mapping.asset_class)

-- name: is_mismatched
(m.asset_class::text <> '' AND m.asset_class::text COLLATE "C" <> mapping.asset_class)

-- name: is_target
m.symbol::text COLLATE "C" = ANY (%(target_symbols)s)

-- name: create_table
-- The backup table is plan, undo log and audit trail in one; `seq` numbers rows in physical order.
CREATE {persistence} TABLE {backup} (
    seq bigint NOT NULL,
    id {id_type},
    symbol {symbol_type},
    "timestamp" {timestamp_type},
    asset_class {asset_class_type},
    corrected_asset_class {asset_class_type} NOT NULL,
    source_table oid NOT NULL,
    source_address tid NOT NULL
)

-- name: can_reuse_space
-- Whether new versions may stay on their page, without a new entry in every index (HOT): no index
-- may mention a column that we write, neither as a key nor in an expression or a predicate.
SELECT NOT EXISTS (
    SELECT FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname IN ('asset_class', 'updated_at')
    WHERE i.indrelid = %(leaf)s::oid
      AND (a.attnum = ANY (i.indkey::int2[])
           OR EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
                        AND d.refobjsubid = a.attnum)))

-- name: add_chunk
-- Pages [first_page, end_page) of one leaf, in a short transaction of their own: one long statement
-- would make every reader behind a waiting ALTER TABLE wait for all of it. Where many rows of a
-- page are damaged, batches visit the page several times, some rows each time: old versions are
-- pruned in between and the next new ones find room on the same page. The scan gives rows in physical
-- order, so a row's place is asked for without a sort; another order would cost speed alone.
WITH chosen AS (
    SELECT c.* FROM (
        {correctable_rows}
          AND m.ctid >= %(first_address)s::tid AND m.ctid < %(end_address)s::tid) c
    {not_planned}
    {limited}
), added AS (
    INSERT INTO {backup} (seq, id, symbol, "timestamp", asset_class, corrected_asset_class,
                          source_table, source_address)
    SELECT %(last_seq)s + row_number() OVER (ORDER BY mod(p.place, visits.number), p.place),
           p.id, p.symbol, p."timestamp", p.asset_class, p.corrected_asset_class,
           %(leaf)s::oid, p.address
    FROM (SELECT c.*, row_number() OVER () AS place
          FROM chosen c) p,
         (SELECT CASE WHEN %(can_reuse_space)s AND count(*) >= %(visits)s::bigint * %(pages)s
                      THEN %(visits)s ELSE 1 END AS number
          FROM chosen) visits
    RETURNING seq
)
SELECT count(*) FROM added

-- name: first_rows
ORDER BY c.address LIMIT %(most)s

-- name: not_planned
-- A later pass adds only rows that no earlier pass has planned: those have a reason already.
-- Rows without an id are looked for by themselves, as text, because IS NOT DISTINCT FROM can drive
-- no join: one condition for both would compare each row with each planned one.
WHERE NOT EXISTS (SELECT FROM {backup} b
                  WHERE b.id = c.id AND b.symbol::text = c.symbol::text COLLATE "C"
                    AND b."timestamp" IS NOT DISTINCT FROM c."timestamp")
  AND NOT EXISTS (SELECT FROM {backup} b
                  WHERE b.id IS NULL AND c.id IS NULL AND b.symbol::text = c.symbol::text COLLATE "C"
                    AND coalesce(b."timestamp"::text, '') = coalesce(c."timestamp"::text, ''))

-- name: number_rows
-- A btree, not BRIN: a batch reads exactly its range.
CREATE UNIQUE INDEX ON {backup} (seq)

-- name: analyze_table
ANALYZE {backup}

-- name: leaf_file
-- Pages, and the file that holds them: VACUUM FULL, CLUSTER and the like make a new one.
SELECT pg_relation_size(%(leaf)s::oid) / current_setting('block_size')::integer,
       pg_relation_filenode(%(leaf)s::oid)::bigint

-- name: readdress_chunk
-- Present addresses for the planned rows of some pages that no batch has done yet.
UPDATE {backup} b SET source_address = m.ctid
FROM ONLY {leaf} m
WHERE m.ctid >= %(first_address)s::tid AND m.ctid < %(end_address)s::tid
  AND b.id = m.id AND b.source_table = %(leaf)s::oid
  AND b.symbol::text = m.symbol::text COLLATE "C"
  AND b."timestamp" IS NOT DISTINCT FROM m."timestamp"
  AND b.asset_class::text IS NOT DISTINCT FROM m.asset_class::text COLLATE "C"
  AND b.seq <@ (SELECT int8multirange(int8range(1, %(planned)s::bigint + 1)) - coalesce(
                    (SELECT range_agg(int8range(first_seq, last_seq, '[]'))
                     FROM assetclass.operation_batch
                     WHERE correction_id = %(correction_id)s AND pass = 0), '{{}}'))

-- name: table_exists
SELECT EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s)

-- name: has_rows
SELECT EXISTS (SELECT FROM {backup})

-- name: drop_table
DROP TABLE IF EXISTS {backup}


-- name: count_rows
SELECT count(*) FROM ({correctable_rows}) correctable

-- name: count_late
SELECT count(*) FROM ({correctable_rows}) c
{not_planned}

-- name: count_damaged_again
-- Correctable rows that were planned and written: somebody damaged them again since.
SELECT count(*) FROM ({correctable_rows}) c
WHERE EXISTS (SELECT FROM {backup} b
              WHERE b.id = c.id AND b.symbol::text = c.symbol::text COLLATE "C"
                AND b."timestamp" IS NOT DISTINCT FROM c."timestamp"
                AND NOT EXISTS (SELECT FROM assetclass.operation_skipped_row s
                                WHERE s.correction_id = %(correction_id)s AND s.seq = b.seq))

-- name: count_changes
SELECT symbol, asset_class, corrected_asset_class, count(*) AS records
FROM ({correctable_rows}) correctable
GROUP BY 1, 2, 3
ORDER BY records DESC, 1, 2

-- name: sample_rows
SELECT id, symbol, "timestamp"::text AS "timestamp", asset_class, corrected_asset_class
FROM ({correctable_rows} LIMIT %(most)s) sampled

-- name: index_keys
-- For the anti-join of a late pass, which asks for each new row whether it is planned.
CREATE INDEX IF NOT EXISTS {index} ON {backup} (id)
