-- Replace the part of a history that came with a data set; events stay, and stay newer.
-- KEYS: history. ARGV: history capacity, then the item ids, oldest first.
-- Seeded entries have negative times, which events never have.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(0')
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], i - #ARGV - 1, string.format('%015d', i) .. '::' .. ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[1] - 1)
