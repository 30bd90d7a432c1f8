-- Append events of one user to the write-ahead log, the user's own log and the history, each at most once.
-- KEYS: history, arrival counter, user's log, profile, write-ahead log, its groups, then one idempotency key an event.
-- ARGV: user id, history capacity, idempotency key lifetime in seconds, capacity of the user's log, capacity of the
-- write-ahead log while nobody reads it, idle lifetime of the user's keys in seconds or 0, then for each event: time,
-- fingerprint, event id, type, item, the recommendation that led to it or an empty text.
-- Returns for each event 1 = accepted, 0 = duplicate, -1 = the id belongs to a different event.
local outcomes = {}
for i = 1, #KEYS - 6 do
  local time, fingerprint, event_id, event_type, item, recommendation = unpack(ARGV, 6 * i + 1, 6 * i + 6)
  local known = redis.call('GET', KEYS[i + 6])
  if known then
    -- A write, so that who waits for the disk now also waits for the event that this one repeats.
    redis.call('EXPIRE', KEYS[i + 6], ARGV[3])
    outcomes[i] = known == fingerprint and 0 or -1
  else
    -- Members of equal time are ordered by their bytes, so the zero-padded arrival number breaks ties of time.
    local arrival = string.format('%015d', redis.call('INCR', KEYS[2]))
    redis.call('ZADD', KEYS[1], time, arrival .. ':' .. event_type .. ':' .. item)
    local fields = {'event_id', event_id, 'item_id', item, 'event_type', event_type, 'timestamp', time}
    if recommendation ~= '' then
      fields[9], fields[10] = 'recommendation_id', recommendation
    end
    local place = redis.call('XADD', KEYS[5], '*', 'user_id', ARGV[1], unpack(fields))
    -- The history drops what it has no room for; the log has every event, also one that arrives late.
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'wal', place, unpack(fields))
    -- Last: should a write above fail, the id stays free and a retry is accepted.
    redis.call('SET', KEYS[i + 6], fingerprint, 'EX', ARGV[3])
    outcomes[i] = 1
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[2] - 1)
-- A log that somebody reads is trimmed by the reader, up to where it has read.
if redis.call('EXISTS', KEYS[6]) == 0 then
  redis.call('XTRIM', KEYS[5], 'MAXLEN', '~', ARGV[5])
end
if ARGV[6] ~= '0' then
  for i = 1, 4 do
    redis.call('EXPIRE', KEYS[i], ARGV[6])
  end
end
return outcomes
