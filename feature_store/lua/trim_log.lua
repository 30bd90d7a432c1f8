-- Remove the entries of a log that every group has acknowledged. KEYS: log. Returns how many.
local function parts(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end
local least_ms, least_number
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #flat, 2 do
    group[flat[i]] = flat[i + 1]
  end
  local ms, number
  if group['pending'] > 0 then
    ms, number = parts(redis.call('XPENDING', KEYS[1], group['name'])[2])
  else
    ms, number = parts(group['last-delivered-id'])
    number = number + 1
  end
  if not least_ms or ms < least_ms or (ms == least_ms and number < least_number) then
    least_ms, least_number = ms, number
  end
end
if not least_ms then
  return 0
end
return redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%d-%d', least_ms, least_number))
