-- Measures the damage in market_data: the numbers of `assetclass analyze`. Changes nothing.
--
--     psql -X -f analysis.sql "postgresql://USER@HOST/DATABASE"
--
-- Options, each as -v NAME=VALUE:
--     market_schema, market_table, symbols_schema, symbols_table    where the two tables are
--     worst=20                   how many symbols the last list holds
--     scan_timeout=30min         for the one scan of the market table
--
-- Needs SELECT on both tables, and nothing of the pipeline.

\ir names.sql
\if :{?worst} \else \set worst 20 \endif

BEGIN;
SET TRANSACTION READ ONLY;
SET LOCAL lock_timeout = '5s';
SET LOCAL statement_timeout = :'scan_timeout';
SET LOCAL work_mem = '64MB';
SET LOCAL jit = off;
-- Where row security would hide rows from us, an error is better than wrong numbers.
SET LOCAL row_security = off;

-- One scan: rows are counted by symbol and class, and every number follows from these counts.
-- Tickers and classes are compared as text, byte by byte: case and blanks count.
WITH reference AS MATERIALIZED (
    SELECT ticker, CASE WHEN lowest = highest THEN lowest END AS asset_class,
           CASE WHEN lowest IS NULL THEN 'unclassified'
                WHEN lowest = highest THEN 'mappable'
                ELSE 'ambiguous' END AS category
    FROM (SELECT s.ticker::text COLLATE "C" AS ticker, min(c.usable) AS lowest,
                 max(c.usable) AS highest
          FROM :"symbols_schema".:"symbols_table" s
          CROSS JOIN LATERAL (SELECT CASE WHEN btrim(s.asset_class::text, :'blanks') <> ''
                                          THEN s.asset_class::text COLLATE "C" END AS usable) c
          WHERE s.ticker IS NOT NULL
          GROUP BY 1) listed
),
counted AS MATERIALIZED (
    SELECT m.symbol::text COLLATE "C" AS symbol, m.asset_class::text COLLATE "C" AS asset_class,
           count(*) AS records
    FROM :"market_schema".:"market_table" m
    GROUP BY 1, 2
),
judged AS MATERIALIZED (
    SELECT c.*, coalesce(r.category, 'orphaned') AS category,
           coalesce(c.asset_class, '') = '' AS missing,
           coalesce(r.category = 'mappable' AND c.asset_class <> ''
                    AND c.asset_class <> r.asset_class, false) AS mismatched
    FROM counted c LEFT JOIN reference r ON r.ticker = c.symbol
),
by_symbol AS (
    SELECT symbol, category, sum(records) AS records,
           coalesce(sum(records) FILTER (WHERE missing), 0) AS missing,
           coalesce(sum(records) FILTER (WHERE mismatched), 0) AS mismatched
    FROM judged GROUP BY symbol, category
)
SELECT jsonb_build_object(
    'totals', (SELECT to_jsonb(t) FROM (
        SELECT coalesce(sum(records), 0) AS total,
               coalesce(sum(records) FILTER (WHERE missing), 0) AS missing,
               coalesce(sum(records) FILTER (WHERE asset_class IS NULL), 0) AS is_null,
               coalesce(sum(records) FILTER (WHERE asset_class = ''), 0) AS is_empty,
               coalesce(sum(records) FILTER (WHERE category = 'orphaned'), 0) AS orphaned,
               coalesce(sum(records) FILTER (WHERE category = 'unclassified'), 0) AS unclassified,
               coalesce(sum(records) FILTER (WHERE category = 'ambiguous'), 0) AS ambiguous,
               coalesce(sum(records) FILTER (WHERE category = 'mappable'), 0) AS mappable,
               coalesce(sum(records) FILTER (WHERE mismatched), 0) AS mismatched,
               coalesce(sum(records) FILTER (WHERE category = 'mappable' AND missing), 0)
                   AS correctable
        FROM judged) t),
    'symbols_referenced', (SELECT count(DISTINCT symbol) FROM judged),
    'symbols_without_market_data',
        (SELECT count(*) FROM reference r WHERE NOT EXISTS
            (SELECT FROM counted c WHERE c.symbol = r.ticker)),
    'by_class', (SELECT coalesce(jsonb_agg(to_jsonb(c)), '[]') FROM (
        SELECT asset_class, sum(records) AS records FROM judged GROUP BY asset_class) c),
    'worst', (SELECT coalesce(jsonb_agg(to_jsonb(w)), '[]') FROM (
        SELECT * FROM by_symbol
        ORDER BY missing + mismatched DESC, (category <> 'mappable') DESC, records DESC, symbol
        LIMIT :'worst'::integer) w)) AS report
\gset

\echo
\echo 'Rows'
SELECT word, records, round(100.0 * records / nullif(total, 0), 2) AS percent, meaning
FROM jsonb_to_record((:'report')::jsonb -> 'totals')
         AS t (total bigint, missing bigint, is_null bigint, is_empty bigint, orphaned bigint,
               unclassified bigint, ambiguous bigint, mappable bigint, mismatched bigint,
               correctable bigint)
CROSS JOIN LATERAL (VALUES
    (1, 'total', total, 'rows of the market table'),
    (2, 'missing', missing, 'asset_class is NULL or empty'),
    (3, 'null', is_null, 'of the missing: NULL'),
    (4, 'empty', is_empty, 'of the missing: an empty string'),
    (5, 'valid', total - missing, 'not missing'),
    (6, 'orphaned', orphaned, 'symbol is no ticker of symbols'),
    (7, 'unclassified', unclassified, 'ticker is listed, without a class'),
    (8, 'ambiguous', ambiguous, 'ticker is listed with several classes: never corrected'),
    (9, 'mappable', mappable, 'exactly one class can be derived'),
    (10, 'mismatched', mismatched, 'mappable, not missing, and another class than its symbol'),
    (11, 'correctable', correctable, 'mappable and missing: what a correction changes by default')
) AS words (place, word, records, meaning)
ORDER BY place;

\echo 'Scores'
SELECT score, round(value, 2) AS percent, comparison || ' ' || bound AS wanted,
       CASE comparison WHEN '>=' THEN value >= bound WHEN '<' THEN value < bound
                       ELSE value <= bound END AS met
FROM jsonb_to_record((:'report')::jsonb -> 'totals')
         AS t (total numeric, missing numeric, orphaned numeric, mappable numeric,
               mismatched numeric, correctable numeric)
CROSS JOIN LATERAL (VALUES
    (1, 'completeness', coalesce(100 * (total - missing) / nullif(total, 0), 100), '>=', 95),
    (2, 'integrity', coalesce(100 * mappable / nullif(total, 0), 100), '>=', 90),
    (3, 'orphaned', coalesce(100 * orphaned / nullif(total, 0), 0), '<', 5),
    (4, 'quality score', coalesce(100 * (mappable - correctable - mismatched)
                                  / nullif(mappable, 0), 100), '>=', 90),
    (5, 'correctable', coalesce(100 * correctable / nullif(total, 0), 0), '<=', 10)
) AS scores (place, score, value, comparison, bound)
ORDER BY place;

\echo 'Symbols'
SELECT * FROM jsonb_to_record((:'report')::jsonb)
                  AS t (symbols_referenced bigint, symbols_without_market_data bigint);

\echo 'Rows by class; quoted as in SQL to show what is NULL or empty or has blanks'
SELECT quote_nullable(asset_class) AS asset_class, records
FROM jsonb_to_recordset((:'report')::jsonb -> 'by_class') AS c (asset_class text, records bigint)
ORDER BY records DESC, c.asset_class COLLATE "C";

\echo 'Worst symbols'
SELECT quote_nullable(symbol) AS symbol, category, records, missing, mismatched
FROM jsonb_to_recordset((:'report')::jsonb -> 'worst')
         AS w (symbol text, category text, records bigint, missing bigint, mismatched bigint)
ORDER BY missing + mismatched DESC, (category <> 'mappable') DESC, records DESC,
         w.symbol COLLATE "C";

ROLLBACK;
