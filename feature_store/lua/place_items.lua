-- Keep where a model places items, once for each, no two at one place, and raise the catalogue's version if any is new.
-- KEYS: version, changes, placements, places that are taken. ARGV: for each item its id, its place, its placement.
-- Returns for each item 1 = kept, 0 = it had a placement, which stays, -1 = another item has the place.
local reply, kept = {}, {}
for i = 1, #ARGV, 3 do
  local item, place, text = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('HEXISTS', KEYS[3], item) == 1 then
    reply[#reply + 1] = 0
  elseif redis.call('HSETNX', KEYS[4], place, item) == 0 then
    reply[#reply + 1] = -1
  else
    redis.call('HSET', KEYS[3], item, text)
    kept[#kept + 1] = item
    reply[#reply + 1] = 1
  end
end
if #kept > 0 then
  local version = redis.call('INCR', KEYS[1])
  for _, item in ipairs(kept) do
    redis.call('ZADD', KEYS[2], version, item)
  end
end
return reply
