-- Make a consumer group that begins at the oldest entry of a log, unless it is there.
-- KEYS: log, its groups. ARGV: group, id of the place that its entries go to.
-- Returns that id, or another one if the entries of this group go elsewhere.
local owner = redis.call('HGET', KEYS[2], ARGV[1])
if owner and owner ~= ARGV[2] then
  return owner
end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP') then
  return made
end
-- From now on the writer leaves trimming to the readers.
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return ARGV[2]
