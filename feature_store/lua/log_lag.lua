-- How far a group is behind in one log. KEYS: log. ARGV: group.
-- Returns the number of entries that it has not acknowledged and the age of the oldest in milliseconds.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {0, 0}
end
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #flat, 2 do
    group[flat[i]] = flat[i + 1]
  end
  if group['name'] == ARGV[1] then
    -- The server loses count when entries were erased; then no more are unread than there are.
    local entries = group['lag'] and group['lag'] + group['pending'] or redis.call('XLEN', KEYS[1])
    local oldest
    if group['pending'] > 0 then
      oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2]
    else
      local unread = redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
      if #unread == 0 then
        return {0, 0}
      end
      oldest = unread[1][1]
    end
    local now = redis.call('TIME')
    local ms = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(string.match(oldest, '^%d+'))
    return {entries, math.max(0, ms)}
  end
end
-- Nobody has ever read.
return {redis.call('XLEN', KEYS[1]), 0}
