-- Erase what is known of a user, and tell the readers of the write-ahead log to do the same.
-- KEYS: history, arrival counter, user's log, profile, session, what is left of an erased log, write-ahead log, erased
-- users. ARGV: digest of the user id, lifetime in seconds of what is left of the log.
-- The caller deletes the idempotency keys and log entries that KEYS[6] names, and then it.
-- Returns 1 if anything was known, 0 if not, -1 if an earlier erasure has to be ended first.
if redis.call('EXISTS', KEYS[6]) == 1 then
  return -1
end
local known = redis.call('EXISTS', KEYS[1], KEYS[3], KEYS[4], KEYS[5])
redis.call('SADD', KEYS[8], ARGV[1])
-- Everything of this user before this entry is void, also what a reader holds and has not written yet.
redis.call('XADD', KEYS[7], '*', 'erased', ARGV[1])
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('RENAME', KEYS[3], KEYS[6])
  redis.call('EXPIRE', KEYS[6], ARGV[2])
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[4], KEYS[5])
return known > 0 and 1 or 0
