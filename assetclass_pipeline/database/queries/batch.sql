-- name: look_ahead
-- Symbols of this batch whose rows must not be written.
-- Second: whether a trigger of the market table could change a row again after the UPDATE; without
-- one RETURNING has already read every version that is written. Then the batch's first and last
-- address, the file that its leaf has now, and whether the leaf is still a part of the table.
SELECT ({stale_symbols}),
       EXISTS (SELECT FROM pg_trigger t
               WHERE t.tgrelid = ANY (%(relations)s::oid[]) AND t.tgenabled <> 'D'
                 AND (NOT t.tgisinternal OR t.tgparentid <> 0)),
       (SELECT min(b.source_address)::text FROM {backup} b WHERE {in_batch}),
       (SELECT max(b.source_address)::text FROM {backup} b WHERE {in_batch}),
       pg_relation_filenode(%(leaf)s::oid)::bigint,
       {is_part}

-- name: stale_symbols
-- Those whose class symbols no longer derives as planned: their rows must not get a class that the
-- reference does not hold any more. A ticker's own collation may take AAPL for aapl, so it only
-- finds them, by the index that may be there.
SELECT coalesce(array_agg(DISTINCT stale.symbol), '{{}}')
FROM (SELECT planned.symbol
      FROM (SELECT DISTINCT b.symbol::text AS symbol, b.corrected_asset_class::text AS asset_class
            FROM {backup} b WHERE {in_batch}) planned
      LEFT JOIN {symbols} s ON s.ticker::text = planned.symbol
                           AND s.ticker::text COLLATE "C" = planned.symbol
      -- Blanks are looked for in the joined rows only: in all of symbols they cost more than the
      -- rest of this statement.
      CROSS JOIN LATERAL (SELECT CASE WHEN btrim(s.asset_class::text, %(blanks)s) <> ''
                                      THEN s.asset_class::text COLLATE "C" END AS class) usable
      GROUP BY planned.symbol, planned.asset_class
      HAVING min(usable.class) IS DISTINCT FROM planned.asset_class COLLATE "C"
          OR max(usable.class) IS DISTINCT FROM planned.asset_class COLLATE "C"
     ) stale

-- name: no_stale_symbols
-- Old values need not be what symbols says.
SELECT '{{}}'::text[]

-- name: in_range
b.seq BETWEEN %(first_seq)s AND %(last_seq)s

-- name: in_list
b.seq = ANY (%(seqs)s)

-- name: prune
-- Reading pages in a row makes PostgreSQL prune the full ones; reading single addresses does not.
-- What earlier batches left dead on these pages makes room for the versions that this one writes.
SELECT count(*) FROM ONLY {leaf} m
WHERE m.ctid >= %(first_address)s::tid AND m.ctid <= %(last_address)s::tid

-- name: correct_by_address
-- Only the address can drive the join (hash and merge joins are off in this transaction, and
-- IS NOT DISTINCT FROM can use no index), so the plan cannot flip. Key, symbol, time and old value
-- are compared because an address may hold another row by now. Locked rows are left to the sweep,
-- so that our session never waits for a row of the application.
-- Returns: rows written as planned, rows written with another value, the seqs not written, and
-- where they are to be read back the addresses of the new versions.
WITH taken AS MATERIALIZED (
    SELECT b.seq, m.ctid AS address, b.corrected_asset_class
    FROM {backup} b
    JOIN ONLY {leaf} m
      ON m.ctid = b.source_address
     AND m.id IS NOT DISTINCT FROM b.id
     AND m.symbol::text COLLATE "C" IS NOT DISTINCT FROM b.symbol::text
     AND m."timestamp" IS NOT DISTINCT FROM b."timestamp"
     AND m.asset_class::text COLLATE "C" IS NOT DISTINCT FROM b.asset_class::text
    WHERE b.seq BETWEEN %(first_seq)s AND %(last_seq)s
      AND b.symbol::text <> ALL (%(stale_symbols)s)
    FOR NO KEY UPDATE OF m SKIP LOCKED
), changed AS (
    UPDATE ONLY {leaf} m
    SET asset_class = t.corrected_asset_class{set_updated_at}
    FROM taken t
    WHERE m.ctid = t.address
    RETURNING t.seq, m.ctid AS new_address,
              m.asset_class::text COLLATE "C" IS NOT DISTINCT FROM t.corrected_asset_class::text
                  AS as_planned
)
SELECT count(*) FILTER (WHERE as_planned), count(*) FILTER (WHERE NOT as_planned),
       (int8multirange(int8range(%(first_seq)s, %(last_seq)s, '[]'))
        - coalesce(range_agg(int8range(seq, seq, '[]')), '{{}}'))::text,
       array_agg(new_address::text) FILTER (WHERE %(read_back)s)
FROM changed

-- name: read_back
SELECT count(*) FROM unnest(%(addresses)s::tid[]) written (address)
JOIN ONLY {leaf} m ON m.ctid = written.address

-- name: correct_by_key
-- The sweep: rows that moved are found again by key, through the parent, whatever leaf they are in
-- now. Old value and symbol are compared too: a renamed ticker must not get its old class.
WITH {wanted}, found AS MATERIALIZED (
    SELECT w.seq, m.tableoid AS leaf, m.ctid AS address, w.corrected_asset_class
    FROM wanted w CROSS JOIN {market} m
    WHERE {restricted} AND {same_row} AND {value}
    FOR NO KEY UPDATE OF m SKIP LOCKED
), taken AS MATERIALIZED (
    -- Of rows alike in everything, the n-th planned one takes the n-th.
    SELECT * FROM (
        SELECT f.*, dense_rank() OVER (PARTITION BY f.seq ORDER BY f.leaf, f.address) AS place,
               dense_rank() OVER (PARTITION BY f.leaf, f.address ORDER BY f.seq) AS turn
        FROM found f) ranked
    WHERE place = turn
), changed AS (
    UPDATE {market} m
    SET asset_class = t.corrected_asset_class{set_updated_at}
    FROM taken t
    WHERE m.tableoid = t.leaf AND m.ctid = t.address
    RETURNING t.seq, m.asset_class::text COLLATE "C"
                         IS NOT DISTINCT FROM t.corrected_asset_class::text AS as_planned
)
SELECT count(*) FILTER (WHERE as_planned), count(*) FILTER (WHERE NOT as_planned),
       coalesce(array_agg(seq) FILTER (WHERE as_planned), '{{}}'),
       -- Locked by us and yet not written: a trigger said no, or the row changed while we looked.
       (SELECT coalesce(array_agg(t.seq), '{{}}') FROM taken t
        WHERE NOT EXISTS (SELECT FROM changed c WHERE c.seq = t.seq))
FROM changed

-- name: set_updated_at
, updated_at = CURRENT_TIMESTAMP

-- name: record_batch
-- The fence, last statement of the batch: FOR SHARE on the operation row makes a take-over wait for
-- this commit, and after a take-over no row comes back, so nothing is inserted and the batch is
-- rolled back. Taken first instead of last, the same lock would starve a cancel.
INSERT INTO assetclass.operation_batch (correction_id, pass, first_seq, last_seq, epoch, worker,
                                        records_corrected, records_skipped, duration_ms)
SELECT o.correction_id, %(pass)s, %(first_seq)s, %(last_seq)s, o.epoch, %(worker)s,
       %(corrected)s, %(skipped)s, %(duration_ms)s
FROM assetclass.operation o
WHERE o.correction_id = %(correction_id)s AND o.status = 'running' AND o.epoch = %(epoch)s
FOR SHARE

-- name: record_skipped
INSERT INTO assetclass.operation_skipped_row (correction_id, seq, reason)
SELECT %(correction_id)s, seq, %(reason)s
FROM unnest(%(skipped)s::int8multirange) skipped_range,
     generate_series(lower(skipped_range), upper(skipped_range) - 1) seq

-- name: remove_skipped
DELETE FROM assetclass.operation_skipped_row
WHERE correction_id = %(correction_id)s AND seq = ANY (%(seqs)s)

-- name: set_skip_reason
UPDATE assetclass.operation_skipped_row
SET reason = %(reason)s
WHERE correction_id = %(correction_id)s AND seq = ANY (%(seqs)s)

-- name: skipped_seqs
SELECT seq FROM assetclass.operation_skipped_row
WHERE correction_id = %(correction_id)s AND seq > %(after)s AND reason <> 'quarantined'
ORDER BY seq
LIMIT %(most)s

-- name: open_ranges
-- What the ledger lacks of seqs [1, planned]: a resume is these ranges. Nothing planned is [1, 1).
SELECT lower(part), upper(part) - 1
FROM unnest(int8multirange(int8range(1, %(planned)s::bigint + 1)) - coalesce(
    (SELECT range_agg(int8range(first_seq, last_seq, '[]'))
     FROM assetclass.operation_batch WHERE correction_id = %(correction_id)s AND pass = 0),
    '{{}}')) part
ORDER BY 1

-- name: last_pass
SELECT coalesce(max(pass), 0) FROM assetclass.operation_batch
WHERE correction_id = %(correction_id)s

-- name: quarantine
INSERT INTO assetclass.operation_quarantined_row
    (correction_id, seq, id, symbol, "timestamp", corrected_asset_class, error_code, error_message)
SELECT %(correction_id)s, b.seq, b.id::text, b.symbol::text, b."timestamp"::text,
       b.corrected_asset_class::text, %(error_code)s, %(error_message)s
FROM {backup} b WHERE b.seq = %(seq)s
ON CONFLICT (correction_id, seq) DO UPDATE
SET error_code = excluded.error_code, error_message = excluded.error_message

-- name: failures
-- Rows in quarantine, rows that batches have dealt with, and what was said of the newest one.
SELECT (SELECT count(*) FROM assetclass.operation_quarantined_row
        WHERE correction_id = %(correction_id)s),
       (SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM assetclass.operation_batch
        WHERE correction_id = %(correction_id)s AND pass = 0),
       (SELECT error_message FROM assetclass.operation_quarantined_row
        WHERE correction_id = %(correction_id)s ORDER BY quarantined_at DESC LIMIT 1)

-- name: forget_quarantine
DELETE FROM assetclass.operation_quarantined_row WHERE correction_id = %(correction_id)s

-- name: release_quarantine
UPDATE assetclass.operation_skipped_row SET reason = %(reason)s
WHERE correction_id = %(correction_id)s AND reason = 'quarantined'
