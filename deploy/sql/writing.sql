-- Read by the two scripts that write: the session's settings, and every reason not to begin.

\set AUTOCOMMIT on
\if :{?dry_run} \else \set dry_run off \endif
\if :{?batch_size} \else \set batch_size 1000 \endif
\if :{?pause} \else \set pause 0 \endif
\if :{?lock_timeout} \else \set lock_timeout 800ms \endif
\if :{?batch_timeout} \else \set batch_timeout 1min \endif

SET default_transaction_isolation = 'read committed';
-- Where row security would hide rows from us, an error is better than half of the work.
SET row_security = off;
SET jit = off;
-- Less than PostgreSQL's deadlock_timeout: we give way, not the application.
SET lock_timeout = :'lock_timeout';
SET statement_timeout = :'scan_timeout';

-- psql puts no variables into the text between two $$, so the server keeps these.
SELECT set_config('manual.market', format('%I.%I', :'market_schema', :'market_table'), false),
       set_config('manual.backup', format('%I.%I', :'backup_schema', :'backup_table'), false)
\gset ignored_

-- COMMIT fails inside a transaction, psql's option -1 for example: all batches would be one.
DO $$
DECLARE
    market regclass := current_setting('manual.market');
    is_active boolean := false;
BEGIN
    COMMIT;
    IF to_regclass('assetclass.operation') IS NOT NULL THEN
        EXECUTE 'SELECT EXISTS (SELECT FROM assetclass.operation '
                'WHERE status IN (''requested'', ''running'', ''paused''))' INTO is_active;
    END IF;
    IF is_active THEN
        RAISE 'An operation of the pipeline is active: let it end, or cancel it.';
    ELSIF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL OR EXISTS (
              SELECT FROM pg_class WHERE relkind NOT IN ('r', 'p') AND (oid = market
                  OR oid IN (SELECT relid FROM pg_partition_tree(market)))) THEN
        RAISE '% is not, or not only, an ordinary table of this server: use the command.', market;
    END IF;
END $$;

-- What the statement of a batch says besides: an enum wants a cast, and not every table has
-- updated_at.
SELECT coalesce(max('::' || atttypid::regtype) FILTER (WHERE attname = 'asset_class'
           AND 'e' IN (t.typtype, (SELECT typtype FROM pg_type WHERE oid = t.typbasetype))), '')
           AS class_cast,
       coalesce(max(', updated_at = CURRENT_TIMESTAMP') FILTER (WHERE attname = 'updated_at'), '')
           AS set_updated_at
FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
WHERE attrelid = current_setting('manual.market')::regclass AND NOT attisdropped \gset
