-- Rename a key, if it is there: a scan may name one twice, and an interrupted migration may have moved it.
-- KEYS: old, new.
return redis.call('EXISTS', KEYS[1]) == 1 and redis.call('RENAME', KEYS[1], KEYS[2])
