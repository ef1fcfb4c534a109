-- Undoing a correction: which of its rows are asked about, what they hold now, and what became of
-- them. Its backup table holds in asset_class what is restored; the rollback's own plan (`undo`) is
-- shaped like a backup table the other way round, so that batches and sweep know no difference.

-- name: shape_plan
-- A backup table holds what a correction writes, which is never NULL.
ALTER TABLE {undo}
    ALTER COLUMN corrected_asset_class DROP NOT NULL,
    ADD COLUMN undone_seq bigint NOT NULL

-- name: correction
SELECT o.kind, o.status, o.dry_run, o.backup_table, o.plan, o.rollback_of::text,
       o.rolled_back_by::text, o.epoch,
       EXISTS (SELECT FROM assetclass.operation_batch b
               WHERE b.correction_id = o.correction_id AND b.records_corrected > 0)
FROM assetclass.operation o WHERE o.correction_id = %(undone)s

-- name: backup
-- Locked by who claims a rollback, so that a cleanup cannot drop the table in between.
SELECT dropped_at, dropped_by, drop_reason FROM assetclass.backup
WHERE correction_id = %(undone)s {lock}

-- name: begun
-- The plan that this very rollback has already, and whether it is complete.
SELECT plan, coalesce((plan ->> 'complete')::boolean, false)
FROM assetclass.operation WHERE correction_id = %(correction_id)s

-- name: begun_with
SELECT options FROM assetclass.operation
WHERE correction_id = %(correction_id)s AND kind = 'rollback'

-- name: cut_off
-- Earlier rollbacks of the same correction that did not come to their end.
SELECT correction_id, plan FROM assetclass.operation
WHERE rollback_of = %(undone)s AND correction_id <> %(correction_id)s AND NOT dry_run
  AND plan IS NOT NULL AND status NOT IN ('succeeded', 'requested', 'running', 'paused')

-- name: later_corrections
-- Newest first. One that resumed later counts from its first start: its rows were planned then.
SELECT later.correction_id::text, later.plan
FROM assetclass.operation later, assetclass.operation o
WHERE o.correction_id = %(undone)s AND later.kind = 'correction' AND NOT later.dry_run
  AND later.backup_table IS NOT NULL AND later.started_at > o.started_at
  AND EXISTS (SELECT FROM assetclass.operation_batch b
              WHERE b.correction_id = later.correction_id AND b.records_corrected > 0)
ORDER BY later.started_at DESC

-- name: changed_seqs
-- What an operation has written: in its ledger, and not skipped.
coalesce((SELECT range_agg(int8range(b.first_seq, b.last_seq, '[]'))
          FROM assetclass.operation_batch b
          WHERE b.correction_id = {operation} AND b.pass = 0), '{{}}'::int8multirange)
- coalesce((SELECT range_agg(int8range(s.seq, s.seq, '[]'))
            FROM assetclass.operation_skipped_row s
            WHERE s.correction_id = {operation} AND s.reason <> 'already_restored'),
           '{{}}'::int8multirange)

-- name: standing_seqs
-- What a correction has written and nobody but perhaps this rollback has put back yet.
{changed_seqs}
- coalesce((SELECT range_agg(part)
            FROM assetclass.operation_undone u, unnest(u.seqs) part
            WHERE u.correction_id = {operation} AND u.rollback_id IS DISTINCT FROM {except}),
           '{{}}'::int8multirange)

-- name: is_standing
SELECT NOT isempty({standing_seqs})

-- name: chosen
SELECT m.seq, m.id, m.symbol, m."timestamp", m.asset_class, m.corrected_asset_class
FROM {backup} m
WHERE m.seq <@ (SELECT {standing_seqs}) AND {is_chosen}

-- name: has_id
m.id::text = ANY (%(row_ids)s)

-- name: in_segments
m.seq BETWEEN %(lowest_seq)s AND %(highest_seq)s AND m.seq <@ %(segments)s::int8multirange

-- name: not_found_yet
-- Neither planned, nor in conflict, nor found restored.
NOT EXISTS (SELECT FROM {undo} u WHERE u.undone_seq = m.seq)
AND NOT EXISTS (SELECT FROM assetclass.operation_conflict c
                WHERE c.correction_id = %(correction_id)s AND c.seq = m.seq)
AND NOT m.seq <@ (SELECT coalesce((SELECT u.seqs FROM assetclass.operation_undone u
                                   WHERE u.correction_id = %(undone)s
                                     AND u.rollback_id = %(correction_id)s),
                                  '{{}}'::int8multirange))

-- name: survey
-- The chosen rows by the value that they get back, and whether some of them lack an id or a time.
SELECT c.asset_class::text, count(*), bool_or(c.id IS NULL), bool_or(c."timestamp" IS NULL)
FROM ({chosen}) c GROUP BY 1

-- name: unwritten
SELECT u.id, u.symbol, u."timestamp" FROM {undo} u
WHERE NOT u.seq <@ (SELECT {changed_seqs})

-- name: overlap
-- Rows that a later correction changed too. A row without an id cannot be told from others.
SELECT count(*)
FROM ({chosen}) c
JOIN (SELECT l.id, l.symbol, l."timestamp" FROM {later} l WHERE l.seq <@ (SELECT {later_seqs})) l
  ON l.id = c.id AND l.symbol::text = c.symbol::text
 AND l."timestamp" IS NOT DISTINCT FROM c."timestamp"

-- name: same_row
b.id = m.id AND b.symbol::text = m.symbol::text AND b."timestamp" = m."timestamp"

-- name: same_row_with_nulls
-- IS NOT DISTINCT FROM can drive no hash join; text can, and what looks alike is compared again.
coalesce(b.id::text, '') = coalesce(m.id::text, '') AND b.id IS NOT DISTINCT FROM m.id
AND b.symbol::text = m.symbol::text
AND coalesce(b."timestamp"::text, '') = coalesce(m."timestamp"::text, '')
AND b."timestamp" IS NOT DISTINCT FROM m."timestamp"

-- name: in_pages
m.ctid >= %(first_address)s::tid AND m.ctid < %(end_address)s::tid

-- name: candidates
-- What the chosen rows hold now, as far as they stand on some pages of one leaf. Only a hash join is
-- left to the planner (nested loops and merge joins are off in this transaction): its estimate of the
-- chosen rows is poor, and look-ups by key would cost ten times as much.
SELECT b.seq AS undone_seq, m.ctid AS address, b.id, b.symbol, b."timestamp",
       m.asset_class AS class_now, b.asset_class AS class_before,
       CASE WHEN m.asset_class::text IS NOT DISTINCT FROM b.asset_class::text THEN 2::smallint
            WHEN %(take_backup_value)s
                 OR m.asset_class::text IS NOT DISTINCT FROM b.corrected_asset_class::text
            THEN 1::smallint ELSE 3::smallint END AS fate
FROM {leaf} m JOIN ({chosen}) b ON {same_row}
WHERE {in_pages}

-- name: found
-- Each chosen row is at one place at most: a key says so. Fates: 1 planned, 2 restored, 3 changed.
found AS MATERIALIZED ({candidates})

-- name: found_among_alike
-- Of rows alike in everything, the n-th chosen one takes the n-th that can be restored; then the
-- rest of them those that are restored, and the rest of those what is left.
candidates AS MATERIALIZED ({candidates}),
planned AS MATERIALIZED (
    SELECT c.* FROM (
        SELECT c.*, dense_rank() OVER (PARTITION BY c.undone_seq ORDER BY c.address) AS place,
               dense_rank() OVER (PARTITION BY c.address ORDER BY c.undone_seq) AS turn
        FROM candidates c WHERE c.fate = 1) c
    WHERE c.place = c.turn
), restored AS MATERIALIZED (
    SELECT c.* FROM (
        SELECT c.*, dense_rank() OVER (PARTITION BY c.undone_seq ORDER BY c.address) AS place,
               dense_rank() OVER (PARTITION BY c.address ORDER BY c.undone_seq) AS turn
        FROM candidates c
        WHERE c.fate = 2
          AND NOT EXISTS (SELECT FROM planned p WHERE p.undone_seq = c.undone_seq)
          AND NOT EXISTS (SELECT FROM planned p WHERE p.address = c.address)) c
    WHERE c.place = c.turn
), settled AS MATERIALIZED (
    SELECT * FROM planned UNION ALL SELECT * FROM restored
), changed AS MATERIALIZED (
    SELECT c.* FROM (
        SELECT c.*, dense_rank() OVER (PARTITION BY c.undone_seq ORDER BY c.address) AS place,
               dense_rank() OVER (PARTITION BY c.address ORDER BY c.undone_seq) AS turn
        FROM candidates c
        WHERE NOT EXISTS (SELECT FROM settled s WHERE s.undone_seq = c.undone_seq)
          AND NOT EXISTS (SELECT FROM settled s WHERE s.address = c.address)) c
    WHERE c.place = c.turn AND c.fate = 3
), found AS MATERIALIZED (
    SELECT * FROM settled UNION ALL SELECT * FROM changed
)

-- name: add_chunk
-- As in a correction's plan, batches visit a page several times where many of its rows are written,
-- stripe by stripe of rows, so that a visit finds in memory what the one before it has read. The
-- scan gives rows in physical order (nearly so, where the hash took several turns), so that a row's
-- place tells its number without a sort: whole stripes before it, then in its own stripe of `n` rows
-- the earlier visits, then the rows of its visit.
WITH {found}, added AS (
    INSERT INTO {undo} (seq, id, symbol, "timestamp", asset_class, corrected_asset_class,
                        source_table, source_address, undone_seq)
    SELECT %(last_seq)s + 1 + s.first
               + s.visit * (s.n / %(visits)s) + least(s.visit, s.n %% %(visits)s)
               + (s.nth - s.first) / %(visits)s,
           s.id, s.symbol, s."timestamp", s.class_now, s.class_before{class_cast},
           %(leaf)s::oid, s.address, s.undone_seq
    FROM (SELECT p.*, p.nth - p.nth %% %(stripe)s AS first, p.nth %% %(visits)s AS visit,
                 least(%(stripe)s, (SELECT count(*) FROM found WHERE fate = 1)
                                   - p.nth + p.nth %% %(stripe)s) AS n
          FROM (SELECT f.*, row_number() OVER () - 1 AS nth
                FROM found f WHERE f.fate = 1) p) s
), conflicts AS (
    INSERT INTO assetclass.operation_conflict (correction_id, seq, id, symbol, "timestamp",
        class_before, class_corrected, class_now, reason)
    SELECT %(correction_id)s, f.undone_seq, f.id::text, f.symbol::text, f."timestamp"::text,
           f.class_before::text, b.corrected_asset_class::text, f.class_now::text,
           'changed_by_others'
    FROM found f JOIN {backup} b ON b.seq = f.undone_seq WHERE f.fate = 3
){noted}
SELECT count(*) FILTER (WHERE fate = 1), count(*) FILTER (WHERE fate = 2),
       (range_agg(int8range(undone_seq, undone_seq, '[]')) FILTER (WHERE fate = 2))::text
FROM found

-- name: note_restored
-- A dry run puts nothing on record, and yet must know until its scan ends what that has met.
, noted AS (
    INSERT INTO {undo} (seq, id, symbol, "timestamp", asset_class, corrected_asset_class,
                        source_table, source_address, undone_seq)
    SELECT -f.undone_seq, f.id, f.symbol, f."timestamp", f.class_now, f.class_before{class_cast},
           %(leaf)s::oid, f.address, f.undone_seq
    FROM found f WHERE f.fate = 2
)

-- name: forget_restored
DELETE FROM {undo} WHERE seq < 0

-- name: add_rest
-- Rows that the scan has not met: deleted, or moved while it ran. They are planned without an
-- address, as what the correction wrote; the sweep looks for them by key.
WITH added AS (
    INSERT INTO {undo} (seq, id, symbol, "timestamp", asset_class, corrected_asset_class,
                        source_table, source_address, undone_seq)
    SELECT %(last_seq)s + row_number() OVER (ORDER BY b.seq), b.id, b.symbol, b."timestamp",
           b.corrected_asset_class{class_cast}, b.asset_class{class_cast}, 0, '(0,0)', b.seq
    FROM ({chosen}) b
    RETURNING seq
)
SELECT count(*) FROM added

-- name: forget_plan
-- A plan that is made anew judges every row anew.
WITH conflicts AS (
    DELETE FROM assetclass.operation_conflict WHERE correction_id = %(correction_id)s
), undone AS (
    DELETE FROM assetclass.operation_undone WHERE rollback_id = %(correction_id)s
)
UPDATE assetclass.operation SET already_restored = 0 WHERE correction_id = %(correction_id)s

-- name: count_restored
UPDATE assetclass.operation SET already_restored = already_restored + %(records)s
WHERE correction_id = %(correction_id)s

-- name: remember_undone
INSERT INTO assetclass.operation_undone AS u (correction_id, rollback_id, seqs)
VALUES (%(undone)s, %(correction_id)s, %(seqs)s::int8multirange)
ON CONFLICT (correction_id, rollback_id) DO UPDATE SET seqs = u.seqs + excluded.seqs

-- name: record_undone
-- What a rollback has written, in the numbers of the correction's backup table.
INSERT INTO assetclass.operation_undone AS old (correction_id, rollback_id, seqs)
SELECT %(undone)s, %(correction_id)s, written.seqs FROM (SELECT {written} AS seqs) written
WHERE NOT isempty(written.seqs)
ON CONFLICT (correction_id, rollback_id) DO UPDATE SET seqs = old.seqs + excluded.seqs

-- name: written_of_some
coalesce((SELECT range_agg(int8range(u.undone_seq, u.undone_seq, '[]'))
          FROM {undo} u WHERE u.seq <@ (SELECT {changed_seqs})), '{{}}'::int8multirange)

-- name: written_of_all
-- All that stood, but for what is in conflict and what was not written: sorting the few instead of
-- the many saves a second for each million rows.
{standing_seqs}
- coalesce((SELECT range_agg(int8range(c.seq, c.seq, '[]')) FROM assetclass.operation_conflict c
            WHERE c.correction_id = %(correction_id)s), '{{}}'::int8multirange)
- coalesce((SELECT range_agg(int8range(u.undone_seq, u.undone_seq, '[]'))
            FROM {undo} u WHERE NOT u.seq <@ (SELECT {changed_seqs})), '{{}}'::int8multirange)

-- name: mark_rolled_back
-- Undone is a correction of whose rows none holds its class any more: each is restored, or somebody
-- else changed or deleted it. Rows that were locked or refused still stand; also where an earlier
-- rollback found them changed, for this one has found them as the correction left them.
-- Ranges, and no join to the plan: its rows are many, and the planner knows nothing of them.
WITH conflicts AS MATERIALIZED (
    SELECT range_agg(int8range(c.seq, c.seq, '[]'))
               FILTER (WHERE c.correction_id = %(correction_id)s) AS own,
           range_agg(int8range(c.seq, c.seq, '[]'))
               FILTER (WHERE c.correction_id <> %(correction_id)s) AS earlier
    FROM assetclass.operation_conflict c JOIN assetclass.operation o USING (correction_id)
    WHERE o.rollback_of = %(undone)s AND NOT o.dry_run
), planned AS MATERIALIZED (
    SELECT range_agg(int8range(u.undone_seq, u.undone_seq, '[]')) AS again
    FROM {undo} u WHERE u.undone_seq <@ (SELECT earlier FROM conflicts)
)
UPDATE assetclass.operation SET rolled_back_by = %(correction_id)s
WHERE correction_id = %(undone)s AND rolled_back_by IS NULL
  AND isempty({standing_seqs}
      - coalesce((SELECT own FROM conflicts), '{{}}'::int8multirange)
      - (coalesce((SELECT earlier FROM conflicts), '{{}}'::int8multirange)
         - coalesce((SELECT again FROM planned), '{{}}'::int8multirange)))

-- name: left_rows
-- Planned rows that were not found as planned, and whose end may be known better by now.
SELECT seq FROM assetclass.operation_skipped_row
WHERE correction_id = %(correction_id)s AND seq > %(after)s
  AND reason IN ('moved_or_changed', 'changed_by_others', 'deleted', 'already_restored')
ORDER BY seq LIMIT %(most)s

-- name: unfound_rows
SELECT seq FROM {undo} WHERE source_table = 0 AND seq > %(after)s ORDER BY seq LIMIT %(most)s

-- name: count_unfound
SELECT count(*) FROM {undo} WHERE source_table = 0

-- name: holds_now
-- What stands under the keys of planned rows in one table; alike rows answer for each other.
WITH {wanted}
SELECT w.seq, w.id IS NULL, m.asset_class::text, {value}, {as_corrected}
FROM wanted w CROSS JOIN {leaf} m
WHERE {restricted} AND {same_row}

-- name: forget_conflicts
-- Of planned rows: an earlier try may have judged them otherwise.
DELETE FROM assetclass.operation_conflict c USING {undo} u
WHERE c.correction_id = %(correction_id)s AND u.undone_seq = c.seq

-- name: record_conflicts
-- What a planned row held is what the correction wrote, or, where the backup's value is taken
-- whatever stands there, what others had made of it by then.
INSERT INTO assetclass.operation_conflict (correction_id, seq, id, symbol, "timestamp",
    class_before, class_corrected, class_now, reason)
SELECT %(correction_id)s, u.undone_seq, u.id::text, u.symbol::text, u."timestamp"::text,
       u.corrected_asset_class::text, u.asset_class::text, l.class_now, %(reason)s
FROM unnest(%(seqs)s::bigint[], %(classes_now)s::text[]) AS l (seq, class_now)
JOIN {undo} u ON u.seq = l.seq
ON CONFLICT (correction_id, seq) DO UPDATE
SET class_now = excluded.class_now, reason = excluded.reason

-- name: unplan
-- Of a dry run, which has no ledger: rows that a rollback would leave.
DELETE FROM {undo} WHERE seq = ANY (%(seqs)s::bigint[])

-- name: effect
-- Rows that change, by the value they held, the one they get, and the class of their symbol.
SELECT c.old_class, c.new_class, mapping.asset_class, sum(c.records)
FROM assetclass.operation_change c
LEFT JOIN ({mapping}) mapping ON mapping.ticker = c.symbol COLLATE "C"
WHERE c.correction_id = %(correction_id)s
GROUP BY 1, 2, 3

-- name: null_refused
-- Leaves whose column takes no NULL any more, by a constraint of its own or of its type.
SELECT n.nspname || '.' || c.relname
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = ANY (%(leaves)s::oid[]) AND a.attname = 'asset_class'
  AND (a.attnotnull OR t.typnotnull)
ORDER BY 1

-- name: table_pages
SELECT (pg_relation_size(c.oid) / current_setting('block_size')::integer)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: judged
-- Rows that the plan's scan has put elsewhere: found restored, and found changed.
SELECT o.already_restored, (SELECT count(*) FROM assetclass.operation_conflict c
                            WHERE c.correction_id = o.correction_id)
FROM assetclass.operation o WHERE o.correction_id = %(correction_id)s
