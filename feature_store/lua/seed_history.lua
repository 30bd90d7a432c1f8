-- Replace the part of a history that came with a data set; events stay, and stay newer.
-- KEYS: history, erased users. ARGV: digest of the user id, history capacity, idle lifetime in seconds or 0, then the
-- item ids, oldest first. Seeded entries have negative times, which events never have. An erased user gets none.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(0')
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  return 0
end
for i = 4, #ARGV do
  redis.call('ZADD', KEYS[1], i - #ARGV - 1, string.format('%015d', i - 2) .. '::' .. ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[2] - 1)
if ARGV[3] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return 1
