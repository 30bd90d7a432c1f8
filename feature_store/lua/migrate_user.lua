-- Move one user from layout 1 to layout 2, whole or not at all.
-- KEYS: history, arrival counter, log, profile of layout 1, the same of layout 2, write-ahead log. ARGV: user id.
-- The events of the user's log join the write-ahead log, so that the offline store gets them.
if redis.call('EXISTS', KEYS[3]) == 1 and redis.call('EXISTS', KEYS[7]) == 0 then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[3], '-', '+')) do
    local place = redis.call('XADD', KEYS[9], '*', 'user_id', ARGV[1], unpack(entry[2]))
    redis.call('XADD', KEYS[7], '*', 'wal', place, unpack(entry[2]))
  end
  redis.call('DEL', KEYS[3])
end
for _, i in ipairs({1, 2, 4}) do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('RENAMENX', KEYS[i], KEYS[i + 4])
  end
end
return 1
