-- Append events of one user to the history, each at most once.
-- KEYS: history, arrival counter, then one idempotency key an event.
-- ARGV: history capacity, idempotency key lifetime in seconds, then for each event: time, fingerprint, "type:item".
-- Returns for each event 1 = accepted, 0 = duplicate, -1 = the id belongs to a different event.
local outcomes = {}
for i = 1, #KEYS - 2 do
  local time, fingerprint, content = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  local known = redis.call('GET', KEYS[i + 2])
  if known then
    outcomes[i] = known == fingerprint and 0 or -1
  else
    -- Members of equal time are ordered by their bytes, so the zero-padded arrival number breaks ties of time.
    local arrival = string.format('%015d', redis.call('INCR', KEYS[2]))
    redis.call('ZADD', KEYS[1], time, arrival .. ':' .. content)
    -- Last: should a write above fail, the id stays free and a retry is accepted.
    redis.call('SET', KEYS[i + 2], fingerprint, 'EX', ARGV[2])
    outcomes[i] = 1
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[1] - 1)
return outcomes
