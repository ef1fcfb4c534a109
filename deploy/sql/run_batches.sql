-- Read by the two scripts that write: runs the prepared statement of each table on every batch in
-- todo, each in a transaction of its own. What psql prints is the number of rows.

-- Without hash and merge joins only the addresses can drive a batch: it never becomes a scan.
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET statement_timeout = :'batch_timeout';
\set QUIET off
SELECT format('EXECUTE batch_of_%s(%s, %s)', leaf, min(place), max(place)),
       CASE WHEN :'pause'::numeric > 0
            THEN format('DO $$ BEGIN PERFORM pg_sleep(%s); END $$', :'pause'::numeric) END
FROM pg_temp.todo GROUP BY leaf, batch ORDER BY min(place) \gexec
\set QUIET on
RESET enable_hashjoin;
RESET enable_mergejoin;
SET statement_timeout = :'scan_timeout';
