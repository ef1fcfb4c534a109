-- Rows found by their key, and all rows that another server holds (postgres_fdw). What the other
-- server reads is restricted by an array of addresses or of keys: a plain join would fetch the whole
-- table and compare it here. Behind a foreign table stands one plain table, so that an address there
-- names one row.

-- name: add_rows
-- All correctable rows of one foreign leaf in one statement, in physical order.
WITH chosen AS (
    SELECT c.* FROM ({correctable_rows}) c
    {not_planned}
    ORDER BY c.address
    LIMIT %(most)s
), added AS (
    INSERT INTO {backup} (seq, id, symbol, "timestamp", asset_class, corrected_asset_class,
                          source_table, source_address)
    SELECT %(last_seq)s + row_number() OVER (ORDER BY c.address),
           c.id, c.symbol, c."timestamp", c.asset_class, c.corrected_asset_class,
           %(leaf)s::oid, c.address
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
    SELECT b.seq, b.id, b.symbol, b."timestamp", b.asset_class, b.corrected_asset_class,
           b.source_address AS address
    FROM {backup} b
    WHERE b.seq = ANY (%(seqs)s::bigint[])
      AND b.symbol::text <> ALL (%(stale_symbols)s::text[])
)

-- name: found
-- As above, with the addresses that were found since.
wanted AS MATERIALIZED (
    SELECT b.seq, b.id, b.symbol, b."timestamp", b.asset_class, b.corrected_asset_class, f.address
    FROM unnest(%(seqs)s::bigint[], %(addresses)s::tid[]) AS f (seq, address)
    JOIN {backup} b ON b.seq = f.seq
    WHERE b.symbol::text <> ALL (%(stale_symbols)s::text[])
)

-- name: by_planned_address
m.ctid = ANY (ARRAY(SELECT address FROM wanted)) AND m.ctid = w.address

-- name: by_symbol
m.symbol = ANY (ARRAY(SELECT DISTINCT symbol{symbol_cast} FROM wanted)) AND m.symbol = w.symbol

-- name: by_id
m.id = ANY (ARRAY(SELECT id{id_cast} FROM wanted)) AND m.id = w.id

-- name: by_time
m."timestamp" = ANY (ARRAY(SELECT DISTINCT "timestamp" FROM wanted))
  AND m."timestamp" = w."timestamp"

-- name: same_row
-- Byte by byte: a column's own collation may take AAPL for aapl.
m.symbol::text COLLATE "C" = w.symbol::text
  AND m.id IS NOT DISTINCT FROM w.id
  AND m."timestamp" IS NOT DISTINCT FROM w."timestamp"

-- name: as_planned
m.asset_class::text COLLATE "C" IS NOT DISTINCT FROM w.asset_class::text

-- name: as_corrected
m.asset_class::text COLLATE "C" IS NOT DISTINCT FROM w.corrected_asset_class::text

-- name: find
-- Planned rows, and where they stand there. Of rows alike in everything, the n-th planned one takes
-- the n-th.
WITH {wanted}, standing AS MATERIALIZED (
    SELECT w.seq, m.ctid AS address
    FROM wanted w CROSS JOIN {leaf} m
    WHERE {restricted} AND {same_row} AND {value}
)
SELECT seq, address::text FROM (
    SELECT s.*, dense_rank() OVER (PARTITION BY s.seq ORDER BY s.address) AS place,
           dense_rank() OVER (PARTITION BY s.address ORDER BY s.seq) AS turn
    FROM standing s) ranked
WHERE place = turn

-- name: lock
-- The other server waits for locked rows (it is told nothing of SKIP LOCKED), within our time-out.
WITH {wanted}
SELECT w.seq, w.address::text FROM wanted w CROSS JOIN {leaf} m
WHERE m.ctid = ANY (%(addresses)s::tid[]) AND m.ctid = w.address AND {same_row} AND {value}
FOR NO KEY UPDATE OF m

-- name: enter
-- Takes the lock on the foreign table here, which others may hold against all of its rows.
UPDATE {leaf} SET asset_class = asset_class WHERE false

-- name: correct
-- The rows are locked there, so none of them can have moved.
WITH {wanted}
UPDATE {leaf} m
SET asset_class = w.corrected_asset_class{set_updated_at}
FROM wanted w
WHERE m.ctid = ANY (%(addresses)s::tid[]) AND m.ctid = w.address AND {same_row} AND {value}
RETURNING w.seq, {as_corrected}, m.ctid::text

-- name: read_back
SELECT count(*) FROM {leaf} m WHERE m.ctid = ANY (%(addresses)s::tid[])

-- name: announce
-- Committed before the other server can commit: what it may have done without us is known then.
INSERT INTO assetclass.operation_attempt (correction_id, seqs)
SELECT %(correction_id)s, range_agg(int8range(seq, seq, '[]'))
FROM unnest(%(seqs)s::bigint[]) seq
HAVING count(*) > 0

-- name: in_doubt
SELECT seq FROM unnest(%(seqs)s::bigint[]) seq
WHERE EXISTS (SELECT FROM assetclass.operation_attempt a
              WHERE a.correction_id = %(correction_id)s AND a.seqs @> seq)

-- name: settle
-- In one order for all workers, which may share an older attempt after a resume.
UPDATE assetclass.operation_attempt a
SET seqs = a.seqs - touched.settled
FROM (SELECT o.id, settled.seqs AS settled
      FROM assetclass.operation_attempt o,
           (SELECT range_agg(int8range(seq, seq, '[]')) AS seqs
            FROM unnest(%(seqs)s::bigint[]) seq) settled
      WHERE o.correction_id = %(correction_id)s AND o.seqs && settled.seqs
      ORDER BY o.id FOR NO KEY UPDATE OF o) touched
WHERE a.id = touched.id

-- name: forget_settled
DELETE FROM assetclass.operation_attempt
WHERE correction_id = %(correction_id)s AND isempty(seqs)

-- name: candidates
-- What one leaf holds under the ids of planned rows, to explain why they were not written; under
-- their whole keys where no index knows ids.
WITH {wanted}
SELECT w.seq, w.id IS NULL, bool_or(m.id IS NOT NULL),
       coalesce(bool_or(m.id IS NOT NULL AND {same_row} AND {value}), false)
FROM wanted w
LEFT JOIN {leaf} m ON {restricted}
GROUP BY w.seq, w.id IS NULL
