-- Hold a lease, for the first time or again, unless somebody else does. KEYS: lease. ARGV: who, for how many
-- milliseconds (0: end it), what others may read of it. Returns 1, or 0 if somebody else holds it.
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[3], 'PX', ARGV[2])
end
return 1
