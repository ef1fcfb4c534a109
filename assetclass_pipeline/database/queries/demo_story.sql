-- What the demo shows to people; nothing here is executed by the pipeline.

-- name: manual_recovery
-- The operations guide's procedure; it also overwrites rows that others changed since.
UPDATE {market}
SET asset_class = backup.asset_class, updated_at = CURRENT_TIMESTAMP
FROM {backup} backup
WHERE {market_name}.id = backup.id;
