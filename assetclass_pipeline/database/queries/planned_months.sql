-- name: by_month
-- Months as width_bucket numbers them; NULL is a row without a timestamp.
SELECT width_bucket(b."timestamp", %(months)s::{timestamp_type}[]) AS month,
       count(*) AS planned, count(s.seq) AS skipped
FROM {backup} b
LEFT JOIN assetclass.operation_skipped_row s
       ON s.correction_id = %(correction_id)s AND s.seq = b.seq
GROUP BY 1

-- name: rolled_back_by_month
-- Of a rollback, in the rows of the correction's backup table: restored ones are ranges of seq there.
SELECT width_bucket(met."timestamp", %(months)s::{timestamp_type}[]) AS month,
       count(*) FILTER (WHERE met.restored) AS restored,
       count(*) FILTER (WHERE NOT met.restored) AS conflicting
FROM (SELECT b."timestamp", true AS restored
      FROM assetclass.operation_undone u CROSS JOIN unnest(u.seqs) range
      JOIN {backup} b ON b.seq >= lower(range) AND b.seq < upper(range)
      WHERE u.rollback_id = %(correction_id)s AND u.correction_id = %(undone)s
      UNION ALL
      SELECT b."timestamp", false
      FROM assetclass.operation_conflict c JOIN {backup} b ON b.seq = c.seq
      WHERE c.correction_id = %(correction_id)s) met
GROUP BY 1
