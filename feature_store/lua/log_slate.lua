-- Put a list that was shown to a user into the write-ahead log.
-- KEYS: history, write-ahead log, its groups. ARGV: the list as JSON.
-- Returns 1 if it is in, 0 if the user is not known (erased meanwhile, for instance) or nobody reads the log.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[3]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', 'slate', ARGV[1])
return 1
