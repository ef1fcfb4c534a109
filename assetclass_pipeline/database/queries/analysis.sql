-- name: month
width_bucket(m."timestamp", %(months)s::{timestamp_type}[])

-- name: report
-- One scan of the market table: rows are counted by month, symbol and class, and everything else
-- is derived from these counts. NULL and '' share a group, told apart by count(asset_class): a third
-- fewer groups to hash where a table holds both.
WITH reference AS MATERIALIZED ({categories}),
counted AS MATERIALIZED (
    SELECT {month} AS month,
           m.symbol::text COLLATE "C" AS symbol,
           nullif(m.asset_class::text COLLATE "C", '') AS asset_class,
           count(*) AS records, count(m.asset_class) AS filled
    FROM {market} m
    WHERE {in_scope}
    GROUP BY 1, 2, 3
),
judged AS MATERIALIZED (
    SELECT c.month, c.symbol, c.asset_class, c.records, c.filled,
           coalesce(r.category, 'orphaned') AS category,
           c.asset_class IS NULL AS missing,
           coalesce(r.category = 'mappable' AND c.asset_class <> r.asset_class, false)
               AS mismatched
    FROM counted c LEFT JOIN reference r ON r.ticker = c.symbol
),
totals AS (
    SELECT coalesce(sum(records), 0)::bigint AS total_records,
           coalesce(sum(records - filled) FILTER (WHERE missing), 0)::bigint AS null_asset_class,
           coalesce(sum(filled) FILTER (WHERE missing), 0)::bigint AS empty_asset_class,
           coalesce(sum(records) FILTER (WHERE mismatched), 0)::bigint AS mismatched,
           coalesce(sum(records) FILTER (WHERE category = 'orphaned'), 0)::bigint AS orphaned,
           coalesce(sum(records) FILTER (WHERE category = 'unclassified'), 0)::bigint AS unclassified,
           coalesce(sum(records) FILTER (WHERE category = 'ambiguous'), 0)::bigint AS ambiguous,
           coalesce(sum(records) FILTER (WHERE category = 'mappable'), 0)::bigint AS mappable,
           coalesce(sum(records) FILTER (WHERE category = 'mappable' AND missing), 0)::bigint
               AS correctable
    FROM judged
),
classes AS (
    SELECT asset_class, sum(records)::bigint AS records
    FROM judged WHERE NOT missing GROUP BY asset_class
    UNION ALL
    SELECT NULL, null_asset_class FROM totals WHERE null_asset_class > 0
    UNION ALL
    SELECT '', empty_asset_class FROM totals WHERE empty_asset_class > 0
),
months AS (
    SELECT month, sum(records)::bigint AS records,
           coalesce(sum(records) FILTER (WHERE missing), 0)::bigint AS missing,
           coalesce(sum(records) FILTER (WHERE mismatched), 0)::bigint AS mismatched,
           coalesce(sum(records) FILTER (WHERE category = 'orphaned'), 0)::bigint AS orphaned,
           coalesce(sum(records) FILTER (WHERE category = 'mappable' AND missing), 0)::bigint
               AS correctable
    FROM judged GROUP BY month
),
by_symbol AS MATERIALIZED (
    SELECT symbol, category, sum(records)::bigint AS records,
           coalesce(sum(records) FILTER (WHERE missing), 0)::bigint AS missing,
           coalesce(sum(records) FILTER (WHERE mismatched), 0)::bigint AS mismatched
    FROM judged GROUP BY symbol, category
),
worst AS (
    SELECT * FROM by_symbol
    ORDER BY missing + mismatched DESC, (category <> 'mappable') DESC, records DESC, symbol
    LIMIT %(worst)s
)
SELECT jsonb_build_object(
    'totals', (SELECT to_jsonb(t) FROM totals t),
    'classes', (SELECT coalesce(jsonb_agg(to_jsonb(c) ORDER BY records DESC, asset_class), '[]')
                FROM classes c),
    'months', (SELECT coalesce(jsonb_agg(to_jsonb(m) ORDER BY month), '[]') FROM months m),
    'worst', (SELECT coalesce(jsonb_agg(to_jsonb(w)
                  ORDER BY missing + mismatched DESC, (category <> 'mappable') DESC,
                           records DESC, symbol), '[]') FROM worst w),
    'symbols_referenced', (SELECT count(*) FROM by_symbol WHERE symbol IS NOT NULL),
    'symbols_without_market_data',
        (SELECT count(*) FROM reference r
         WHERE NOT EXISTS (SELECT FROM by_symbol b WHERE b.symbol = r.ticker)))

-- name: any_correctable
-- The nightly question. With an index on (symbol) for missing rows only, milliseconds. IS TRUE
-- makes a hashed subplan of the mapping: as a join, with EXISTS stopping early, the planner (which
-- cannot see through HAVING) compares every orphaned row with every ticker, for minutes.
SELECT EXISTS (
    SELECT FROM {market} m
    WHERE (m.asset_class IS NULL OR m.asset_class::text = '')
      AND (m.symbol::text COLLATE "C" IN (SELECT ticker FROM ({mapping}) mapping)) IS TRUE
)

-- name: correctable_period
-- First and last month that a correction would touch, as width_bucket numbers them.
SELECT min(width_bucket(m."timestamp", %(months)s::{timestamp_type}[])),
       max(width_bucket(m."timestamp", %(months)s::{timestamp_type}[])),
       bool_or(m."timestamp" IS NULL)
FROM {market} m
WHERE (m.asset_class IS NULL OR m.asset_class::text = '')
  AND (m.symbol::text COLLATE "C" IN (SELECT ticker FROM ({mapping}) mapping)) IS TRUE

-- name: damaged_rows
-- A few rows of one kind of damage; the scan ends at the last one.
WITH reference AS MATERIALIZED ({categories})
SELECT m.id, m.symbol::text AS symbol, m."timestamp"::text AS "timestamp",
       m.asset_class::text AS "assetClass", r.asset_class AS "expectedAssetClass"
FROM {market} m LEFT JOIN reference r ON r.ticker = m.symbol::text COLLATE "C"
WHERE CASE %(kind)s::text
      WHEN 'MISSING_ASSET_CLASS'
      THEN r.category = 'mappable' AND (m.asset_class IS NULL OR m.asset_class::text = '')
      WHEN 'MISMATCHED_ASSET_CLASS'
      THEN r.category = 'mappable' AND m.asset_class::text <> ''
           AND m.asset_class::text COLLATE "C" <> r.asset_class
      WHEN 'ORPHANED_SYMBOL' THEN r.ticker IS NULL
      WHEN 'UNCLASSIFIED_SYMBOL' THEN r.category = 'unclassified'
      ELSE r.category = 'ambiguous' END
LIMIT %(most)s
