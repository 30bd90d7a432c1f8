-- Append events of one user to the event log and the history, each at most once.
-- KEYS: history, arrival counter, event log, then one idempotency key an event.
-- ARGV: history capacity, idempotency key lifetime in seconds, log capacity, then for each event:
-- time, fingerprint, event id, type, item.
-- Returns for each event 1 = accepted, 0 = duplicate, -1 = the id belongs to a different event.
local outcomes = {}
for i = 1, #KEYS - 3 do
  local time, fingerprint, event_id, event_type, item = unpack(ARGV, 5 * i - 1, 5 * i + 3)
  local known = redis.call('GET', KEYS[i + 3])
  if known then
    outcomes[i] = known == fingerprint and 0 or -1
  else
    -- Members of equal time are ordered by their bytes, so the zero-padded arrival number breaks ties of time.
    local arrival = string.format('%015d', redis.call('INCR', KEYS[2]))
    redis.call('ZADD', KEYS[1], time, arrival .. ':' .. event_type .. ':' .. item)
    -- The history drops what it has no room for; the log has every event, also one that arrives late.
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*',
      'event_id', event_id, 'item_id', item, 'event_type', event_type, 'timestamp', time)
    -- Last: should a write above fail, the id stays free and a retry is accepted.
    redis.call('SET', KEYS[i + 3], fingerprint, 'EX', ARGV[2])
    outcomes[i] = 1
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[1] - 1)
return outcomes
