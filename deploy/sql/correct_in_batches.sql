-- Gives missing rows of market_data the class of their symbol, by hand: what `assetclass execute`
-- does, without its throttle. Each batch is one transaction that writes rows and, into the backup
-- table, what they held before. Cut it wherever you like (Ctrl-C): nothing is half done. Run it
-- again for what is left, best with the same backup table.
--
--     psql -X -f correct_in_batches.sql "postgresql://USER@HOST/DATABASE"
--
-- Never with psql's option -1, and not through a pooler. Look first: analysis.sql.
-- Options, each as -v NAME=VALUE:
--     dry_run=on                 counts what would be changed; changes nothing
--     max_records=100            stops after so many rows: a first try before the rest
--     overwrite_mismatched=on    also rows whose class differs from their symbol's
--     batch_size=1000, pause=0   rows of one transaction, and seconds between two
--     backup_table=NAME          goes on in the backup table of an earlier run of this script
--     market_schema, market_table, symbols_schema, symbols_table    where the two tables are
--     lock_timeout=800ms, batch_timeout=1min, scan_timeout=30min    of one statement
--     in_publication=on          the backup table exists on every subscriber (README.md)
--
-- Needs SELECT on both tables, UPDATE of asset_class and updated_at, CREATE in the market table's
-- schema, TEMPORARY on the database; nothing of the pipeline.

\ir names.sql
\if :{?max_records} \else \set max_records ALL \endif
\if :{?overwrite_mismatched} \else \set overwrite_mismatched off \endif
\if :{?in_publication} \else \set in_publication off \endif
\if :{?backup_table} \set is_continued on \else \set is_continued off \endif
\if :is_continued
\else
SELECT 'market_data_backup_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD_HH24MISS')
           AS backup_table \gset
\endif
\set backup_schema :market_schema
\ir writing.sql

SELECT set_config('manual.is_continued', :'is_continued', false),
       set_config('manual.in_publication', :'in_publication', false) \gset ignored_
DO $$
DECLARE
    backup text := current_setting('manual.backup');
    is_published boolean := EXISTS (SELECT FROM pg_publication WHERE puballtables);
BEGIN
    IF NOT is_published AND current_setting('server_version_num')::integer >= 150000 THEN
        EXECUTE 'SELECT EXISTS (SELECT FROM pg_publication_namespace JOIN pg_class
                 ON relnamespace = pnnspid WHERE pg_class.oid = $1)'
            INTO is_published USING current_setting('manual.market')::regclass;
    END IF;
    IF current_setting('manual.is_continued')::boolean
       AND obj_description(to_regclass(backup), 'pg_class') IS DISTINCT FROM 'corrected by hand' THEN
        RAISE '% was not made by this script: leave backup_table out.', backup;
    ELSIF is_published AND NOT current_setting('manual.in_publication')::boolean THEN
        RAISE 'A publication of all tables would send the backup table to subscribers that lack '
              'it, and their replication stops. README.md says what to do.';
    END IF;
END $$;

-- Which classes symbols offers for a ticker. All is compared as text, byte by byte.
CREATE TEMP VIEW offered AS
SELECT s.ticker::text COLLATE "C" AS ticker, s.asset_class::text COLLATE "C" AS asset_class
FROM :"symbols_schema".:"symbols_table" s WHERE btrim(s.asset_class::text, :'blanks') <> '';

-- Where the correctable rows are. A ticker with two classes is ambiguous: never guessed.
CREATE TEMP VIEW correctable AS
SELECT m.tableoid AS leaf, m.ctid AS address
FROM :"market_schema".:"market_table" m
JOIN (SELECT ticker, min(asset_class) AS asset_class FROM pg_temp.offered
      GROUP BY ticker HAVING min(asset_class) = max(asset_class)) mapping
  ON mapping.ticker = m.symbol::text COLLATE "C"
WHERE m.asset_class IS NULL OR m.asset_class::text = ''
   OR (:'overwrite_mismatched'::boolean
       AND m.asset_class::text COLLATE "C" <> mapping.asset_class);

CREATE TEMP TABLE todo AS
SELECT row_number() OVER (ORDER BY leaf, address) AS place, leaf, address,
       (row_number() OVER (PARTITION BY leaf ORDER BY address) - 1) / :'batch_size'::bigint AS batch
FROM (SELECT * FROM pg_temp.correctable LIMIT :max_records) found;
CREATE UNIQUE INDEX ON pg_temp.todo (place);
ANALYZE pg_temp.todo;
SELECT count(*) AS todo, count(*) > 0 AND NOT :'dry_run'::boolean AS goes_on
FROM pg_temp.todo \gset
\echo 'Rows to correct:' :todo
\if :goes_on

\if :is_continued
\else
CREATE TABLE :"market_schema".:"backup_table" AS
SELECT 0::bigint AS seq, id, symbol, "timestamp", asset_class,
       asset_class AS corrected_asset_class, tableoid AS source_table, ctid AS source_address
FROM :"market_schema".:"market_table" WITH NO DATA;
ALTER TABLE :"market_schema".:"backup_table" ADD UNIQUE (seq),
    ALTER seq SET NOT NULL, ALTER corrected_asset_class SET NOT NULL,
    ALTER source_table SET NOT NULL, ALTER source_address SET NOT NULL;
COMMENT ON TABLE :"market_schema".:"backup_table" IS 'corrected by hand';
\endif
\echo 'Backup table:' :backup_table
SELECT coalesce(max(seq), 0) AS last_seq FROM :"market_schema".:"backup_table" \gset

-- The statement of a batch, one for each table that holds rows. Rows are found by their address,
-- and whether they are correctable is asked anew: what happened since the scan is respected.
-- Locked rows are left for the next run. What the backup keeps is what was really written.
SELECT format($$
    PREPARE batch_of_%1$s (bigint, bigint) AS
    WITH standing AS MATERIALIZED (
        SELECT t.place, m.tableoid AS leaf, m.ctid AS address,
               m.id, m.symbol, m."timestamp", m.asset_class
        FROM pg_temp.todo t JOIN %2$s m ON m.ctid = t.address AND m.tableoid = t.leaf
        WHERE t.place BETWEEN $1 AND $2
        FOR NO KEY UPDATE OF m SKIP LOCKED
    ), mapping AS MATERIALIZED (
        SELECT ticker, min(asset_class) AS asset_class FROM pg_temp.offered
        WHERE (ticker IN (SELECT symbol::text COLLATE "C" FROM standing)) IS TRUE
        GROUP BY ticker HAVING min(asset_class) = max(asset_class)
    ), changed AS (
        UPDATE %2$s m SET asset_class = mapping.asset_class%3$s
        FROM standing s JOIN mapping ON mapping.ticker = s.symbol::text COLLATE "C"
        WHERE m.ctid = s.address AND m.tableoid = s.leaf
          AND (s.asset_class IS NULL OR s.asset_class::text = ''
               OR (%4$L AND s.asset_class::text COLLATE "C" <> mapping.asset_class))
        RETURNING s.*, m.asset_class AS corrected
    )
    INSERT INTO %5$s (seq, id, symbol, "timestamp", asset_class, corrected_asset_class,
                      source_table, source_address)
    SELECT %6$s + place, id, symbol, "timestamp", asset_class, corrected, leaf, address
    FROM changed
    $$, leaf, leaf::regclass, :'class_cast' || :'set_updated_at', :'overwrite_mismatched'::boolean,
    current_setting('manual.backup'), :'last_seq')
FROM (SELECT DISTINCT leaf FROM pg_temp.todo) leaves \gexec
\ir run_batches.sql

-- The proof: a fresh scan.
SELECT (SELECT count(*) FROM :"market_schema".:"backup_table" WHERE seq > :last_seq) AS corrected,
       (SELECT count(*) FROM pg_temp.correctable) AS correctable_rows_left;
\echo 'Rows left: again, with -v backup_table=':backup_table'. Undo: roll_back.sql, with the same.'
\endif
