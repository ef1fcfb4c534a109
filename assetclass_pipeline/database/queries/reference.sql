-- name: categories
-- One row a ticker: its category, and its class where exactly one usable class is listed.
-- min = max instead of count(DISTINCT): one hash aggregate, no sort.
SELECT ticker,
       CASE WHEN lowest = highest THEN lowest END AS asset_class,
       CASE WHEN lowest IS NULL THEN 'unclassified'
            WHEN lowest = highest THEN 'mappable'
            ELSE 'ambiguous' END AS category
FROM (SELECT ticker, min(usable) AS lowest, max(usable) AS highest
      FROM (SELECT s.ticker::text COLLATE "C" AS ticker,
                   CASE WHEN btrim(s.asset_class::text, %(blanks)s) <> ''
                        THEN s.asset_class::text COLLATE "C" END AS usable
            FROM {symbols} s
            WHERE s.ticker IS NOT NULL) listed
      GROUP BY ticker) grouped

-- name: mapping
-- The distinct mapping: a ticker listed twice must not plan its rows twice.
SELECT s.ticker::text COLLATE "C" AS ticker, min(s.asset_class::text COLLATE "C") AS asset_class
FROM {symbols} s
WHERE s.ticker IS NOT NULL AND btrim(s.asset_class::text, %(blanks)s) <> ''
GROUP BY s.ticker::text COLLATE "C"
HAVING min(s.asset_class::text COLLATE "C") = max(s.asset_class::text COLLATE "C")

-- name: soundness
WITH listed AS MATERIALIZED (
    SELECT s.ticker::text COLLATE "C" AS ticker,
           CASE WHEN btrim(s.asset_class::text, %(blanks)s) <> ''
                THEN s.asset_class::text COLLATE "C" END AS usable
    FROM {symbols} s
), tickers AS MATERIALIZED (
    SELECT ticker, min(usable) AS lowest, max(usable) AS highest
    FROM listed WHERE ticker IS NOT NULL GROUP BY ticker
)
SELECT (SELECT count(*) FROM listed) AS records,
       (SELECT count(*) FROM listed WHERE ticker IS NULL) AS null_tickers,
       (SELECT count(*) FROM tickers) AS tickers,
       (SELECT count(*) FROM tickers WHERE lowest = highest) AS mappable,
       (SELECT count(*) FROM tickers WHERE lowest <> highest) AS ambiguous,
       (SELECT count(*) FROM tickers WHERE lowest IS NULL) AS unclassified,
       (SELECT count(*) FROM tickers WHERE ticker = '') AS empty_tickers,
       (SELECT count(*) FROM tickers WHERE btrim(ticker, %(blanks)s) <> ticker) AS padded,
       (SELECT coalesce(jsonb_agg(jsonb_build_array(usable, records) ORDER BY records DESC, usable), '[]')
        FROM (SELECT usable, count(*) AS records FROM listed WHERE usable IS NOT NULL GROUP BY usable) c
       ) AS classes

-- name: soundness_samples
WITH tickers AS (
    SELECT ticker, min(usable) AS lowest, max(usable) AS highest,
           array_agg(DISTINCT usable) FILTER (WHERE usable IS NOT NULL) AS classes
    FROM (SELECT s.ticker::text COLLATE "C" AS ticker,
                 CASE WHEN btrim(s.asset_class::text, %(blanks)s) <> ''
                      THEN s.asset_class::text COLLATE "C" END AS usable
          FROM {symbols} s WHERE s.ticker IS NOT NULL) listed
    GROUP BY ticker
), named AS (
    SELECT 'ambiguous' AS problem, ticker, classes FROM tickers WHERE lowest <> highest
    UNION ALL
    SELECT 'unclassified', ticker, NULL FROM tickers WHERE lowest IS NULL
    UNION ALL
    SELECT 'padded', ticker, classes FROM tickers WHERE btrim(ticker, %(blanks)s) <> ticker
)
SELECT problem, ticker, classes
FROM (SELECT *, row_number() OVER (PARTITION BY problem ORDER BY ticker) AS place FROM named) ranked
WHERE place <= %(most)s
ORDER BY problem, ticker

-- name: fingerprint
-- SHA-256 of the whole mapping. The text goes in as it is stored: a conversion could fail.
SELECT encode(sha256(convert_to(
           coalesce(string_agg(ticker || E'\x1f' || asset_class, E'\x1e' ORDER BY ticker), ''),
           getdatabaseencoding())), 'hex')
FROM ({mapping}) mapping
