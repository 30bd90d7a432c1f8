-- The items that have changed since a version of the catalogue, in the order of their last changes.
-- KEYS: version, texts, numbers, changes, removed items. ARGV: that version, about how many to read.
-- Returns the version up to which all is read, the version of the catalogue, then for each item its id, its text or
-- false, its number or false, whether it is removed.
local version = tonumber(redis.call('GET', KEYS[1]) or '0')
local upto = version
local page = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
if #page == 2 * tonumber(ARGV[2]) then
  upto = tonumber(page[#page])
end
-- Those of one version come together, or the rest of them would never be read.
local reply = {upto, version}
for _, item in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. ARGV[1], upto)) do
  reply[#reply + 1] = item
  reply[#reply + 1] = redis.call('HGET', KEYS[2], item)
  reply[#reply + 1] = redis.call('ZSCORE', KEYS[3], item)
  reply[#reply + 1] = redis.call('SISMEMBER', KEYS[5], item)
end
return reply
