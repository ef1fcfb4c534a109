-- Read by the three scripts beside it: which tables are meant, and what counts as blank.

\set ON_ERROR_STOP on
\set QUIET on
\encoding UTF8
\if :{?market_schema} \else \set market_schema public \endif
\if :{?market_table} \else \set market_table market_data \endif
\if :{?symbols_schema} \else \set symbols_schema public \endif
\if :{?symbols_table} \else \set symbols_table symbols \endif
\if :{?scan_timeout} \else \set scan_timeout 30min \endif

-- White_Space of Unicode: a class in symbols that is made of these only is no class.
SELECT string_agg(chr(code), '') AS blanks
FROM unnest(ARRAY[9, 10, 11, 12, 13, 32] || CASE WHEN getdatabaseencoding() = 'UTF8' THEN
     ARRAY[133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199, 8200, 8201, 8202,
           8232, 8233, 8239, 8287, 12288] END) AS code \gset
