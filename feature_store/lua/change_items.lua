-- Change items of the catalogue, and raise its version if any is not as it was.
-- KEYS: version, texts, numbers, changes, removed items. ARGV: for each item its id and its text, '' to remove it.
-- Returns the version, then for each item 1 = changed, 0 = as it was.
local version = tonumber(redis.call('GET', KEYS[1]) or '0')
local reply, changed = {version}, {}
for i = 1, #ARGV, 2 do
  local item, text = ARGV[i], ARGV[i + 1]
  local is_removed = redis.call('SISMEMBER', KEYS[5], item) == 1
  local is_new
  if text == '' then
    is_new = not is_removed
    redis.call('SADD', KEYS[5], item)
  else
    is_new = is_removed or redis.call('HGET', KEYS[2], item) ~= text
    redis.call('SREM', KEYS[5], item)
    redis.call('HSET', KEYS[2], item, text)
    -- Numbers are never given back: they say in which order models append items.
    redis.call('ZADD', KEYS[3], 'NX', redis.call('ZCARD', KEYS[3]), item)
  end
  if is_new then
    changed[#changed + 1] = item
  end
  reply[#reply + 1] = is_new and 1 or 0
end
if #changed > 0 then
  version = version + 1
  for _, item in ipairs(changed) do
    redis.call('ZADD', KEYS[4], version, item)
  end
end
-- A write in any case: who waits for the disk now also waits for the change that this one repeats.
redis.call('SET', KEYS[1], version)
reply[1] = version
return reply
