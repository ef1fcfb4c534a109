-- name: by_month
-- Months as width_bucket numbers them; NULL is a row without a timestamp.
SELECT width_bucket(b."timestamp", %(months)s::{timestamp_type}[]) AS month,
       count(*) AS planned, count(s.seq) AS skipped
FROM {backup} b
LEFT JOIN assetclass.operation_skipped_row s
       ON s.correction_id = %(correction_id)s AND s.seq = b.seq
GROUP BY 1
