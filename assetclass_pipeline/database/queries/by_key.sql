-- Rows that another server holds (postgres_fdw): found by key, because their addresses say nothing
-- here. Each statement restricts what the other server reads by arrays of keys: a plain join would
-- fetch the whole table and compare it here.

-- name: add_rows
-- All correctable rows of one foreign leaf in one statement, in the order of their keys.
WITH chosen AS (
    SELECT c.* FROM ({correctable_rows}) c
    {not_planned}
    ORDER BY c.id, c."timestamp", c.symbol
    LIMIT %(most)s
), added AS (
    INSERT INTO {backup} (seq, id, symbol, "timestamp", asset_class, corrected_asset_class,
                          source_table, source_address)
    SELECT %(last_seq)s + row_number() OVER (ORDER BY c.id, c."timestamp", c.symbol),
           c.id, c.symbol, c."timestamp", c.asset_class, c.corrected_asset_class,
           %(leaf)s::oid, '(0,0)'
    FROM chosen c
    RETURNING seq
)
SELECT count(*) FROM added

-- name: holds_nulls
-- Whether some of these planned rows lack an id, or a time.
SELECT coalesce(bool_or(b.id IS NULL), false), coalesce(bool_or(b."timestamp" IS NULL), false)
FROM {backup} b WHERE b.seq = ANY (%(seqs)s::bigint[])

-- name: wanted
wanted AS MATERIALIZED (
    SELECT b.seq, b.id, b.symbol, b."timestamp", b.asset_class, b.corrected_asset_class
    FROM {backup} b
    WHERE b.seq = ANY (%(seqs)s::bigint[])
      AND b.symbol::text <> ALL (%(stale_symbols)s::text[])
)

-- name: by_symbol
m.symbol = ANY (ARRAY(SELECT DISTINCT symbol{symbol_cast} FROM wanted))

-- name: by_id
m.id = ANY (ARRAY(SELECT id{id_cast} FROM wanted)) AND m.id = w.id

-- name: by_time
m."timestamp" = ANY (ARRAY(SELECT DISTINCT "timestamp" FROM wanted))

-- name: same_row
m.symbol::text = w.symbol::text
  AND m.id IS NOT DISTINCT FROM w.id
  AND m."timestamp" IS NOT DISTINCT FROM w."timestamp"

-- name: as_planned
m.asset_class::text IS NOT DISTINCT FROM w.asset_class::text

-- name: as_corrected
m.asset_class::text IS NOT DISTINCT FROM w.corrected_asset_class::text

-- name: find
WITH {wanted}
SELECT w.seq FROM wanted w CROSS JOIN {leaf} m
WHERE {restricted} AND {same_row} AND {value}

-- name: lock
-- The other server waits for locked rows (it is told nothing of SKIP LOCKED), within our time-out.
WITH {wanted}
SELECT w.seq FROM wanted w CROSS JOIN {leaf} m
WHERE {restricted} AND {same_row} AND {value}
FOR NO KEY UPDATE OF m

-- name: correct
WITH {wanted}
UPDATE {leaf} m
SET asset_class = w.corrected_asset_class{set_updated_at}
FROM wanted w
WHERE {restricted} AND {same_row} AND {value}
RETURNING w.seq, {as_corrected}

-- name: announce
-- Committed before the other server can commit: what it may have done without us is known then.
INSERT INTO assetclass.operation_attempt (correction_id, seqs)
SELECT %(correction_id)s, range_agg(int8range(found.seq, found.seq, '[]'))
FROM ({find}) found
HAVING count(*) > 0

-- name: in_doubt
SELECT seq FROM unnest(%(seqs)s::bigint[]) seq
WHERE EXISTS (SELECT FROM assetclass.operation_attempt a
              WHERE a.correction_id = %(correction_id)s AND a.seqs @> seq)

-- name: settle
DELETE FROM assetclass.operation_attempt a
USING (SELECT range_agg(int8range(seq, seq, '[]')) AS seqs
       FROM unnest(%(seqs)s::bigint[]) seq) settled
WHERE a.correction_id = %(correction_id)s AND a.seqs <@ settled.seqs

-- name: candidates
-- What one leaf holds under the ids of planned rows, to explain why they were not written.
WITH {wanted}
SELECT w.seq, w.id IS NULL, bool_or(m.id IS NOT NULL),
       coalesce(bool_or(m.id IS NOT NULL AND {same_row} AND {value}), false)
FROM wanted w
LEFT JOIN (SELECT * FROM {leaf} m WHERE m.id = ANY (ARRAY(SELECT id{id_cast} FROM wanted))) m
       ON m.id = w.id
GROUP BY w.seq, w.id IS NULL
