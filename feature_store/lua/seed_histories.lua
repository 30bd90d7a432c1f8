-- Replace the part of the histories of a shard's users that came with a data set; events stay, and stay newer.
-- KEYS: erased users, then a history a user. ARGV: history capacity, idle lifetime in seconds or 0, then as JSON for each
-- user an array: digest of the user id, then the item ids, oldest first. Seeded entries have negative times, which
-- events never have. An erased user gets none.
-- Returns for each user 1, or 0 if the user is erased.
local data = cjson.decode(ARGV[3])
local has_erased = redis.call('EXISTS', KEYS[1]) == 1
local places, entries, done = {}, {}, {}
for user = 1, #data do
  local history, items = KEYS[user + 1], data[user]
  -- Most users have nothing yet.
  local is_known = redis.call('EXISTS', history) == 1
  if is_known then
    redis.call('ZREMRANGEBYSCORE', history, '-inf', '(0')
  end
  if has_erased and redis.call('SISMEMBER', KEYS[1], items[1]) == 1 then
    done[user] = 0
  else
    local last = #items
    -- One command for many entries, but a call takes no more than 8000 values.
    for first = 2, last, 1000 do
      local n = 0
      -- The newest first: a short sorted set looks for the place of an entry from its lowest score on.
      for i = math.min(first + 999, last), first, -1 do
        places[i] = places[i] or string.format('%015d::', i - 1)
        entries[n + 1], entries[n + 2] = i - last - 1, places[i] .. items[i]
        n = n + 2
      end
      redis.call('ZADD', history, unpack(entries, 1, n))
    end
    if is_known then
      redis.call('ZREMRANGEBYRANK', history, 0, -ARGV[1] - 1)
    end
    if ARGV[2] ~= '0' then
      redis.call('EXPIRE', history, ARGV[2])
    end
    done[user] = 1
  end
end
return done
