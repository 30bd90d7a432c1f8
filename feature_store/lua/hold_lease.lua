-- Take a lease that nobody holds, or hold one's own for longer. One that has run out is lost: who knows who had it since.
-- KEYS: lease. ARGV: who, for how many milliseconds (0: end it), what others may read of it, 'take' or 'keep'.
-- Returns 1, or 0 if it is not the caller's.
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] or not held and ARGV[4] ~= 'take' then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[3], 'PX', ARGV[2])
end
return 1
