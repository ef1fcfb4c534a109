-- Puts back what a correction changed, by hand: one of `assetclass execute` or one of
-- correct_in_batches.sql. A row that somebody changed or deleted since is left alone and listed.
-- Each batch is one transaction; cut it wherever you like (Ctrl-C), the same command goes on.
--
--     psql -X -f roll_back.sql "postgresql://USER@HOST/DATABASE"      lists the backup tables
--     psql -X -f roll_back.sql -v backup_table=NAME -v dry_run=on "postgresql://USER@HOST/DATABASE"
--
-- Never with psql's option -1, and not through a pooler.
-- Options, each as -v NAME=VALUE:
--     backup_table=NAME          what is put back; without it the tables are listed, newest first
--     dry_run=on                 tells rows and conflicts; changes nothing
--     batch_size=1000, pause=0   rows of one transaction, and seconds between two
--     conflicts=100              how many conflicts are listed
--     market_schema, market_table    where to put it back; the backup tables are in that schema
--     backup_schema=assetclass   for a table that `assetclass backups restore-archive` made
--     lock_timeout=800ms, batch_timeout=1min, scan_timeout=30min    of one statement
--
-- Needs SELECT on the backup table, SELECT and UPDATE of asset_class and updated_at on the market
-- table, TEMPORARY on the database. Schema assetclass is read where it is still there: it knows
-- which planned rows the correction never wrote.

\ir names.sql
\if :{?conflicts} \else \set conflicts 100 \endif
\if :{?backup_schema} \else \set backup_schema :market_schema \endif
\if :{?backup_table}
\else
SELECT relname AS backup_table, pg_size_pretty(pg_total_relation_size(oid)) AS size,
       coalesce(obj_description(oid, 'pg_class'), 'made by the command') AS origin
FROM pg_class
WHERE relnamespace = quote_ident(:'backup_schema')::regnamespace AND relkind = 'r'
  AND relname ~ '^(market_data_backup_|archived_[0-9a-f]{32}$)'
ORDER BY relname DESC;
\quit
\endif
\ir writing.sql

-- What the correction wrote. Planned rows that it never wrote, or that the command has put back
-- already, are not its doing, even where they hold the planned class now.
SELECT to_regclass('assetclass.operation_undone') IS NOT NULL AS has_ledger \gset
CREATE TEMP TABLE not_written (seq bigint PRIMARY KEY);
\if :has_ledger
INSERT INTO not_written
WITH ledger AS MATERIALIZED (
    SELECT o.correction_id,
           coalesce((SELECT range_agg(int8range(first_seq, last_seq, '[]'))
                     FROM assetclass.operation_batch l
                     WHERE l.correction_id = o.correction_id AND pass = 0), '{}') AS done,
           coalesce((SELECT range_agg(part)
                     FROM assetclass.operation_undone u, unnest(u.seqs) AS part
                     WHERE u.correction_id = o.correction_id), '{}') AS undone
    FROM assetclass.operation o
    WHERE o.kind = 'correction'
      AND :'backup_table' IN (o.backup_table,
                              'archived_' || replace(o.correction_id::text, '-', ''))
)
SELECT b.seq
FROM :"backup_schema".:"backup_table" b, ledger
WHERE NOT b.seq <@ ledger.done OR b.seq <@ ledger.undone
   OR EXISTS (SELECT FROM assetclass.operation_skipped_row k
              WHERE k.correction_id = ledger.correction_id AND k.seq = b.seq);
\endif
ANALYZE pg_temp.not_written;
CREATE TEMP VIEW written AS
SELECT b.* FROM :"backup_schema".:"backup_table" b
WHERE NOT EXISTS (SELECT FROM pg_temp.not_written n WHERE n.seq = b.seq);

-- Those rows as they are now. They are found by key: their addresses died with the correction. Of
-- rows alike in the whole key, the n-th takes the n-th.
CREATE TEMP VIEW judged AS
WITH found AS (
    SELECT w.seq, w.corrected_asset_class, m.asset_class AS now, m.tableoid AS leaf,
           m.ctid AS address
    FROM pg_temp.written w JOIN :"market_schema".:"market_table" m ON m.id = w.id
     AND m.symbol::text COLLATE "C" = w.symbol::text
     AND m."timestamp" IS NOT DISTINCT FROM w."timestamp"
    UNION ALL
    SELECT w.seq, w.corrected_asset_class, m.asset_class, m.tableoid, m.ctid
    FROM pg_temp.written w JOIN :"market_schema".:"market_table" m ON m.id IS NULL
     AND m.symbol::text COLLATE "C" = w.symbol::text
     AND m."timestamp" IS NOT DISTINCT FROM w."timestamp"
    WHERE w.id IS NULL
), paired AS (
    SELECT *, dense_rank() OVER (PARTITION BY leaf, address ORDER BY seq) AS turn,
           dense_rank() OVER (PARTITION BY seq ORDER BY
               now::text IS DISTINCT FROM corrected_asset_class::text, leaf, address) AS place
    FROM found
)
SELECT w.seq, w.id, w.symbol, w."timestamp", w.asset_class AS before,
       w.corrected_asset_class AS corrected, p.now, p.leaf, p.address,
       CASE WHEN p.seq IS NULL THEN 'conflict: gone'
            WHEN p.now::text IS NOT DISTINCT FROM w.asset_class::text THEN 'restored'
            WHEN p.now::text = w.corrected_asset_class::text THEN 'to restore'
            ELSE 'conflict: changed since' END AS state
FROM pg_temp.written w LEFT JOIN paired p ON p.seq = w.seq AND p.place = p.turn;

CREATE TEMP TABLE judged_before AS SELECT * FROM pg_temp.judged;
CREATE TEMP TABLE todo AS
SELECT row_number() OVER (ORDER BY leaf, address) AS place, *,
       (row_number() OVER (PARTITION BY leaf ORDER BY address) - 1) / :'batch_size'::bigint AS batch
FROM pg_temp.judged_before WHERE state = 'to restore';
CREATE UNIQUE INDEX ON pg_temp.todo (place);
ANALYZE pg_temp.todo;

SELECT count(*) > 0 AND NOT :'dry_run'::boolean AS goes_on FROM pg_temp.todo \gset
\echo 'Rows as they are'
SELECT state, count(*) AS records FROM pg_temp.judged_before GROUP BY state ORDER BY state;
\echo 'Conflicts: left alone; classes quoted as in SQL'
SELECT seq, id, symbol, "timestamp", state, quote_nullable(before) AS before,
       quote_nullable(corrected) AS corrected,
       CASE WHEN address IS NOT NULL THEN quote_nullable(now) END AS now
FROM pg_temp.judged_before WHERE state LIKE 'conflict%' ORDER BY seq LIMIT :'conflicts'::bigint;
\if :goes_on

-- The statement of a batch, one for each table that holds rows. Everything is compared again, so
-- that a row which changes meanwhile is left alone. Locked rows are left for the next run.
SELECT format($$
    PREPARE batch_of_%1$s (bigint, bigint) AS
    WITH standing AS MATERIALIZED (
        SELECT t.leaf, t.before, m.ctid AS address
        FROM pg_temp.todo t JOIN %2$s m ON m.ctid = t.address AND m.tableoid = t.leaf
         AND m.id IS NOT DISTINCT FROM t.id
         AND m.symbol::text COLLATE "C" IS NOT DISTINCT FROM t.symbol::text
         AND m."timestamp" IS NOT DISTINCT FROM t."timestamp"
         AND m.asset_class::text IS NOT DISTINCT FROM t.corrected::text
        WHERE t.place BETWEEN $1 AND $2
        FOR NO KEY UPDATE OF m SKIP LOCKED
    )
    UPDATE %2$s m SET asset_class = s.before::text%3$s
    FROM standing s WHERE m.ctid = s.address AND m.tableoid = s.leaf
    $$, leaf, leaf::regclass, :'class_cast' || :'set_updated_at')
FROM (SELECT DISTINCT leaf FROM pg_temp.todo) leaves \gexec
\ir run_batches.sql

\echo 'Rows by a fresh look; "to restore" was locked: the same command again'
SELECT state, count(*) AS records FROM pg_temp.judged GROUP BY state ORDER BY state;
\endif
