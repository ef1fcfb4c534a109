"""Synthetic market data: always the same rows for the same number of them.

Belongs here: the tables, their rows and indexes. Does not: cloning them (databases.py).
"""

import psycopg

from assetclass_pipeline.database import schema
from benchmarks.databases import Databases, settings_for

# 21,000 tickers of which 1,000 have rows, and ten symbols that no ticker knows: their rows are
# damaged like all others, but cannot be corrected.
_SYMBOLS = """
CREATE TABLE public.symbols (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ticker text NOT NULL,
    venue text,
    asset_class text,
    is_active boolean NOT NULL DEFAULT true
);
INSERT INTO public.symbols (ticker, venue, asset_class)
SELECT CASE WHEN n <= 1000 THEN 'SYM' || lpad(n::text, 4, '0') ELSE 'OTHER' || n END, 'VENUE',
       (ARRAY['STOCK_NASDAQ', 'STOCK_NYSE', 'CRYPTO', 'FOREX', 'STOCK_BIST'])[1 + n % 5]
FROM generate_series(1, 21000) n;
"""
_MARKET = """
CREATE TABLE public.market_data (
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
"""
# In order of time, one bar of every symbol after the other; every row's fate is a hash of its
# number. 30.3 % are damaged, so that 30 % of all are correctable.
_ROWS = """
INSERT INTO public.market_data (symbol, "timestamp", open, high, low, close, volume, asset_class)
SELECT CASE WHEN place < 10 THEN 'UNKNOWN' || place ELSE 'SYM' || lpad((place - 9)::text, 4, '0')
       END,
       timestamptz '2023-01-01 00:00+00'
           + (n / 1010) * (interval '1003 days' / (%(rows)s::integer / 1010 + 1)),
       price, price + 1.25, price - 0.75, price + 0.5, n %% 100000 * 3,
       CASE WHEN fate >= 303 THEN
                (ARRAY['STOCK_NASDAQ', 'STOCK_NYSE', 'CRYPTO', 'FOREX', 'STOCK_BIST'])
                [1 + (place - 9) %% 5]
            WHEN fate %% 2 = 0 THEN '' END
FROM (SELECT n, (n %% 1010)::integer AS place, 100 + (n %% 977) / 10.0 AS price,
             mod(hashint8(n)::bigint & 2147483647, 1000) AS fate
      FROM generate_series(0, %(rows)s::bigint - 1) n) numbered
"""
_INDEXES = """
ALTER TABLE public.market_data ADD PRIMARY KEY (id);
CREATE INDEX ON public.market_data (symbol, "timestamp");
CREATE INDEX ON public.market_data ("timestamp");
CREATE INDEX ON public.symbols (ticker);
"""
CORRECTABLE_ROWS = """
SELECT count(*) FROM market_data m
WHERE (m.asset_class IS NULL OR m.asset_class = '')
  AND EXISTS (SELECT FROM symbols s WHERE s.ticker = m.symbol)
"""


def build(databases: Databases, rows: int) -> str:
    """Name of a new template database with so many rows, ready for the engine."""
    name = f"template_{rows}"
    dsn = databases.create(name)
    schema.upgrade(dsn, settings_for(dsn))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET maintenance_work_mem = '256MB'")
        connection.execute(_SYMBOLS)
        connection.execute(_MARKET)
        connection.execute(_ROWS, {"rows": rows})
        connection.execute(_INDEXES)
        # As autovacuum leaves a table that has been there for a while.
        connection.execute("VACUUM (FREEZE, ANALYZE)")
    return name
